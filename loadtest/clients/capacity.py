"""Finds the capacity of a service: the highest rate within the SLO, tried out in an open loop.

A rate is within the SLO if the 99th percentile of the latencies is, and if at most REFUSED_SHARE of
the requests were refused or failed. Does not know what the requests ask for.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from loadtest.clients.open_loop import Load

REFUSED_SHARE = 0.001  # the largest share of requests that may be refused or fail
LOWEST_RATE = 0.5  # requests a second; the search goes no lower
DISCARDED_SHARE = 0.2  # the beginning of each probe is not counted
PAUSE_S = 1.0  # between two probes, so that queues become empty

Probe = Callable[..., Awaitable[Load]]  # called as probe(rate, seconds, discard_s=...)


@dataclass(frozen=True)
class Capacity:
    """The highest rate within the SLO.

    rate: requests a second; 0.0 if no rate was within the SLO
    load: the result at that rate
    """

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
    """Raise the rate from `guess` by `growth` until the SLO breaks, or lower it until it holds.

    Then bisect between the two. The result is within a factor growth ** (1 / 2 ** bisections) of
    the limit.
    probe_s:  length of a probe in seconds; longer if it would give fewer than min_answers
    on_probe: called with the load of each probe and whether it was within the SLO
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
    """Whether a load is within the SLO: its p99, and its share of requests without an answer."""
    missed = len(load.sent) - len(load.answered())
    return load.quantile_ms(0.99) <= slo_ms and missed <= REFUSED_SHARE * len(load.sent)
