"""Histories against a real Valkey over a real socket."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest
import redis
from redis.crc import key_slot
from stores import answered, event, shown, with_store

from service.errors import HistoryUnavailable
from service.histories.calls import FAILURES
from service.histories.redis_store import (
    MARK_TTL_S,
    MAX_ANSWERS,
    RedisHistoryStore,
    history_key,
    marks_key,
    refused_key,
    shown_key,
)
from service.histories.store import Attribution, Stored
from service.schemas.events import Event
from service.telemetry.metrics import Metrics

NEW, OLD = Stored(True), Stored(False)


def test_items_come_back_oldest_to_newest(redis_url: str) -> None:
    async def use(store: RedisHistoryStore) -> None:
        assert (await store.read("h-order")).history == []
        assert await store.append([event("h-order", item) for item in "abc"]) == [NEW] * 3
        assert await store.append([event("h-order", "d")]) == [NEW]
        assert (await store.read("h-order")).history == ["a", "b", "c", "d"]
        assert (await store.read("h-order", 2)).history == ["c", "d"]

    with_store(redis_url, use)


def test_a_repeated_event_changes_nothing(redis_url: str) -> None:
    async def use(store: RedisHistoryStore) -> None:
        first = event("h-twice", "a", "e1")
        assert await store.append([first, first]) == [NEW, OLD]
        assert await store.append([first]) == [OLD]
        assert await store.append([event("h-twice", "a", "e2")]) == [NEW]
        assert await store.append([event("h-other", "a", "e1")]) == [NEW]
        assert (await store.read("h-twice")).history == ["a", "a"]

    with_store(redis_url, use)


def test_a_mark_is_forgotten_after_a_day(redis_url: str) -> None:
    server = redis.Redis.from_url(redis_url)

    async def use(store: RedisHistoryStore) -> None:
        await store.append([event("h-mark", "a", "e1")])
        assert 0 < server.ttl(marks_key("h-mark")) <= MARK_TTL_S
        server.zadd(marks_key("h-mark"), {"e1": time.time() - MARK_TTL_S - 1})
        assert await store.append([event("h-mark", "a", "e1")]) == [NEW]

    with_store(redis_url, use)
    server.close()


def test_a_history_is_capped_and_expires(redis_url: str) -> None:
    async def use(store: RedisHistoryStore) -> None:
        await store.append([event("h-cap", str(n)) for n in range(5)])
        assert (await store.read("h-cap")).history == ["2", "3", "4"]

    with_store(redis_url, use, cap=3, ttl_s=77)
    with redis.Redis.from_url(redis_url) as server:
        assert 0 < server.ttl(history_key("h-cap")) <= 77
        assert server.lrange(history_key("h-cap"), 0, 0) == [b"4"]  # newest first inside Redis


def test_erasing_leaves_no_key(redis_url: str) -> None:
    async def use(store: RedisHistoryStore) -> None:
        await store.append([event("h-gone", "a")])
        await store.remember([("h-gone", shown("r1", "a"))])
        await store.erase("h-gone")
        await store.erase("h-gone")
        assert (await store.read("h-gone")).history == []

    with_store(redis_url, use)
    with redis.Redis.from_url(redis_url) as server:
        assert server.keys("*h-gone*") == []


@pytest.mark.parametrize("strange", ["Zoë 🦊", "a b", 'quote"', "new\nline", "*", "日本語" * 40])
def test_any_text_is_an_item(redis_url: str, strange: str) -> None:
    async def use(store: RedisHistoryStore) -> None:
        await store.append([event("h-text", strange)])
        assert ((await store.read("h-text")).history)[-1] == strange

    with_store(redis_url, use)


def test_a_stalled_server_costs_the_timeout_and_no_more(redis_url: str) -> None:
    metrics = Metrics()
    with redis.Redis.from_url(redis_url) as server:
        pid = server.info("server")["process_id"]

    async def use(store: RedisHistoryStore) -> None:
        await answered(lambda: store.append([event("h-stall", "a")]))
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(HistoryUnavailable):
                await store.append([event("h-stall", "b")])
            for _ in range(FAILURES - 1):  # as many as the pool has connections
                with pytest.raises(HistoryUnavailable):
                    await store.read("h-stall")
            for _ in range(10):  # from now on it is not even asked
                with pytest.raises(HistoryUnavailable, match="repeatedly"):
                    await store.read("h-stall")
            failed = metrics.registry.get_sample_value(
                "unmask_redis_errors_total", {"operation": "read", "kind": "timeout"}
            )
            assert failed == FAILURES - 1
            assert metrics.registry.get_sample_value("unmask_redis_breaker_state") == 2
        finally:
            os.kill(pid, signal.SIGCONT)
        # It recovers by itself, and each connection gets its own replies.
        stored = await answered(lambda: store.read("h-stall"))
        assert stored.history in (["a"], ["a", "b"])  # the server may carry out what it was sent
        assert metrics.registry.get_sample_value("unmask_redis_breaker_state") == 0

    with_store(redis_url, use, timeout_s=0.3, metrics=metrics)


def test_a_server_is_not_blamed_for_a_late_event_loop(redis_url: str) -> None:
    """The reply has arrived, but nobody could read it. That is no failure of the store."""

    async def use(store: RedisHistoryStore) -> None:
        await answered(lambda: store.append([event("h-late", "a")]))
        for _ in range(FAILURES + 1):
            asyncio.get_running_loop().call_soon(time.sleep, 0.45)
            assert (await store.read("h-late")).history == ["a"]

    with_store(redis_url, use, timeout_s=0.2)


def test_no_server_is_unavailable_at_once() -> None:
    metrics = Metrics()

    async def use(store: RedisHistoryStore) -> None:
        with pytest.raises(HistoryUnavailable, match="try again"):
            await store.read("anyone")

    with_store("unix:///nowhere/valkey.sock", use, metrics=metrics)  # no timeout
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


# --- answers and their attribution -------------------------------------------------------------


def test_an_answer_is_read_with_the_history(redis_url: str) -> None:
    async def use(store: RedisHistoryStore) -> None:
        await store.append([event("r-page", "a"), event("r-page", "b")])
        first, second = shown("r1", "c", 'é\n"x'), shown("r2", "e", before=("c", "d"))
        await store.remember([("r-page", first), ("r-page", second), ("r-other", first)])
        assert await store.read_page("r-page", "r1") == ((["a", "b"], []), first)
        assert await store.read_page("r-page", "r2") == ((["a", "b"], []), second)
        assert await store.read_page("r-page", "r") == ((["a", "b"], []), None)
        assert await store.read_page("r-nobody", "r1") == (([], []), None)

    with_store(redis_url, use)


def test_only_the_last_answers_of_a_day_are_remembered(redis_url: str) -> None:
    async def use(store: RedisHistoryStore) -> None:
        await store.remember([("r-many", shown(f"r{n}", "a")) for n in range(MAX_ANSWERS + 1)])
        assert (await store.read_page("r-many", "r0"))[1] is None
        assert (await store.read_page("r-many", "r1"))[1] == shown("r1", "a")
        with redis.Redis.from_url(redis_url, decode_responses=True) as server:
            assert 0 < server.ttl(shown_key("r-many")) <= MARK_TTL_S
            newest = server.lindex(shown_key("r-many"), 0)
            at = int(newest.partition('"at":')[2].partition(",")[0])
            old = newest.replace(str(at), str(at - MARK_TTL_S - 2))
            server.lset(shown_key("r-many"), 0, old)  # kept alive by a newer one, say
        assert await store.read_page("r-many", f"r{MAX_ANSWERS}") == (([], []), None)
        late = event("r-many", "a", recommendation_id=f"r{MAX_ANSWERS}")
        assert await store.append([late]) == [NEW]

    with_store(redis_url, use)


def test_an_event_is_attributed_to_the_answer_it_names(redis_url: str) -> None:
    async def use(store: RedisHistoryStore) -> list[Stored]:
        await store.remember([("at", shown("r1", "a", "b")), ("at", shown("r2", "Zoë 🦊", "a"))])
        named = {"recommendation_id": "r1"}
        return await store.append(
            [
                event("at", "b", "e1", **named),
                event("at", "a", "e2", **named),
                event("at", "a", "e2", **named),
                event("at", "a", "e3", event_type="purchase", **named),
                event("at", "c", "e4", **named),
                event("at", "a", "e5"),
                event("at", "a", "e6", recommendation_id="r"),
                event("at", "Zoë 🦊", "e7", recommendation_id="r2"),
                event("at-other", "a", "e8", **named),
            ]
        )

    def hit(rank: int, is_first: bool) -> Stored:
        return Stored(True, Attribution("tiny@1", "b", rank, is_first))

    assert with_store(redis_url, use) == [
        hit(2, True),
        hit(1, False),
        OLD,  # never twice
        hit(1, True),  # the first purchase
        NEW,
        NEW,
        NEW,
        hit(1, True),
        NEW,
    ]


def test_a_counted_event_is_attributed_and_enters_no_history(redis_url: str) -> None:
    async def use(store: RedisHistoryStore) -> None:
        await store.remember([("h-seen", shown("r1", "a", "b", "c"))])
        seen = Event(
            event_id="i1",
            user_id="h-seen",
            item_ids=["x", "c", "b"],
            event_type="impression",
            recommendation_id="r1",
        )
        expected = Stored(True, Attribution("tiny@1", "b", 2, True))
        assert await store.append([seen, seen], ["impression"]) == [expected, OLD]
        assert (await store.read("h-seen")).history == []

    with_store(redis_url, use)


def test_a_refused_item_is_kept_once_and_can_be_taken_back(redis_url: str) -> None:
    """Refusals have the cap and the time of histories, a log entry each, and no history."""
    types = ((), ["not_interested"])

    async def use(store: RedisHistoryStore) -> None:
        def refusal(item_id: str, event_id: str, how: str = "") -> Event:
            named = {"event_type": f"{how}not_interested", "recommendation_id": "r1"}
            return event("refuser", item_id, event_id, **named)

        await store.remember([("refuser", shown("r1", "a", "b"))])
        sent = [refusal("a", "1"), refusal("b", "2"), refusal("a", "3"), event("refuser", "x")]
        assert await store.append(sent, *types) == [Stored(True)] * 4  # no attribution
        assert await store.read("refuser") == (["x"], ["b", "a"])
        assert await store.append([refusal("b", "2")], *types) == [OLD]
        assert await store.append([event("refuser", "y")]) == [Stored(True)]
        assert await store.read("refuser", 1) == (["y"], ["b", "a"]), "all refusals"
        await store.append([refusal("c", "4"), refusal("d", "5")], *types)
        assert (await store.read("refuser")).refused == ["a", "c", "d"], "the cap"
        await store.append([refusal("c", "6", "undo_"), refusal("z", "7", "undo_")], *types)
        read, _ = await store.read_page("refuser", "r1")
        assert read == (["x", "y"], ["a", "d"])
        logged = [
            (one.item_id, one.event_type)
            for one in (await store.read_log([key_slot(history_key("refuser").encode())]))[0]
        ]
        assert logged[-2:] == [("c", "undo_not_interested"), ("z", "undo_not_interested")]
        assert len(logged) == 9
        with redis.Redis.from_url(redis_url) as server:
            assert 0 < server.ttl(refused_key("refuser")) <= 1000
        await store.erase("refuser")
        assert await store.read("refuser") == ([], [])

    with_store(redis_url, use, cap=3)
