"""Answers written behind the requests' back: to a real store, to a slow one, to none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest
from stores import shown, with_store

from service.errors import HistoryUnavailable
from service.histories.attribution import MAX_BATCH, Remembering
from service.histories.redis_store import RedisHistoryStore
from service.histories.store import Shown
from service.telemetry.metrics import Metrics


class StalledStore:
    """Takes no answer until it is let go."""

    def __init__(self, *, fails: bool = False) -> None:
        self.go = asyncio.Event()
        self.fails = fails
        self.written: list[Sequence[tuple[str, Shown]]] = []

    async def remember(self, answers: Sequence[tuple[str, Shown]]) -> None:
        await self.go.wait()
        if self.fails:
            raise HistoryUnavailable("gone")
        self.written.append(answers)


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"unmask_{name}_total", labels) or 0


def test_an_answer_is_pending_and_then_in_the_store(redis_url: str) -> None:
    metrics = Metrics()

    async def use(store: RedisHistoryStore) -> None:
        remembering = Remembering(store, metrics)
        remembering.start()
        for n in range(3 * MAX_BATCH):
            remembering.note("w-many", shown(f"r{n}", "a"))
        remembering.note("w", shown("r1", "a", "b"))
        remembering.note("w", shown("nothing"))
        assert remembering.pending("w", "r1") == shown("r1", "a", "b")
        assert remembering.pending("w", "nothing") is None
        assert remembering.pending("other", "r1") is None
        await remembering.stop()
        assert remembering.pending("w", "r1") is None
        assert await store.read_page("w", "r1") == ([], shown("r1", "a", "b"))
        last = shown(f"r{3 * MAX_BATCH - 1}", "a")
        assert await store.read_page("w-many", last.recommendation_id) == ([], last)

    with_store(redis_url, use)
    noted = value(metrics, "recommendations", bundle="tiny@1", variant="b")
    assert (noted, value(metrics, "remember_dropped")) == (3 * MAX_BATCH + 1, 0)


def test_a_full_queue_drops_and_stop_waits_a_second() -> None:
    async def run() -> None:
        metrics, store = Metrics(), StalledStore()
        remembering = Remembering(store, metrics, max_waiting=3)  # type: ignore[arg-type]
        remembering.start()
        for n in range(5):
            remembering.note("u", shown(f"r{n}", "a"))
            await asyncio.sleep(0)
        assert remembering.pending("u", "r2")
        assert remembering.pending("u", "r3") is None
        assert value(metrics, "remember_dropped") == 2
        started = time.monotonic()
        await remembering.stop()
        assert 0.9 < time.monotonic() - started < 1.5
        assert value(metrics, "remember_dropped") == 5

    asyncio.run(run())


def test_what_the_store_does_not_take_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        metrics, store = Metrics(), StalledStore(fails=True)
        remembering = Remembering(store, metrics)  # type: ignore[arg-type]
        remembering.start()
        store.go.set()
        for n in range(2 * MAX_BATCH):
            remembering.note("u", shown(f"r{n}", "a"))
        while remembering.pending("u", f"r{2 * MAX_BATCH - 1}"):
            await asyncio.sleep(0)
        assert value(metrics, "remember_dropped") == 2 * MAX_BATCH
        store.fails = False
        remembering.note("u", shown("later", "a"))
        await remembering.stop()
        assert store.written == [[("u", shown("later", "a"))]]

    asyncio.run(run())


def test_nothing_of_a_user_is_written_after_it_was_forgotten() -> None:
    async def run() -> None:
        store = StalledStore()
        remembering = Remembering(store, Metrics())  # type: ignore[arg-type]
        remembering.start()
        remembering.note("u", shown("r1", "a"))
        await asyncio.sleep(0)  # it is being written
        remembering.note("u", shown("r2", "a"))
        remembering.note("v", shown("r3", "a"))
        forgetting = asyncio.create_task(remembering.forget("u"))
        await asyncio.sleep(0.01)
        assert not forgetting.done()
        store.go.set()
        await forgetting
        await remembering.stop()
        assert store.written == [[("u", shown("r1", "a"))], [("v", shown("r3", "a"))]]

    asyncio.run(run())


def test_a_bug_does_not_end_the_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        metrics, store = Metrics(), StalledStore()
        remembering = Remembering(store, metrics)  # type: ignore[arg-type]
        remembering.start()
        store.go = None  # type: ignore[assignment]
        remembering.note("u", shown("r1", "a"))
        while remembering.pending("u", "r1"):
            await asyncio.sleep(0)
        store.go = asyncio.Event()
        store.go.set()
        remembering.note("u", shown("r2", "a"))
        await remembering.stop()
        assert store.written == [[("u", shown("r2", "a"))]]

    asyncio.run(run())


def test_no_store_costs_nothing() -> None:
    """With the breaker open answers go at once; nothing piles up and the loop stays free."""
    metrics = Metrics()

    async def use(store: RedisHistoryStore) -> None:
        remembering = Remembering(store, metrics)
        remembering.start()
        started = time.process_time()
        for n in range(500):
            remembering.note("u", shown(f"r{n}", "a"))
            if n % 100 == 0:
                await asyncio.sleep(0.1)
        await remembering.stop()
        assert time.process_time() - started < 0.3
        assert value(metrics, "remember_dropped") == 500

    with_store("unix:///nowhere/valkey.sock", use, metrics=metrics)
