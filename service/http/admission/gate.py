"""How many requests may be in the process at a time, so that those that are let in are in time.

By Little's law the time in the process is the number inside over the rate at which they leave it
served, whatever the bottleneck is: decoding, or the event loop itself. So the limit is half the SLO
times that rate (half, because some take longer than others), but never below what any burst may be,
nor above a fixed number. Who is not a client waits in a line beside it. For one event loop.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

BURST = 32
WINDOW_S = 0.5


class Gate:
    """Ask `admits`, then tell `enter` and `leave`.

    slo_s: time that requests should take; most: the fixed number
    clock: seconds, never going back
    """

    reason = "inflight"  # a metric's label, for those that it turns away

    def __init__(
        self, slo_s: float, most: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._slo_s = slo_s
        self._most = most
        self._clock = clock
        self.inside = 0
        self._left = 0  # in this window
        self._window_ends = clock() + WINDOW_S
        self._rate = 0.0  # of the last window

    @property
    def limit(self) -> int:
        """Most that may be inside now."""
        return min(self._most, max(BURST, int(self._slo_s / 2 * self._rate)))

    def admits(self) -> bool:
        """Whether one more may enter."""
        return self.inside < self.limit

    def enter(self) -> None:
        """One more is inside."""
        self.inside += 1

    def leave(self, *, served: bool) -> None:
        """One has been answered; whether with what it asked for, which takes its time."""
        self.inside -= 1
        self._left += served
        now = self._clock()
        if now >= self._window_ends:
            self._rate = self._left / (now - self._window_ends + WINDOW_S)
            self._left, self._window_ends = 0, now + WINDOW_S


class Place:
    """A request's place in a gate: outside until `take`, and after `give_back`."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self._is_taken = False

    def take(self) -> bool:
        """Enter, if the gate admits it."""
        self._is_taken = self.gate.admits()
        if self._is_taken:
            self.gate.enter()
        return self._is_taken

    def give_back(self, *, served: bool) -> None:
        """Leave, if inside."""
        if self._is_taken:
            self._is_taken = False
            self.gate.leave(served=served)


class Line:
    """For requests that are quickly answered, and may be many: a few in a turn of the event loop.

    The others wait, which costs nothing, while whoever else has something to do does it.

    at_once: in a turn; most: that wait, or are served
    """

    reason = "unkeyed"  # a metric's label, for those that are turned away

    def __init__(self, at_once: int, most: float = math.inf) -> None:
        self._turns = asyncio.Semaphore(at_once)
        self._most = most
        self.here = 0

    def admits(self) -> bool:
        """Whether one more may wait."""
        return self.here < self._most

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for it, then have it; the next one has it in the next turn of the event loop."""
        self.here += 1
        try:
            await self._turns.acquire()
            try:
                yield
            finally:
                asyncio.get_running_loop().call_soon(self._turns.release)
        finally:
            self.here -= 1
