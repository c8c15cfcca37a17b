"""The history store dies, stalls, slows down or hangs up while many clients ask.

Whatever happens to it, POST /recommend answers in time, with a flag if the history was not read. An
event that was acknowledged is there afterwards, exactly once. Nobody restarts the service.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_service import Service, service_process, wait_until
from running_valkey import Server, running
from slow_proxy import SlowProxy, slow_proxy
from steady_load import Ask, Load, steady_load

TIMEOUT_MS = 10_000  # of a request; that of the store is 100 ms
READERS, WRITERS = 4, 3
USERS = 20  # each has one item, its own


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Valkey that writes everything to a file."""
    server = Server(tmp_path_factory.mktemp("valkey"), {"appendonly": "yes", "save": '""'})
    with running(server):
        yield server


@pytest.fixture(scope="module")
def proxy(valkey: Server) -> Iterator[SlowProxy]:
    with slow_proxy(valkey.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def service(
    bundles_dir: Path, proxy: SlowProxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """tiny@1, with the proxy between it and Valkey."""
    with service_process(
        tmp_path_factory.mktemp("trouble"),
        bundles_dir=bundles_dir,
        bundle="tiny@1",
        redis_url=f"redis://127.0.0.1:{proxy.port}",
        redis_timeout_ms=100,
    ) as service:
        for number in range(USERS):
            surely_send(service, f"reader-{number}", f"item-{number}")
        yield service


def surely_send(service: Service, user_id: str, item_id: str) -> None:
    """On a busy machine the store may take longer than its timeout; repeating is safe."""
    wait_until(lambda: post_event(service.client, user_id, item_id, item_id).status_code == 200)


def post_event(client: httpx.Client, user_id: str, item_id: str, event_id: str) -> httpx.Response:
    event = {
        "event_id": event_id,
        "user_id": user_id,
        "item_id": item_id,
        "event_type": "click",
    }
    return client.post("/events", json={"events": [event]})


class Watch:
    """Checks what clients are answered. A check that fails ends its thread with the reason."""

    def __init__(self) -> None:
        self.degraded = 0
        self.served = 0
        self.refused = 0
        self.acknowledged: defaultdict[str, list[str]] = defaultdict(list)
        self._lock = threading.Lock()

    @property
    def asks(self) -> list[Ask]:
        writers = [self.writer(f"writer-{time.monotonic_ns()}-{n}") for n in range(WRITERS)]
        return [self.read] * READERS + writers

    def read(self, client: httpx.Client, count: int) -> None:
        """The answer uses the user's own history, or is flagged. A late one would be a 504."""
        number = count % USERS
        body = {"user_id": f"reader-{number}", "k": 3, "timeout_ms": TIMEOUT_MS}
        answer = client.post("/recommend", json=body)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert len(found["items"]) == 3
        if found["history"]["source"] == "unavailable":
            assert found["degraded_reasons"] == ["history_unavailable"]
            assert answer.headers["X-Unmask-Degraded"] == "history_unavailable"
            assert found["served_by"] == "popular"
        else:
            assert (found["degraded"], found["served_by"]) == (False, "model")
            assert "X-Unmask-Degraded" not in answer.headers
        history = client.get(f"/users/reader-{number}/history")
        assert history.status_code in (200, 503)
        if history.status_code == 200:  # a late reply must not be another user's
            assert history.json()["history"] == [f"item-{number}"]
        with self._lock:
            self.degraded += found["degraded"]
            self.served += not found["degraded"]

    def writer(self, user_id: str) -> Ask:
        """Sends events, each until it is acknowledged, as clients should do."""
        place = 0

        def write(client: httpx.Client, _: int) -> None:
            nonlocal place
            item_id = f"item-{place % 100}"
            answer = post_event(client, user_id, item_id, f"event-{place}")
            if answer.status_code == 200:
                body = answer.json()
                assert body["accepted"] + body["duplicates"] == 1
                self.acknowledged[user_id].append(item_id)
                place += 1
                return
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (503, "history_unavailable")
            assert error["retryable"] is True
            assert int(answer.headers["Retry-After"]) >= 1
            with self._lock:
                self.refused += 1
            time.sleep(0.02)  # not only refusals

        return write


def follows(value: Callable[[], int], load: Load, at_least: int = 20) -> None:
    """Wait until a count has grown while clients asked, or one of them has ended with a reason."""
    before = value()
    wait_until(lambda: value() >= before + at_least or load.has_failed)


@contextmanager
def watched(service: Service) -> Iterator[tuple[Watch, Load]]:
    """A watch while there is load. Histories are read before and after."""
    watch = Watch()
    wait_until(lambda: is_served(service))
    with steady_load(service.client.base_url, watch.asks, pause_s=0.01) as load:
        follows(lambda: watch.served, load)
        yield watch, load
        follows(lambda: watch.served, load)  # nobody restarted anything
        numbers = [sum(map(len, watch.acknowledged.values()))]
        follows(lambda: sum(map(len, watch.acknowledged.values())) - numbers[0], load)
    for user_id, item_ids in watch.acknowledged.items():
        assert history_of(service, user_id) == item_ids[-200:]  # each once, in their order
    assert service.client.get("/health/ready").status_code == 200


def is_served(service: Service) -> bool:
    found: dict[str, Any] = service.recommend(user_id="reader-0").json()
    return found["served_by"] == "model"


def history_of(service: Service, user_id: str) -> list[str]:
    answer = service.client.get(f"/users/{user_id}/history")
    wait_until(lambda: service.client.get(f"/users/{user_id}/history").status_code == 200)
    answer = service.client.get(f"/users/{user_id}/history")
    found: list[str] = answer.json()["history"]
    return found


def test_a_store_that_is_killed_and_comes_back_has_every_acknowledged_event(
    service: Service, valkey: Server
) -> None:
    with watched(service) as (watch, load):
        for _ in range(2):
            valkey.kill()  # SIGKILL
            follows(lambda: watch.degraded, load)
            follows(lambda: watch.refused, load, 5)
            assert is_refused(service)
            valkey.start()
            follows(lambda: watch.served, load)


def is_refused(service: Service) -> bool:
    """Whether an event is refused, and no part of it is acknowledged."""
    answer = post_event(service.client, "nobody", "item-1", "never")
    return answer.status_code == 503 and "accepted" not in answer.json()


def test_a_store_that_is_stopped_is_not_waited_for(service: Service, valkey: Server) -> None:
    with watched(service) as (watch, load), valkey.stopped():
        follows(lambda: watch.degraded, load)
        follows(lambda: watch.refused, load, 5)
        assert is_refused(service)


@pytest.mark.parametrize(
    "trouble",
    [{"delay_s": 0.5}, {"mood": "silent"}, {"mood": "rude"}],
    ids=["slow", "silent", "rude"],
)
def test_a_bad_line_to_the_store_degrades_answers(
    service: Service, proxy: SlowProxy, trouble: dict[str, Any]
) -> None:
    with watched(service) as (watch, load):
        for name, value in trouble.items():
            setattr(proxy, name, value)
        try:
            follows(lambda: watch.degraded, load)
            follows(lambda: watch.refused, load, 5)
        finally:
            proxy.delay_s, proxy.mood = 0.0, "kind"


def test_a_line_that_is_now_and_then_too_slow_mixes_nobodys_histories(
    service: Service, proxy: SlowProxy
) -> None:
    """Replies come just before or just after the timeout. `Watch.read` knows their users."""
    with watched(service) as (watch, load):
        try:
            for n in range(30):
                proxy.delay_s = 0.09 + 0.002 * (n % 10)
                follows(lambda: load.total, load, 10)
        finally:
            proxy.delay_s = 0.0
        assert watch.degraded
