"""Answers written in the background: to a real store, to a slow one, to none."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import pytest
from stores import shown, with_store

from service.errors import HistoryUnavailable
from service.histories.background.attribution import MAX_BATCH, AnswerMemory
from service.histories.calls import FAILURES
from service.histories.redis_store import RedisHistoryStore
from service.histories.store import RememberedAnswer
from service.telemetry.metrics import Metrics


class StalledStore:
    """Takes no answer until it is released."""

    def __init__(self, *, fails: bool = False) -> None:
        self.go = asyncio.Event()
        self.fails = fails
        self.written: list[Sequence[tuple[str, RememberedAnswer]]] = []

    async def remember(self, answers: Sequence[tuple[str, RememberedAnswer]]) -> None:
        await self.go.wait()
        if self.fails:
            raise HistoryUnavailable("gone")
        self.written.append(answers)


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"unmask_{name}_total", labels) or 0


def test_an_answer_is_pending_and_then_in_the_store(redis_url: str) -> None:
    metrics = Metrics()

    async def use(store: RedisHistoryStore) -> None:
        memory = AnswerMemory(store, metrics)
        memory.start()
        for n in range(3 * MAX_BATCH):
            memory.note("w-many", shown(f"r{n}", "a"))
        memory.note("w", shown("r1", "a", "b"))
        memory.note("w", shown("nothing"))
        assert memory.pending("w", "r1") == shown("r1", "a", "b")
        assert memory.pending("w", "nothing") is None
        assert memory.pending("other", "r1") is None
        await memory.stop()
        assert memory.pending("w", "r1") is None
        assert await store.read_page("w", "r1") == (([], []), shown("r1", "a", "b"))
        last = shown(f"r{3 * MAX_BATCH - 1}", "a")
        assert await store.read_page("w-many", last.recommendation_id) == (([], []), last)

    with_store(redis_url, use)
    noted = value(metrics, "recommendations", bundle="tiny@1", variant="b")
    assert (noted, value(metrics, "remember_dropped")) == (3 * MAX_BATCH + 1, 0)


def test_under_load_answers_share_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """One answer is written at once. After several, the next wait a moment for each other."""
    monkeypatch.setattr("service.histories.background.attribution.REST_S", 0.3)

    async def run() -> None:
        store = StalledStore()
        store.go.set()
        memory = AnswerMemory(store, Metrics())  # type: ignore[arg-type]
        memory.start()
        ids = itertools.count()
        for size in (1, 1, 3, 1, 1, 1):
            for _ in range(size):
                memory.note("u", shown(f"r{next(ids)}", "a"))
            for _ in range(5):  # turns of the loop
                await asyncio.sleep(0)
        assert [len(answers) for answers in store.written] == [1, 1, 3]
        await memory.stop()
        assert sum(map(len, store.written)) == 1 + 1 + 3 + 3
        assert len(store.written) == 4

    asyncio.run(run())


def test_a_full_queue_drops_and_stop_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.histories.background.attribution.FLUSH_S", 0.05)

    async def run() -> None:
        metrics, store = Metrics(), StalledStore()
        memory = AnswerMemory(store, metrics, max_waiting=3)  # type: ignore[arg-type]
        memory.start()
        for n in range(5):
            memory.note("u", shown(f"r{n}", "a"))
            await asyncio.sleep(0)
        assert memory.pending("u", "r2")
        assert memory.pending("u", "r3") is None
        assert value(metrics, "remember_dropped") == 2
        await memory.stop()
        assert store.written == []
        assert value(metrics, "remember_dropped") == 5

    asyncio.run(run())


def test_what_the_store_does_not_take_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        metrics, store = Metrics(), StalledStore(fails=True)
        memory = AnswerMemory(store, metrics)  # type: ignore[arg-type]
        memory.start()
        store.go.set()
        for n in range(2 * MAX_BATCH):
            memory.note("u", shown(f"r{n}", "a"))
        while memory.pending("u", f"r{2 * MAX_BATCH - 1}"):
            await asyncio.sleep(0)
        assert value(metrics, "remember_dropped") == 2 * MAX_BATCH
        store.fails = False
        memory.note("u", shown("later", "a"))
        await memory.stop()
        assert store.written == [[("u", shown("later", "a"))]]

    asyncio.run(run())


def test_nothing_of_a_user_is_written_after_it_was_forgotten() -> None:
    async def run() -> None:
        store = StalledStore()
        memory = AnswerMemory(store, Metrics())  # type: ignore[arg-type]
        memory.start()
        memory.note("u", shown("r1", "a"))
        await asyncio.sleep(0)  # it is being written
        memory.note("u", shown("r2", "a"))
        memory.note("v", shown("r3", "a"))
        forgetting = asyncio.create_task(memory.forget("u"))
        await asyncio.sleep(0.01)
        assert not forgetting.done()
        store.go.set()
        await forgetting
        await memory.stop()
        assert store.written == [[("u", shown("r1", "a"))], [("v", shown("r3", "a"))]]

    asyncio.run(run())


def test_a_bug_does_not_end_the_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        metrics, store = Metrics(), StalledStore()
        memory = AnswerMemory(store, metrics)  # type: ignore[arg-type]
        memory.start()
        store.go = None  # type: ignore[assignment]
        memory.note("u", shown("r1", "a"))
        while memory.pending("u", "r1"):
            await asyncio.sleep(0)
        store.go = asyncio.Event()
        store.go.set()
        memory.note("u", shown("r2", "a"))
        await memory.stop()
        assert store.written == [[("u", shown("r2", "a"))]]

    asyncio.run(run())


def test_no_store_costs_nothing() -> None:
    """With an open breaker answers are dropped at once, and the store is not even tried."""
    metrics = Metrics()

    async def use(store: RedisHistoryStore) -> None:
        memory = AnswerMemory(store, metrics)
        memory.start()
        for n in range(20 * MAX_BATCH):
            memory.note("u", shown(f"r{n}", "a"))
        while memory.pending("u", f"r{n}"):
            await asyncio.sleep(0)
        await memory.stop()
        assert value(metrics, "remember_dropped") == 20 * MAX_BATCH
        tried = value(metrics, "redis_errors", operation="remember", kind="connection")
        refused = value(metrics, "redis_errors", operation="remember", kind="breaker_open")
        assert tried + refused == 20
        assert FAILURES <= tried < 20

    with_store("unix:///nowhere/valkey.sock", use, metrics=metrics)
