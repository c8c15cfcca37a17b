"""How long the interpreter keeps everybody waiting: event-loop lag, and garbage collection.

Both are measured all the time. Whatever blocks the event loop delays every request, and no stage of
a request shows it. The garbage collector stops all threads while it looks at old objects. A
catalogue is millions of objects that stay in memory. So they are hidden from the collector.
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
# Python's own thresholds, but old objects are looked at twenty times less often. See
# docs/decisions/024.
COLLECT_EVERY = (700, 10, 200)
NEVER = 1_000_000


async def measure_loop_lag(metrics: Metrics) -> None:
    """Until cancelled: sleep, and observe by how much the sleep was too long."""
    while True:
        due = time.perf_counter() + EVERY_S
        await asyncio.sleep(EVERY_S)
        metrics.event_loop_lag.observe(max(0.0, time.perf_counter() - due))


@contextmanager
def watched_gc(metrics: Metrics) -> Iterator[None]:
    """Observe every collection while the block runs, and look at old objects rarely."""
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


class hidden_from_gc:
    """Hides what the block makes from all collections but those of young objects, for ever.

    Blocks may overlap. Objects made elsewhere that live at the end of a block are hidden too. So is
    the garbage that the last collection of young objects left, about a dozen objects. A block that
    fails hides nothing. Nor does a block that hangs, once it is given up.
    """

    _lock: ClassVar = threading.Lock()
    _open: ClassVar[set[hidden_from_gc]] = set()
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
        """End the block from outside. When it ends on its own later, nothing happens."""
        cls = type(self)
        with cls._lock:
            if self in cls._open:
                cls._open.discard(self)
                if not cls._open:
                    gc.set_threshold(*cls._before)
