"""How long the event loop keeps everybody waiting: its lag, and the garbage collector's pauses.

Measured all the time, because whatever blocks the loop delays every request without showing in any
of its stages. The collector stops all threads while it looks at every object of some age, and a
catalogue is millions of objects that stay: what stays is taken out of its sight.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

from service.metrics import Metrics

EVERY_S = 0.1
# Collect after so many new objects; of those that survived, after so many such collections; of all,
# after so many of these. Python's own 700, 10, 10 look at all of them every second under load.
COLLECT_EVERY = (10_000, 20, 20)
NEVER = 1_000_000


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


@contextmanager
def made_to_stay() -> Iterator[None]:
    """No collection but those of the young looks at what the block makes, nor ever will.

    One block at a time. What lives elsewhere at its end stays too, and so does garbage: little, as
    the young is collected first. A block that fails leaves nothing behind.
    """
    gc.set_threshold(*COLLECT_EVERY[:2], NEVER)
    try:
        yield
        gc.collect(1)
        gc.freeze()
    finally:
        gc.set_threshold(*COLLECT_EVERY)
