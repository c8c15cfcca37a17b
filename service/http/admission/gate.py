"""How many requests may be in the process at a time, so that those inside are answered in time.

By Little's law, the time in the process is the number of requests inside, divided by the rate at
which they leave it served. This holds whatever the bottleneck is: decoding, or the event loop. So
the limit is half the SLO times that rate. It is half because some requests take longer than others.
The limit is never below the size of a normal burst (BURST), and never above a fixed number.
Requests that are not from clients wait in a line of their own. For one event loop.
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
    """Ask `admits`, then call `enter` and `leave`.

    slo_s: time that a request should take; most: the fixed number
    clock: seconds, never going back
    """

    reason = "inflight"  # the metric's label for requests that the gate refuses

    def __init__(
        self, slo_s: float, most: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._slo_s = slo_s
        self._most = most
        self._clock = clock
        self.inside = 0
        self._left = 0  # served in this window
        self._window_ends = clock() + WINDOW_S
        self._rate = 0.0  # of the last window

    @property
    def limit(self) -> int:
        """How many requests may be inside now."""
        return min(self._most, max(BURST, int(self._slo_s / 2 * self._rate)))

    def admits(self) -> bool:
        """Whether one more may enter."""
        return self.inside < self.limit

    def enter(self) -> None:
        """One more request is inside."""
        self.inside += 1

    def leave(self, *, served: bool) -> None:
        """A request has been answered.

        served: whether it got what it asked for, which takes time; a refusal is quick
        """
        self.inside -= 1
        self._left += served
        now = self._clock()
        if now >= self._window_ends:
            self._rate = self._left / (now - self._window_ends + WINDOW_S)
            self._left, self._window_ends = 0, now + WINDOW_S


class PlaceInGate:
    """A request's place in a gate. It is outside until `take`, and after `give_back`."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self._is_taken = False

    def take(self) -> bool:
        """Enter, once, if the gate admits it; returns whether it is inside."""
        if not self._is_taken and self.gate.admits():
            self._is_taken = True
            self.gate.enter()
        return self._is_taken

    def give_back(self, *, served: bool) -> None:
        """Leave the gate, if inside."""
        if self._is_taken:
            self._is_taken = False
            self.gate.leave(served=served)


class WaitingLine:
    """A line for requests that are answered quickly and may be many.

    A few of them are served in each turn of the event loop. The others wait. Waiting costs nothing,
    and other work goes on meanwhile.

    at_once: served in one turn; most: how many may wait or be served
    """

    reason = "unkeyed"  # the metric's label for requests that the line refuses

    def __init__(self, at_once: int, most: float = math.inf) -> None:
        self._turns = asyncio.Semaphore(at_once)
        self._most = most
        self.here = 0

    def admits(self) -> bool:
        """Whether one more may wait."""
        return self.here < self._most

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, then hold it. The next request gets it one turn of the loop later."""
        self.here += 1
        try:
            await self._turns.acquire()
            try:
                yield
            finally:
                asyncio.get_running_loop().call_soon(self._turns.release)
        finally:
            self.here -= 1
