"""A started service inside the test's own process, whose decoding a test may hold up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_service import PATIENCE_S, UNHURRIED

from service.__main__ import Server
from service.http import Port, create_app, raised_descriptor_limit
from service.lifecycle import Lifecycle
from service.settings import Settings
from service.telemetry.metrics import Metrics

Story = Callable[[Lifecycle, httpx.AsyncClient], Awaitable[None]]


def tell(
    story: Story,
    *,
    redis_url: str | None,
    bundle: Path | str,
    over_a_socket: bool = False,
    **settings_: Any,
) -> None:
    """Run a story against a service that is ready. Settings: as for `service_process`.

    over_a_socket: whether the client's requests go through the port and the protocol, too
    """
    asked = {"bundle": str(bundle), "redis_url": redis_url} | UNHURRIED | settings_
    started = _on_a_socket if over_a_socket else _without_a_socket

    async def run() -> None:
        lifecycle = Lifecycle(Settings.model_validate(asked), Metrics())
        async with started(lifecycle) as client:
            while lifecycle.not_ready:
                assert lifecycle.failure is None
                await asyncio.sleep(0.01)
            await story(lifecycle, client)

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


@asynccontextmanager
async def _without_a_socket(lifecycle: Lifecycle) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(lifecycle))
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://unmask") as client,
        lifecycle.running(),
    ):
        yield client


@asynccontextmanager
async def _on_a_socket(lifecycle: Lifecycle) -> AsyncIterator[httpx.AsyncClient]:
    port = Port("127.0.0.1", 0, max_descriptors=raised_descriptor_limit())
    host, number = port.address
    server = Server(lifecycle, port)
    serving = asyncio.create_task(server.serve())
    url = f"http://{host}:{number}"
    try:
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        await serving


class HeldDecoding:
    """From now on, the decode thread stops before its first batch until `go_on` is set."""

    def __init__(self, lifecycle: Lifecycle, monkeypatch: pytest.MonkeyPatch) -> None:
        assert lifecycle.bundle is not None
        self._lifecycle = lifecycle
        self.go_on = threading.Event()
        self.is_held = asyncio.Event()
        loop, denoiser = asyncio.get_running_loop(), lifecycle.bundle.decoder.denoiser
        encode = denoiser.encode

        def held(*asked: Any) -> Any:
            loop.call_soon_threadsafe(self.is_held.set)
            assert self.go_on.wait(PATIENCE_S)
            return encode(*asked)

        monkeypatch.setattr(denoiser, "encode", held)

    @property
    def num_waiting(self) -> int:
        """Jobs in the queue, without the one that is being decoded."""
        assert self._lifecycle._batcher is not None
        return len(self._lifecycle._batcher._lanes.waiting)

    async def first(self, client: httpx.AsyncClient, **fields: Any) -> asyncio.Task[httpx.Response]:
        """The request that is being decoded until `go_on`."""
        body = {"user_id": "x", "history": ["item-2"], **fields}
        first = asyncio.create_task(client.post("/recommend", json=body))
        await self.is_held.wait()
        return first

    async def next(self, client: httpx.AsyncClient, **fields: Any) -> asyncio.Task[httpx.Response]:
        """One more request, which waits in the queue or has been refused."""
        before = self.num_waiting
        body = {"user_id": "x", "history": ["item-1", "item-50"], **fields}
        task = asyncio.create_task(client.post("/recommend", json=body))
        while self.num_waiting == before and not task.done():
            await asyncio.sleep(0)
        return task
