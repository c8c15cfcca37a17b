"""Tasks end, even those that swallow a cancellation."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from service.tasks import Backoff, ended


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


def test_what_fails_is_tried_again_ever_more_rarely_until_it_changes() -> None:
    backoff, tried = Backoff(8), []
    for n in range(60):
        if backoff.is_due("a"):
            tried.append(n)
            backoff.failed("a")
    assert tried == [0, 1, 3, 7, 15, 23, 31, 39, 47, 55]
    assert backoff.is_due("b")
    backoff.failed("b")
    assert backoff.is_due("b")
