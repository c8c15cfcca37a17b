"""Ends tasks reliably, and tries again ever more rarely what fails.

A library may swallow a cancellation. redis-py 8.1.0 with Python 3.11 does so when the cancellation
comes while a connection is handed out. Then a loop such as `while True: call()` would go on for
ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

AGAIN_S = 0.1


class Backoff:
    """Says in which rounds of a loop to try again what has failed: twice as rarely each time.

    most: rounds between two tries at most
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._failed: object = None
        self._pause = self._left = 0

    def is_due(self, what: object) -> bool:
        """Whether to try it in this round. It is due at once if something else has failed."""
        if what != self._failed:
            return True
        self._left -= 1
        return self._left <= 0

    def failed(self, what: object) -> None:
        """It was tried and has failed."""
        self._pause = min(2 * self._pause, self._most) if what == self._failed else 1
        self._failed, self._left = what, self._pause


async def ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until each of them is done."""
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN_S)
