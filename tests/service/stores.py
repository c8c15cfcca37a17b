"""History stores, events and answers for the tests that talk to a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from running_service import PATIENCE_S

from service.errors import HistoryUnavailable
from service.histories.redis_store import RedisHistoryStore
from service.histories.store import RememberedAnswer
from service.schemas.events import Event
from service.telemetry.metrics import Metrics

T = TypeVar("T")


def with_store(
    url: str,
    use: Callable[[RedisHistoryStore], Awaitable[T]],
    *,
    timeout_s: float = 5,
    cap: int = 200,
    ttl_s: int = 1000,
    event_log_s: int = 1000,
    metrics: Metrics | None = None,
    replica_url: str | None = None,
    replica_reads: bool = False,
) -> T:
    async def run() -> T:
        store = RedisHistoryStore(
            url,
            metrics or Metrics(),
            timeout_s=timeout_s,
            pool_size=4,
            history_cap=cap,
            history_ttl_s=ttl_s,
            event_log_s=event_log_s,
            replica_url=replica_url,
            replica_reads=replica_reads,
        )
        try:
            return await use(store)
        finally:
            await store.close()

    return asyncio.run(run())


def event(user_id: str, item_id: str, event_id: str | None = None, **fields: Any) -> Event:
    fields = {"event_type": "click", **fields}
    return Event(event_id=event_id or item_id, user_id=user_id, item_id=item_id, **fields)


def shown(recommendation_id: str, *item_ids: str, before: tuple[str, ...] = ()) -> RememberedAnswer:
    return RememberedAnswer(recommendation_id, "tiny@1", "b", item_ids, before)


async def answered(call: Callable[[], Awaitable[T]], within_s: float = PATIENCE_S) -> T:
    """Call again until the store answers."""
    async with asyncio.timeout(within_s):
        while True:
            try:
                return await call()
            except HistoryUnavailable:
                await asyncio.sleep(0.02)
