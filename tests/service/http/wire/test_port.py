"""The port of a real service: how many may wait at it, and what happens without descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from ports import find_free_port
from running_service import PATIENCE_S, Service, service_process, wait_until
from structlog.testing import capture_logs

from service.__main__ import Server
from service.http import Http
from service.http.wire.port import BACKLOG, Port, raised_descriptor_limit
from service.lifecycle import Lifecycle
from service.settings import Settings
from service.telemetry.metrics import Metrics

LIMIT = 160
FLOOD = 400  # connections, more than the limit allows


@pytest.fixture(scope="module")
def cramped(
    bundles_dir: Path, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service with few descriptors. Its soft limit is lower still."""
    with service_process(
        tmp_path_factory.mktemp("cramped"),
        descriptors=(LIMIT - 60, LIMIT),
        bundle=bundles_dir / "tiny" / "1",
        redis_url=redis_url,
        redis_pool_size=4,
    ) as service:
        yield service


def logged(service: Service, *events: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in service.stdout.splitlines()]
    return [line for line in lines if line["event"] in events]


@contextlib.contextmanager
def flood(service: Service, data: bytes = b"") -> Iterator[list[socket.socket]]:
    """Connections that send this and nothing more."""
    address = (service.client.base_url.host, service.client.base_url.port)
    with contextlib.ExitStack() as open_ones:
        connections = []
        for _ in range(FLOOD):
            connection = open_ones.enter_context(socket.create_connection(address, PATIENCE_S))
            if data:
                connection.sendall(data)
            connections.append(connection)
        yield connections


def fresh(service: Service, path: str) -> int:
    """The status of an answer on a new connection."""
    url = service.client.base_url.join(path)
    return httpx.get(url, timeout=PATIENCE_S, trust_env=False).status_code


def test_the_soft_limit_of_descriptors_is_raised(cramped: Service) -> None:
    [starting] = logged(cramped, "starting")
    assert starting["descriptors"] == LIMIT


def test_a_flood_of_idle_connections_locks_nobody_out(cramped: Service) -> None:
    with flood(cramped):
        for _ in range(5):
            assert fresh(cramped, "/health/live") == 200
            body = {"user_id": "x", "history": ["item-1"]}
            url = cramped.client.base_url.join("/recommend")
            assert httpx.post(url, json=body, timeout=PATIENCE_S).is_success
        [full] = logged(cramped, "descriptors_used_up")
        assert full["limit"] == LIMIT
        assert "ulimit -n" in full["cure"]
        hung_up = cramped.samples()["unmask_connections_hung_up_total"]
        assert hung_up >= FLOOD - LIMIT
    assert len(cramped.stdout.splitlines()) < 40
    assert cramped.stderr == ""


def test_connections_that_are_busy_are_waited_for(cramped: Service) -> None:
    """They are not cut. New connections wait at the port meanwhile, and are served later."""
    body = b'{"user_id": "x", "history": ["item-1"]}'
    before = len(logged(cramped, "descriptors_used_up", "descriptors_free_again"))
    head = b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    request = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with flood(cramped, request[:-1]) as connections:
        open_files = Path(f"/proc/{cramped.process.pid}/fd")
        wait_until(lambda: len(list(open_files.iterdir())) > LIMIT // 2)
        for connection in connections[:20]:
            connection.sendall(request[-1:])
        for connection in connections[:20]:
            assert connection.recv(1000).startswith((b"HTTP/1.1 200", b"HTTP/1.1 429"))
    assert fresh(cramped, "/health/live") == 200
    assert cramped.recommend(user_id="x", history=["item-1"]).status_code == 200
    assert len(logged(cramped, "descriptors_used_up", "descriptors_free_again")) <= before + 2
    assert cramped.stderr == ""


def test_kept_descriptors_are_for_others_and_the_end_of_the_shortage_is_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.http.wire.port.CALM_S", 0.3)
    taken: list[asyncio.Transport] = []

    class Taken(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            taken.append(cast("asyncio.Transport", transport))

    async def run() -> None:
        with socket.socket() as probe:
            limit = probe.fileno() + 1 + 3 * 20  # both ends are in this process
        port = Port("127.0.0.1", 0, max_descriptors=limit, keep=30)
        port.serve(Taken, lambda: None)
        with contextlib.ExitStack() as clients, capture_logs() as logged:
            for _ in range(20):
                clients.enter_context(socket.create_connection(port.address))
            async with asyncio.timeout(PATIENCE_S):
                while not logged:
                    await asyncio.sleep(0.01)
                with socket.socket() as another:
                    assert another.fileno() < limit
                num_taken = len(taken)
                assert num_taken < 20
                for transport in taken:
                    transport.close()
                while len(taken) < 20:  # the others have waited
                    await asyncio.sleep(0.01)
                clients.close()
                while len(logged) < 2:
                    await asyncio.sleep(0.01)
        await port.close()
        for transport in taken:
            transport.close()
        await asyncio.sleep(0)
        events = [line["event"] for line in logged]
        assert events == ["descriptors_used_up", "descriptors_free_again"]

    asyncio.run(run())


def test_as_many_may_wait_as_the_code_says_and_only_the_idle_are_hung_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvicorn, given an open port, would call listen again, with its own number."""
    settings = Settings(
        bundle=str(tmp_path), port=find_free_port(), redis_url="redis://127.0.0.1:1"
    )
    allowed = int(Path("/proc/sys/net/core/somaxconn").read_text())
    monkeypatch.setattr("service.__main__.LEAST_IDLE_S", 0)

    async def run() -> None:
        port = Port(settings.host, settings.port, max_descriptors=raised_descriptor_limit())
        server = Server(Lifecycle(settings, Metrics()), port)
        serving = asyncio.create_task(server.serve())
        async with asyncio.timeout(PATIENCE_S):
            while not server.started:
                await asyncio.sleep(0.01)
        assert port.backlog == min(BACKLOG, allowed)
        asks, idle = [await asyncio.open_connection(*port.address) for _ in range(2)]
        while len(server.server_state.connections) < 2:
            await asyncio.sleep(0.01)
        for one in cast("set[Http]", server.server_state.connections):
            taken = one._gathering.get_extra_info("socket")  # else an answer may wait 40 ms
            assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        asks[1].write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")  # nobody reads it yet
        server._hang_up()
        assert await idle[0].read() == b""
        assert (await asks[0].readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
        for _, writer in (asks, idle):
            writer.close()
        server.should_exit = True
        await serving

    asyncio.run(run())
