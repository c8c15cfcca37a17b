"""The highest rate at which a service holds its SLO, found by trying rates in an open loop.

A rate is held when the 99th percentile of the answers is within the SLO and next to nothing was
refused or failed. Knows nothing of what is asked for.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from loadtest.clients.open_loop import Load

REFUSED_SHARE = 0.001  # of requests, that a rate the service can take may have
LOWEST_RATE = 0.5  # a second; a service that does not hold this holds nothing
DISCARDED_SHARE = 0.2  # of a probe, at its beginning
PAUSE_S = 1.0  # between two probes, for queues to empty

Probe = Callable[..., Awaitable[Load]]  # called as probe(rate, seconds, discard_s=...)


@dataclass(frozen=True)
class Capacity:
    """rate: the highest that was held, in requests a second, 0.0 if none; load: what came of it."""

    rate: float
    load: Load | None

    @property
    def generator_busy(self) -> bool:
        return self.load is not None and self.load.generator_busy


async def find_capacity(
    probe: Probe,
    slo_ms: float,
    *,
    guess: float,
    growth: float,
    bisections: int,
    probe_s: float,
    min_answers: int = 0,
    on_probe: Callable[[Load, bool], None] = lambda load, is_held: None,
) -> Capacity:
    """Go from `guess` up, or down, by `growth` until the SLO breaks, or holds; then bisect.

    What is found lies within a factor growth ** (1 / 2 ** bisections) of the limit.
    probe_s: length of a probe; longer where min_answers would not come together in it
    """
    held: dict[float, Load] = {}

    async def holds(rate: float) -> bool:
        kept_s = max(probe_s, min_answers / rate)
        discard_s = kept_s * DISCARDED_SHARE
        load = await probe(rate, kept_s + discard_s, discard_s=discard_s)
        is_held = within(load, slo_ms)
        if is_held:
            held[rate] = load
        on_probe(load, is_held)
        await asyncio.sleep(PAUSE_S)
        return is_held

    rate = guess
    if await holds(rate):
        while await holds(rate * growth):
            rate *= growth
    else:
        rate /= growth
        while rate >= LOWEST_RATE and not await holds(rate):
            rate /= growth
    if not held:
        return Capacity(0.0, None)
    lowest_broken = max(held) * growth
    for _ in range(bisections):
        middle = math.sqrt(max(held) * lowest_broken)
        if not await holds(middle):
            lowest_broken = middle
    return Capacity(max(held), held[max(held)])


def within(load: Load, slo_ms: float) -> bool:
    """Whether a load was held: p99 in the SLO, hardly a request without an answer."""
    missed = len(load.sent) - len(load.answered())
    return load.quantile_ms(0.99) <= slo_ms and missed <= REFUSED_SHARE * len(load.sent)
