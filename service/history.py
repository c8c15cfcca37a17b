"""Users' histories in Redis or Valkey: the only module that knows the keys and talks to the store.

A history is a list of item_ids, oldest to newest everywhere but inside Redis, where the newest
comes first. An event is remembered by its `event_id` for a day: repeating it changes nothing. Every
call has the store's own timeout, no retries, and raises HistoryUnavailable without an answer; a
store that fails again and again is not asked for a while (`service.breaker`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.breaker import Breaker
from service.errors import HistoryUnavailable
from service.metrics import Metrics
from service.schemas import Event

MARK_TTL_S = 24 * 60 * 60  # how long a repeated event_id is recognised

# KEYS history, marks; ARGV event_id, item_id, history_cap, history_ttl_s, mark_ttl_s. 1 = appended.
# The clock is the server's, so that replicas of the service agree.
APPEND = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - tonumber(ARGV[5]))
if redis.call('ZADD', KEYS[2], 'NX', now, ARGV[1]) == 0 then return 0 end
redis.call('EXPIRE', KEYS[2], ARGV[5])
redis.call('LPUSH', KEYS[1], ARGV[2])
redis.call('LTRIM', KEYS[1], 0, tonumber(ARGV[3]) - 1)
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 1
"""


def history_key(user_id: str) -> str:
    """The list of a user's items. The braces keep a user's keys on one cluster slot."""
    return f"unmask:history:{{{user_id}}}"


def marks_key(user_id: str) -> str:
    """The sorted set of a user's recent event_ids, by time."""
    return f"unmask:marks:{{{user_id}}}"


class HistoryStore(Protocol):
    """Where histories are kept. Every method may raise HistoryUnavailable."""

    async def read(self, user_id: str, limit: int | None = None) -> list[str]:
        """The newest `limit` items of a user (all by default), oldest to newest."""
        ...

    async def append(self, events: Sequence[Event]) -> list[bool]:
        """Append events in the order given; False for an event_id the user has sent before."""
        ...

    async def erase(self, user_id: str) -> None:
        """Forget the user; nothing happens when there is nothing to forget."""
        ...


class RedisHistoryStore:
    """Histories in a Redis-compatible server. Make it inside the event loop that uses it."""

    def __init__(
        self,
        url: str,
        metrics: Metrics,
        *,
        timeout_s: float,
        pool_size: int,
        history_cap: int,
        history_ttl_s: int,
    ) -> None:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=pool_size,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),  # redis-py's default retries a stalled server for seconds
            decode_responses=True,
        )
        self._redis: Redis = Redis.from_pool(pool)
        self._breaker = Breaker()
        self._metrics = metrics
        metrics.redis_breaker_state.set_function(lambda: self._breaker.state)
        self._timeout_s = timeout_s
        self._history_cap = history_cap
        self._history_ttl_s = history_ttl_s

    async def read(self, user_id: str, limit: int | None = None) -> list[str]:
        async with self._call("read"):
            last = -1 if limit is None else limit - 1
            newest_first = await self._redis.lrange(history_key(user_id), 0, last)
        return [str(item_id) for item_id in reversed(newest_first)]

    async def append(self, events: Sequence[Event]) -> list[bool]:
        async with self._call("append"):
            pipeline = self._redis.pipeline(transaction=False)
            for event in events:
                pipeline.eval(
                    APPEND,
                    2,
                    history_key(event.user_id),
                    marks_key(event.user_id),
                    event.event_id,
                    event.item_id,
                    self._history_cap,
                    self._history_ttl_s,
                    MARK_TTL_S,
                )
            return [appended == 1 for appended in await pipeline.execute()]

    async def erase(self, user_id: str) -> None:
        async with self._call("erase"):
            await self._redis.delete(history_key(user_id), marks_key(user_id))

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    @asynccontextmanager
    async def _call(self, operation: str) -> AsyncIterator[None]:
        if not self._breaker.admits():
            self._metrics.redis_errors.labels(operation, "breaker_open").inc()
            raise HistoryUnavailable("the history store has failed repeatedly; try again")
        started = time.perf_counter()
        told = self._breaker.gave_up
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
            told = self._breaker.succeeded
        except (RedisError, OSError) as error:  # OSError: asyncio's TimeoutError, and a lost socket
            kind = (
                "timeout"
                if isinstance(error, TimeoutError | RedisTimeoutError)
                else "connection"
                if isinstance(error, OSError | RedisConnectionError)
                else "response"
            )
            told = self._breaker.succeeded if kind == "response" else self._breaker.failed
            self._metrics.redis_errors.labels(operation, kind).inc()
            raise HistoryUnavailable("the history store did not answer; try again") from error
        finally:
            told()
            seconds = time.perf_counter() - started
            self._metrics.redis_operation_duration.labels(operation).observe(seconds)
