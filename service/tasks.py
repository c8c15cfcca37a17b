"""Ends tasks reliably.

A library may swallow a cancellation. redis-py 8.1.0 with Python 3.11 does so when the cancellation
comes while a connection is handed out. Then a loop such as `while True: call()` would go on for
ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

AGAIN_S = 0.1


async def ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until each of them is done."""
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN_S)
