"""What is trending, in a real Valkey: decayed counts against sums, duplicates, limits, replicas."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import pytest
import redis
from running_service import PATIENCE_S
from stores import event, with_store

from service.errors import HistoryUnavailable
from service.histories import RedisHistoryStore, Trending, store_events
from service.histories.background import trending as trending_module
from service.histories.scripts import MOST_TRENDING
from service.telemetry import Metrics

TYPES = ("click", "view")
FOREVER_S = 10**9  # a half-life in which nothing decays
NUMBERS = iter(range(10**6))


def own_half_life() -> int:
    """Each test has counts of its own."""
    return FOREVER_S + next(NUMBERS)


def now_of(url: str) -> float:
    with redis.Redis.from_url(url) as server:
        seconds, micros = server.time()
    return float(seconds + micros / 1e6)


def rounded(counts: Mapping[str, float]) -> dict[str, float]:
    return {item_id: round(count, 5) for item_id, count in counts.items()}


def test_counts_are_sums_that_halve_with_every_half_life(redis_url: str) -> None:
    half_life_s = 5  # so that on a busy machine no count is forgotten between two calls
    told: list[tuple[str, int, float, float]] = []  # item, users, clock before, after

    def between(item_id: str, from_s: float, to_s: float) -> tuple[float, float]:
        """The least and the largest count, if it was read between these times."""
        own = [one for one in told if one[0] == item_id]
        least = sum(n * 2 ** ((before - to_s) / half_life_s) for _, n, before, _ in own)
        most = sum(n * 2 ** ((after - from_s) / half_life_s) for _, n, _, after in own)
        return least, most

    async def use(store: RedisHistoryStore) -> None:
        for batch, users in enumerate(({"a": 5, "b": 1}, {"b": 2}, {"a": 1, "c": 40}, {"b": 7})):
            before = now_of(redis_url)
            await store.count_trending("decay", batch + 1, users, half_life_s)
            after = now_of(redis_url)
            told.extend((item_id, n, before, after) for item_id, n in users.items())
            await asyncio.sleep(0.15)
        before = now_of(redis_url)
        found = await store.read_trending(half_life_s, 0, 9)
        after = now_of(redis_url)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        for item_id in "abc":
            least, most = between(item_id, before, after)
            assert least * 0.999 <= found[item_id] <= most * 1.001

    with_store(redis_url, use)


def test_a_batch_counts_once_and_any_number_of_users(redis_url: str) -> None:
    half_life_s = own_half_life()

    async def use(store: RedisHistoryStore) -> None:
        for writer, batch, users in (
            ("x", 1, {"a": 1, "ü 1": 3}),
            ("x", 1, {"a": 9}),
            ("y", 1, {"a": 1000}),
            ("x", 2, {"a": 10**6}),
            ("x", 1, {"a": 9}),  # late, of a connection that was given up
        ):
            await store.count_trending(writer, batch, users, half_life_s)
        found = await store.read_trending(half_life_s, 0, 9)
        assert found == pytest.approx({"a": 1_001_001, "ü 1": 3}, rel=1e-6)
        assert list(await store.read_trending(half_life_s, 1, 1)) == ["ü 1"]
        assert await store.read_trending(half_life_s + 0.5, 0, 9) == {}  # another half-life
        with redis.Redis.from_url(redis_url) as server:
            own = f"{{{half_life_s}}}"
            keys = [f"unmask:trending:{own}", *(f"unmask:trending-batch:{own}:{w}" for w in "xy")]
            assert all(server.ttl(key) > 0 for key in keys)

    with_store(redis_url, use)


def test_what_is_long_ago_is_forgotten(redis_url: str) -> None:
    half_life_s = own_half_life()

    async def use(store: RedisHistoryStore) -> None:
        key = f"unmask:trending:{{{half_life_s}}}"
        now = time.time() / half_life_s
        with redis.Redis.from_url(redis_url, decode_responses=True) as server:
            server.zadd(key, {"old": now - 7.1, "less": now - 6.9})
            await store.count_trending("new", 1, {"a": 1}, half_life_s)
            assert server.zrange(key, 0, -1) == ["less", "a"]

    with_store(redis_url, use)


def test_a_clock_that_was_set_back_leaves_a_list(redis_url: str) -> None:
    """Then scores may be so far ahead of it that no float has their counts."""
    half_life_s = own_half_life()

    async def use(store: RedisHistoryStore) -> None:
        with redis.Redis.from_url(redis_url) as server:
            server.zadd(f"unmask:trending:{{{half_life_s}}}", {"ahead": 2000})
        await store.count_trending("now", 1, {"ahead": 1, "a": 1}, half_life_s)
        found = await store.read_trending(half_life_s, 0, 9)
        assert rounded(found) == {"ahead": 2.0**64, "a": 1}

    with_store(redis_url, use)


def test_the_store_keeps_a_limited_number_of_items(redis_url: str) -> None:
    half_life_s, most = own_half_life(), MOST_TRENDING

    async def use(store: RedisHistoryStore) -> None:
        key = f"unmask:trending:{{{half_life_s}}}"
        now = time.time() / half_life_s
        with redis.Redis.from_url(redis_url, decode_responses=True) as server:
            scores = {f"i{n}": now + n / most for n in range(2 * most - 1)}
            server.zadd(key, scores)
            await store.count_trending("w", 1, {f"i{2 * most - 2}": 1}, half_life_s)
            assert server.zcard(key) == 2 * most - 1
            await store.count_trending("w", 2, {"new": 10**9}, half_life_s)
            assert server.zcard(key) == 2 * most
            await store.count_trending("w", 3, {"newer": 10**10}, half_life_s)
            kept = server.zrange(key, 0, -1, desc=True)
            assert kept[:2] == ["newer", "new"]
            assert kept[2:] == [f"i{n}" for n in range(2 * most - 2, most - 1, -1)]

    with_store(redis_url, use)


def test_a_user_counts_once_a_day_for_an_item(redis_url: str) -> None:
    async def use(store: RedisHistoryStore) -> None:
        async def counts(*events: Any, types: tuple[str, ...] = TYPES) -> list[bool]:
            stored = await store.append(events, ["view", "impression"], ["dislike"], types)
            return [one.counts for one in stored]

        first = event("t-1", "a", "e1")
        assert await counts(first, first, event("t-1", "a", "e2")) == [True, False, False]
        assert await counts(event("t-1", "b", "e3"), event("t-2", "a", "e4")) == [True, True]
        seen = event("t-1", "c", "e5", event_type="view")
        assert await counts(seen, event("t-1", "c", "e6")) == [True, False]
        assert await counts(event("t-1", "d", "e7"), types=()) == [False]
        assert await counts(event("t-1", "d", "e8")) == [True]
        others = [event("t-1", "e", "e9", event_type="dislike")]
        many = {"item_id": None, "item_ids": ["f", "g"], "event_type": "view"}
        others += [event("t-1", "f", "e10", event_type="impression")]
        others += [event("t-1", "f", "e11").model_copy(update=many)]
        assert await counts(*others) == [False] * 3
        refusal = event("t-1", "g", "e12", event_type="dislike")
        assert await counts(refusal, types=("dislike",)) == [False]
        with redis.Redis.from_url(redis_url) as server:  # a day later
            server.zadd("unmask:marks:{t-1}", {b"\xfea": 1, b"e1": 1})
        assert await counts(event("t-1", "a", "e1")) == [True]
        await store.erase("t-1")
        assert await counts(event("t-1", "a", "e1")) == [True]

    with_store(redis_url, use)


def test_events_are_counted_for_all_replicas(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trending_module, "REST_S", 0.01)
    monkeypatch.setattr(trending_module, "FRESH_S", PATIENCE_S)
    monkeypatch.setattr(trending_module, "FLUSH_S", PATIENCE_S)
    monkeypatch.setattr(trending_module, "MOST_WRITTEN", 3)
    monkeypatch.setattr(trending_module, "MOST_READ", 2)
    half_life_s, metrics = own_half_life(), Metrics()

    async def use(store: RedisHistoryStore) -> None:
        replicas = [Trending(lambda: store, metrics, ("click",), half_life_s) for _ in range(2)]
        for replica in replicas:
            replica.start()
        for user in range(8):
            events = [event(f"r-{user}", f"i{n}", f"e{n}") for n in range(user + 1)]
            for replica in (*replicas, *replicas):  # the client repeats them
                await store_events(
                    events,
                    store,
                    metrics,
                    event_types=("click",),
                    counted_event_types=(),
                    trending=replica,
                )
        async with asyncio.timeout(PATIENCE_S):
            while replicas[0]._waiting or replicas[0]._batch:  # its task writes
                await asyncio.sleep(0.01)
        for replica in replicas:
            await replica.stop()
        expected = {f"i{n}": 8 - n for n in range(8)}
        for replica in replicas:
            found = await replica.newest()
            assert found.is_current
            assert rounded(found.recent_users) == expected
            assert list(found.recent_users) == list(expected)
            kept = await replica.newest()
            assert kept.recent_users is found.recent_users  # no call

    with_store(redis_url, use)
    assert metrics.registry.get_sample_value("unmask_trending_dropped_total") == 0


class Failing:
    """A store that counts, and says that it did not, or does not answer at all."""

    def __init__(self, store: RedisHistoryStore) -> None:
        self._store = store
        self.is_away, self.loses_replies = False, False

    async def count_trending(self, *asked: Any) -> None:
        if not self.is_away:
            await self._store.count_trending(*asked)
        if self.is_away or self.loses_replies:
            raise HistoryUnavailable("away")

    async def read_trending(self, *asked: Any) -> dict[str, float]:
        if self.is_away:
            raise HistoryUnavailable("away")
        return await self._store.read_trending(*asked)


def test_what_may_have_been_written_is_not_counted_twice(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trending_module, "REST_S", 0.0)
    monkeypatch.setattr(trending_module, "FLUSH_S", PATIENCE_S)
    metrics = Metrics()

    async def use(store: RedisHistoryStore) -> None:
        failing = Failing(store)
        trending = Trending(lambda: failing, metrics, TYPES, own_half_life())
        failing.loses_replies = True
        trending.start()
        trending.note("a")
        async with asyncio.timeout(PATIENCE_S):
            while not (await trending.newest()).recent_users:
                trending._fresh_until = 0.0
        trending.note("a")
        trending.note("b")
        await asyncio.sleep(0.05)  # repeated many times
        failing.loses_replies = False
        await trending.stop()
        trending._fresh_until = 0.0
        assert rounded((await trending.newest()).recent_users) == {"a": 2, "b": 1}

    with_store(redis_url, use)
    assert metrics.registry.get_sample_value("unmask_trending_dropped_total") == 0


def test_without_the_store_what_was_read_stays_and_what_does_not_fit_is_counted(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trending_module, "MOST_WAITING", 2)
    metrics = Metrics()

    async def use(store: RedisHistoryStore) -> None:
        failing = Failing(store)
        trending = Trending(lambda: failing, metrics, TYPES, own_half_life())
        failing.is_away = True
        assert await trending.newest() == ({}, False)
        failing.is_away = False
        await store.count_trending("before", 1, {"a": 1}, trending.half_life_s)
        assert rounded((await trending.newest()).recent_users) == {"a": 1}
        failing.is_away = True
        trending._fresh_until = 0.0
        stale = await trending.newest()
        assert (rounded(stale.recent_users), stale.is_current) == ({"a": 1}, False)
        for item_id in ("a", "b", "c", "a", "d"):
            trending.note(item_id)
        assert metrics.registry.get_sample_value("unmask_trending_dropped_total") == 2
        await trending.stop()

    with_store(redis_url, use)
    assert metrics.registry.get_sample_value("unmask_trending_dropped_total") == 5
