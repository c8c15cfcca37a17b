"""How many requests may be in the process at a time, so that those that are let in are in time.

By Little's law the time in the process is the number inside over the rate at which they leave it
served, whatever the bottleneck is: decoding, or the event loop itself. So the limit is half the SLO
times that rate (half, because some take longer than others), but never below what any burst may be,
nor above a fixed number. For one event loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable

BURST = 32
WINDOW_S = 0.5


class Gate:
    """Ask `admits`, then tell `enter` and `leave`.

    slo_s: time that requests should take; most: the fixed number
    clock: seconds, never going back
    """

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
