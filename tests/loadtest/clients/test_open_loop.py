"""The open loop with a server whose times are known: rates, and latencies from the due time."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any

import pytest
from aiohttp import web

from loadtest.clients.capacity import within
from loadtest.clients.held_out import HeldOutUser
from loadtest.clients.open_loop import Load, open_loop
from loadtest.stress import show

USERS = [HeldOutUser(f"u{n}", ("item-1", "item-2"), f"item-{n}") for n in range(4)]
Handler = Callable[[web.Request], Awaitable[web.Response]]


def loaded(handler: Handler, rate: float, seconds: float, **asked: Any) -> Load:
    """Load a server whose answers come from `handler`."""

    async def run() -> Load:
        app = web.Application()
        app.router.add_post("/recommend", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        try:
            return await open_loop(f"http://127.0.0.1:{port}", USERS, rate, seconds, **asked)
        finally:
            await runner.cleanup()

    return asyncio.run(run())


def answer(*item_ids: str, reasons: tuple[str, ...] = (), adjusted: bool = False) -> web.Response:
    return web.json_response(
        {
            "items": [{"item_id": item_id} for item_id in item_ids],
            "degraded_reasons": reasons,
            "decoding": {"adjusted": adjusted},
        }
    )


def test_users_are_asked_for_in_turn_at_the_rate_and_their_next_items_looked_for() -> None:
    bodies: list[dict[str, Any]] = []

    async def handler(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        return answer("item-1", "item-2", reasons=("schedule_reduced",), adjusted=True)

    load = loaded(handler, 200, 1, parameters={"k": 2})
    assert 140 < len(load.sent) == len(bodies) < 270  # a Poisson process: 200 ± 14
    assert {body["user_id"] for body in bodies} == {user.user_id for user in USERS}
    assert {(tuple(b["history"]), b["k"]) for b in bodies} == {(("item-1", "item-2"), 2)}
    assert not any("exclude_seen" in body for body in bodies)  # what the service does by default
    assert load.statuses == {200: len(bodies)}
    assert load.recall() == pytest.approx(0.5, abs=0.02)  # of u1 and u2
    found = json.loads(json.dumps(load.as_json()))
    assert found["degraded"] == {"schedule_reduced": len(bodies)}
    assert found["adjusted"] == len(bodies)
    assert 0 < load.cpu_share < 2


def test_a_server_that_stalls_makes_those_late_that_were_due_meanwhile() -> None:
    """The first request waited for half a second, and so did those that were due after it."""
    served_one_by_one = asyncio.Lock()
    stalls = iter([0.5])

    async def handler(_: web.Request) -> web.Response:
        async with served_one_by_one:
            await asyncio.sleep(next(stalls, 0))
        return answer()

    load = loaded(handler, 100, 1)
    late = [one for one in load.sent if one.seconds > 0.1]
    assert len(late) > 20
    assert load.quantile_ms(1) > 450


def test_a_server_that_freezes_leaves_requests_unanswered(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers some requests and then none. The others count as unanswered, without a latency."""
    # The room exports a function of the module's name, so the module needs a look-up of its own.
    monkeypatch.setattr(import_module("loadtest.clients.open_loop"), "ANSWER_TIMEOUT_S", 5.0)
    numbers = iter(range(10**6))

    async def handler(_: web.Request) -> web.Response:
        if next(numbers) >= 5:
            await asyncio.Event().wait()
        return answer()

    load = loaded(handler, 40, 1)
    assert len(load.answered()) == 5 < len(load.sent)
    assert load.unanswered == load.as_json()["unanswered"] == len(load.sent) - 5
    assert load.reached <= 5  # of one second, not of the time until the freeze
    assert not within(load, 10_000)
    show("frozen", load)


def test_the_rate_reached_is_over_the_time_the_answers_took() -> None:
    """All answers come long after the load has ended, so the time until then counts."""
    release = asyncio.Event()

    async def handler(_: web.Request) -> web.Response:
        asyncio.get_running_loop().call_later(1.0, release.set)
        await release.wait()
        return answer()

    load = loaded(handler, 100, 0.5)
    assert set(load.statuses) == {200}
    assert load.reached < 0.8 * len(load.sent) / load.seconds


def test_refusals_and_lost_connections_are_told_apart() -> None:
    numbers = iter(range(10**6))

    async def handler(request: web.Request) -> web.Response:
        number = next(numbers)
        if number % 3 == 0:
            assert request.transport
            request.transport.close()
        return answer() if number % 3 == 1 else web.json_response({"error": {}}, status=429)

    load = loaded(handler, 150, 1, discard_s=0.5)
    assert set(load.statuses) == {0, 200, 429}
    assert all(one.due >= 0.5 for one in load.sent)
    assert load.seconds == 0.5
    assert load.quantile_ms(0.5, 429) > 0
    assert math.isnan(load.quantile_ms(0.5, 503))
    assert load.recall() == 0
