"""A circuit breaker: a store that fails again and again is left alone for a while.

After FAILURES failures in a row it opens, and calls are refused without a try. After OPEN_S one
call may go through as a probe. If it succeeds, the breaker closes. If it fails, the breaker opens
again. For one event loop, so there are no locks. Knows nothing of the store.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import IntEnum

FAILURES = 5
OPEN_S = 2.0


class BreakerState(IntEnum):
    """The state, as the metric shows it."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """Ask `admits` before a call. Call `succeeded`, `failed` or `gave_up` after it.

    clock: seconds, never going back
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._open_until: float | None = None
        self._probing = False

    @property
    def state(self) -> BreakerState:
        if self._open_until is None:
            return BreakerState.CLOSED
        if self._clock() < self._open_until:
            return BreakerState.OPEN
        return BreakerState.HALF_OPEN

    def admits(self) -> bool:
        """Whether a call may be tried now. While half open, one call at a time may."""
        state = self.state
        if state == BreakerState.HALF_OPEN and not self._probing:
            self._probing = True
            return True
        return state == BreakerState.CLOSED

    def succeeded(self) -> None:
        """The store answered a call that was admitted."""
        self._failures, self._open_until, self._probing = 0, None, False

    def failed(self) -> None:
        """The store did not answer a call that was admitted."""
        self._failures += 1
        self._probing = False
        if self._failures >= FAILURES:
            self._open_until = self._clock() + OPEN_S

    def gave_up(self) -> None:
        """The caller stopped waiting, which says nothing about the store."""
        self._probing = False
