"""Decodes jobs together: a bounded queue in front of the one thread that runs the networks.

A single job starts at once. Jobs that arrive while a batch runs join one of the next batches (see
`service.batching.lanes`). The thread takes the next batch itself, because the event loop is late
under load. A job is not admitted when the forecast says that it would be too late. A job that
nobody waits for leaves the queue at once, or leaves the search at its next step. Knows nothing of
users, bundles or HTTP.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NoReturn

import structlog

from service.batching.lanes import Answer, Engine, Lanes, Ticket, Wait
from service.batching.latency_model import Work
from service.decoding import Decoded, Job, Timings
from service.errors import (
    DeadlineExceeded,
    DecodeFailed,
    InvalidRequest,
    NotReady,
    Overloaded,
    RequestError,
)
from service.telemetry import Metrics, Traces

LONGEST_BATCH_S = 60.0  # a longer batch hangs, so the process is not live
LONGEST_RETRY_AFTER_S = 30
SETTLED_AT_ONCE = 4
DECODE_NICENESS = 10

log = structlog.get_logger()


@dataclass(frozen=True)
class Forecast:
    """Seconds until a job would be answered, and how many of these it would wait for other jobs."""

    total_s: float
    wait_s: float


class MicroBatcher:
    """Call `start` and `submit` in the event loop. Engines run in the decode thread."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        max_queue_rows: int,
        max_batch_requests: int,
        max_batch_rows: int,
        max_wait_s: float = math.inf,
        traces: Traces | None = None,
    ) -> None:
        """max_queue_rows: of each lane

        max_wait_s: a job is not admitted if its forecast wait is longer. Jobs in bulk are exempt:
            the jobs that they wait for came in the same call. A batch may take half of this time.
        """
        self._metrics = metrics
        self._traces = traces
        self._max_queue_rows = max_queue_rows
        self._max_wait_s = max_wait_s
        self._lanes = Lanes(max_batch_requests, max_batch_rows, max_wait_s / 2)
        self._stopping = False
        # Belongs to the thread, which makes new lists and changes none.
        self._batch: list[Ticket] = []
        self._batch_started = self._batch_ends = 0.0  # time.monotonic(); the end is a forecast
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "decode", initializer=_give_way)
        self._outcomes: deque[tuple[Ticket, Answer | RequestError]] = deque()  # by the thread
        self._pump: asyncio.Task[None] | None = None
        metrics.queue_requests.set_function(lambda: len(self._lanes.waiting))
        metrics.queue_rows.set_function(lambda: sum(t.job.call_rows for t in self._lanes.waiting))

    def start(self) -> None:
        """Start to decode."""
        self._pump = asyncio.create_task(self._run(), name="batches")
        self._pump.add_done_callback(self._on_end)

    async def stop(self) -> None:
        """Stop after the batch that runs. Jobs that still wait fail with NotReady."""
        self._stopping = True
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait([self._pump])
        await asyncio.to_thread(self._thread.shutdown)

    @property
    def is_alive(self) -> bool:
        """False when the decode thread has ended, or hangs in one batch."""
        if self._pump is None or self._pump.done():
            return False
        return not self._batch or time.monotonic() - self._batch_started < LONGEST_BATCH_S

    @property
    def is_idle(self) -> bool:
        """Whether a job would be decoded at once."""
        return not self._batch and not self._lanes

    def forecast(
        self,
        engine: Engine,
        work: Work,
        beam_width: int,
        *,
        in_bulk: bool = False,
        horizon: int = 1,
    ) -> Forecast:
        """When a job would be answered if it came now."""
        own_s = engine.latency.seconds(work)
        if self.is_idle:
            return Forecast(own_s, 0.0)
        running_s = max(0.0, self._batch_ends - time.monotonic()) if self._batch else 0.0
        queue_s = self._lanes.seconds_before(engine, work, beam_width, in_bulk, horizon)
        total_s = (running_s + queue_s) * (1 + engine.latency.error)
        return Forecast(total_s, max(0.0, total_s - own_s))

    def admit(
        self,
        engine: Engine,
        work: Work,
        beam_width: int,
        deadline: float,
        *,
        in_bulk: bool = False,
        horizon: int = 1,
    ) -> None:
        """Refuse a job that would be too late, or that finds the queue full.

        An idle decode thread takes every job: if the forecast is wrong, this job corrects it.
        deadline: seconds of time.monotonic()
        Raises Overloaded, DeadlineExceeded, InvalidRequest when the queue can never hold the job,
        or NotReady when nothing decodes.
        """
        if self._pump is None or self._pump.done():
            raise NotReady("nothing decodes in this process; ask another replica")
        now = time.monotonic()
        if now >= deadline:
            raise DeadlineExceeded("the deadline passed")
        rows = beam_width * horizon
        if rows > self._max_queue_rows:  # trying again would not help
            most = self._max_queue_rows // horizon
            message = f"beam_width, which is at least k, may be {most} here"
            if horizon > 1:
                message += f" with a horizon of {horizon}"
            raise InvalidRequest(message, param="beam_width")
        if self._lanes.rows(engine, beam_width, in_bulk, horizon) + rows > self._max_queue_rows:
            self._refuse("queue_full", "too many requests are waiting; try again later")
        if self.is_idle:
            return
        forecast = self.forecast(engine, work, beam_width, in_bulk=in_bulk, horizon=horizon)
        max_wait_s = math.inf if in_bulk else self._max_wait_s
        if forecast.wait_s > max_wait_s or now + forecast.total_s > deadline:
            self._refuse("predicted_wait", "the answer would come too late; try again later")

    async def submit(
        self, engine: Engine, job: Job, deadline: float, *, in_bulk: bool = False
    ) -> Answer:
        """Wait for the answer to a job. Cancelling the caller cancels the job.

        Raises what `admit` raises, and DecodeFailed when decoding this job raised.
        """
        work = Work.of_job(job)
        self.admit(engine, work, job.beam_width, deadline, in_bulk=in_bulk, horizon=job.horizon)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        wait = Wait(deadline)
        job = replace(job, is_cancelled=wait.is_over)
        ticket = Ticket(engine, job, work, wait, answer, in_bulk)
        if self._traces:
            ticket.span = self._traces.current
        self._lanes.enter(ticket)
        self._arrived.set()
        try:
            return await answer
        finally:
            wait.abandoned = True
            self._lanes.leave(ticket)

    def _refuse(self, reason: str, message: str) -> NoReturn:
        retry_after_s = min(LONGEST_RETRY_AFTER_S, math.ceil(self._lanes.seconds) or 1)
        raise Overloaded(message, reason=reason, retry_after_s=retry_after_s)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._arrived.clear()
            if self._lanes.waiting:
                await loop.run_in_executor(self._thread, self._decode_all, loop)
            else:
                await self._arrived.wait()

    def _decode_all(self, loop: asyncio.AbstractEventLoop) -> None:
        """In the decode thread: decode batch after batch until no job waits."""
        while not self._stopping and self._decode_next(loop):
            pass

    def _decode_next(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Decode the next batch; returns whether there was one.

        At the end no reference to its engine is left, because the engine may be unloaded.
        """
        taken = self._lanes.take()
        if taken is None:
            return False
        lane, tickets = taken
        started = self._batch_started = self._batch_ends = time.monotonic()
        self._batch = tickets  # set at once: whatever happens, somebody waits for these
        batch = []
        for ticket in tickets:
            if ticket.wait.is_over():
                self._tell(loop, ticket, DeadlineExceeded("the deadline passed in the queue"))
            else:
                ticket.started = started
                batch.append(ticket)
        if batch:
            work = Work.together(ticket.work for ticket in batch)
            rows = sum(ticket.job.call_rows for ticket in batch)
            self._batch_ends = started + lane.engine.latency.seconds(work)
            self._metrics.batch_requests.observe(len(batch))
            self._metrics.batch_rows.observe(rows)
            is_whole = self._decode(lane.engine, batch, loop)
            seconds = time.monotonic() - started
            lane.used_s += seconds * lane.price
            self._metrics.batch_duration.observe(seconds)
            if is_whole:
                lane.engine.latency.observe(work, seconds)
            if self._traces:
                spans = [ticket.span for ticket in batch if ticket.span]
                sizes = {"unmask.batch.jobs": len(batch), "unmask.batch.rows": rows}
                traced = spans, time.time_ns(), seconds, sizes
                loop.call_soon_threadsafe(self._traces.record_batch, *traced)
        self._batch = []
        return True

    def _decode(
        self, engine: Engine, batch: Sequence[Ticket], loop: asyncio.AbstractEventLoop
    ) -> bool:
        """Decode and answer; returns whether all jobs were decoded completely at the first try.

        When a batch raises, its jobs without an answer are decoded again, one at a time.
        """
        left = dict.fromkeys(batch)
        is_whole = True
        hits = misses = calls = 0

        def count(timings: Timings) -> None:
            nonlocal hits, misses, calls
            self._metrics.encoder_cache.labels("hit").inc(timings.cache_hits - hits)
            self._metrics.encoder_cache.labels("miss").inc(timings.cache_misses - misses)
            self._metrics.denoiser_calls.inc(timings.calls - calls)
            hits, misses, calls = timings.cache_hits, timings.cache_misses, timings.calls

        def deliver(place: int, decoded: Decoded, timings: Timings) -> None:
            nonlocal is_whole
            count(timings)
            ticket = batch[place]
            del left[ticket]
            if decoded.cancelled:
                is_whole = False
                self._tell(loop, ticket, DeadlineExceeded("the deadline passed while decoding"))
            else:
                self._tell(loop, ticket, Answer(decoded, ticket.started - ticket.entered, timings))

        try:
            engine.decode([ticket.job for ticket in batch], deliver)
        except Exception as error:
            log.exception("batch_failed", jobs=len(batch))
            if len(batch) == 1:
                failure = DecodeFailed("the request could not be decoded")
                failure.__cause__ = error
                self._tell(loop, batch[0], failure)
            else:
                for ticket in list(left):
                    self._decode(engine, [ticket], loop)
            return False
        return is_whole

    def _tell(
        self, loop: asyncio.AbstractEventLoop, ticket: Ticket, outcome: Answer | RequestError
    ) -> None:
        """Hand an outcome from the decode thread to the caller that waits."""
        self._outcomes.append((ticket, outcome))
        if len(self._outcomes) == 1:  # otherwise the loop will come here anyway
            loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        """Pass on the outcomes of the decode thread, a few at a time.

        In between, the loop looks at its sockets, so that refusals do not have to wait for a batch.
        """
        for _ in range(min(SETTLED_AT_ONCE, len(self._outcomes))):
            ticket, outcome = self._outcomes.popleft()
            if isinstance(outcome, RequestError):
                _fail(ticket, outcome)
            elif not ticket.answer.done():
                ticket.answer.set_result(outcome)
        if self._outcomes:
            asyncio.get_running_loop().call_soon(self._settle)

    def _on_end(self, pump: asyncio.Task[None]) -> None:
        """However decoding ended, nobody may wait for ever."""
        cause = None if pump.cancelled() else pump.exception()
        if cause:
            log.error("decoding_ended", exc_info=cause)
        for ticket in [*self._batch, *self._lanes.waiting]:
            failure = NotReady("the process has stopped decoding; ask another replica")
            failure.__cause__ = cause
            _fail(ticket, failure)


def _give_way() -> None:
    """Let the event loop go first when both share a core, because refusing must be quick."""
    with suppress(AttributeError, OSError):  # only Linux has thread priorities
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), DECODE_NICENESS)


def _fail(ticket: Ticket, failure: RequestError) -> None:
    if not ticket.answer.done():
        ticket.answer.set_exception(failure)
