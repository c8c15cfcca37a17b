"""Tasks end, even those that swallow a cancellation."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from service.tasks import ended


def test_a_task_that_swallows_cancellations_ends() -> None:
    async def stubborn() -> None:
        for _ in range(3):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

    async def run() -> None:
        tasks = [asyncio.create_task(stubborn()), asyncio.create_task(asyncio.sleep(60))]
        await asyncio.sleep(0)
        await asyncio.wait_for(ended(tasks), 10)
        assert all(task.done() for task in tasks)
        await ended(tasks)
        await ended([])

    asyncio.run(run())
