"""Connections byte by byte: answers leave whole, and who is not let in hears it at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pytest
import uvicorn
from fastapi import Body, FastAPI, Response
from running_service import Service, service_process, wait_until
from running_valkey import Server, running
from uvicorn.server import ServerState

from service.gate import Gate
from service.http_protocol import GatheringTransport, Http
from service.metrics import Metrics
from service.middleware import Envelope

BODY = json.dumps({"user_id": "x", "history": ["item-1"], "r_warm": 4}).encode()
LIVE = b'"live"'
ASK_LIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
INSIDE = "unmask_inflight_requests"
LARGE = 64 << 20
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
REFUSED = 'unmask_rejected_total{reason="inflight"}'


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Valkey that may be stopped."""
    valkey = Server(tmp_path_factory.mktemp("valkey"), {"save": '""'})
    with running(valkey):
        yield valkey


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
    """The same while a request is inside that waits for the store."""
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


def connection(service: Service) -> socket.socket:
    address = ("127.0.0.1", service.client.base_url.port or 0)
    connected = socket.create_connection(address, timeout=30)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


def answers(received: bytes) -> Iterable[tuple[int, dict[str, str], bytes]]:
    """Status, headers and body of every answer; fails on half an answer."""
    while received:
        top, separator, received = received.partition(b"\r\n\r\n")
        assert separator, top
        status, *lines = top.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        length = int(headers["content-length"])
        assert len(received) >= length, "half an answer"
        yield int(status.split()[1]), headers, received[:length]
        received = received[length:]


def test_head_and_body_of_an_answer_arrive_together(served: Service) -> None:
    body = json.dumps({"user_id": "x", "history": ["item-1"]}).encode()
    with closing(connection(served)) as client:
        for _ in range(200):
            client.sendall(head(length=len(body)) + body)
            [(status, _, _)] = answers(client.recv(1 << 20))
            assert status == 200


def test_a_refusal_does_not_wait_for_the_body(busy: Service) -> None:
    with closing(connection(busy)) as client:
        client.sendall(head())
        [(status, headers, body)] = answers(client.recv(1 << 20))
        assert status == 429
        assert headers["retry-after"] == "1"
        error = json.loads(body)["error"]
        assert (error["code"], error["retryable"]) == ("overloaded", True)
        assert error["request_id"] == headers["x-request-id"]

        client.sendall(BODY + ASK_LIVE)  # the connection goes on behind the body nobody wanted
        [(status, _, body)] = answers(client.recv(1 << 20))
        assert (status, json.loads(body)["status"]) == (200, "live")


def test_a_refusal_ends_a_connection_that_was_to_end(busy: Service) -> None:
    with closing(connection(busy)) as client:
        client.sendall(head(more="Connection: close") + BODY)
        [(status, headers, _)] = answers(client.recv(1 << 20))
        assert (status, headers["connection"]) == (429, "close")
        assert client.recv(1) == b""


def test_a_refusal_reaches_who_is_still_sending(busy: Service) -> None:
    half = bytes(400_000)
    with closing(connection(busy)) as client:
        client.sendall(head(length=2 * len(half), more="Connection: close") + half)
        [(status, headers, _)] = answers(client.recv(1 << 20))
        assert (status, headers["connection"]) == (429, "close")
        for start in range(0, len(half), 1000):  # a connection that was reset would tell soon
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


class Impatient(Http):
    """Requests have to come quickly."""

    transfer_s = 0.5


class Listener(NamedTuple):
    """What lets requests in, what counts them, and what connects to it."""

    gate: Gate
    metrics: Metrics
    state: ServerState
    connect: Callable[[], Awaitable[Streams]]

    async def is_left(self) -> None:
        """Wait until nobody is inside."""
        while self.gate.inside:
            await asyncio.sleep(0.01)


@asynccontextmanager
async def listening(most: int, *, keep_alive_s: int = 60) -> AsyncIterator[Listener]:
    """A listener that lets in so many.

    `POST /` is answered at once and `POST /long` after a second and a half, with their bodies;
    `POST /large` with more than anybody's buffers hold.
    """
    app = FastAPI()

    @app.post("/")
    async def at_once(body: Annotated[bytes, Body()]) -> Response:
        return Response(body)

    @app.post("/long")
    async def late(body: Annotated[bytes, Body()]) -> Response:
        await asyncio.sleep(1.5)
        return Response(body)

    @app.post("/large")
    async def large(body: Annotated[bytes, Body()]) -> Response:
        return Response(bytes(LARGE))

    loop = asyncio.get_running_loop()
    gate, metrics, state = Gate(1.0, most), Metrics(), ServerState()
    envelope = Envelope(app, metrics, gate)
    config = uvicorn.Config(envelope, timeout_keep_alive=keep_alive_s, lifespan="off")  # type: ignore[arg-type]
    server = await loop.create_server(lambda: Impatient(config, state, {}, loop), "127.0.0.1", 0)
    writers = []

    async def connect() -> Streams:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writers.append(writer)
        return reader, writer

    async with server:
        yield Listener(gate, metrics, state, connect)
        for writer in writers:
            writer.close()


async def rest_of(reader: asyncio.StreamReader) -> tuple[list[int], bytes, float]:
    """Statuses of all that is answered until the connection ends, the last body, and seconds."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    found = list(answers(await asyncio.wait_for(reader.read(), 10)))
    return [status for status, _, _ in found], found[-1][2] if found else b"", loop.time() - started


def post(path: str, *, length: int = 4, more: str = "") -> bytes:
    lines = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{more}\r\n"
    return lines.encode()


def test_an_idle_connection_ends_after_a_refusal_at_its_head() -> None:
    """The body that comes later does not make it live for ever."""

    async def main() -> tuple[bytes, float]:
        async with listening(0, keep_alive_s=1) as listener:  # nobody is let in
            reader, writer = await listener.connect()
            writer.write(post("/"))
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.3)
            writer.write(b"body")
            started = asyncio.get_running_loop().time()
            left = await asyncio.wait_for(reader.read(), 10)
            return left, asyncio.get_running_loop().time() - started

    left, seconds = asyncio.run(main())
    assert json.loads(left)["error"]["code"] == "overloaded"
    assert 0.9 < seconds < 5


def test_who_goes_on_sending_after_a_refusal_is_cut_off() -> None:
    async def story() -> float:
        async with listening(0) as listener:
            reader, writer = await listener.connect()
            started = asyncio.get_running_loop().time()
            writer.write(post("/", length=1 << 19, more="Connection: close\r\n"))
            [status], _, _ = await rest_of(reader)
            assert status == 429
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b" ")
                    await writer.drain()
                    await asyncio.sleep(0.01)
            writer.close()
            return asyncio.get_running_loop().time() - started

    assert 0.4 < asyncio.run(asyncio.wait_for(story(), 20)) < 5


@pytest.mark.parametrize("more", ["", "Connection: close\r\n"], ids=["half-a-head", "refused"])
def test_the_end_of_the_server_waits_for_nobody_s_rest(more: str) -> None:
    async def main() -> None:
        async with listening(0) as listener:
            reader, writer = await listener.connect()
            sent = post("/", length=1 << 19, more=more)
            writer.write(sent if more else sent[:-2])
            if more:
                await rest_of(reader)  # it lingers
            while not listener.state.connections:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            for one in list(listener.state.connections):
                one.shutdown()
            async with asyncio.timeout(0.3):
                while listener.state.connections:
                    await asyncio.sleep(0.01)

    asyncio.run(main())


@pytest.mark.parametrize("sent", [b"", b"\r\n\r\n"], ids=["nothing", "empty-lines"])
def test_a_connection_that_asks_nothing_ends(sent: bytes) -> None:
    async def main() -> tuple[list[int], bytes, float]:
        async with listening(1, keep_alive_s=1) as listener:
            reader, writer = await listener.connect()
            writer.write(sent)
            return await rest_of(reader)

    statuses, _, seconds = asyncio.run(main())
    assert statuses == []
    assert 0.9 < seconds < 5


@pytest.mark.parametrize(
    "sent",
    [b"POST / HT", post("/")[:-2], post("/"), post("/") + b"bod"],
    ids=["first-line", "headers", "no-body", "half-a-body"],
)
def test_a_request_that_does_not_come_whole_is_given_up(sent: bytes) -> None:
    """So that those who never end theirs cannot take all places of the gate."""

    async def main() -> None:
        async with listening(1) as listener:
            reader, writer = await listener.connect()
            writer.write(sent)
            statuses, body, seconds = await rest_of(reader)
            assert statuses == [408]
            error = json.loads(body)["error"]
            assert (error["code"], error["retryable"]) == ("request_timeout", False)
            assert seconds > 0.4
            await asyncio.wait_for(listener.is_left(), 0.3)  # the application is told
            reader, writer = await listener.connect()
            writer.write(post("/") + b"next")
            await reader.readuntil(b"next")

    asyncio.run(main())


def test_a_request_that_is_given_up_is_counted_under_its_id() -> None:
    async def main() -> None:
        async with listening(1) as listener:
            reader, writer = await listener.connect()
            writer.write(post("/", more="X-Request-ID: mine\r\n"))
            received = await asyncio.wait_for(reader.read(), 10)
            [(_, headers, body)] = answers(received)
            assert headers["x-request-id"] == json.loads(body)["error"]["request_id"] == "mine"
            await asyncio.wait_for(listener.is_left(), 10)
            counted = {"route": "/", "method": "POST", "status": "408"}
            sample = listener.metrics.registry.get_sample_value
            assert sample("unmask_http_requests_total", counted) == 1

    asyncio.run(main())


def test_who_does_not_take_answers_leaves() -> None:
    """The first answer fills all buffers, and the second one waits for room."""

    async def main() -> None:
        async with listening(1) as listener:
            _, writer = await listener.connect()
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(post("/large") + b"body" + post("/") + b"body")
            while not listener.state.connections:
                await asyncio.sleep(0.01)
            while listener.state.connections:
                await asyncio.sleep(0.01)
            assert not listener.gate.inside

    asyncio.run(asyncio.wait_for(main(), 30))


def test_bytes_that_trickle_in_do_not_gain_time() -> None:
    async def main() -> tuple[list[int], bytes, float]:
        async with listening(1) as listener:
            reader, writer = await listener.connect()

            async def trickle() -> None:
                for _ in range(100):
                    writer.write(b"x")
                    await asyncio.sleep(0.05)

            writer.write(post("/", length=1000))
            trickling = asyncio.create_task(trickle())
            found = await rest_of(reader)
            trickling.cancel()
            return found

    statuses, _, seconds = asyncio.run(main())
    assert statuses == [408]
    assert 0.4 < seconds < 4


@pytest.mark.parametrize("arrived", [9, len(post("/"))], ids=["half-a-head", "head"])
def test_a_request_behind_one_that_takes_long_is_not_hurried(arrived: int) -> None:
    """The answer before it is not there yet, which is not the client's fault."""

    async def main() -> None:
        async with listening(2) as listener:
            reader, writer = await listener.connect()
            asked = post("/") + b"two!"
            writer.write(post("/long") + b"one!" + asked[:arrived])
            [(status, _, body)] = answers(await reader.readuntil(b"one!"))
            assert (status, body) == (200, b"one!")
            writer.write(asked[arrived:])
            [(status, _, body)] = answers(await asyncio.wait_for(reader.readuntil(b"two!"), 10))
            assert (status, body) == (200, b"two!")

    asyncio.run(main())


def test_a_long_answer_is_no_late_request() -> None:
    async def main() -> None:
        async with listening(1) as listener:
            reader, writer = await listener.connect()
            for part in (b"first", b"again"):
                writer.write(post("/long", length=5))
                await asyncio.sleep(0.2)
                writer.write(part)
                await asyncio.wait_for(reader.readuntil(part), 10)

    asyncio.run(main())


class Recorded:
    """A transport that notes what it is told."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def write(self, data: bytes) -> None:
        self.calls.append(data)

    def close(self) -> None:
        self.calls.append("close")

    def is_closing(self) -> bool:
        return "close" in self.calls


def test_what_is_written_in_a_turn_is_sent_together() -> None:
    async def main() -> list[Any]:
        recorded = Recorded()
        transport = GatheringTransport(
            recorded,  # type: ignore[arg-type]
            asyncio.get_running_loop(),
            is_refused=lambda: False,
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
