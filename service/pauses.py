"""How long the event loop keeps everybody waiting: its lag, and the garbage collector's pauses.

Measured all the time, because whatever blocks the loop delays every request without showing in any
of its stages.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

from service.metrics import Metrics

EVERY_S = 0.1


async def measure_loop_lag(metrics: Metrics) -> None:
    """Until it is cancelled: sleep, and observe how much too long that took."""
    while True:
        due = time.perf_counter() + EVERY_S
        await asyncio.sleep(EVERY_S)
        metrics.event_loop_lag.observe(max(0.0, time.perf_counter() - due))


@contextmanager
def measured_gc(metrics: Metrics) -> Iterator[None]:
    """Observe every collection while the block runs."""
    started = 0.0

    def on_collection(phase: str, _: object) -> None:
        nonlocal started
        if phase == "start":
            started = time.perf_counter()
        else:
            metrics.gc_pause.observe(time.perf_counter() - started)

    gc.callbacks.append(on_collection)
    try:
        yield
    finally:
        gc.callbacks.remove(on_collection)
