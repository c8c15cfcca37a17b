"""Exponentials of many float32 numbers at once, as SIMD code, with a relative error of about 1e-7.

No result is below 1e-38, which is exp(-87.3). Knows nothing of what the numbers mean.
"""

from __future__ import annotations

import numpy as np

from service.decoding.arrays import Floats
from service.decoding.loops.compilation import compiled, compiled_in_any_order

BLOCK = 1024  # values a pass works on: they stay in the L1 cache, and float32 sums stay exact


@compiled_in_any_order
def highest_of(values: Floats) -> float:
    """The largest of one or more numbers."""
    highest: float = values[0]
    for value in values:
        highest = value if value > highest else highest
    return highest


@compiled
def exponentiate(values: Floats, highest: float) -> float:
    """Replace each value by exp(value - highest); returns the sum. No value may be above `highest`.

    In place: with a second array to write to, SIMD code depends on the distance between the two
    arrays in memory. That distance is chance, and where it is small, sums are taken in another
    order.
    """
    total = 0.0
    for start in range(0, len(values), BLOCK):
        total += _exponentiate(values[start : start + BLOCK], highest)
    return total


@compiled_in_any_order
def _exponentiate(values: Floats, highest: float) -> float:
    """2 ** x by Taylor's series around the nearest integer, in a form that becomes SIMD code."""
    total = np.float32(0)
    top = np.float32(highest)
    for i in range(len(values)):
        x = (values[i] - top) * np.float32(1.4426950408889634)
        x = x if x > np.float32(-126) else np.float32(-126)
        whole = np.int32(x - np.float32(0.5))
        part = (x - np.float32(whole)) * np.float32(0.6931471805599453)
        power = np.float32(1 / 720)
        power = power * part + np.float32(1 / 120)
        power = power * part + np.float32(1 / 24)
        power = power * part + np.float32(1 / 6)
        power = power * part + np.float32(1 / 2)
        power = power * part + np.float32(1)
        power = power * part + np.float32(1)
        exponent = np.int32((whole + np.int32(127)) << np.int32(23))
        values[i] = power * exponent.view(np.float32)
        total += values[i]
    return np.float64(total)
