"""The event log in a real Valkey: what is in it, for how long, and who is taken out of it."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path

import pytest
import redis
from redis.crc import key_slot
from running_valkey import Server, running
from stores import answered, event, with_store

from service.errors import HistoryUnavailable
from service.histories.connections import NUM_SLOTS
from service.histories.event_log import LoggedEvent, event_of, log_key, log_key_of, rest_of_entry
from service.histories.redis_store import RedisHistoryStore, history_key
from service.telemetry import Metrics


def log_of(user_id: str) -> str:
    return log_key(history_key(user_id))


def slot_of(user_id: str) -> int:
    return int(key_slot(history_key(user_id).encode()))


def neighbour_of(user_id: str) -> str:
    """Another user whose events are in the same log."""
    names = (f"beside-{n}" for n in itertools.count())
    return next(name for name in names if slot_of(name) == slot_of(user_id))


def test_every_slot_has_one_log_which_is_in_it() -> None:
    keys = [log_key_of(slot) for slot in range(NUM_SLOTS)]
    assert [key_slot(key.encode()) for key in keys] == list(range(NUM_SLOTS))
    for user_id in ("u", "Zoë 🦊", "a b", "*"):
        assert key_slot(log_of(user_id).encode()) == slot_of(user_id)


def test_events_that_enter_histories_are_logged_once(redis_url: str) -> None:
    before_ms = int(time.time() * 1000) - 60_000

    async def use(store: RedisHistoryStore) -> list[LoggedEvent]:
        rated = event("l-once", 'é "\n', "e2", event_type="rating", value=4.5, timestamp=12.25)
        await store.append([event("l-once", "a", "e1"), rated, rated])
        await store.append([event("l-once", "a", "e1")])
        await store.append([event("l-once", "b", "e3", event_type="view")], ["view"])
        await store.append([event("l-once", "a", "e4")])
        [found] = await store.read_log([slot_of("l-once")])
        return [one for one in found if one.user_id == "l-once"]

    first, rated, last = with_store(redis_url, use)
    assert (first.item_id, first.event_type, first.timestamp) == ("a", "click", None)
    assert rated[1:] == ("l-once", 'é "\n', "rating", 12.25, 4.5)
    assert rated.happened_s == 12.25
    assert before_ms < first.at_ms <= rated.at_ms <= last.at_ms < before_ms + 120_000
    assert first.happened_s == first.at_ms / 1000
    assert LoggedEvent(1000, "u", "i", "click", 5.0, None).happened_s == 1  # a clock that is fast


def test_without_a_log_nothing_is_logged(redis_url: str) -> None:
    async def use(store: RedisHistoryStore) -> None:
        await store.append([event("l-off", "a")])
        assert (await store.read("l-off")).history == ["a"]
        assert await store.read_log([slot_of("l-off")]) == [[]]

    with_store(redis_url, use, event_log_s=0)


def test_old_events_are_trimmed_and_counted(redis_url: str) -> None:
    metrics, now_ms = Metrics(), int(time.time() * 1000)
    old = [f"[{now_ms - 1001_000 + n},{rest_of_entry(event('l-old', 'a'))}" for n in range(250)]
    recent = f"[{now_ms - 900_000},{rest_of_entry(event('l-old', 'b'))}"

    async def use(store: RedisHistoryStore) -> None:
        with redis.Redis.from_url(redis_url) as server:
            server.rpush(log_of("l-old"), *old, recent)
            for left in (152, 53, 4, 5):  # a hundred at a time
                await store.append([event("l-old", "c", str(left))])
                [found] = await store.read_log([slot_of("l-old")])
                assert len(found) == left
            assert 0 < server.ttl(log_of("l-old")) <= 1000
        assert [one.item_id for one in found] == ["b", "c", "c", "c", "c"]

    with_store(redis_url, use, metrics=metrics)
    assert metrics.registry.get_sample_value("unmask_event_log_trimmed_total") == 250


def test_a_clock_that_goes_back_does_not_disorder_a_log(redis_url: str) -> None:
    ahead_ms = int(time.time() * 1000) + 500_000

    async def use(store: RedisHistoryStore) -> None:
        with redis.Redis.from_url(redis_url) as server:
            entry = f"[{ahead_ms},{rest_of_entry(event('l-back', 'a'))}"
            server.rpush(log_of("l-back"), entry)
        await store.append([event("l-back", "b")])
        [found] = await store.read_log([slot_of("l-back")])
        assert [(one.at_ms, one.item_id) for one in found] == [(ahead_ms, "a"), (ahead_ms, "b")]

    with_store(redis_url, use)


def test_erasing_takes_a_user_out_of_the_log(redis_url: str) -> None:
    other = neighbour_of("l-gone")

    async def use(store: RedisHistoryStore) -> None:
        for n in range(3):
            await store.append([event("l-gone", f"{n}"), event(other, f"{n}")])
        with redis.Redis.from_url(redis_url, decode_responses=True) as server:
            server.expire(log_of("l-gone"), 500)
            kept = [text for text in server.lrange(log_of(other), 0, -1) if other in text]
            await store.erase("l-gone")
            assert server.lrange(log_of(other), 0, -1) == kept
            assert 400 < server.ttl(log_of(other)) <= 500
        assert (await store.read("l-gone")).history == []
        await store.erase("l-gone")
        assert (await store.read(other)).history == ["0", "1", "2"]
        await store.erase(other)
        assert await store.read_log([slot_of(other)]) == [[]]

    with_store(redis_url, use)


def test_many_events_stay_when_one_user_goes(redis_url: str) -> None:
    other = neighbour_of("l-many")
    entries = [f"[{n},{rest_of_entry(event(other, str(n)))}" for n in range(2500)]

    async def use(store: RedisHistoryStore) -> None:
        with redis.Redis.from_url(redis_url) as server:
            mine = f"[7,{rest_of_entry(event('l-many', 'x'))}"
            server.rpush(log_of(other), *entries[:1200], mine, *entries[1200:])
        await store.erase("l-many")
        [found] = await store.read_log([slot_of(other)])
        assert found == [event_of(entry) for entry in entries]

    with_store(redis_url, use)


def test_a_full_store_still_forgets(tmp_path: Path) -> None:
    server = Server(tmp_path, {"save": '""', "maxmemory-policy": "noeviction"})

    async def use(store: RedisHistoryStore) -> None:
        await store.append([event("full", "a")])
        server.ask("CONFIG", "SET", "maxmemory", 1)
        with pytest.raises(HistoryUnavailable):
            await store.append([event("full", "b")])
        await store.erase("full")
        assert await store.read_log([slot_of("full")]) == [[]]

    with running(server):
        with_store(server.url, use)


def test_a_killed_store_neither_loses_nor_doubles_events(tmp_path: Path) -> None:
    """Every event is sent until it is acknowledged; the store is killed in between."""
    server = Server(tmp_path, {"save": '""', "appendonly": "yes", "appendfsync": "always"})
    users = [f"killed-{n}" for n in range(20)]

    async def send(store: RedisHistoryStore, sent: list[str]) -> None:
        for n in range(60):
            events = [event(user, f"{n}") for user in users]
            await answered(lambda events=events: store.append(events))
            sent.append(f"{n}")

    async def use(store: RedisHistoryStore) -> None:
        sent: list[str] = []
        sending = asyncio.create_task(send(store, sent))
        for least in (10, 30):
            while len(sent) < least:
                await asyncio.sleep(0.001)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
        await sending
        for user in users:
            [found] = await answered(lambda user=user: store.read_log([slot_of(user)]))
            items = [one.item_id for one in found if one.user_id == user]
            assert items == sent == (await store.read(user)).history

    with running(server):
        with_store(server.url, use)
