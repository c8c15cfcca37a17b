"""More requests than the service can answer: some are refused at once, and nobody hangs.

What holds the others up ends when a test says so: a stopped store, or an encoder that waits.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_service import PATIENCE_S, Service, service_process, wait_until
from running_valkey import Server
from started_lifecycle import HeldDecoding, tell

from service.batching.latency_model import LatencyModel, Work
from service.http.admission.gate import BURST
from service.lifecycle import Lifecycle

CLIENTS = 200
TIMEOUT_MS = 8000
CALL_S = 0.25  # what the latency model of these tests says about a job's denoiser call
SLO_S = 8
FULL_NFE = 3
BODY: dict[str, Any] = {"user_id": "x", "history": ["item-1", "item-50"]}
INSIDE, QUEUED = "unmask_inflight_requests", "unmask_queue_requests"
REFUSED = 'unmask_rejected_total{reason="inflight"}'
CALLS = "unmask_denoiser_calls_total"


@dataclass(frozen=True)
class Outcome:
    """What a client got, and when it asked and had its answer, by the clock of this process."""

    status: int
    asked: float
    answered: float
    headers: http.client.HTTPMessage
    body: dict[str, Any]


class Client:
    """One connection. It is fast enough for hundreds of them in one process."""

    def __init__(self, service: Service) -> None:
        port = service.client.base_url.port
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        self.close = self._connection.close

    def ask(self, method: str, path: str, **fields: Any) -> Outcome:
        asked = time.monotonic()
        headers = {"Content-Type": "application/json"}
        self._connection.request(method, path, json.dumps(fields) if fields else None, headers)
        answer = self._connection.getresponse()
        content = json.loads(answer.read())
        return Outcome(answer.status, asked, time.monotonic(), answer.headers, content)

    def recommend(self, **fields: Any) -> Outcome:
        return self.ask("POST", "/recommend", **BODY, **fields)

    def history(self) -> Outcome:
        return self.ask("GET", "/users/x/history")


def check(outcome: Outcome) -> None:
    """An answer under overload is one of three, and complete."""
    if outcome.status == 429:
        error = outcome.body["error"]
        assert (error["code"], error["retryable"]) == ("overloaded", True)
        assert 1 <= int(outcome.headers["Retry-After"]) <= 30
    elif outcome.status == 504:
        assert outcome.body["error"]["code"] == "deadline_exceeded"
        assert outcome.answered - outcome.asked >= TIMEOUT_MS / 1000
    else:
        assert outcome.status == 200, outcome
        assert len(outcome.body["items"]) == 10
        assert outcome.body["degraded"] is False


def is_idle(service: Service) -> bool:
    found = service.samples()
    return not any(found[name] for name in (QUEUED, "unmask_queue_rows", INSIDE))


def test_two_hundred_clients_are_answered_or_turned_away(
    bundles_dir: Path, store: Server, tmp_path: Path
) -> None:
    """While others fill the gate and wait for the store, all are refused and none has to wait.

    Then they ask again, all at once, a bundle whose every call takes a while.
    """
    barrier = threading.Barrier(CLIENTS)

    def ask_together(client: Client) -> Outcome:
        barrier.wait(PATIENCE_S)
        return client.recommend(timeout_ms=TIMEOUT_MS)

    with (
        service_process(
            tmp_path,
            bundles_dir=bundles_dir,
            bundle="tiny@slow",
            redis_url=store.url,
            redis_timeout_ms=60_000,
            slo_ms=1500,
            log_level="debug",  # at level info, what is turned away at the gate has no line
        ) as service,
        ExitStack() as connections,
        ThreadPoolExecutor(CLIENTS) as pool,
        ThreadPoolExecutor(BURST) as pool_inside,
    ):

        def connected(number: int) -> list[Client]:
            return [connections.enter_context(closing(Client(service))) for _ in range(number)]

        inside, clients = connected(BURST), connected(CLIENTS)
        before = service.samples()
        with store.stopped():
            waiting = [pool_inside.submit(one.history) for one in inside]
            wait_until(lambda: service.samples()[INSIDE] == BURST)
            refused = list(pool.map(ask_together, clients))
            meanwhile = service.samples()
            assert not any(one.done() for one in waiting)
        assert {one.status for one in refused} == {429}
        assert meanwhile[REFUSED] == before[REFUSED] + CLIENTS
        assert (meanwhile[INSIDE], meanwhile[QUEUED]) == (BURST, 0)
        assert meanwhile[CALLS] == before[CALLS]
        assert {one.result().status for one in waiting} == {200}

        again = list(pool.map(ask_together, clients))
        for outcome in refused + again:
            check(outcome)
        statuses = Counter(outcome.status for outcome in again)
        assert statuses[200] > 0
        wait_until(lambda: is_idle(service))
        check(afterwards := clients[0].recommend())
        assert afterwards.status == 200
        assert service.client.get("/health/ready").status_code == 200
        asked = 2 * CLIENTS + 1
        wait_until(lambda: service.stdout.count('"route": "/recommend"') == asked)
        lines = [json.loads(line) for line in service.stdout.splitlines()]
    logged = Counter(line["status"] for line in lines if line.get("route") == "/recommend")
    assert logged == statuses + Counter({429: CLIENTS, 200: 1})


def test_a_request_that_waits_for_the_store_is_a_504_when_its_time_is_up(
    bundles_dir: Path, store: Server
) -> None:
    async def story(_: Lifecycle, client: httpx.AsyncClient) -> None:
        with store.stopped():
            answer = await client.post("/recommend", json={"user_id": "x", "timeout_ms": 50})
        assert answer.status_code == 504
        error = answer.json()["error"]
        assert (error["code"], error["retryable"]) == ("deadline_exceeded", False)

    bundle = bundles_dir / "tiny" / "1"
    tell(story, redis_url=store.url, bundle=bundle, redis_timeout_ms=60_000)


# Decoding is what others wait for


def teach(lifecycle: Lifecycle, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, forecasts are CALL_S for each denoiser call of each job."""

    def seconds(_: LatencyModel, work: Work) -> float:
        return CALL_S * work.calls * work.jobs

    monkeypatch.setattr(LatencyModel, "seconds", seconds)
    monkeypatch.setattr(LatencyModel, "observe", lambda *_: None)
    lifecycle.loaded_bundles.active.engine.latency.error = 0.0


def wait_s(lifecycle: Lifecycle) -> float:
    """How long a request with the best schedule would wait for others."""
    batcher, engine = lifecycle._batcher, lifecycle.loaded_bundles.active.engine
    assert batcher is not None
    return batcher.forecast(engine, Work(1, FULL_NFE, 21), 10).wait_s


class StoppedClock:
    """What the batcher takes for the module `time`: no time passes for its forecasts."""

    def __init__(self) -> None:
        now = time.monotonic()
        self.monotonic = lambda: now


def test_schedules_get_faster_before_anybody_is_turned_away(
    redis_url: str, bundles_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more request after the other, until somebody is refused."""

    async def story(lifecycle: Lifecycle, client: httpx.AsyncClient) -> None:
        teach(lifecycle, monkeypatch)
        held = HeldDecoding(lifecycle, monkeypatch)
        asked = [await held.first(client, schedule="auto")]
        waits = [0.0]
        with monkeypatch.context() as stopped:
            stopped.setattr("service.batching.batcher.time", StoppedClock())
            while not asked[-1].done():
                waits.append(wait_s(lifecycle))
                asked.append(await held.next(client, schedule="auto"))
        held.go_on.set()
        *answers, refused = await asyncio.gather(*asked)

        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "overloaded"
        counted = lifecycle.metrics.registry.get_sample_value
        assert counted("unmask_rejected_total", {"reason": "predicted_wait"}) == 1
        adjusted = []
        for answer in answers:
            assert answer.status_code == 200
            body = answer.json()
            decoding, reasons = body["decoding"], body["degraded_reasons"]
            adjusted.append(decoding["adjusted"])
            if decoding["adjusted"]:
                assert reasons == ["schedule_reduced"]
                assert answer.headers["X-Unmask-Degraded"] == "schedule_reduced"
                assert decoding["nfe"] < FULL_NFE
            else:
                assert (reasons, decoding["nfe"]) == ([], FULL_NFE)
                assert "X-Unmask-Degraded" not in answer.headers
        assert adjusted == sorted(adjusted)  # the best first
        assert adjusted.count(False) >= 4
        assert adjusted.count(True) >= 8
        assert waits[adjusted.index(True)] < SLO_S / 2  # the gate closes at half the SLO

        lone = await client.post("/recommend", json=BODY | {"schedule": "auto"})
        assert lone.json()["decoding"]["adjusted"] is False
        assert (await client.get("/health/ready")).status_code == 200

    tell(
        story,
        redis_url=redis_url,
        bundle=bundles_dir / "tiny" / "1",
        slo_ms=1000 * SLO_S,
        max_batch_requests=4,
    )


def test_wide_beams_do_not_starve_narrow_ones(
    redis_url: str, bundles_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve wide ones are three batches. The narrow ones came last, and have the second turn."""

    async def story(lifecycle: Lifecycle, client: httpx.AsyncClient) -> None:
        held = HeldDecoding(lifecycle, monkeypatch)
        order: list[int] = []

        def note(task: asyncio.Task[httpx.Response]) -> None:
            order.append(task.result().json()["decoding"]["beam_width"])

        first = await held.first(client, beam_width=30)
        asked = [await held.next(client, beam_width=width) for width in [200] * 12 + [10] * 2]
        for task in asked:
            task.add_done_callback(note)
        held.go_on.set()
        await asyncio.gather(first, *asked)
        assert Counter(order) == {200: 12, 10: 2}
        assert 10 not in order[6:]

    tell(story, redis_url=redis_url, bundle=bundles_dir / "tiny" / "1", max_batch_requests=4)
