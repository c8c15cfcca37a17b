"""Who may enter, and who keeps nobody out: clients, strangers, bodies that do not arrive."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from running_service import Service, service_process, wait_until
from running_valkey import Server

from service.errors import Overloaded
from service.http.admission.admission_rules import AT_ONCE, MOST_WAITING, AdmissionRules
from service.http.admission.bodies_in_progress import MOST, BodiesInProgress, BodyInProgress
from service.http.admission.gate import Gate, WaitingLine
from service.http.admission.keys import Keys
from service.http.middleware import Envelope, Message
from service.http.operator_routes import SharedText
from service.telemetry.metrics import Metrics

KEY = {"Authorization": "Bearer a-client-key"}
BODY = json.dumps({"user_id": "x", "history": ["item-1"]}).encode()
INSIDE, ARRIVING = "unmask_inflight_requests", "unmask_arriving_requests"
ROOTS = {"recommend", "events", "users", "items"}


@pytest.fixture(scope="module")
def service(
    bundles_dir: Path, store: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service with keys, which lets in one client's request at a time."""
    with service_process(
        tmp_path_factory.mktemp("rules"),
        bundles_dir=bundles_dir,
        bundle="tiny@1",
        redis_url=store.url,
        redis_timeout_ms=60_000,
        max_inflight=1,
        api_keys="a-client-key",
        admin_keys="an-admin-key",
    ) as service:
        service.client.headers.update(KEY)
        yield service


def connection(service: Service) -> socket.socket:
    address = ("127.0.0.1", service.client.base_url.port or 0)
    connected = socket.create_connection(address, timeout=300)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


def head(method: str, path: str, *lines: str, key: str = "a-client-key", length: int = 0) -> bytes:
    own = [f"{method} {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *lines]
    own += [f"Authorization: Bearer {key}"] if key else []
    own += [f"Content-Length: {length}"] if length else []
    return "\r\n".join([*own, "", ""]).encode()


def answer(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one answer."""
    received = b""
    while b"\r\n\r\n" not in received:
        part = client.recv(1 << 20)
        assert part, received
        received += part
    top, _, body = received.partition(b"\r\n\r\n")
    status, *lines = top.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    while len(body) < int(headers["content-length"]):
        body += client.recv(1 << 20)
    return int(status.split()[1]), headers, body


def is_answered(service: Service, times: int = 10) -> None:
    for _ in range(times):
        assert service.recommend(user_id="x", history=["item-1"]).status_code == 200


# Bodies that do not arrive


def test_bodies_that_do_not_arrive_keep_nobody_out(service: Service) -> None:
    stalled = 100
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(connection(service))) for _ in range(stalled)]
        for number, client in enumerate(clients):
            client.sendall(head("POST", "/recommend", length=len(BODY)) + BODY[: number % 5])
        wait_until(lambda: service.samples()[ARRIVING] == stalled)
        assert service.samples()[INSIDE] == 0
        is_answered(service)
        for number, client in enumerate(clients):  # what arrives late is still answered
            client.sendall(BODY[number % 5 :])
            assert answer(client)[0] == 200
    wait_until(lambda: service.samples()[ARRIVING] == 0)


def test_the_oldest_of_too_many_makes_room(service: Service) -> None:
    reason = 'unmask_rejected_total{reason="arriving"}'
    before, more = service.samples()[reason], 5
    with ExitStack() as stack:
        clients = []
        for number in range(MOST + more):
            client = stack.enter_context(closing(connection(service)))
            clients.append(client)
            client.sendall(head("POST", "/events", f"X-Request-ID: n-{number}", length=10))
            if number in (more - 1, MOST - 1):  # they arrive in this order
                wait_until(lambda n=number: service.samples()[ARRIVING] == n + 1)  # type: ignore[misc]
        wait_until(lambda: service.samples()[reason] == before + more)
        assert service.samples()[ARRIVING] == MOST
        for client in clients[:more]:
            status, headers, body = answer(client)
            assert (status, headers["connection"], headers["retry-after"]) == (429, "close", "1")
            error = json.loads(body)["error"]
            assert (error["code"], error["retryable"]) == ("overloaded", True)
            assert "all of it at once" in error["message"]
            assert client.recv(1) == b""
        is_answered(service)
        clients[-1].sendall(b"[" * 10)
        assert answer(clients[-1])[0] == 400
    wait_until(lambda: service.samples()[ARRIVING] == 0)


def test_a_body_that_is_whole_when_the_gate_is_full_is_turned_away(
    service: Service, store: Server
) -> None:
    with closing(connection(service)) as late, closing(connection(service)) as inside:
        late.sendall(head("POST", "/recommend", length=len(BODY)))
        wait_until(lambda: service.samples()[ARRIVING] == 1)
        with store.stopped():
            inside.sendall(head("GET", "/users/x/history"))
            wait_until(lambda: service.samples()[INSIDE] == 1)
            late.sendall(BODY)
            status, headers, body = answer(late)
            assert (status, headers["retry-after"]) == (429, "1")
            assert "connection" not in headers
            assert json.loads(body)["error"]["code"] == "overloaded"
        assert answer(inside)[0] == 200
        late.sendall(head("POST", "/recommend", length=len(BODY)) + BODY)
        assert answer(late)[0] == 200


def test_bodies_in_progress_and_their_bytes_are_limited() -> None:
    async def story() -> None:
        bodies = BodiesInProgress(most=3, most_bytes=100)
        first_parts = [asyncio.Event() for _ in range(8)]
        tasks = []

        def begin(size: int = 0) -> None:
            """A body that sends `size` bytes at first, if any, and then nothing."""
            event = first_parts[len(tasks)]
            sent = [{"type": "http.request", "body": bytes(size), "more_body": True}] * bool(size)

            async def receive() -> Message:
                if sent:
                    return sent.pop()
                event.set()
                await asyncio.Event().wait()
                raise AssertionError

            async def read() -> None:
                body = BodyInProgress()
                try:
                    while True:
                        await bodies.part(body, receive)
                finally:
                    bodies.end(body)

            tasks.append(asyncio.create_task(read()))

        def ended() -> list[int]:
            return [place for place, task in enumerate(tasks) if task.done()]

        for place in range(3):
            begin()
            await first_parts[place].wait()
        assert (len(bodies), ended()) == (3, [])
        begin()
        await first_parts[3].wait()
        await asyncio.wait(tasks[:1])
        assert (len(bodies), ended()) == (3, [0])
        assert isinstance(tasks[0].exception(), Overloaded)
        tasks[1].cancel()  # by the server, say
        await asyncio.wait(tasks[1:2])
        assert tasks[1].cancelled()
        begin(60)
        await first_parts[4].wait()
        assert (len(bodies), ended()) == (3, [0, 1])
        tasks[2].cancel()
        await asyncio.wait(tasks[2:3])
        begin(60)  # 120 bytes: the oldest two go, though the first of them brought none
        await first_parts[5].wait()
        await asyncio.wait(tasks[3:5])
        assert (len(bodies), ended()) == (1, [0, 1, 2, 3, 4])
        begin(101)
        await asyncio.wait(tasks[5:7])
        assert (len(bodies), ended()) == (0, list(range(7)))
        begin(100)
        await first_parts[7].wait()
        assert len(bodies) == 1
        tasks[7].cancel()
        await asyncio.wait(tasks)
        assert len(bodies) == 0

    asyncio.run(asyncio.wait_for(story(), 30))


# Strangers


def rules(api_keys: list[str], admin_keys: list[str]) -> tuple[AdmissionRules, Gate]:
    clients = Gate(1, 100)
    keys = Keys([SecretStr(one) for one in api_keys], [SecretStr(one) for one in admin_keys], None)
    return AdmissionRules(keys, clients, ROOTS), clients


def scope(path: str, key: str = "") -> dict[str, Any]:
    headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
    return {"type": "http", "method": "GET", "path": path, "headers": headers}


HEALTH = ["/health/live", "/health/ready", "/livez", "/readyz"]
OPEN = ["/metrics", "/info", "/models", "/docs", "/openapi.json", "/nothing", "/", "/recommendx"]
CLIENTS = ["/recommend", "/recommend/batch", "/events", "/users/a/history", "/items/a"]


def test_which_limit_a_request_has_to_pass() -> None:
    keyed, clients = rules(["a-client-key"], ["an-admin-key"])
    health, others = keyed.limit_of(scope("/livez")), keyed.limit_of(scope("/metrics"))
    assert isinstance(health, WaitingLine)
    assert isinstance(others, WaitingLine)
    assert health is not others
    assert all(keyed.limit_of(scope(path)) is health for path in HEALTH)
    for key in ("a-client-key", "an-admin-key"):
        assert all(keyed.limit_of(scope(path, key)) is clients for path in CLIENTS)
        assert all(keyed.limit_of(scope(path, key)) is others for path in OPEN)
    for key in ("", "a-client-kex", "cl\xefent"):
        assert all(keyed.limit_of(scope(path, key)) is others for path in [*CLIENTS, *OPEN])
    for key in ("", "a-client-key", "an-admin-kex"):
        assert keyed.limit_of(scope("/admin/drain", key)) is others
    assert keyed.limit_of(scope("/admin/drain", "an-admin-key")) is None

    free, clients = rules([], ["an-admin-key"])
    others = free.limit_of(scope("/metrics"))
    assert all(free.limit_of(scope(path)) is clients for path in CLIENTS)
    assert all(free.limit_of(scope(path)) is others for path in OPEN)
    assert free.limit_of(scope("/admin/drain")) is others
    assert free.limit_of(scope("/admin/drain", "an-admin-key")) is None


def test_strangers_take_turns_with_clients() -> None:
    """All arrive in one turn of the event loop.

    The strangers' last request waits for many turns, the last client's for none.
    """

    async def story() -> None:
        keyed, clients = rules(["a-client-key"], [])
        done: list[str] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            done.append(scope["path"])

        envelope = Envelope(app, Metrics(), clients, limit_of=keyed.limit_of)
        many = 50
        asked = [
            scope(path) for path in ("/metrics", "/nothing", "/recommend") for _ in range(many)
        ]
        asked += [scope("/users/a/history", "a-client-key") for _ in range(many)]
        asked += [scope("/livez")]
        tasks = [asyncio.create_task(envelope(one, no_more, unheard)) for one in asked]
        await asyncio.sleep(0)
        assert done.count("/users/a/history") == many
        assert done.count("/livez") == 1
        assert len(done) == many + 1 + AT_ONCE
        turns = 0
        while len(done) < len(asked):
            before = len(done)
            await asyncio.sleep(0)
            turns += 1
            assert len(done) - before <= AT_ONCE
        assert turns >= 3 * many / AT_ONCE - 1
        await asyncio.gather(*tasks)

    asyncio.run(asyncio.wait_for(story(), 30))


def test_the_number_of_waiting_strangers_is_limited() -> None:
    async def story() -> None:
        keyed, clients = rules(["a-client-key"], [])
        may_end = asyncio.Event()
        inside: list[str] = []
        statuses: list[int] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            inside.append(scope["path"])
            await may_end.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        metrics = Metrics()
        envelope = Envelope(app, metrics, clients, limit_of=keyed.limit_of)

        def ask(*paths: str) -> list[asyncio.Task[None]]:
            return [asyncio.create_task(envelope(scope(one), no_more, send)) for one in paths]

        waiting = ask(*["/metrics"] * MOST_WAITING)
        await asyncio.sleep(0)
        assert len(inside) == AT_ONCE
        waiting[-1].cancel()  # it may leave
        await asyncio.sleep(0)
        waiting += ask(*["/nothing"] * 11)
        await asyncio.sleep(0)
        assert statuses.count(429) == 10
        refused = metrics.registry.get_sample_value("unmask_rejected_total", {"reason": "unkeyed"})
        assert refused == 10
        waiting += ask(*["/livez"] * (MOST_WAITING + 10))  # these may all wait
        await asyncio.sleep(0)
        assert inside.count("/livez") == AT_ONCE
        may_end.set()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert (statuses.count(429), statuses.count(200)) == (10, 2 * MOST_WAITING + 10)

    asyncio.run(asyncio.wait_for(story(), 60))


async def unheard(message: Message) -> None:
    pass


async def no_more() -> Message:
    return {"type": "http.disconnect"}


def test_a_client_that_does_not_read_its_answer_holds_no_place() -> None:
    async def story() -> None:
        gate = Gate(1, 1)
        is_stuck, may_go_on = asyncio.Event(), asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"large"})

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                is_stuck.set()
                await may_go_on.wait()

        envelope = Envelope(app, Metrics(), gate)
        task = asyncio.create_task(envelope(scope("/recommend"), no_more, send))
        await is_stuck.wait()
        assert gate.inside == 0
        may_go_on.set()
        await task
        assert gate.inside == 0

    asyncio.run(asyncio.wait_for(story(), 30))


@pytest.mark.parametrize(
    ("method", "path", "key", "statuses"),
    [
        ("GET", "/nothing", "", {404}),
        ("GET", "/metrics", "", {200}),
        ("POST", "/recommend", "not-a-key", {401}),
        ("POST", "/admin/drain", "", {401}),
        ("GET", "/items/item-1", "", {401}),
        ("GET", "/health/live", "", {200}),
    ],
)
def test_a_flood_of_strangers_takes_no_client_s_place(
    service: Service, method: str, path: str, key: str, statuses: set[int]
) -> None:
    """Clients have only one place, and it stays theirs."""
    seen: list[int] = []
    is_over = threading.Event()

    def flood() -> None:
        with ExitStack() as stack:
            strangers = [stack.enter_context(closing(connection(service))) for _ in range(40)]
            while not is_over.is_set():
                for one in strangers:
                    one.sendall(head(method, path, key=key))
                seen.extend(answer(one)[0] for one in strangers)

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        wait_until(lambda: len(seen) >= 40)
        is_answered(service, times=30)
    finally:
        is_over.set()
        flooding.join()
    assert set(seen) == statuses  # they wait for a turn, and are answered


def test_one_rendering_is_for_all_who_asked_before_it_began() -> None:
    async def story() -> None:
        begun: list[int] = []
        may_end = threading.Event()

        def make() -> bytes:
            begun.append(1)
            assert may_end.wait(30)
            return str(len(begun)).encode()

        shared = SharedText(make)
        first = asyncio.create_task(shared.get())
        while not begun:
            await asyncio.sleep(0)
        others = [asyncio.create_task(shared.get()) for _ in range(50)]
        leaves = asyncio.create_task(shared.get())
        await asyncio.sleep(0)
        leaves.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await leaves
        assert len(begun) == 1
        may_end.set()
        assert await first == b"1"
        assert await asyncio.gather(*others) == [b"2"] * 50
        assert await shared.get() == b"3"

    asyncio.run(asyncio.wait_for(story(), 30))


def test_a_rendering_that_fails_fails_no_other() -> None:
    async def story() -> None:
        texts: list[bytes | Exception] = [ValueError("once"), b"fine"]

        def make() -> bytes:
            text = texts.pop(0)
            if isinstance(text, Exception):
                raise text
            return text

        shared = SharedText(make)
        with pytest.raises(ValueError, match="once"):
            await shared.get()
        assert await shared.get() == b"fine"

    asyncio.run(asyncio.wait_for(story(), 30))
