"""Histories against a real Valkey over a real socket."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
import redis

from service.breaker import FAILURES
from service.errors import HistoryUnavailable
from service.history import MARK_TTL_S, RedisHistoryStore, history_key, marks_key
from service.metrics import Metrics
from service.schemas import Event

T = TypeVar("T")


def with_store(
    url: str,
    use: Callable[[RedisHistoryStore], Awaitable[T]],
    *,
    timeout_s: float = 5,
    cap: int = 200,
    ttl_s: int = 1000,
    metrics: Metrics | None = None,
) -> T:
    async def run() -> T:
        store = RedisHistoryStore(
            url,
            metrics or Metrics(),
            timeout_s=timeout_s,
            pool_size=4,
            history_cap=cap,
            history_ttl_s=ttl_s,
        )
        try:
            return await use(store)
        finally:
            await store.close()

    return asyncio.run(run())


def event(user_id: str, item_id: str, event_id: str | None = None) -> Event:
    return Event(event_id=event_id or item_id, user_id=user_id, item_id=item_id, event_type="click")


def test_items_come_back_oldest_to_newest(redis_url: str) -> None:
    async def use(store: RedisHistoryStore) -> None:
        assert await store.read("h-order") == []
        assert await store.append([event("h-order", item) for item in "abc"]) == [True] * 3
        assert await store.append([event("h-order", "d")]) == [True]
        assert await store.read("h-order") == ["a", "b", "c", "d"]
        assert await store.read("h-order", 2) == ["c", "d"]

    with_store(redis_url, use)


def test_a_repeated_event_changes_nothing(redis_url: str) -> None:
    async def use(store: RedisHistoryStore) -> None:
        first = event("h-twice", "a", "e1")
        assert await store.append([first, first]) == [True, False]
        assert await store.append([first]) == [False]
        assert await store.append([event("h-twice", "a", "e2")]) == [True]
        assert await store.append([event("h-other", "a", "e1")]) == [True]
        assert await store.read("h-twice") == ["a", "a"]

    with_store(redis_url, use)


def test_a_mark_is_forgotten_after_a_day(redis_url: str) -> None:
    server = redis.Redis.from_url(redis_url)

    async def use(store: RedisHistoryStore) -> None:
        await store.append([event("h-mark", "a", "e1")])
        assert 0 < server.ttl(marks_key("h-mark")) <= MARK_TTL_S
        server.zadd(marks_key("h-mark"), {"e1": time.time() - MARK_TTL_S - 1})
        assert await store.append([event("h-mark", "a", "e1")]) == [True]

    with_store(redis_url, use)
    server.close()


def test_a_history_is_capped_and_expires(redis_url: str) -> None:
    async def use(store: RedisHistoryStore) -> None:
        await store.append([event("h-cap", str(n)) for n in range(5)])
        assert await store.read("h-cap") == ["2", "3", "4"]

    with_store(redis_url, use, cap=3, ttl_s=77)
    with redis.Redis.from_url(redis_url) as server:
        assert 0 < server.ttl(history_key("h-cap")) <= 77
        assert server.lrange(history_key("h-cap"), 0, 0) == [b"4"]  # newest first in there


def test_erasing_leaves_no_key(redis_url: str) -> None:
    async def use(store: RedisHistoryStore) -> None:
        await store.append([event("h-gone", "a")])
        await store.erase("h-gone")
        await store.erase("h-gone")
        assert await store.read("h-gone") == []

    with_store(redis_url, use)
    with redis.Redis.from_url(redis_url) as server:
        assert server.keys("*h-gone*") == []


@pytest.mark.parametrize("strange", ["Zoë 🦊", "a b", 'quote"', "new\nline", "*", "日本語" * 40])
def test_any_text_is_an_item(redis_url: str, strange: str) -> None:
    async def use(store: RedisHistoryStore) -> None:
        await store.append([event("h-text", strange)])
        assert (await store.read("h-text"))[-1] == strange

    with_store(redis_url, use)


def test_a_stalled_server_costs_the_timeout_and_no_more(redis_url: str) -> None:
    metrics = Metrics()
    with redis.Redis.from_url(redis_url) as server:
        pid = server.info("server")["process_id"]

    async def use(store: RedisHistoryStore) -> None:
        await store.append([event("h-stall", "a")])
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(HistoryUnavailable):
                await store.append([event("h-stall", "b")])
            for _ in range(FAILURES - 1):  # as many as the pool has connections
                started = time.monotonic()
                with pytest.raises(HistoryUnavailable):
                    await store.read("h-stall")
                assert time.monotonic() - started < 1.5
            started = time.monotonic()
            for _ in range(100):  # from now on it is not even asked
                with pytest.raises(HistoryUnavailable, match="repeatedly"):
                    await store.read("h-stall")
            assert time.monotonic() - started < 0.2
            assert metrics.registry.get_sample_value("unmask_redis_breaker_state") == 2
        finally:
            os.kill(pid, signal.SIGCONT)
        while True:  # and it recovers by itself, with its own answers on each connection
            try:
                item_ids = await store.read("h-stall")
                break
            except HistoryUnavailable:
                await asyncio.sleep(0.05)
        assert item_ids in (["a"], ["a", "b"])  # the server may carry out what it was sent
        assert metrics.registry.get_sample_value("unmask_redis_breaker_state") == 0

    with_store(redis_url, use, timeout_s=0.2, metrics=metrics)
    failed = metrics.registry.get_sample_value(
        "unmask_redis_errors_total", {"operation": "read", "kind": "timeout"}
    )
    assert failed == FAILURES - 1


def test_no_server_is_unavailable_at_once() -> None:
    metrics = Metrics()

    async def use(store: RedisHistoryStore) -> None:
        started = time.monotonic()
        with pytest.raises(HistoryUnavailable, match="try again"):
            await store.read("anyone")
        assert time.monotonic() - started < 1

    with_store("unix:///nowhere/valkey.sock", use, metrics=metrics)
    labels = {"operation": "read", "kind": "connection"}
    assert metrics.registry.get_sample_value("unmask_redis_errors_total", labels) == 1


def test_a_server_that_refuses_is_unavailable(redis_url: str) -> None:
    async def use(store: RedisHistoryStore) -> None:
        for _ in range(FAILURES + 1):  # it does answer, so the breaker stays closed
            with pytest.raises(HistoryUnavailable, match="did not answer"):
                await store.read("h-wrong-type")

    with redis.Redis.from_url(redis_url) as server:
        server.set(history_key("h-wrong-type"), "not a list")
    with_store(redis_url, use)
