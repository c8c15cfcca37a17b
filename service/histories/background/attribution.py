"""Remembers answers in the background: requests note them at once, a task writes them.

Every answer with items goes to the history store. So a hit can be counted, and the next page can be
asked for. A request never waits for this. Answers wait in a bounded queue. An answer that does not
fit, or that the store does not take, is dropped and counted. Knows nothing of keys or commands.
"""

from __future__ import annotations

import asyncio
from itertools import islice

import structlog

from service.errors import HistoryUnavailable
from service.histories.store import HistoryStore, RememberedAnswer
from service.tasks import ended
from service.telemetry import Metrics

MAX_WAITING = 1000
MAX_BATCH = 50  # answers written in one call
FLUSH_S = 1.0
REST_S = 0.01  # after a call with several answers: under load more of them share the next

log = structlog.get_logger()


class AnswerMemory:
    """A queue of answers and the task that writes them. For one event loop."""

    def __init__(
        self, histories: HistoryStore, metrics: Metrics, *, max_waiting: int = MAX_WAITING
    ) -> None:
        self._histories = histories
        self._metrics = metrics
        self._max_waiting = max_waiting
        self._waiting: dict[tuple[str, str], RememberedAnswer] = {}  # by user and id, oldest first
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to write."""
        self._task = asyncio.create_task(self._write_all())

    def note(self, user_id: str, shown: RememberedAnswer) -> None:
        """Remember an answer soon, or drop it. Never waits, never raises."""
        if not shown.item_ids:
            return
        self._metrics.recommendations.labels(shown.bundle, shown.variant).inc()
        if len(self._waiting) >= self._max_waiting:
            self._metrics.remember_dropped.inc()
            return
        self._waiting[user_id, shown.recommendation_id] = shown
        self._wake.set()

    def pending(self, user_id: str, recommendation_id: str) -> RememberedAnswer | None:
        """The answer with that id, if it may not be in the store yet."""
        return self._waiting.get((user_id, recommendation_id))

    async def forget(self, user_id: str) -> None:
        """Make sure that none of the user's answers noted so far is written later."""
        for key in [key for key in self._waiting if key[0] == user_id]:
            del self._waiting[key]
        async with self._writing:  # takes at most the store's timeout
            pass

    async def stop(self) -> None:
        """Write what waits, for one second at most. The rest is dropped and counted."""
        self._stopping = True
        self._wake.set()
        if self._task:
            await asyncio.wait([self._task], timeout=FLUSH_S)
            await ended([self._task])
        self._metrics.remember_dropped.inc(len(self._waiting))
        self._waiting.clear()

    async def _write_all(self) -> None:
        while True:
            await self._wake.wait()
            async with self._writing:
                num_written = 0
                if self._waiting:
                    num_written = await self._write_some()
                elif self._stopping:
                    return
                else:
                    self._wake.clear()
            if 1 < num_written < MAX_BATCH:
                await asyncio.sleep(REST_S)

    async def _write_some(self) -> int:
        """Write some answers; returns how many it took from the queue. `forget` may remove some."""
        batch = list(islice(self._waiting.items(), MAX_BATCH))
        answers = [(user_id, shown) for (user_id, _), shown in batch]
        try:
            await self._histories.remember(answers)
        except HistoryUnavailable:
            self._metrics.remember_dropped.inc(len(batch))
            await asyncio.sleep(0)  # an open breaker refuses at once; let others have a turn
        except Exception:
            self._metrics.remember_dropped.inc(len(batch))
            log.exception("remembering_failed")
        for key, _ in batch:
            self._waiting.pop(key, None)
        return len(batch)
