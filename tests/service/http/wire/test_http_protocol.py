"""Connections byte by byte: answers leave whole, and a refused client gets its answer at once."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import json
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import pytest
import uvicorn
from fastapi import Body, FastAPI, Response
from raw_http import answers, connection, error_code
from running_service import PATIENCE_S, Service, service_process, wait_until
from running_valkey import Server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.http.admission.gate import Gate
from service.http.middleware import Envelope
from service.http.wire.parser import RequestParser
from service.http.wire.protocol import GatheringTransport, Http
from service.telemetry.metrics import Metrics

BODY = json.dumps({"user_id": "x", "history": ["item-1"], "r_warm": 4}).encode()
LIVE = b'"live"'
ASK_LIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
INSIDE = "unmask_inflight_requests"
LARGE = 64 << 20
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
REFUSED = 'unmask_rejected_total{reason="inflight"}'


@pytest.fixture(scope="module")
def narrow(
    bundles_dir: Path, store: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service that lets one request in at a time."""
    with service_process(
        tmp_path_factory.mktemp("narrow"),
        bundles_dir=bundles_dir,
        bundle="tiny@1",
        redis_url=store.url,
        redis_timeout_ms=60_000,
        max_inflight=1,
    ) as service:
        yield service


@pytest.fixture
def busy(narrow: Service, store: Server) -> Iterator[Service]:
    """The same, while a request inside waits for the store."""
    with closing(connection(narrow)) as client:
        with store.stopped():
            client.sendall(b"GET /users/x/history HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_until(lambda: narrow.samples()[INSIDE] == 1)
            yield narrow
        [(status, _, _)] = answers(client.recv(1 << 20))
        assert status == 200
    wait_until(lambda: narrow.samples()[INSIDE] == 0)


def head(*, length: int = len(BODY), more: str = "") -> bytes:
    lines = ["POST /recommend HTTP/1.1", "Host: x", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {length}", f"{more}\r\n"]).encode() + (
        b"\r\n" if more else b""
    )


def post(path: str, *, length: int = 4, more: str = "") -> bytes:
    lines = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{more}\r\n"
    return lines.encode()


def test_head_and_body_of_an_answer_arrive_together(served: Service) -> None:
    body = json.dumps({"user_id": "x", "history": ["item-1"]}).encode()
    with closing(connection(served)) as client:
        for _ in range(200):
            client.sendall(head(length=len(body)) + body)
            [(status, _, _)] = answers(client.recv(1 << 20))
            assert status == 200


OFFERS = {
    "h2c": ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAA"],
    "websocket": ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"],
}


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("segments", [1, 2])
def test_an_upgrade_that_is_not_taken_is_ignored(
    served: Service, offer: str, framing: str, segments: int
) -> None:
    body = json.dumps({"user_id": "upgrading", "history": ["item-1"], "k": 3}).encode()
    lines = ["POST /recommend HTTP/1.1", "Host: x", "Content-Type: application/json"]
    if framing == "length":
        lines.append(f"Content-Length: {len(body)}")
    else:
        lines.append("Transfer-Encoding: chunked")
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    lines += ["Expect: 100-continue"] if segments == 2 else []
    top = "\r\n".join([*lines, *OFFERS[offer], "\r\n"]).encode()
    asked = "unmask_recommend_duration_seconds_count"

    def num_recommended() -> float:
        return sum(value for name, value in served.samples().items() if name.startswith(asked))

    before, received = num_recommended(), b""
    with closing(connection(served)) as client:
        for _ in range(2):  # the connection goes on as well
            if segments == 2:
                client.sendall(top)
                assert client.recv(1 << 20) == CONTINUE  # so the head has been read
                client.sendall(body)
                received += client.recv(1 << 20)
            else:
                client.sendall(top + body)
        client.sendall(ASK_LIVE)
        while LIVE not in received:
            received += client.recv(1 << 20)
    first, second, (status, _, _) = answers(received)
    assert status == 200
    for status, headers, content in (first, second):
        assert status == 200
        assert "upgrade" not in headers
        answer = json.loads(content)
        assert (answer["user_id"], len(answer["items"])) == ("upgrading", 3)
    assert num_recommended() == before + 2


def test_a_refusal_does_not_wait_for_the_body(busy: Service) -> None:
    with closing(connection(busy)) as client:
        client.sendall(head())
        [(status, headers, body)] = answers(client.recv(1 << 20))
        assert status == 429
        assert headers["retry-after"] == "1"
        error = json.loads(body)["error"]
        assert (error["code"], error["retryable"]) == ("overloaded", True)
        assert error["request_id"] == headers["x-request-id"]

        client.sendall(BODY + ASK_LIVE)  # the connection goes on after the body that nobody wanted
        [(status, _, body)] = answers(client.recv(1 << 20))
        assert (status, json.loads(body)["status"]) == (200, "live")


def test_a_refusal_ends_a_connection_that_was_to_end(busy: Service) -> None:
    with closing(connection(busy)) as client:
        client.sendall(head(more="Connection: close") + BODY)
        [(status, headers, _)] = answers(client.recv(1 << 20))
        assert (status, headers["connection"]) == (429, "close")
        assert client.recv(1) == b""


def test_a_refusal_reaches_a_client_that_is_still_sending(busy: Service) -> None:
    half = bytes(400_000)
    with closing(connection(busy)) as client:
        client.sendall(head(length=2 * len(half), more="Connection: close") + half)
        [(status, headers, _)] = answers(client.recv(1 << 20))
        assert (status, headers["connection"]) == (429, "close")
        for start in range(0, len(half), 1000):  # a reset of the connection would show soon
            client.sendall(half[start : start + 1000])
        assert client.recv(1) == b""


def test_many_requests_at_once_are_refused_one_by_one(busy: Service) -> None:
    before = busy.samples()[REFUSED]
    many = 3000
    received = b""
    with closing(connection(busy)) as client:
        sender = threading.Thread(target=client.sendall, args=((head() + BODY) * many + ASK_LIVE,))
        sender.start()
        while LIVE not in received:
            received += client.recv(1 << 20)
        sender.join()
    assert [status for status, _, _ in answers(received)] == [429] * many + [200]
    assert busy.samples()[REFUSED] == before + many


def test_requests_in_a_pipeline_are_let_in_one_after_another(narrow: Service) -> None:
    assert narrow.samples()[INSIDE] == 0
    before = narrow.samples()[REFUSED]
    asked = [head() + BODY] * 3 + [ASK_LIVE] * 1000
    received = b""
    with closing(connection(narrow)) as client:
        client.sendall(b"".join(asked))
        while received.count(LIVE) < 1000:
            received += client.recv(1 << 20)
    # The gate has one place: each has left it before the next one is let in.
    assert [status for status, _, _ in answers(received)] == [200] * len(asked)
    assert narrow.samples()[INSIDE] == 0
    assert narrow.samples()[REFUSED] == before


def test_many_refusals_in_a_pipeline_are_no_deep_stack(busy: Service) -> None:
    many = 2000
    received = b""
    with closing(connection(busy)) as client:
        sent = ASK_LIVE + (head() + BODY) * many + ASK_LIVE
        sender = threading.Thread(target=client.sendall, args=(sent,))
        sender.start()
        while received.count(LIVE) < 2:
            received += client.recv(1 << 20)
        sender.join()
    assert [status for status, _, _ in answers(received)] == [200, *[429] * many, 200]


def test_health_is_answered_whoever_is_inside(busy: Service) -> None:
    for path in ("/livez", "/readyz", "/metrics", "/info"):
        assert busy.client.get(path).status_code == 200
    assert busy.client.get("/items/item-1").status_code == 429


# --- a server of our own, whose clock is put forward -------------------------------------------

LATE_S = 1000.0  # for a request to arrive, and for an answer to be taken
IDLE_S = 3000.0
STEP_S = 100.0


class PutForward(asyncio.SelectorEventLoop):
    """An event loop whose clock a test puts forward, so that no test waits for real time."""

    ahead_s = 0.0

    def time(self) -> float:
        return super().time() + self.ahead_s


async def passes(seconds: float) -> None:
    """Time passes in steps. In each, what is due is done, and what was sent arrives."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, PutForward)
    for _ in range(round(seconds / STEP_S)):
        loop.ahead_s += STEP_S
        for _ in range(5):
            await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a story on such a loop, for PATIENCE_S of real time at most."""

    async def limited() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        watchdog = threading.Timer(PATIENCE_S, loop.call_soon_threadsafe, [task.cancel])
        watchdog.start()
        try:
            await story()
        finally:
            watchdog.cancel()

    with asyncio.Runner(loop_factory=PutForward) as runner:
        runner.run(limited())


class Impatient(Http):
    """Requests have to arrive in LATE_S."""

    transfer_s = LATE_S


class Listener(NamedTuple):
    """A server's parts: what admits requests, what counts them, and what connects to it."""

    gate: Gate
    metrics: Metrics
    state: ServerState
    connect: Callable[[], Awaitable[Streams]]
    waiting: list[bytes]  # bodies of those to /long that are not answered yet

    async def is_left(self) -> None:
        """Wait until nobody is inside."""
        await until(lambda: not self.gate.inside)

    async def one(self) -> Impatient:
        """The only connection, once the server has it."""
        await until(lambda: self.state.connections)
        [connection] = self.state.connections
        return cast("Impatient", connection)


@asynccontextmanager
async def listening(most: int, *, app: Any = None) -> AsyncIterator[Listener]:
    """A listener with a given number of places, for `app` or for its own application.

    `POST /` is answered at once and `POST /long` after three times LATE_S, with their bodies. `POST
    /large` is answered with more than all buffers can hold.
    """
    own = FastAPI()
    waiting: list[bytes] = []

    @own.post("/")
    async def at_once(body: Annotated[bytes, Body()]) -> Response:
        return Response(body)

    @own.post("/long")
    async def late(body: Annotated[bytes, Body()]) -> Response:
        waiting.append(body)
        await asyncio.sleep(3 * LATE_S)
        waiting.remove(body)
        return Response(body)

    @own.post("/large")
    async def large(body: Annotated[bytes, Body()]) -> Response:
        return Response(bytes(LARGE))

    loop = asyncio.get_running_loop()
    gate, metrics, state = Gate(1.0, most), Metrics(), ServerState()
    envelope = Envelope(app or own, metrics, gate)
    config = uvicorn.Config(envelope, timeout_keep_alive=IDLE_S, lifespan="off")  # type: ignore[arg-type]
    server = await loop.create_server(lambda: Impatient(config, state, {}, loop), "127.0.0.1", 0)
    writers = []

    async def connect() -> Streams:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writers.append(writer)
        return reader, writer

    async with server:
        yield Listener(gate, metrics, state, connect, waiting)
        for writer in writers:
            writer.close()


async def rest_of(reader: asyncio.StreamReader) -> tuple[list[int], bytes]:
    """The statuses of all answers until the connection ends, and the last body."""
    found = list(answers(await reader.read()))
    return [status for status, _, _ in found], found[-1][2] if found else b""


def test_an_idle_connection_ends_after_a_refusal_at_its_head() -> None:
    """The body that comes later does not keep it alive for ever."""

    async def story() -> None:
        async with listening(0) as listener:  # no request may enter
            reader, writer = await listener.connect()
            writer.write(post("/"))
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"body")
            one = await listener.one()
            await until(lambda: one.idle_until)  # it has read the body
            await passes(IDLE_S - STEP_S)
            assert listener.state.connections
            await passes(2 * STEP_S)
            assert json.loads(await reader.read())["error"]["code"] == "overloaded"

    run(story)


def test_a_client_that_goes_on_sending_after_a_refusal_is_cut_off() -> None:
    async def story() -> None:
        async with listening(0) as listener:
            reader, writer = await listener.connect()
            writer.write(post("/", length=1 << 19, more="Connection: close\r\n"))
            [status], _ = await rest_of(reader)
            assert status == 429
            steps = 0
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b" ")
                    await writer.drain()
                    await passes(STEP_S)
                    steps += 1
            writer.close()
            assert LATE_S / 2 < steps * STEP_S < 3 * LATE_S

    run(story)


@pytest.mark.parametrize("more", ["", "Connection: close\r\n"], ids=["half-a-head", "refused"])
def test_the_server_ends_without_waiting_for_the_rest_of_a_request(more: str) -> None:
    async def story() -> None:
        async with listening(0) as listener:
            reader, writer = await listener.connect()
            sent = post("/", length=1 << 19, more=more)
            writer.write(sent if more else sent[:-2])
            one = await listener.one()
            if more:
                await rest_of(reader)  # it lingers
            else:
                await until(lambda: one._is_in_head)
            assert listener.state.connections
            one.shutdown()
            await until(lambda: not listener.state.connections)  # no time passes

    run(story)


@pytest.mark.parametrize("sent", [b"", b"\r\n\r\n"], ids=["nothing", "empty-lines"])
def test_a_connection_that_asks_nothing_ends(sent: bytes) -> None:
    async def story() -> None:
        async with listening(1) as listener:
            reader, writer = await listener.connect()
            writer.write(sent)
            await listener.one()
            await passes(IDLE_S - STEP_S)
            assert listener.state.connections
            await passes(2 * STEP_S)
            assert await rest_of(reader) == ([], b"")

    run(story)


@pytest.mark.parametrize(
    "sent",
    [b"POST / HT", post("/")[:-2], post("/"), post("/") + b"bod"],
    ids=["first-line", "headers", "no-body", "half-a-body"],
)
def test_a_request_that_does_not_come_whole_is_given_up(sent: bytes) -> None:
    """So clients who never finish their requests cannot fill the gate."""

    async def story() -> None:
        async with listening(1) as listener:
            reader, writer = await listener.connect()
            writer.write(sent)
            one = await listener.one()
            await until(lambda: one._rest_of_request.is_running)
            rest = asyncio.create_task(rest_of(reader))
            await passes(LATE_S - STEP_S)
            assert not rest.done()
            await passes(2 * STEP_S)
            statuses, body = await rest
            assert statuses == [408]
            error = json.loads(body)["error"]
            assert (error["code"], error["retryable"]) == ("request_timeout", False)
            await listener.is_left()  # the application is told
            reader, writer = await listener.connect()
            writer.write(post("/") + b"next")
            await reader.readuntil(b"next")

    run(story)


@pytest.mark.parametrize("nonsense", [b"nonsense\r\n\r\n", post("/")[:-2] + bytes(100_000)])
def test_nonsense_is_answered_in_its_turn(nonsense: bytes) -> None:
    """Otherwise the client would take the 400 for the answer to an earlier request."""

    async def story() -> None:
        async with listening(1) as listener:
            reader, writer = await listener.connect()
            writer.write(post("/long") + b"one!" + post("/") + b"two!" + nonsense)
            await until(lambda: listener.waiting)
            await passes(4 * LATE_S)
            one, two, refusal = answers(await reader.read())
            assert [one[2], two[2]] == [b"one!", b"two!"]
            assert error_code(refusal) in {"malformed_request", "headers_too_large"}
            await listener.is_left()

    run(story)


@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize("behind", [b"", post("/") + b"body"], ids=["alone", "behind another"])
def test_a_body_that_turns_out_nonsense_is_counted_once(segments: int, behind: bytes) -> None:
    lines = ["POST / HTTP/1.1", "Host: x", "X-Request-ID: mine", "Transfer-Encoding: chunked"]
    lines += ["Expect: 100-continue"] if segments == 2 else []
    top = "\r\n".join([*lines, "\r\n"]).encode()

    async def story() -> None:
        async with listening(1) as listener:
            reader, writer = await listener.connect()
            writer.write(behind + top + b"no chunk" * (segments == 1))
            if segments == 2:
                expected = (b"\r\n\r\nbody" if behind else b"") + CONTINUE
                received = await reader.readuntil(expected)
                writer.write(b"no chunk")
                before = list(answers(received.removesuffix(CONTINUE)))
                [refusal] = answers(await reader.read())
            else:
                *before, refusal = answers(await reader.read())
            assert [status for status, _, _ in before] == ([200] if behind else [])
            assert (refusal[0], error_code(refusal)) == (400, "malformed_request")
            assert refusal[1]["x-request-id"] == "mine"
            await listener.is_left()
            await asyncio.sleep(0)
            counted = [
                (sample.labels["status"], sample.value)
                for metric in listener.metrics.registry.collect()
                for sample in metric.samples
                if sample.name == "unmask_http_requests_total" and sample.value
            ]
            assert sorted(counted) == [("200", 1.0)] * bool(behind) + [("400", 1.0)]

    run(story)


def test_a_request_inside_when_the_time_to_stop_is_up_gets_an_answer() -> None:
    """uvicorn then cancels what still runs, and would answer in its own words."""

    async def story() -> None:
        async with listening(1) as listener:
            reader, writer = await listener.connect()
            writer.write(post("/long") + b"body")
            await until(lambda: listener.state.tasks)
            for connection in list(listener.state.connections):
                connection.shutdown()
            for task in list(listener.state.tasks):
                task.cancel()
            [answer] = answers(await reader.read())
            assert (answer[0], error_code(answer)) == (503, "not_ready")
            assert answer[1]["retry-after"] == "1"
            await listener.is_left()

    run(story)


def test_an_application_that_breaks_answers_in_the_one_body() -> None:
    """FastAPI answers for its routes. This is for failures outside them."""

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("a bug")

    async def story() -> None:
        async with listening(1, app=broken) as listener:
            reader, writer = await listener.connect()
            writer.write(post("/") + b"body")
            received = await reader.readuntil(b"}")
            [answer] = answers(received + await reader.read(1000))
            assert (answer[0], error_code(answer)) == (500, "internal_error")

    run(story)


def test_a_request_that_is_given_up_is_counted_under_its_id() -> None:
    async def story() -> None:
        async with listening(1) as listener:
            reader, writer = await listener.connect()
            writer.write(post("/", more="X-Request-ID: mine\r\n"))
            one = await listener.one()
            await until(lambda: one._rest_of_request.is_running)
            await passes(LATE_S + STEP_S)
            received = await reader.read()
            [(_, headers, body)] = answers(received)
            assert headers["x-request-id"] == json.loads(body)["error"]["request_id"] == "mine"
            await listener.is_left()
            counted = {"route": "/", "method": "POST", "status": "408"}
            sample = listener.metrics.registry.get_sample_value
            assert sample("unmask_http_requests_total", counted) == 1

    run(story)


def test_a_client_that_does_not_read_answers_is_disconnected() -> None:
    """The first answer fills all buffers, and the second one waits for room."""

    async def story() -> None:
        async with listening(1) as listener:
            _, writer = await listener.connect()
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(post("/large") + b"body" + post("/") + b"body")
            one = await listener.one()
            await until(lambda: one._taking_of_answers.is_running)
            await passes(LATE_S - STEP_S)
            assert listener.state.connections
            await passes(2 * STEP_S)
            await until(lambda: not listener.state.connections)
            assert not listener.gate.inside

    run(story)


def test_bytes_that_trickle_in_do_not_gain_time() -> None:
    async def story() -> None:
        async with listening(1) as listener:
            reader, writer = await listener.connect()
            writer.write(post("/", length=1000))
            one = await listener.one()
            await until(lambda: one._is_in_body)
            rest, steps = asyncio.create_task(rest_of(reader)), 0
            while not rest.done():
                writer.write(b"x")
                await passes(STEP_S)
                steps += 1
            assert (await rest)[0] == [408]
            assert LATE_S / 2 < steps * STEP_S < 3 * LATE_S

    run(story)


@pytest.mark.parametrize("arrived", [9, len(post("/"))], ids=["half-a-head", "head"])
def test_a_request_behind_one_that_takes_long_is_not_hurried(arrived: int) -> None:
    """The answer before it is not there yet, which is not the client's fault."""

    async def story() -> None:
        async with listening(2) as listener:
            reader, writer = await listener.connect()
            asked = post("/") + b"two!"
            writer.write(post("/long") + b"one!" + asked[:arrived])
            await until(lambda: listener.waiting)
            await passes(3 * LATE_S)
            [(status, _, body)] = answers(await reader.readuntil(b"one!"))
            assert (status, body) == (200, b"one!")
            await passes(LATE_S - STEP_S)
            writer.write(asked[arrived:])
            [(status, _, body)] = answers(await reader.readuntil(b"two!"))
            assert (status, body) == (200, b"two!")

    run(story)


def test_a_long_answer_is_no_late_request() -> None:
    async def story() -> None:
        async with listening(1) as listener:
            reader, writer = await listener.connect()
            for part in (b"first", b"again"):
                writer.write(post("/long", length=5))
                one = await listener.one()
                await until(lambda: one._is_in_body)  # noqa: B023
                await passes(LATE_S - STEP_S)
                writer.write(part)
                await until(lambda: listener.waiting)
                await passes(3 * LATE_S)
                await reader.readuntil(part)
                await listener.is_left()

    run(story)


class Recorded:
    """A transport that records its calls."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def write(self, data: bytes) -> None:
        self.calls.append(data)

    def close(self) -> None:
        self.calls.append("close")

    def abort(self) -> None:
        self.calls.append("abort")

    def is_closing(self) -> bool:
        return "close" in self.calls


def test_what_is_written_in_a_turn_is_sent_together() -> None:
    async def main() -> list[Any]:
        recorded = Recorded()
        transport = GatheringTransport(
            recorded,  # type: ignore[arg-type]
            asyncio.get_running_loop(),
            has_more=lambda: False,
            linger_s=10,
        )
        transport.write(b"head ")
        transport.write(b"body")
        assert recorded.calls == []
        await asyncio.sleep(0)
        assert recorded.calls == [b"head body"]
        transport.write(b"at once")
        transport.flush()
        transport.write(b"last")
        assert not transport.is_closing()
        transport.close()
        assert transport.is_closing()
        await asyncio.sleep(0)
        return recorded.calls

    assert asyncio.run(main()) == [b"head body", b"at once", b"last", "close"]


# Parts of uvicorn that are not a public promise, but are used
UVICORN_PARTS = {
    "config": "the application, as it was given to uvicorn",
    "loop": "the event loop",
    "parser": "fed with feed_data, asked for method, version, keep-alive and upgrade",
    "scope": "of the request whose head was parsed last",
    "timeout_keep_alive": "seconds",
}
UVICORN_CALLS = {
    "on_message_begin": "by the parser, as are the next three",
    "on_headers_complete": "starts the application, or puts the request behind the one before it",
    "on_body": "",
    "on_message_complete": "",
    "on_response_complete": "once for each answer, after its last byte was written",
    "send_400_response": "for what the parser refuses",
    "shutdown": "by the server that ends",
}


def test_nothing_else_of_uvicorn_is_used() -> None:
    """A new uvicorn may change these parts without notice.

    Then read `service.http.wire.protocol` and decision 028 again, next to uvicorn's
    `HttpToolsProtocol`.
    """
    tree = ast.parse(inspect.getsource(Http)).body[0]
    touched = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and (
            (isinstance(node.value, ast.Name) and node.value.id == "self")
            or (isinstance(node.value, ast.Call) and ast.unparse(node.value) == "super()")
        )
    }
    own = {name for name in touched if name in vars(Http) or name.startswith("_")}
    asyncio_s = set(dir(asyncio.Protocol))
    overridden = {name for name in vars(Http) if not name.startswith("_")}
    overridden -= {"transfer_s", "idle_until", "has_unread"}  # our own
    assert touched - own - asyncio_s == set(UVICORN_PARTS)
    private = {name for name in touched | set(vars(Http)) if re.match("_[^_]", name)}
    assert not private & set(dir(HttpToolsProtocol))
    assert overridden - asyncio_s == set(UVICORN_CALLS)


def test_uvicorn_still_has_what_is_used() -> None:
    async def main() -> HttpToolsProtocol:
        config = uvicorn.Config(FastAPI(), timeout_keep_alive=7, lifespan="off")
        return HttpToolsProtocol(config, ServerState(), {})

    protocol = asyncio.run(main())
    missing = [name for name in (*UVICORN_PARTS, *UVICORN_CALLS) if not hasattr(protocol, name)]
    assert not missing, f"this uvicorn ({uvicorn.__version__}) has no {', '.join(missing)}"
    assert protocol.timeout_keep_alive == 7
    source = inspect.getsource(HttpToolsProtocol)
    asked = set(re.findall(r"self\.parser\.(\w+)", source)) - {"set_dangerous_leniencies"}
    unknown = asked - set(dir(RequestParser))
    assert not unknown, (
        f"this uvicorn asks its parser for {unknown}: service.http.wire.parser lacks it"
    )
    for hook in ("self.send_400_response(", "on_response=self.on_response_complete"):
        assert hook in source, f"this uvicorn does not call {hook} any more"
