"""What is trending: how many users had each item lately.

A user counts once a day for an item, however many events say so, and half as much after every
half-life. The counts of all replicas are in the store. Here they wait for a second and are written
together, so `POST /events` does not wait for it. What was read is kept for FRESH_S. For one event
loop. Knows no keys, commands or bundles.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from itertools import count, islice
from typing import NamedTuple, Protocol

import structlog

from service.errors import HistoryUnavailable
from service.histories.scripts import MOST_TRENDING
from service.tasks import ended
from service.telemetry import Metrics, uuid7

FRESH_S = 10.0
REST_S = 1.0  # between two writes
FLUSH_S = 1.0  # for the last write
MOST_WAITING = 10_000  # items
MOST_WRITTEN = 200  # items in one call
MOST_READ = 500  # items in one call: the loop does nothing else while it reads the reply

log = structlog.get_logger()


class TrendingStore(Protocol):
    """Where the counts are. Every method may raise HistoryUnavailable."""

    async def count_trending(
        self, writer: str, batch: int, num_users: Mapping[str, int], half_life_s: float
    ) -> None:
        """Count users of items, now. A batch that comes again within an hour is not counted again.

        writer: an id of the process; batch: its number, from 1; later batches have larger ones
        """
        ...

    async def read_trending(self, half_life_s: float, first: int, last: int) -> dict[str, float]:
        """The decayed counts of items, the largest first, from place `first` to `last`, from 0."""
        ...


class Counted(NamedTuple):
    """Items by how many users had them lately, the most first.

    recent_users: decayed counts; is_current: False if the store did not answer, so that they are
    what was read before, or nothing
    """

    recent_users: Mapping[str, float]
    is_current: bool


class Trending:
    """The counts of one process, and the task that writes them.

    store: where they are written and read; may raise HistoryUnavailable
    event_types: of events that count
    half_life_s: counts of other half-lives are others
    """

    def __init__(
        self,
        store: Callable[[], TrendingStore],
        metrics: Metrics,
        event_types: Collection[str],
        half_life_s: float,
    ) -> None:
        self.event_types = event_types
        self.half_life_s = half_life_s
        self._store = store
        self._metrics = metrics
        self._waiting: Counter[str] = Counter()
        self._writer, self._batches = str(uuid7()), count(1)
        self._batch: tuple[int, Mapping[str, int]] | None = None  # until it is certainly written
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._reading = asyncio.Lock()
        self._read: Mapping[str, float] = {}
        self._fresh_until = 0.0

    def start(self) -> None:
        """Start to write."""
        self._task = asyncio.create_task(self._write_all())

    def note(self, item_id: str) -> None:
        """Count a user of an item soon, or drop it. Never waits, never raises."""
        if len(self._waiting) >= MOST_WAITING and item_id not in self._waiting:
            self._metrics.trending_dropped.inc()
            return
        self._waiting[item_id] += 1
        self._wake.set()

    async def newest(self) -> Counted:
        """What is trending, as of FRESH_S ago at most while the store answers."""
        if time.monotonic() >= self._fresh_until:
            try:
                async with self._reading:
                    if time.monotonic() >= self._fresh_until:
                        self._read = await self._all_pages()
                        self._fresh_until = time.monotonic() + FRESH_S
            except HistoryUnavailable:
                return Counted(self._read, is_current=False)
        return Counted(self._read, is_current=True)

    async def stop(self) -> None:
        """Write what waits, for one second at most. The rest is dropped and counted."""
        if self._task:
            await ended([self._task])
        with suppress(HistoryUnavailable, TimeoutError):
            async with asyncio.timeout(FLUSH_S):
                while self._batch or self._waiting:
                    await self._write()
        self._drop_batch()
        self._metrics.trending_dropped.inc(self._waiting.total())

    async def _write_all(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(REST_S)
            try:
                while self._batch or self._waiting:
                    await self._write()
                self._wake.clear()
            except HistoryUnavailable:  # a second later, again
                continue
            except Exception:
                log.exception("counting_trending_failed")
                self._drop_batch()

    async def _write(self) -> None:
        """Write a batch; one that may have been written before goes under the same number."""
        if self._batch is None:
            taken = dict(islice(self._waiting.items(), MOST_WRITTEN))
            for item_id in taken:
                del self._waiting[item_id]
            self._batch = next(self._batches), taken
        await self._store().count_trending(self._writer, *self._batch, self.half_life_s)
        self._batch = None

    def _drop_batch(self) -> None:
        if self._batch:
            self._metrics.trending_dropped.inc(sum(self._batch[1].values()))
            self._batch = None

    async def _all_pages(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for first in range(0, MOST_TRENDING, MOST_READ):
            last = first + MOST_READ - 1
            page = await self._store().read_trending(self.half_life_s, first, last)
            found |= page
            if len(page) < MOST_READ:
                break
        return dict(sorted(found.items(), key=lambda one: -one[1]))
