"""Which jobs wait, which are decoded next, and how long the jobs before a new one will take.

Jobs wait in lanes. A lane has the jobs of one bundle, one horizon and similar beam width. Jobs in
bulk have lanes of their own. A batch comes from one lane: the lane with the least decoding time so
far is next. So wide beams mainly slow down each other. Decoding time of bulk counts several times:
a bulk lane gets a fifth of the time that it and one other lane use together. The event loop brings
jobs and the decode thread takes them. Both hold a lock for microseconds. Knows nothing of metrics
or of the queue's limits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol

from service.batching.latency_model import LatencyModel, Work
from service.decoding import Decoded, Job, OnAnswer, Timings

BULK_PRICE = 4.0


class DecodeBatch(Protocol):
    """The signature of `Decoder.decode`."""

    def __call__(
        self, jobs: Sequence[Job], on_answer: OnAnswer
    ) -> tuple[Sequence[Decoded], Timings]: ...


@dataclass(frozen=True, eq=False)
class Engine:
    """What decodes the jobs of one bundle, and the model of how long that takes."""

    decode: DecodeBatch
    latency: LatencyModel = field(default_factory=LatencyModel)


@dataclass(frozen=True, eq=False)
class Answer:
    """A decoded job. `timings` are those of its batch, until this job was answered."""

    decoded: Decoded
    queue_s: float
    timings: Timings


@dataclass(eq=False)
class Wait:
    """Whether somebody still waits for an answer. deadline: seconds of time.monotonic()

    A job knows its wait, not its ticket. Otherwise job and ticket would keep each other, and the
    engine, in memory.
    """

    deadline: float
    abandoned: bool = False

    def is_over(self) -> bool:
        """The decode thread calls this too. Reading two plain attributes needs no lock."""
        return self.abandoned or time.monotonic() >= self.deadline


@dataclass(eq=False)
class Ticket:
    """A job in the queue or in a batch. entered, started: seconds of time.monotonic()

    in_bulk: whether it came with others in one call, and so waits in a lane of such jobs
    span: of the request that it belongs to, if there are traces
    """

    engine: Engine
    job: Job
    work: Work
    wait: Wait
    answer: asyncio.Future[Answer]
    in_bulk: bool = False
    entered: float = field(default_factory=time.monotonic)
    started: float = 0.0
    span: Any = None

    @property
    def key(self) -> LaneKey:
        """The key of its lane."""
        return _key(self.engine, self.job.beam_width, self.in_bulk, self.job.horizon)


LaneKey = tuple[Engine, int, bool, int]  # see `_key`


@dataclass(eq=False)
class Lane:
    """Jobs that may share a batch.

    waiting: an ordered set, oldest first; rows: `Job.call_rows` of all its jobs, waiting or in a
        batch
    used_s: its decoding time so far, times its price; a lane that was empty starts with the time of
        the other lanes; the decode thread adds to it
    """

    engine: Engine
    price: float
    used_s: float
    waiting: dict[Ticket, None] = field(default_factory=dict)
    rows: int = 0


class Lanes:
    """The lanes that have jobs.

    max_batch_requests, max_batch_rows: of a batch; one job that is larger is a batch of its own
    max_batch_s: forecast time of a batch. A job waits for its whole batch. So a long batch would
        make jobs late whose forecast was good before the others came.
    """

    def __init__(self, max_batch_requests: int, max_batch_rows: int, max_batch_s: float) -> None:
        self._max_batch_requests = max_batch_requests
        self._max_batch_rows = max_batch_rows
        self._max_batch_s = max_batch_s
        self._lock = Lock()
        self._lanes: dict[LaneKey, Lane] = {}
        self._turn_s = 0.0  # `used_s` of the lane that was served last, before that

    def __bool__(self) -> bool:
        return bool(self._lanes)

    @property
    def waiting(self) -> list[Ticket]:
        """All jobs that wait."""
        with self._lock:
            return [ticket for lane in self._lanes.values() for ticket in lane.waiting]

    def rows(self, engine: Engine, beam_width: int, in_bulk: bool, horizon: int = 1) -> int:
        """Rows in the lane of such a job, waiting or in a batch."""
        with self._lock:
            lane = self._lanes.get(_key(engine, beam_width, in_bulk, horizon))
            return lane.rows if lane else 0

    def enter(self, ticket: Ticket) -> None:
        """Put a job at the end of its lane."""
        with self._lock:
            new = Lane(ticket.engine, _price(ticket.in_bulk), self._turn_s)
            lane = self._lanes.setdefault(ticket.key, new)
            lane.rows += ticket.job.call_rows
            lane.waiting[ticket] = None

    def leave(self, ticket: Ticket) -> None:
        """Forget a job that was answered, or that nobody wants any more."""
        with self._lock:
            lane = self._lanes[ticket.key]
            lane.rows -= ticket.job.call_rows
            lane.waiting.pop(ticket, None)
            if not lane.rows:
                del self._lanes[ticket.key]

    def take(self) -> tuple[Lane, list[Ticket]] | None:
        """The next batch, oldest jobs first, and its lane; None if no job waits."""
        with self._lock:
            lanes = [lane for lane in self._lanes.values() if lane.waiting]
            lane = min(lanes, key=lambda lane: lane.used_s, default=None)
            if lane is None:
                return None
            self._turn_s = lane.used_s
            batch: list[Ticket] = []
            rows, work = 0, Work(0, 0, 0)
            for ticket in list(lane.waiting):
                rows += ticket.job.call_rows
                work = Work.together((work, ticket.work))
                is_too_long = lane.engine.latency.seconds(work) > self._max_batch_s
                if batch and (is_too_long or rows > self._max_batch_rows):
                    break
                batch.append(ticket)
                if len(batch) == self._max_batch_requests:
                    break
            for ticket in batch:
                del lane.waiting[ticket]
            return lane, batch

    def seconds_before(
        self, engine: Engine, work: Work, beam_width: int, in_bulk: bool, horizon: int = 1
    ) -> float:
        """Seconds until a job would be answered if it came now.

        That is the time for its lane's jobs, and for the turns of other lanes. It is answered after
        its own last call, however many calls the other jobs of its batch need.
        """
        with self._lock:
            own = self._lanes.get(_key(engine, beam_width, in_bulk, horizon))
            ahead = [] if own is None else _works(own)
            others = [
                (_price(in_bulk) / lane.price, lane.engine, _works(lane))
                for lane in self._lanes.values()
                if lane is not own
            ]
        before = len(ahead) - len(ahead) % self._max_batch_requests
        own_s = self._seconds(engine, ahead[:before])
        own_s += engine.latency.seconds(work.in_company(ahead[before:]))
        turns_s = [
            min(self._seconds(engine, works), own_s * share) for share, engine, works in others
        ]
        return own_s + sum(turns_s)

    @property
    def seconds(self) -> float:
        """Seconds until all jobs that wait now are answered."""
        with self._lock:
            queues = [(lane.engine, _works(lane)) for lane in self._lanes.values()]
        return sum(self._seconds(*queue) for queue in queues)

    def _seconds(self, engine: Engine, works: Sequence[Work]) -> float:
        """Seconds for these jobs, in as many batches as they need."""
        most = self._max_batch_requests
        batches = [works[start : start + most] for start in range(0, len(works), most)]
        return sum(engine.latency.seconds(Work.together(batch)) for batch in batches)


def _price(in_bulk: bool) -> float:
    """What a second of decoding costs its lane."""
    return BULK_PRICE if in_bulk else 1.0


def _works(lane: Lane) -> list[Work]:
    return [ticket.work for ticket in lane.waiting]


def _key(engine: Engine, beam_width: int, in_bulk: bool, horizon: int) -> LaneKey:
    """The key of a lane. Beam widths up to 16, 32, 64, ... share one."""
    return engine, max(4, (beam_width - 1).bit_length()), in_bulk, horizon
