"""Exponentials of many float32 numbers at once, as SIMD code, to about 1e-7 of each.

None comes out below 1e-38, which is exp(-87.3).
"""

from __future__ import annotations

import numpy as np

from service.decoding.arrays import Floats
from service.decoding.loops.compilation import compiled, compiled_in_any_order

BLOCK = 1024  # values passed over at a time: they stay in L1, and float32 sums stay exact enough


@compiled_in_any_order
def highest_of(values: Floats) -> float:
    """The largest of at least one number."""
    highest: float = values[0]
    for value in values:
        highest = value if value > highest else highest
    return highest


@compiled
def exponentials(values: Floats, highest: float) -> float:
    """Make them exp(value - highest), none being above `highest`; returns their sum.

    In place: with a second array to write to, SIMD code asks how far it lies from the first, which
    is chance, and sums in another order where it is near.
    """
    total = 0.0
    for start in range(0, len(values), BLOCK):
        total += _exponentials(values[start : start + BLOCK], highest)
    return total


@compiled_in_any_order
def _exponentials(values: Floats, highest: float) -> float:
    """2 ** x by Taylor's series around the nearest integer, in a form that becomes SIMD."""
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
