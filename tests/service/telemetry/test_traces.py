"""OpenTelemetry from a real process, seen by the collector that it sends to."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from ports import find_free_port
from running_service import service_process, wait_until

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
STAGES = ["history", "queue", "encode", "denoise", "search", "map"]


@contextmanager
def collector() -> Iterator[tuple[str, list[Span]]]:
    """A URL to send traces to, and the spans that arrived."""
    spans: list[Span] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/traces"
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                names = {one.key: one.value.string_value for one in resource.resource.attributes}
                assert names["service.name"] == "unmask"
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", spans
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def settings(bundles_dir: Path, redis_url: str) -> dict[str, Any]:
    return {
        "bundles_dir": bundles_dir,
        "bundle": "tiny@1",
        "redis_url": redis_url,
    }


def test_a_request_is_a_trace(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collector() as (url, spans):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")  # ms
        before_ns = time.time_ns()
        with service_process(tmp_path, **settings) as service:
            body = {"user_id": "very-secret-user", "history": ["item-1", "item-50"]}
            headers = {"traceparent": TRACEPARENT, "X-Request-ID": "find-me"}
            answer = service.client.post("/recommend", json=body, headers=headers)
            assert answer.json()["served_by"] == "model"
            alone = service.client.post("/recommend", json=body)
            assert alone.status_code == 200
            wait_until(lambda: len(spans) >= 2 * (1 + len(STAGES) + 1))  # each had its own batch
            wait_until(lambda: service.stdout.count('"route": "/recommend"') == 2)
            lines = [json.loads(line) for line in service.stdout.splitlines()]
            after_ns = time.time_ns()  # a span ends when its answer was written, maybe read by then
        assert service.stderr == ""

    ours = [span for span in spans if span.trace_id.hex() == TRACE_ID]
    [root] = [span for span in ours if span.parent_span_id.hex() == PARENT_ID]
    assert root.name == "POST /recommend"
    attributes = {one.key: one.value for one in root.attributes}
    assert attributes["http.route"].string_value == "/recommend"
    assert attributes["http.response.status_code"].int_value == 200
    children = [span for span in ours if span is not root]
    assert [span.name for span in children] == STAGES
    assert {span.parent_span_id for span in children} == {root.span_id}
    assert len({span.span_id for span in ours}) == len(ours)
    assert before_ns <= root.start_time_unix_nano <= root.end_time_unix_nano <= after_ns
    at = root.start_time_unix_nano
    for span in children:
        assert at <= span.start_time_unix_nano <= span.end_time_unix_nano
        at = span.end_time_unix_nano
        asked_ms = answer.json()["timings_ms"][span.name]
        lasted_ms = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
        assert lasted_ms == pytest.approx(asked_ms, abs=0.01)
    assert at <= root.end_time_unix_nano

    [line] = [line for line in lines if line.get("request_id") == "find-me"]
    assert line["trace_id"] == TRACE_ID
    others = {span.trace_id.hex() for span in spans if span.name != "batch"} - {TRACE_ID}
    [other] = [one for one in lines if one.get("route") == "/recommend" and one is not line]
    assert {other["trace_id"]} == others  # a request without a traceparent begins a trace
    assert b"very-secret-user" not in b"".join(span.SerializeToString() for span in spans)


def test_no_telemetry_but_ours_is_sent(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FastAPI's own has the paths of requests in it, and so the ids of users."""
    with collector() as (url, spans):  # which takes nothing but traces
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")  # ms
        monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
        with service_process(tmp_path, **settings) as service:
            history = service.client.get("/users/very-secret-user/history")
            assert history.status_code == 200
            assert service.client.get("/nowhere/very-secret-user").status_code == 404
            wait_until(lambda: len(spans) >= 2)
    assert sorted(span.name for span in spans) == ["GET /users/{user_id}/history", "GET other"]
    assert b"very-secret-user" not in b"".join(span.SerializeToString() for span in spans)


def test_a_batch_is_linked_to_its_requests(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings |= {"bundle": "tiny@slow", "max_batch_requests": 4}
    body = {"user_id": "x", "history": ["item-1"]}
    with collector() as (url, spans):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")  # ms
        with service_process(tmp_path, **settings) as service, ThreadPoolExecutor(6) as pool:
            paths = ["/recommend"] * 5 + ["/recommend/batch"]
            bodies = [body] * 5 + [{"requests": [body, body]}]
            post = service.client.post
            answers = list(pool.map(lambda path, body: post(path, json=body), paths, bodies))
            assert {answer.status_code for answer in answers} == {200}
        wait_until(lambda: sum(span.name == "map" for span in spans) >= 5)

    batches = [span for span in spans if span.name == "batch"]
    requests = [span for span in spans if span.name.startswith("POST")]
    sizes = [{one.key: one.value.int_value for one in span.attributes} for span in batches]
    assert sum(size["unmask.batch.jobs"] for size in sizes) == 7
    assert 2 <= max(size["unmask.batch.jobs"] for size in sizes) <= 4
    for size in sizes:
        assert size["unmask.batch.rows"] == 10 * size["unmask.batch.jobs"]
    linked = [(link.trace_id, link.span_id) for span in batches for link in span.links]
    assert set(linked) == {(span.trace_id, span.span_id) for span in requests}
    assert 6 <= len(linked) <= 7  # the two jobs of one request may have shared a batch
    for span in batches:
        assert not span.parent_span_id
        assert 0 < span.end_time_unix_nano - span.start_time_unix_nano < 10e9
    assert len({span.trace_id for span in [*batches, *requests]}) == len(batches) + 6


def test_a_collector_that_is_not_there_hinders_nobody(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{find_free_port()}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with service_process(tmp_path, **settings) as service:
        for _ in range(5):
            assert service.recommend(user_id="x", history=["item-1"]).status_code == 200
        service.process.terminate()
        assert service.wait() == -signal.SIGTERM


def test_without_the_variable_nothing_of_it_is_imported() -> None:
    """FastAPI itself imports the API, and the metrics of the SDK, if they are installed."""
    script = (
        "import sys\n"
        "from service.__main__ import Server\n"
        "from service.lifecycle import Lifecycle\n"
        "from service.telemetry.metrics import Metrics\n"
        "from service.http.wire.port import Port\n"
        "from service.settings import Settings\n"
        "lifecycle = Lifecycle(Settings(), Metrics())\n"
        "Server(lifecycle, Port('127.0.0.1', 0, max_descriptors=99))\n"
        "ours = ('opentelemetry.sdk.trace', 'opentelemetry.exporter')\n"
        "print(lifecycle.traces, [name for name in sys.modules if name.startswith(ours)])\n"
    )
    command = [sys.executable, "-W", "error", "-c", script]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout == "None []\n"
