"""A beam's rows grouped by their codes at chosen positions, and what each group is worth.

A group is a child of the beam; children are numbered from 0 in the order of their first rows.

own_codes: (n, places) uint16, codes of the beam's rows at its masked positions
firsts: filled in: index of each child's first row
of_own: filled in: the child of each row, (n,) int32
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Codes, Doubles, Floats, Integers
from service.decoding.loops import compiled

UNDERFLOW = 1e-30  # masses below it are summed again, from their own highest term


@compiled
def group_by_code(
    own_codes: Codes,
    slot: int,
    table: NDArray[np.int32],
    firsts: Integers,
    of_own: NDArray[np.int32],
) -> int:
    """Group rows by their code at a place; how many children there are.

    table: (num_codes,) the child of each code; all -1, and all -1 again afterwards
    """
    num_children = 0
    for i in range(len(own_codes)):
        code = own_codes[i, slot]
        child = table[code]
        if child < 0:
            child = num_children
            table[code] = child
            firsts[child] = i
            num_children += 1
        of_own[i] = child
    for child in range(num_children):
        table[own_codes[firsts[child], slot]] = -1
    return num_children


@compiled
def group_by_tuple(
    own_codes: Codes,
    slots: Integers,
    table: NDArray[np.int32],
    firsts: Integers,
    of_own: NDArray[np.int32],
) -> int:
    """The same by the codes at several places.

    table: open addressing of children, its length a power of two; all -1, and so again afterwards
    """
    mask = np.uint64(len(table) - 1)
    num_children = 0
    for i in range(len(own_codes)):
        hashed = np.uint64(0)
        for slot in slots:
            hashed = (hashed ^ np.uint64(own_codes[i, slot])) * np.uint64(0x9E3779B97F4A7C15)
        at = (hashed >> np.uint64(32)) & mask
        while True:
            child = table[at]
            if child < 0:
                child = num_children
                table[at] = child
                firsts[child] = i
                num_children += 1
                break
            same = True
            for slot in slots:
                same &= own_codes[i, slot] == own_codes[firsts[child], slot]
            if same:
                break
            at = (at + np.uint64(1)) & mask
        of_own[i] = child
    table[:] = -1
    return num_children


@compiled
def worth_by_rows(
    of_own: NDArray[np.int32],
    num_children: int,
    logits: Floats,
    weights: Floats,
    highest: float,
    mass: float,
    summed: bool,
) -> Doubles:
    """(num_children,) of a beam's children: log of their share of its mass, or the best logit.

    of_own: the child of each of the beam's rows, counted from 0
    logits: of the rows; highest: the largest of them
    weights, mass: exp(logit - highest) of the rows, and their sum; read if `summed`
    """
    worth = np.full(num_children, 0.0 if summed else -np.inf)
    if not summed:
        for i in range(len(of_own)):
            worth[of_own[i]] = max(worth[of_own[i]], np.float64(logits[i]))
        return worth
    for i in range(len(of_own)):
        worth[of_own[i]] += weights[i]
    for child in range(num_children):
        if worth[child] > UNDERFLOW:
            worth[child] = np.log(worth[child] / mass)
        else:
            worth[child] = _log_sum(logits, of_own, child, highest) - np.log(mass)
    return worth


@compiled
def _log_sum(logits: Floats, of_own: NDArray[np.int32], child: int, highest: float) -> float:
    """log sum exp(logit - highest) over a child's rows, however small."""
    own = -np.inf
    for i in range(len(of_own)):
        if of_own[i] == child:
            own = max(own, np.float64(logits[i]))
    if own == -np.inf:
        return own
    total = 0.0
    for i in range(len(of_own)):
        if of_own[i] == child:
            total += np.exp(np.float64(logits[i]) - own)
    return float(own - highest + np.log(total))


@compiled
def power_of_two(least: int) -> int:
    power = 2
    while power < least:
        power *= 2
    return power
