"""Connections byte by byte: answers leave whole, and who is not let in hears it at once."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_service import Service, service_process, wait_until

from service.http_protocol import GatheringTransport

BODY = json.dumps({"user_id": "x", "history": ["item-1"], "r_warm": 4}).encode()
LIVE = b'"live"'
ASK_LIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
INSIDE = "unmask_inflight_requests"
REFUSED = 'unmask_rejected_total{reason="inflight"}'


@pytest.fixture(scope="module")
def narrow(
    bundles_dir: Path, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service with a slow decoder that lets one request in at a time."""
    with service_process(
        tmp_path_factory.mktemp("narrow"),
        bundles_dir=bundles_dir,
        bundle="tiny@slow",
        redis_url=redis_url,
        default_timeout_ms=10_000,
        max_inflight=1,
    ) as service:
        yield service


@pytest.fixture
def busy(narrow: Service) -> Iterator[Service]:
    """The same while a request is inside that lasts as long as the test."""
    over = threading.Event()
    posted: dict[str, Any] = {"content": BODY, "headers": {"Content-Type": "application/json"}}

    def keep_asking() -> None:
        with httpx.Client(base_url=narrow.client.base_url, timeout=30) as client:
            while not over.is_set():
                client.post("/recommend", **posted)

    thread = threading.Thread(target=keep_asking)
    thread.start()
    try:
        wait_until(lambda: narrow.samples()[INSIDE] == 1)
        yield narrow
    finally:
        over.set()
        thread.join()


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
    statuses = [status for status, _, _ in answers(received)]
    assert len(statuses) == many + 1
    assert statuses[-1] == 200
    refused = statuses.count(429)
    assert refused > many / 2  # the one inside may have left in between
    assert busy.samples()[REFUSED] == before + refused


def test_requests_behind_one_that_was_let_in_wait_for_it(narrow: Service) -> None:
    wait_until(lambda: narrow.samples()[INSIDE] == 0)
    behind = 2000  # answered in a row when the first is: no deep stack
    received = b""
    with closing(connection(narrow)) as client:
        client.sendall(head() + BODY + ASK_LIVE * behind)
        started = time.monotonic()
        while received.count(LIVE) < behind:
            received += client.recv(1 << 20)
        assert time.monotonic() - started < 20
    assert [status for status, _, _ in answers(received)] == [200] * (behind + 1)
    assert narrow.samples()[INSIDE] == 0  # nobody is counted as inside for ever


def test_health_is_answered_whoever_is_inside(busy: Service) -> None:
    for path in ("/livez", "/readyz", "/metrics", "/info"):
        assert busy.client.get(path).status_code == 200
    assert busy.client.get("/items/item-1").status_code == 429


class Recorded:
    """A transport that notes what it is told."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def writelines(self, parts: Iterable[bytes]) -> None:
        self.calls.append(b"".join(parts))

    def close(self) -> None:
        self.calls.append("close")

    def is_closing(self) -> bool:
        return "close" in self.calls


def test_what_is_written_in_a_turn_is_sent_together() -> None:
    async def main() -> list[Any]:
        recorded = Recorded()
        transport = GatheringTransport(recorded, asyncio.get_running_loop())  # type: ignore[arg-type]
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
