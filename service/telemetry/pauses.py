"""How long the event loop keeps everybody waiting: its lag, and the garbage collector's pauses.

Measured all the time, because whatever blocks the loop delays every request without showing in any
of its stages. The collector stops all threads while it looks at every object of some age, and a
catalogue is millions of objects that stay: what stays is taken out of its sight.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from service.telemetry.metrics import Metrics

EVERY_S = 0.1
# Python's own thresholds, but all objects are looked at twenty times as seldom as it would: see
# docs/decisions/024.
COLLECT_EVERY = (700, 10, 200)
NEVER = 1_000_000


async def measure_loop_lag(metrics: Metrics) -> None:
    """Until it is cancelled: sleep, and observe how much too long that took."""
    while True:
        due = time.perf_counter() + EVERY_S
        await asyncio.sleep(EVERY_S)
        metrics.event_loop_lag.observe(max(0.0, time.perf_counter() - due))


@contextmanager
def watched_gc(metrics: Metrics) -> Iterator[None]:
    """Observe every collection while the block runs, and look at old objects seldom."""
    started = 0.0
    before = gc.get_threshold()

    def on_collection(phase: str, _: object) -> None:
        nonlocal started
        if phase == "start":
            started = time.perf_counter()
        else:
            metrics.gc_pause.observe(time.perf_counter() - started)

    gc.callbacks.append(on_collection)
    gc.set_threshold(*COLLECT_EVERY)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(on_collection)


class made_to_stay:
    """No collection but those of the young looks at what the block makes, nor ever will.

    Blocks may overlap. What lives elsewhere at the end of one stays too, and so does the garbage
    that the last collection of the young left, a dozen objects. A block that fails leaves nothing
    behind; nor does one that hangs, once it is given up.
    """

    _lock: ClassVar = threading.Lock()
    _open: ClassVar[set[made_to_stay]] = set()
    _before: ClassVar[tuple[int, int, int]] = gc.get_threshold()

    def __enter__(self) -> None:
        cls = type(self)
        with cls._lock:
            if not cls._open:
                cls._before = gc.get_threshold()
                gc.set_threshold(*cls._before[:2], NEVER)
            cls._open.add(self)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self in self._open:
            gc.collect(1)
            gc.freeze()
        self.give_up()

    def give_up(self) -> None:
        """End the block from outside; its own end then means nothing."""
        cls = type(self)
        with cls._lock:
            if self in cls._open:
                cls._open.discard(self)
                if not cls._open:
                    gc.set_threshold(*cls._before)
