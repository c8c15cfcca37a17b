"""Start, trouble and end of a real process: what an operator and a load balancer see."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from raw_http import answers, connection
from running_service import PATIENCE_S, Service, is_running, service_process, wait_until
from steady_load import steady_load
from structlog.testing import capture_logs
from tiny_bundle import write_tiny_bundle

from service.__main__ import main
from service.bundles.store import configured_path
from service.errors import BundleInvalid, ProviderUnavailable, StartError
from service.lifecycle import Lifecycle
from service.settings import Settings
from service.telemetry.metrics import Metrics


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("life")


@pytest.fixture(scope="module")
def embedded(folder: Path, bundles_dir: Path) -> Iterator[Service]:
    """A service with its own Valkey. The last test that uses it ends it."""
    with service_process(
        folder / "first",
        bundle=bundles_dir / "tiny" / "1",  # a path
        history_dir=folder / "history",
        redis_timeout_ms=300,
    ) as service:
        yield service


def send_surely(service: Service, *item_ids: str, user_id: str) -> None:
    """On a busy machine a write may take longer than the timeout. Repeating it is safe."""
    for item_id in item_ids:
        event = {
            "event_id": item_id,
            "user_id": user_id,
            "item_id": item_id,
            "event_type": "click",
        }
        wait_until(
            lambda event=event: (
                service.client.post("/events", json={"events": [event]}).status_code == 200
            )
        )


def history_of(service: Service, user_id: str) -> list[str]:
    """The same for reads."""
    answers: list[httpx.Response] = []

    def answered() -> bool:
        answers.append(service.client.get(f"/users/{user_id}/history"))
        return answers[-1].status_code == 200

    wait_until(answered)
    history: list[str] = answers[-1].json()["history"]
    return history


def test_a_stalled_store_degrades_answers_within_the_deadline(embedded: Service) -> None:
    send_surely(embedded, "item-1", user_id="patient")
    valkey = embedded.valkey_pid()
    os.kill(valkey, signal.SIGSTOP)
    try:
        for _ in range(3):
            answer = embedded.recommend(user_id="patient", k=2, exclude_items=["item-0"])
            assert answer.status_code == 200  # one after its deadline would be a 504
            body = answer.json()
            assert body["served_by"] == "popular"
            assert body["degraded_reasons"] == ["history_unavailable"]
            assert answer.headers["X-Unmask-Degraded"] == "history_unavailable"
            assert body["history"]["source"] == "unavailable"
            assert [item["item_id"] for item in body["items"]] == ["item-1", "item-2"]
        shelf = {"category": ["Shelves > 7"]}
        answer = embedded.recommend(user_id="patient", k=2, filter=shelf)
        assert answer.json()["degraded_reasons"] == ["history_unavailable"]
        assert [item["item_id"] for item in answer.json()["items"]] == ["item-7", "item-17"]

        event = {"event_id": "1", "user_id": "x", "item_id": "item-1", "event_type": "click"}
        refused = embedded.client.post("/events", json={"events": [event]})
        assert refused.status_code == 503
        assert refused.headers["Retry-After"] == "1"
        error = refused.json()["error"]
        assert (error["code"], error["retryable"]) == ("history_unavailable", True)
        assert embedded.client.get("/users/x/history").status_code == 503
        assert embedded.client.delete("/users/x/history").status_code == 503
        assert embedded.recommend(user_id="x", history=["item-9"]).json()["degraded"] is False
        assert embedded.client.get("/health/ready").status_code == 200
    finally:
        os.kill(valkey, signal.SIGCONT)
    wait_until(lambda: embedded.recommend(user_id="patient").json()["served_by"] == "model")


def test_a_second_service_on_the_same_folder_is_refused(
    embedded: Service, folder: Path, bundles_dir: Path
) -> None:
    """While it waits for the folder, it is live, and it says why it is not ready."""
    with service_process(
        folder / "second",
        wait=False,
        bundle=bundles_dir / "tiny" / "1",
        history_dir=folder / "history",
    ) as second:
        seen: list[httpx.Response] = []

        def answers() -> bool:
            try:
                seen.append(second.client.get("/health/ready"))
            except httpx.TransportError:
                assert second.process.poll() is None, second.stderr
                return False
            return True

        wait_until(answers)
        assert seen[0].status_code == 503
        assert seen[0].json() == {"status": "not_ready", "reasons": ["starting_history_store"]}
        assert second.client.get("/health/live").status_code == 200
        early = second.recommend(user_id="x")
        assert (early.status_code, early.json()["error"]["code"]) == (503, "not_ready")
        assert early.headers["Retry-After"] == "1"
        assert second.client.get("/users/x/history").status_code == 503
        assert second.client.get("/info").json()["bundle"] is None
        assert second.wait() == 1
    assert second.stderr == (
        f"unmask: process {embedded.process.pid} already keeps its histories in "
        f"{folder / 'history'}; stop it, or set UNMASK_HISTORY_DIR or UNMASK_REDIS_URL\n"
    )
    assert history_of(embedded, "patient") == ["item-1"]


def test_sigterm_loses_no_request_and_histories_survive(
    embedded: Service, folder: Path, bundles_dir: Path
) -> None:
    """It is told to stop at a moment when requests have come that it has not read."""
    send_surely(embedded, "item-1", "item-2", user_id="survivor")
    valkey = embedded.valkey_pid()
    body = b'{"user_id": "survivor", "r_warm": 4, "history": ["item-5"]}'
    head = b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connection(embedded)) for _ in range(4)]
        for client in clients:
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(1 << 16)
        embedded.process.send_signal(signal.SIGSTOP)
        for client in clients:
            client.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        embedded.process.send_signal(signal.SIGTERM)
        embedded.process.send_signal(signal.SIGCONT)
        for client in clients:
            [(status, _, _)] = answers(client.recv(1 << 20))
            assert status == 200
            assert client.recv(1) == b""
    assert embedded.wait() == -signal.SIGTERM
    assert not is_running(valkey)
    assert embedded.stderr == ""

    with service_process(
        folder / "third", bundle=bundles_dir / "tiny" / "1", history_dir=folder / "history"
    ) as third:
        assert history_of(third, "survivor") == ["item-1", "item-2"]
        assert third.client.get("/info").json()["history_store"] == "embedded"
        valkey = third.valkey_pid()
        third.process.kill()
        third.wait()
        wait_until(lambda: not is_running(valkey))


def test_a_damaged_bundle_is_refused_with_a_sentence(
    folder: Path, redis_url: str, tmp_path: Path
) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    codes = bytearray((bundle / "codes.npy").read_bytes())
    codes[-1] ^= 1
    (bundle / "codes.npy").write_bytes(codes)
    with service_process(
        folder / "damaged", wait=False, bundle=bundle, redis_url=redis_url
    ) as service:
        assert service.wait() == 1
    assert service.stderr == (
        f"unmask: bundle {bundle}: codes.npy does not match its SHA-256; copy it again\n"
    )


def test_a_setting_that_does_not_fit_the_bundle_is_a_wrong_setting(
    folder: Path, bundles_dir: Path, redis_url: str
) -> None:
    bundle = bundles_dir / "tiny" / "1"
    with service_process(
        folder / "narrow", wait=False, bundle=bundle, redis_url=redis_url, max_queue_rows=5
    ) as service:
        assert service.wait() == 2
    assert service.stderr == (
        "unmask: UNMASK_MAX_QUEUE_ROWS=5 is below 10, the default beam_width of bundle tiny@1; "
        "set it to 10 or more\n"
    )


def failure_of(**settings: Any) -> StartError | None:
    """Why a service with these settings does not start; the tests above say what becomes of it."""

    async def run() -> StartError | None:
        lifecycle = Lifecycle(Settings.model_validate(settings), Metrics())
        has_failed = asyncio.Event()
        lifecycle.on_failure = has_failed.set
        async with lifecycle.running():
            await has_failed.wait()
        return lifecycle.failure

    return asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


def test_a_provider_that_is_not_there_stops_the_start(bundles_dir: Path, redis_url: str) -> None:
    bundle = str(bundles_dir / "tiny" / "1")
    failure = failure_of(bundle=bundle, redis_url=redis_url, provider="cuda")
    assert isinstance(failure, ProviderUnavailable)
    expected = "UNMASK_PROVIDER=cuda: encoder.onnx cannot run with CUDAExecutionProvider"
    assert str(failure).startswith(expected)
    assert "\n" not in str(failure)


def test_int8_graphs_that_are_not_there_stop_the_start(bundles_dir: Path, redis_url: str) -> None:
    bundle = str(bundles_dir / "tiny" / "1")
    failure = failure_of(bundle=bundle, redis_url=redis_url, precision="int8")
    assert isinstance(failure, BundleInvalid)
    assert str(failure) == (
        f"bundle {bundle} has no int8 graphs, set UNMASK_PRECISION=fp32, or train it again "
        "with --set export.int8=true"
    )


def test_a_start_that_fails_early_is_a_sentence_and_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["service"])
    monkeypatch.setenv("UNMASK_BUNDEL", "demo")
    assert main() == 2
    sentence = "unmask: UNMASK_BUNDEL is not a setting; did you mean UNMASK_BUNDLE?\n"
    assert capsys.readouterr().err == sentence

    monkeypatch.delenv("UNMASK_BUNDEL")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("UNMASK_PORT", str(port))
        assert main() == 1
    assert capsys.readouterr().err == (
        f"unmask: cannot listen on 127.0.0.1:{port} (Address already in use); "
        "set UNMASK_PORT or UNMASK_HOST\n"
    )


def test_a_name_means_its_newest_version(tmp_path: Path) -> None:
    def resolved(bundle: str) -> Path:
        return configured_path(tmp_path, bundle)

    for version, created_at in (("9", "2026-01-09"), ("10", "2026-01-10"), ("1", "2026-01-01")):
        write_tiny_bundle(tmp_path / "a" / version, version=version, created_at=created_at)
    (tmp_path / "a" / ".half-written").mkdir()
    (tmp_path / "a" / ".half-written" / "manifest.json").write_text('{"created_at": "2027"}')
    assert resolved("a") == tmp_path / "a" / "10"
    assert resolved("a@9") == tmp_path / "a" / "9"
    assert resolved("./runs/x") == Path("runs/x")
    (tmp_path / "a" / "11").mkdir()
    (tmp_path / "a" / "11" / "manifest.json").write_text("not json")
    with capture_logs() as logged:
        assert resolved("a") == tmp_path / "a" / "10"
    [line] = logged
    assert (line["log_level"], line["event"]) == ("warning", "bundle_skipped")
    assert line["manifest"] == str(tmp_path / "a" / "11" / "manifest.json")
    (tmp_path / "c").mkdir()
    (tmp_path / "a" / "11").rename(tmp_path / "c" / "11")
    with pytest.raises(BundleInvalid, match=r"no bundle 'c' in .* with a readable manifest"):
        resolved("c")
    with pytest.raises(BundleInvalid, match=r"no bundle 'b' in .* \(there are: a\)"):
        resolved("b")
    with pytest.raises(BundleInvalid, match="name@version"):
        resolved("..@..")


# The end, under load


@pytest.fixture
def patient(bundles_dir: Path, redis_url: str, tmp_path: Path) -> Iterator[Service]:
    """A service that drains for longer than any test."""
    with service_process(
        tmp_path, bundles_dir=bundles_dir, bundle="tiny@1", redis_url=redis_url, drain_delay_s=3600
    ) as service:
        yield service


class Leaving:
    """Clients that ask until nobody listens. They must see complete answers only."""

    def __init__(self, *, keep_alive: bool) -> None:
        self.keep_alive = keep_alive
        self.answered = 0
        self.found_closed = False

    def __call__(self, client: httpx.Client, _: int) -> None:
        headers = {} if self.keep_alive else {"Connection": "close"}
        body = {"user_id": "x", "history": ["item-1"], "k": 5}
        try:
            answer = client.post("/recommend", json=body, headers=headers)
        except httpx.ConnectError:
            self.found_closed = True
            time.sleep(0.01)
            return
        assert not self.found_closed, "the port was closed and opened again"
        assert (answer.status_code, len(answer.json()["items"])) == (200, 5)
        self.answered += 1


def test_sigterm_under_load_answers_all_that_was_sent(patient: Service) -> None:
    """Until the delay is over, which a second SIGTERM shortens, all goes on as before."""
    clients = [Leaving(keep_alive=keep_alive) for keep_alive in (True, False) for _ in range(3)]

    def all_have_asked() -> bool:
        before = [client.answered for client in clients]
        wait_until(
            lambda: (
                load.has_failed
                or all(c.answered > n + 5 for c, n in zip(clients, before, strict=True))
            )
        )
        return not load.has_failed

    with steady_load(patient.client.base_url, clients, pause_s=0.01) as load:
        assert all_have_asked()
        patient.process.send_signal(signal.SIGTERM)

        def is_not_ready() -> bool:
            ready = patient.client.get("/health/ready")
            return ready.status_code == 503 and ready.json()["reasons"] == ["draining"]

        wait_until(is_not_ready)
        assert patient.client.get("/health/live").status_code == 200
        assert all_have_asked()
        assert patient.process.poll() is None
        patient.process.send_signal(signal.SIGTERM)
        assert patient.wait() == -signal.SIGTERM
        wait_until(lambda: all(client.found_closed for client in clients) or load.has_failed)
    assert patient.stderr == ""


def test_ctrl_c_does_not_wait_for_anybody_to_leave(patient: Service) -> None:
    patient.process.send_signal(signal.SIGINT)
    assert patient.wait() == 130


def test_a_hangup_while_it_starts_is_not_the_end_and_a_sigterm_is_after_a_delay(
    bundles_dir: Path, redis_url: str, tmp_path: Path
) -> None:
    with service_process(
        tmp_path,
        wait=False,
        bundles_dir=bundles_dir,
        bundle="tiny@1",
        redis_url=redis_url,
        drain_delay_s=0.5,
    ) as service:

        def is_live() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return service.client.get("/health/live").status_code == 200
            return False

        wait_until(is_live)
        service.process.send_signal(signal.SIGHUP)
        service.wait_until_ready()
        assert service.recommend(user_id="x", history=["item-1"]).status_code == 200
        told = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        assert service.wait() == -signal.SIGTERM
        assert time.monotonic() - told >= 0.5  # it drains as long as it was told


def test_a_hangup_during_the_start_is_obeyed_afterwards(redis_url: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for version in "12":
        write_tiny_bundle(store / "tiny" / version, version=version)
    (store / "tiny" / "current").write_text("1")
    with service_process(
        tmp_path, wait=False, bundles_dir=store, bundle="tiny", redis_url=redis_url
    ) as service:

        def is_priming() -> bool:
            with contextlib.suppress(httpx.TransportError):
                ready = service.client.get("/health/ready").json()
                return ready["reasons"] in ([], ["priming"])
            return False

        wait_until(is_priming)
        (store / "tiny" / "current").write_text("2")
        service.process.send_signal(signal.SIGHUP)
        service.wait_until_ready()
        wait_until(lambda: "active" in service.roles().get("tiny@2", []))
