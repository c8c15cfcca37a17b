"""The micro-batcher with real ONNX Runtime sessions: which jobs are decoded together."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import pytest
from tiny_bundle import POISON

from service.batching.batcher import LONGEST_BATCH_S, MicroBatcher
from service.batching.lanes import Answer, Engine, Lanes, Ticket, Wait
from service.batching.latency_model import Work
from service.bundles.bundle import Bundle
from service.decoding import Decoded, Job, Schedule, Timings
from service.errors import DeadlineExceeded, DecodeFailed, NotReady, Overloaded
from service.telemetry.metrics import Metrics

PATIENCE_S = 60  # for what must come


class Clock:
    """What batcher and lanes take for the module `time`. A story may put it forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("batcher", "lanes"):
        monkeypatch.setattr(f"service.batching.{module}.time", clock)
    return clock


class Decoder:
    """The real `decode`. It notes its batches, and waits while `gate` is closed."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.batches: list[list[Job]] = []
        self.engine = Engine(self)

    def __call__(self, jobs: Sequence[Job], on_answer: OnAnswer) -> tuple[list[Decoded], Timings]:
        self.batches.append(list(jobs))
        self.entered.set()
        assert self.gate.wait(PATIENCE_S)
        return self.bundle.decoder.decode(jobs, on_answer)

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]


OnAnswer = Callable[[int, Decoded, Timings], None]
Story = Callable[[MicroBatcher, Decoder], Awaitable[None]]


def tell(
    bundle: Bundle,
    story: Story,
    *,
    max_queue_rows: int = 1000,
    max_batch_requests: int = 16,
    max_batch_rows: int = 1024,
    max_wait_s: float = math.inf,
) -> None:
    """Run a story with a batcher whose decoder waits for its gate."""

    async def run() -> None:
        decoder = Decoder(bundle)
        batcher = MicroBatcher(
            Metrics(),
            max_queue_rows=max_queue_rows,
            max_batch_requests=max_batch_requests,
            max_batch_rows=max_batch_rows,
            max_wait_s=max_wait_s,
        )
        batcher.start()
        try:
            await story(batcher, decoder)
        finally:
            decoder.gate.set()
            await batcher.stop()

    asyncio.run(asyncio.wait_for(run(), 120))


def job(bundle: Bundle, *item_ids: str, beam_width: int = 10) -> Job:
    schedule = Schedule.from_params(num_subspaces=4, r_warm=2, m_par=2)
    return Job(bundle.catalogue.rows_of(item_ids), 5, schedule, beam_width)


def soon() -> float:
    """A deadline that no story reaches."""
    return time.monotonic() + 1000


async def submitted(
    batcher: MicroBatcher, by: Decoder | Engine, jobs: Sequence[Job], deadline: float = math.inf
) -> list[asyncio.Task[Answer]]:
    engine = by if isinstance(by, Engine) else by.engine
    tasks = [asyncio.create_task(batcher.submit(engine, job, deadline)) for job in jobs]
    await asyncio.sleep(0)  # each task runs up to its place in the queue
    return tasks


async def while_busy(
    batcher: MicroBatcher, decoder: Decoder, beam_width: int = 10
) -> asyncio.Task[Answer]:
    """Submit a job that occupies the decode thread until the gate opens."""
    first_job = job(decoder.bundle, "item-0", beam_width=beam_width)
    [first] = await submitted(batcher, decoder, [first_job])
    assert await asyncio.to_thread(decoder.entered.wait, PATIENCE_S)
    return first


def test_jobs_that_arrive_while_a_batch_runs_are_the_next_batch(bundle: Bundle) -> None:
    jobs = [job(bundle, f"item-{n}", f"item-{2 * n}") for n in range(5)]

    async def story(batcher: MicroBatcher, decoder: Decoder) -> None:
        first = await while_busy(batcher, decoder)
        assert decoder.sizes == [1]  # a single job starts at once
        others = await submitted(batcher, decoder, jobs)
        decoder.gate.set()
        answers = await asyncio.gather(first, *others)
        assert decoder.sizes == [1, 5]
        for one, answer in zip(jobs, answers[1:], strict=True):
            [alone], _ = bundle.decoder.decode([one])
            assert answer.decoded.rows.tolist() == alone.rows.tolist()
            np.testing.assert_allclose(answer.decoded.scores, alone.scores, atol=1e-5)
            assert answer.queue_s > 0
            assert answer.timings.denoise_s > 0

    tell(bundle, story)


def test_the_next_batch_does_not_wait_for_the_event_loop(bundle: Bundle) -> None:
    async def story(batcher: MicroBatcher, decoder: Decoder) -> None:
        first = await while_busy(batcher, decoder)
        others = await submitted(batcher, decoder, [job(bundle, f"item-{n}") for n in range(3)])
        decoder.gate.set()
        until = time.monotonic() + PATIENCE_S
        while len(decoder.batches) < 4 and time.monotonic() < until:
            time.sleep(0.001)
        assert decoder.sizes == [1, 1, 1, 1]
        answers = await asyncio.gather(first, *others)
        assert all(len(answer.decoded.rows) == 5 for answer in answers)

    tell(bundle, story, max_batch_requests=1)


def test_nobody_waits_for_ever_when_forming_a_batch_fails(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(batcher: MicroBatcher, decoder: Decoder) -> None:
        first = await while_busy(batcher, decoder)
        [second] = await submitted(batcher, decoder, [job(bundle, "item-1")])

        def fail(value: float) -> None:
            raise MemoryError

        monkeypatch.setattr(batcher._metrics.batch_requests, "observe", fail)
        decoder.gate.set()
        results = await asyncio.gather(first, second, return_exceptions=True)
        assert [type(result) for result in results] == [Answer, NotReady]
        assert not batcher.is_alive

    tell(bundle, story)


@pytest.mark.parametrize(
    ("bounds", "sizes"),
    [({"max_batch_requests": 2}, [1, 2, 2, 1]), ({"max_batch_rows": 39}, [1, 3, 2])],
)
def test_a_batch_is_bounded_by_requests_and_by_rows(
    bundle: Bundle, bounds: dict[str, int], sizes: list[int]
) -> None:
    async def story(batcher: MicroBatcher, decoder: Decoder) -> None:
        first = await while_busy(batcher, decoder)
        others = await submitted(batcher, decoder, [job(bundle, f"item-{n}") for n in range(5)])
        decoder.gate.set()
        await asyncio.gather(first, *others)
        assert decoder.sizes == sizes

    tell(bundle, story, **bounds)


def test_a_job_wider_than_a_batch_is_decoded_alone(bundle: Bundle) -> None:
    async def story(batcher: MicroBatcher, decoder: Decoder) -> None:
        decoder.gate.set()
        await batcher.submit(decoder.engine, job(bundle, "item-1", beam_width=20), soon())

    tell(bundle, story, max_batch_rows=10)


def test_one_bad_job_does_not_fail_its_neighbours(bundle: Bundle) -> None:
    jobs = [job(bundle, "item-1"), job(bundle, "item-2", POISON), job(bundle, "item-3")]

    async def story(batcher: MicroBatcher, decoder: Decoder) -> None:
        first = await while_busy(batcher, decoder)
        others = await submitted(batcher, decoder, jobs)
        decoder.gate.set()
        results = await asyncio.gather(first, *others, return_exceptions=True)
        assert [type(result) for result in results] == [Answer, Answer, DecodeFailed, Answer]
        assert decoder.sizes == [1, 3, 1, 1, 1]  # together, then each once more
        assert batcher.is_alive

    tell(bundle, story)


def test_a_cancelled_job_never_enters_a_batch(bundle: Bundle) -> None:
    async def story(batcher: MicroBatcher, decoder: Decoder) -> None:
        first = await while_busy(batcher, decoder)
        gone, stays = await submitted(
            batcher, decoder, [job(bundle, "item-1"), job(bundle, "item-2")]
        )
        gone.cancel()
        await asyncio.wait([gone])
        decoder.gate.set()
        await asyncio.gather(first, stays)
        assert decoder.sizes == [1, 1]
        assert decoder.batches[1][0].history.tolist() == [2]

    tell(bundle, story)


def test_cancelling_reaches_a_job_that_is_being_decoded(bundle: Bundle) -> None:
    async def story(batcher: MicroBatcher, decoder: Decoder) -> None:
        first = await while_busy(batcher, decoder)
        running = decoder.batches[0][0]
        assert not running.is_cancelled()
        first.cancel()
        await asyncio.wait([first])
        assert running.is_cancelled()

    tell(bundle, story)


def test_a_job_whose_time_is_up_is_not_decoded(bundle: Bundle, clock: Clock) -> None:
    async def story(batcher: MicroBatcher, decoder: Decoder) -> None:
        first = await while_busy(batcher, decoder)
        with pytest.raises(DeadlineExceeded):
            await batcher.submit(decoder.engine, job(bundle, "item-1"), time.monotonic())
        late = await submitted(batcher, decoder, [job(bundle, "item-1")], soon())
        clock.ahead_s = 1000
        decoder.gate.set()
        with pytest.raises(DeadlineExceeded, match="queue"):
            await late[0]
        await first
        assert decoder.sizes == [1]

    tell(bundle, story)


def test_a_deadline_reaches_between_the_steps_of_a_search(bundle: Bundle, clock: Clock) -> None:
    async def story(batcher: MicroBatcher, decoder: Decoder) -> None:
        [late] = await submitted(batcher, decoder, [job(bundle, "item-1")], soon())
        assert await asyncio.to_thread(decoder.entered.wait, PATIENCE_S)
        clock.ahead_s = 1000
        decoder.gate.set()
        with pytest.raises(DeadlineExceeded, match="decoding"):
            await late

    tell(bundle, story)


def test_a_full_queue_turns_jobs_away_and_recovers(bundle: Bundle) -> None:
    async def story(batcher: MicroBatcher, decoder: Decoder) -> None:
        first = await while_busy(batcher, decoder)  # 10 rows run
        [second] = await submitted(batcher, decoder, [job(bundle, "item-1")])  # 10 rows wait
        with pytest.raises(Overloaded):
            await batcher.submit(decoder.engine, job(bundle, "item-2", beam_width=6), soon())
        [third] = await submitted(batcher, decoder, [job(bundle, "item-2", beam_width=5)])
        second.cancel()  # the place of a job that leaves is free at once
        await asyncio.wait([second])
        [fourth] = await submitted(batcher, decoder, [job(bundle, "item-3")])
        decoder.gate.set()
        await asyncio.gather(first, third, fourth)
        await batcher.submit(decoder.engine, job(bundle, "item-2", beam_width=25), soon())

    tell(bundle, story, max_queue_rows=25)


def test_when_the_decode_thread_dies_nobody_waits(bundle: Bundle) -> None:
    class Death(BaseException):
        """Not an Exception: nothing in the thread catches it."""

    def die(jobs: Sequence[Job], on_answer: OnAnswer) -> tuple[list[Decoded], Timings]:
        raise Death

    engine = Engine(die)

    async def run() -> None:
        batcher = MicroBatcher(
            Metrics(), max_queue_rows=100, max_batch_requests=1, max_batch_rows=100
        )
        assert not batcher.is_alive
        batcher.start()
        assert batcher.is_alive
        tasks = await submitted(batcher, engine, [job(bundle, "item-1"), job(bundle, "item-2")])
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [NotReady, NotReady]
        assert not batcher.is_alive
        with pytest.raises(NotReady):
            await batcher.submit(engine, job(bundle, "item-1"), soon())
        await batcher.stop()

    asyncio.run(run())


def test_a_batch_that_hangs_is_not_alive(bundle: Bundle, clock: Clock) -> None:
    async def story(batcher: MicroBatcher, decoder: Decoder) -> None:
        first = await while_busy(batcher, decoder)
        assert batcher.is_alive
        clock.ahead_s = LONGEST_BATCH_S
        assert not batcher.is_alive
        decoder.gate.set()
        await first
        while not batcher.is_alive:  # the batch ends after its last answer
            await asyncio.sleep(0.001)

    tell(bundle, story)


def test_stopping_fails_the_jobs_that_wait(bundle: Bundle) -> None:
    async def run() -> None:
        decoder = Decoder(bundle)
        batcher = MicroBatcher(
            Metrics(), max_queue_rows=100, max_batch_requests=1, max_batch_rows=100
        )
        batcher.start()
        first = await while_busy(batcher, decoder)
        [waiting] = await submitted(batcher, decoder, [job(bundle, "item-1")])
        stopping = asyncio.create_task(batcher.stop())
        results = await asyncio.gather(first, waiting, return_exceptions=True)
        assert [type(result) for result in results] == [NotReady, NotReady]
        decoder.gate.set()
        await stopping
        assert decoder.sizes == [1]

    asyncio.run(run())


def learnt(engine: Engine, *, job_s: float, beam_s: float = 0.0) -> None:
    """Teach an engine's latency model what its jobs cost."""
    for jobs in (1, 2, 4, 8, 16):
        for calls, rows in ((1, 1), (2, 21), (4, 61)):
            work = Work(jobs, calls, jobs * rows)
            for _ in range(5):
                engine.latency.observe(work, job_s * jobs + beam_s * work.rows)


def test_a_short_job_is_answered_before_the_long_ones_of_its_batch(bundle: Bundle) -> None:
    """Its answer comes after its own last call. The gate keeps the batch from ending."""
    halfway, go_on = threading.Event(), threading.Event()

    class Halting(Decoder):
        def __call__(
            self, jobs: Sequence[Job], on_answer: OnAnswer
        ) -> tuple[list[Decoded], Timings]:
            def halting(place: int, decoded: Decoded, timings: Timings) -> None:
                on_answer(place, decoded, timings)
                if place == 0:
                    halfway.set()
                    assert go_on.wait(PATIENCE_S)

            return super().__call__(jobs, halting)

    async def run() -> None:
        decoder = Halting(bundle)
        decoder.gate.set()
        batcher = MicroBatcher(
            Metrics(), max_queue_rows=100, max_batch_requests=16, max_batch_rows=1024
        )
        one_call = Schedule.from_params(num_subspaces=4, r_warm=0, m_par=4)
        rows = bundle.catalogue.rows_of(["item-1"])
        jobs = [Job(rows, 5, one_call, 10), job(bundle, "item-2")]
        batcher.start()
        short, long = await submitted(batcher, decoder, jobs)
        assert len((await asyncio.wait_for(asyncio.shield(short), PATIENCE_S)).decoded.rows) == 5
        assert await asyncio.to_thread(halfway.wait, PATIENCE_S)
        assert not long.done()
        go_on.set()
        await long
        assert decoder.sizes == [2]
        await batcher.stop()

    asyncio.run(asyncio.wait_for(run(), 120))


def test_wide_beams_wait_in_a_lane_of_their_own(bundle: Bundle) -> None:
    """A flood of wide jobs that came first takes turns with the others."""

    async def story(batcher: MicroBatcher, decoder: Decoder) -> None:
        first = await while_busy(batcher, decoder, beam_width=30)  # a third lane
        wide = [job(bundle, f"item-{n}", beam_width=100) for n in range(6)]
        flood = await submitted(batcher, decoder, wide)
        others = await submitted(batcher, decoder, [job(bundle, "item-9"), job(bundle, "item-8")])
        decoder.gate.set()
        await asyncio.gather(first, *flood, *others)
        widths = [[one.beam_width for one in batch] for batch in decoder.batches]
        assert [10, 10] in widths[1:3]
        assert {len(set(batch)) for batch in widths} == {1}

    tell(bundle, story, max_batch_requests=2)


def test_bundles_do_not_share_batches_and_take_turns(bundle: Bundle) -> None:
    async def story(batcher: MicroBatcher, decoder: Decoder) -> None:
        other = Decoder(bundle)
        other.gate.set()
        first = await while_busy(batcher, decoder)
        here = await submitted(batcher, decoder, [job(bundle, "item-1")] * 4)
        there = await submitted(batcher, other, [job(bundle, "item-2")] * 2)
        decoder.gate.set()
        await asyncio.gather(first, *here, *there)
        assert decoder.sizes == [1, 2, 2]
        assert other.sizes == [2]

    tell(bundle, story, max_batch_requests=2)


def test_each_lane_has_its_own_share_of_the_queue(bundle: Bundle) -> None:
    async def story(batcher: MicroBatcher, decoder: Decoder) -> None:
        first = await while_busy(batcher, decoder)
        wide = [job(bundle, f"item-{n}", beam_width=100) for n in range(2)]
        flood = await submitted(batcher, decoder, wide)
        with pytest.raises(Overloaded) as refused:
            await batcher.submit(decoder.engine, wide[0], soon())
        assert refused.value.reason == "queue_full"
        [narrow] = await submitted(batcher, decoder, [job(bundle, "item-9")])
        decoder.gate.set()
        await asyncio.gather(first, narrow, *flood)

    tell(bundle, story, max_queue_rows=200)


def test_a_job_that_would_be_late_is_not_admitted(bundle: Bundle) -> None:
    async def story(batcher: MicroBatcher, decoder: Decoder) -> None:
        learnt(decoder.engine, job_s=20.0)
        # An idle decode thread takes any job: this is the only way to see that the forecast is
        # wrong.
        first = await while_busy(batcher, decoder)
        [waits] = await submitted(batcher, decoder, [job(bundle, "item-1")])
        with pytest.raises(Overloaded) as refused:
            await batcher.submit(decoder.engine, job(bundle, "item-2"), time.monotonic() + 30)
        assert refused.value.reason == "predicted_wait"
        assert 20 <= refused.value.retry_after_s <= 22  # for the job that waits
        [in_time] = await submitted(batcher, decoder, [job(bundle, "item-2")])
        decoder.gate.set()
        await asyncio.gather(first, waits, in_time)

    tell(bundle, story)


def test_a_job_that_would_wait_longer_than_the_slo_is_not_admitted(bundle: Bundle) -> None:
    async def story(batcher: MicroBatcher, decoder: Decoder) -> None:
        learnt(decoder.engine, job_s=200.0)
        first = await while_busy(batcher, decoder)
        with pytest.raises(Overloaded) as refused:
            await batcher.submit(decoder.engine, job(bundle, "item-2"), soon())
        assert refused.value.reason == "predicted_wait"
        decoder.gate.set()
        await first
        while not batcher.is_idle:
            await asyncio.sleep(0.001)
        await batcher.submit(decoder.engine, job(bundle, "item-2"), soon())

    tell(bundle, story, max_wait_s=100.0)


def test_jobs_in_bulk_wait_for_each_other_and_others_little_for_them(bundle: Bundle) -> None:
    async def story(batcher: MicroBatcher, decoder: Decoder) -> None:
        learnt(decoder.engine, job_s=20.0)
        first = await while_busy(batcher, decoder)
        bulk = [
            asyncio.create_task(batcher.submit(decoder.engine, one, soon(), in_bulk=True))
            for one in [job(bundle, "item-1")] * 12
        ]
        await asyncio.sleep(0)
        late = time.monotonic() + 150
        with pytest.raises(Overloaded):  # a deadline holds for bulk, too
            await batcher.submit(decoder.engine, job(bundle, "item-2"), late, in_bulk=True)
        work = Work.of_job(job(bundle, "item-2"))
        assert batcher.forecast(decoder.engine, work, 10, in_bulk=True).wait_s > 200
        assert batcher.forecast(decoder.engine, work, 10).wait_s < 100
        lone = job(bundle, "item-2")
        [alone] = await submitted(batcher, decoder, [lone])
        decoder.gate.set()
        await asyncio.gather(first, alone, *bulk)
        [batch] = [
            batch for batch in decoder.batches if batch[0].history.tolist() == lone.history.tolist()
        ]
        assert len(batch) == 1  # bulk keeps to its own batches

    tell(bundle, story, max_wait_s=100.0)


def test_forecasts_count_what_runs_what_is_ahead_and_the_turns_of_others(bundle: Bundle) -> None:
    async def story(batcher: MicroBatcher, decoder: Decoder) -> None:
        learnt(decoder.engine, job_s=200.0)
        one = Work.of_job(job(bundle, "item-1"))
        alone = batcher.forecast(decoder.engine, one, 10)
        assert alone.total_s == pytest.approx(200, rel=0.1)
        assert alone.wait_s == 0
        first = await while_busy(batcher, decoder)
        running = batcher.forecast(decoder.engine, one, 10)
        assert running.total_s == pytest.approx(400, rel=0.2)
        ahead = await submitted(batcher, decoder, [job(bundle, "item-1")] * 2)
        assert batcher.forecast(decoder.engine, one, 10).total_s == pytest.approx(800, rel=0.2)
        other_lane = batcher.forecast(decoder.engine, one, 100)  # at most one turn of the others
        assert other_lane.total_s == pytest.approx(600, rel=0.2)
        decoder.gate.set()
        await asyncio.gather(first, *ahead)

    tell(bundle, story)


def test_a_job_of_fewer_calls_has_an_earlier_forecast_however_many_wait(bundle: Bundle) -> None:
    """Otherwise asking for less would not help, just when it matters."""

    async def story(batcher: MicroBatcher, decoder: Decoder) -> None:
        learnt(decoder.engine, job_s=10.0, beam_s=10.0)
        first = await while_busy(batcher, decoder)
        full, less = Work.of_job(job(bundle, "item-1")), Work(1, 1, 1)
        waiting: list[asyncio.Task[Answer]] = []
        for _ in range(3):  # into the next batch, and the one after it
            best = batcher.forecast(decoder.engine, full, 10)
            quick = batcher.forecast(decoder.engine, less, 10)
            assert quick.total_s < best.total_s - 50
            assert quick.wait_s <= best.wait_s + 50
            waiting += await submitted(batcher, decoder, [job(bundle, "item-1")])
        decoder.gate.set()
        await asyncio.gather(first, *waiting)

    tell(bundle, story, max_batch_requests=2)


def test_the_model_learns_from_batches_that_went_to_their_end(bundle: Bundle, clock: Clock) -> None:
    async def story(batcher: MicroBatcher, decoder: Decoder) -> None:
        first = await while_busy(batcher, decoder)
        clock.ahead_s = 1000
        decoder.gate.set()
        await first
        while not batcher.is_idle:  # the batch ends after its last answer
            await asyncio.sleep(0.001)
        same = Work.of_job(job(bundle, "item-0"))
        assert batcher.forecast(decoder.engine, same, 10).total_s == pytest.approx(1000, rel=0.1)

    tell(bundle, story)


def test_a_batch_takes_half_of_the_slo_at_most(bundle: Bundle) -> None:
    """Otherwise late jobs would make the other jobs of their batch late."""

    async def story(batcher: MicroBatcher, decoder: Decoder) -> None:
        learnt(decoder.engine, job_s=1.0)
        jobs = [job(bundle, f"item-{n}") for n in range(5)]
        first = await while_busy(batcher, decoder)
        others = await submitted(batcher, decoder, jobs)
        decoder.gate.set()
        await asyncio.gather(first, *others)
        assert decoder.sizes == [1, 3, 2]

    tell(bundle, story, max_wait_s=7.0)


def test_bulk_gets_a_fifth_of_the_time(bundle: Bundle) -> None:
    async def main() -> list[bool]:
        engine, lanes = Engine(Decoder(bundle)), Lanes(1, 1000, math.inf)
        wait, loop = Wait(math.inf), asyncio.get_running_loop()
        one = job(bundle, "item-1")
        for in_bulk in [True, False] * 40:
            lanes.enter(Ticket(engine, one, Work.of_job(one), wait, loop.create_future(), in_bulk))
        turns = []
        for _ in range(40):
            taken = lanes.take()
            assert taken is not None
            lane, [ticket] = taken
            lane.used_s += 0.01 * lane.price
            turns.append(ticket.in_bulk)
        return turns

    assert sum(asyncio.run(main())) == 8
