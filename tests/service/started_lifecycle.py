"""A started service inside the test's own process, asked without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
from running_service import PATIENCE_S, UNHURRIED

from service.http.app import create_app
from service.lifecycle import Lifecycle
from service.settings import Settings
from service.telemetry.metrics import Metrics

Story = Callable[[Lifecycle, httpx.AsyncClient], Awaitable[None]]


def tell(story: Story, *, redis_url: str | None, bundle: Path | str, **settings_: Any) -> None:
    """Run a story against a service that is ready. Settings: as for `service_process`."""

    async def run() -> None:
        asked = UNHURRIED | settings_
        settings = Settings.model_validate({"bundle": str(bundle), "redis_url": redis_url} | asked)
        lifecycle = Lifecycle(settings, Metrics())
        transport = httpx.ASGITransport(create_app(lifecycle))
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://unmask") as client,
            lifecycle.running(),
        ):
            while lifecycle.not_ready:
                assert lifecycle.failure is None
                await asyncio.sleep(0.01)
            await story(lifecycle, client)

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))
