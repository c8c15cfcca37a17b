"""Decodes jobs together: a bounded queue in front of the one thread that runs the network.

A lone job starts at once; jobs that arrive while a batch runs are the next batch. A job that
nobody waits for any more leaves the queue at once, or the search at its next step. All queue state
belongs to the event loop, so there are no locks. Knows nothing of bundles, users or HTTP: `decode`
is given.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from service.decoding import Decoded, Job, Timings
from service.errors import DeadlineExceeded, DecodeFailed, NotReady, Overloaded, RequestError
from service.metrics import Metrics

LONGEST_BATCH_S = 60.0  # a batch that runs longer hangs: the process is not live

DecodeBatch = Callable[[Sequence[Job]], tuple[list[Decoded], Timings]]


@dataclass(frozen=True, eq=False)
class Answer:
    """A decoded job; `timings` are those of its whole batch."""

    decoded: Decoded
    queue_s: float
    timings: Timings


@dataclass(eq=False)
class _Ticket:
    """A job in the queue or in a batch. `deadline` is in seconds of time.monotonic()."""

    job: Job
    deadline: float
    answer: asyncio.Future[Answer]
    entered: float = field(default_factory=time.monotonic)
    abandoned: bool = False

    def is_over(self) -> bool:
        """Asked by the decode thread too; reading two plain attributes needs no lock."""
        return self.abandoned or time.monotonic() >= self.deadline


class MicroBatcher:
    """Call `start` and `submit` in the event loop; `decode` runs in the decode thread."""

    def __init__(
        self,
        decode: DecodeBatch,
        metrics: Metrics,
        *,
        max_queue_rows: int,
        max_batch_requests: int,
        max_batch_rows: int,
    ) -> None:
        self._decode = decode
        self._metrics = metrics
        self._max_queue_rows = max_queue_rows
        self._max_batch_requests = max_batch_requests
        self._max_batch_rows = max_batch_rows
        self._rows = 0  # beams of all tickets, waiting or in a batch
        self._waiting: dict[_Ticket, None] = {}  # an ordered set: oldest first
        self._batch: list[_Ticket] = []
        self._batch_started = 0.0
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="decode")
        self._pump: asyncio.Task[None] | None = None
        metrics.queue_requests.set_function(lambda: len(self._waiting))
        metrics.queue_rows.set_function(lambda: sum(t.job.beam_width for t in self._waiting))

    def start(self) -> None:
        """Begin to decode."""
        self._pump = asyncio.create_task(self._run(), name="batches")
        self._pump.add_done_callback(self._on_end)

    async def stop(self) -> None:
        """End after the batch that runs; jobs still waiting fail with NotReady."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait([self._pump])
        await asyncio.to_thread(self._thread.shutdown)

    @property
    def is_alive(self) -> bool:
        """Whether jobs get decoded: running, and no batch hangs."""
        if self._pump is None or self._pump.done():
            return False
        return not self._batch or time.monotonic() - self._batch_started < LONGEST_BATCH_S

    async def submit(self, job: Job, deadline: float) -> Answer:
        """Wait for the answer to a job; cancelling the caller cancels the job.

        deadline: seconds of time.monotonic(). Raises Overloaded when the queue is full,
        DeadlineExceeded, NotReady when nothing decodes, DecodeFailed when this job raised.
        """
        if self._pump is None or self._pump.done():
            raise NotReady("nothing decodes in this process; ask another replica")
        if self._rows + job.beam_width > self._max_queue_rows:
            raise Overloaded("too many requests are waiting; try again in a second")
        ticket = _Ticket(job, deadline, asyncio.get_running_loop().create_future())
        ticket.job = replace(job, is_cancelled=ticket.is_over)
        self._rows += job.beam_width
        self._waiting[ticket] = None
        self._arrived.set()
        try:
            return await ticket.answer
        finally:
            ticket.abandoned = True
            self._rows -= job.beam_width
            self._waiting.pop(ticket, None)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._batch = self._next_batch()
            if not self._batch:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            self._batch_started = time.monotonic()
            jobs = [ticket.job for ticket in self._batch]
            self._metrics.batch_requests.observe(len(jobs))
            self._metrics.batch_rows.observe(sum(job.beam_width for job in jobs))
            results = await loop.run_in_executor(self._thread, self._decode_each, jobs)
            for ticket, result in zip(self._batch, results, strict=True):
                self._settle(ticket, result)

    def _next_batch(self) -> list[_Ticket]:
        batch: list[_Ticket] = []
        rows = 0
        for ticket in list(self._waiting):
            if ticket.is_over():
                _fail(ticket, DeadlineExceeded("the deadline passed in the queue"))
            elif batch and rows + ticket.job.beam_width > self._max_batch_rows:
                break
            else:
                batch.append(ticket)
                rows += ticket.job.beam_width
            del self._waiting[ticket]
            if len(batch) == self._max_batch_requests:
                break
        return batch

    def _decode_each(self, jobs: Sequence[Job]) -> list[tuple[Decoded, Timings] | Exception]:
        """In the decode thread: a batch that raises is decoded again, one job at a time."""
        try:
            decoded, timings = self._decode(jobs)
            self._metrics.encoder_cache.labels("hit").inc(timings.cache_hits)
            self._metrics.encoder_cache.labels("miss").inc(timings.cache_misses)
            return [(one, timings) for one in decoded]
        except Exception as error:
            if len(jobs) == 1:
                return [error]
        return [result for job in jobs for result in self._decode_each([job])]

    def _settle(self, ticket: _Ticket, result: tuple[Decoded, Timings] | Exception) -> None:
        if isinstance(result, Exception):
            failure = DecodeFailed("the request could not be decoded")
            failure.__cause__ = result
            _fail(ticket, failure)
        elif result[0].cancelled:
            _fail(ticket, DeadlineExceeded("the deadline passed while decoding"))
        elif not ticket.answer.done():
            queue_s = self._batch_started - ticket.entered
            ticket.answer.set_result(Answer(result[0], queue_s, result[1]))

    def _on_end(self, pump: asyncio.Task[None]) -> None:
        """However decoding ended, nobody may wait for ever."""
        cause = None if pump.cancelled() else pump.exception()
        for ticket in [*self._batch, *self._waiting]:
            failure = NotReady("the process has stopped decoding; ask another replica")
            failure.__cause__ = cause
            _fail(ticket, failure)


def _fail(ticket: _Ticket, failure: RequestError) -> None:
    if not ticket.answer.done():
        ticket.answer.set_exception(failure)
