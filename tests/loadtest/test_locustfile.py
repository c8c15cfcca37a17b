"""The locust file runs: real locust, the real service, a few seconds."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.bundles.store import configured_path

ROOT = Path(__file__).resolve().parents[2]
ANSWERS_ENOUGH = 5
STOP_S = 1  # that a run which ends waits for answers
ALL_HELD_OUT = configured_path(ROOT / "models_store", "demo") / "held_out.jsonl"
STAGES = {"history", "queue", "encode", "denoise", "search", "map", "total"}


@pytest.fixture(scope="module")
def found_users(demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users whose next item is among the five best: so recall is 1, however many are asked for."""
    lines = []
    for line in ALL_HELD_OUT.read_text().splitlines()[:100]:
        user = json.loads(line)
        body = {"user_id": "nobody", "history": user["history"], "k": 5}
        answer = httpx.post(f"{demo.url}/recommend", json=body, timeout=60, trust_env=False)
        if user["target"] in [item["item_id"] for item in answer.json()["items"]]:
            lines.append(f"{line}\n")
    assert len(lines) > 3
    path = tmp_path_factory.mktemp("found") / "held_out.jsonl"
    path.write_text("".join(lines))
    return path


def command(url: str, *options: str) -> list[str]:
    locust = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--rate", "5"]
    locust += ["--users", "2", "--spawn-rate", "2", "--run-time", "2s", "--stop-timeout", "5"]
    return [*locust, "--host", url, "--held-out", str(ALL_HELD_OUT), "--only-summary", *options]


def run(
    url: str,
    *options: str,
    exit_code: int = 0,
    enough: Callable[[dict[str, Any]], bool] = lambda figures: figures["answers"] > 0,
) -> dict[str, Any]:
    """Run locust; returns the figures of the last line.

    enough: whether a run has seen what the test is about; else, on a busy machine, it runs longer
    """
    for seconds in (2, 10, 60):
        done = subprocess.run(
            command(url, "--headless", "--run-time", f"{seconds}s", *options),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.stdout, done.stderr
        figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        if enough(figures):
            break
    assert done.returncode == exit_code, done.stderr  # locust exits 1 when a request failed
    return figures


def test_a_short_run_answers_everything_and_finds_targets(demo, found_users: Path) -> None:
    figures = run(demo.url, "--held-out", str(found_users))
    assert figures["answers"] > 0
    assert figures["failures"] == figures["degraded"] == 0
    assert figures["requests_per_s_asked"] == 10
    assert figures["recall@10"] == 1
    assert 0 < figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]
    assert figures["statuses"] == {"200": figures["answers"]}
    stages = figures["stages"]
    assert set(stages) == STAGES
    assert 0 < stages["denoise"]["p50_ms"] <= stages["denoise"]["p99_ms"]
    assert stages["total"]["mean_ms"] < figures["p99_ms"]


def test_processes_are_counted_together(demo, found_users: Path) -> None:
    options = ["--held-out", str(found_users), "--processes", "2", "--parameters", '{"k": 5}']
    figures = run(demo.url, *options)
    assert figures["answers"] > 0
    assert figures["statuses"] == {"200": figures["answers"]}
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]
    assert 0 < figures["requests_per_s"] <= 15
    assert figures["recall@5"] == 1
    assert set(figures["stages"]) == STAGES


class MostlyRefused(BaseHTTPRequestHandler):
    """Two of three requests are refused at once, the third is answered after 0.15 seconds."""

    protocol_version = "HTTP/1.1"
    numbers = itertools.count()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        is_answered = next(self.numbers) % 3 == 2
        time.sleep(0.15 if is_answered else 0)
        items = [{"item_id": str(number)} for number in range(10)]
        body = json.dumps({"items": items, "degraded": False}).encode()
        self.send_response(200 if is_answered else 429)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.mark.parametrize("processes", [[], ["--processes", "2"]], ids=["one", "workers"])
def test_refusals_do_not_make_it_look_quick(processes: list[str]) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), MostlyRefused) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            figures = run(
                url,
                *processes,
                exit_code=1,
                enough=lambda f: f["answers"] and "429" in f["statuses"],
            )
        finally:
            server.shutdown()
    refused = figures["statuses"]["429"]
    assert figures["answers"] == figures["statuses"]["200"]
    assert figures["failures"] == refused > figures["answers"]
    assert 150 <= figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]
    assert figures["requests_per_s"] < 0.75 * figures["requests_per_s_asked"]


class Freezing(BaseHTTPRequestHandler):
    """Answers some requests and then none: their connections stay open."""

    protocol_version = "HTTP/1.1"
    answers = 2
    numbers = itertools.count()
    thawed = threading.Event()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if next(self.numbers) >= self.answers:
            self.thawed.wait(60)
            self.close_connection = True
            return
        items = [{"item_id": str(number)} for number in range(10)]
        body = json.dumps({"items": items, "degraded": False}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.mark.parametrize("processes", [[], ["--processes", "2"]], ids=["one", "workers"])
def test_a_service_that_freezes_is_not_reported_at_its_full_rate(processes: list[str]) -> None:
    """Open requests count as unanswered, and the rate is over the length of the run."""

    def enough(figures: dict[str, Any]) -> bool:
        """Each user waits for an answer that does not come, one of them for a second."""
        Freezing.numbers = itertools.count()
        has_frozen = figures["answers"] == Freezing.answers and figures["unanswered"] == 2
        return has_frozen and figures["unanswered_longest_ms"] > 1000 * (STOP_S + 1)

    Freezing.numbers, Freezing.thawed = itertools.count(), threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Freezing) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            options = ["--stop-timeout", str(STOP_S), *processes]
            figures = run(url, *options, exit_code=1, enough=enough)
        finally:
            Freezing.thawed.set()
            server.shutdown()
    assert figures["answers"] == Freezing.answers
    assert figures["unanswered"] == figures["failures"] == 2  # each of the two users waits for one
    by_length = figures["answers"] / figures["seconds"]
    assert figures["requests_per_s"] == pytest.approx(by_length, rel=0.2)  # both are rounded
    waited_s = figures["unanswered_longest_ms"] / 1000 - STOP_S
    assert figures["seconds"] > waited_s - 0.2  # although the last answer came before that wait


def test_requests_that_are_answered_while_the_run_ends_are_answered(demo) -> None:
    """With locust's own default of --stop-timeout they would be cut off."""
    line = command(demo.url, "--headless", "--run-time", "1s")
    place = line.index("--stop-timeout")
    del line[place : place + 2]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["unanswered"] == figures["unanswered_longest_ms"] == figures["failures"] == 0


def test_nothing_but_refusals_have_no_percentiles(demo) -> None:
    figures = run(
        demo.url, "--parameters", '{"k": -1}', exit_code=1, enough=lambda f: f["statuses"]
    )
    assert set(figures["statuses"]) == {"422"}
    assert figures["requests_per_s"] == figures["answers"] == 0
    assert figures["p50_ms"] is figures["p99_ms"] is None


def test_figures_are_shown_while_it_runs(demo, free_port: int) -> None:
    port = str(free_port)
    options = ["--autostart", "--stored-histories", "--run-time", "300s"]
    options += ["--web-host", "127.0.0.1", "--web-port", port]
    with subprocess.Popen(
        command(demo.url, *options), cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as locust:
        shown = wait_for(f"http://127.0.0.1:{port}/recall")
        wait_for(f"http://127.0.0.1:{port}/recall", answers=shown["answers"] + 1)
        locust.terminate()
        printed, _ = locust.communicate(timeout=300)
    assert locust.returncode == 0
    figures = json.loads(printed.splitlines()[-1])
    assert figures["answers"] > shown["answers"] >= ANSWERS_ENOUGH
    # Other tests may have stored the history of some of these users: the others get popular items.
    stages = figures["stages"]
    decoded = stages["denoise"]["answers"] if "denoise" in stages else 0
    assert decoded < stages["history"]["answers"] == figures["answers"]


def test_what_is_typed_into_its_page_counts(demo, free_port: int) -> None:
    port = str(free_port)
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(
        command(demo.url, "--web-host", "127.0.0.1", "--web-port", port), cwd=ROOT
    ) as locust:
        try:
            wait_for(f"{url}/recall", answers=0)
            form = {"user_count": 2, "spawn_rate": 2, "parameters": '{"k": 3}'}
            begun = httpx.post(f"{url}/swarm", data=form, timeout=60, trust_env=False)
            assert begun.json()["success"], begun.text
            assert "recall@3" in wait_for(f"{url}/recall")
        finally:
            locust.terminate()


def wait_for(url: str, answers: int = ANSWERS_ENOUGH) -> dict[str, Any]:
    """The figures of the web page when there are at least that many answers."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        with contextlib.suppress(httpx.TransportError):
            shown: dict[str, Any] = httpx.get(url, timeout=60, trust_env=False).json()
            if shown["answers"] >= answers:
                return shown
        time.sleep(0.2)
    raise AssertionError(f"{url} showed nothing")
