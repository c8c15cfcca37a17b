"""The best ways to take one candidate for each slot, so that all items can be different.

A slot is the place of an item in a sequence. A candidate of a slot stands for a set of catalogue
rows: those that agree with a partial SID, or one row. A combination is possible if its sets have
different representatives: one row of each, none twice. Knows nothing of codes or beams.

scores: (slots, most) float64, each slot's candidates, best first    lengths: (slots,) how many
sizes:  (slots, most) int64, rows of each candidate, counted to `slots` at most
few:    (slots, most, slots) int32, its rows if it has fewer than `slots`
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Doubles, Integers
from service.decoding.loops import compiled

Few = NDArray[np.int32]


@compiled
def best_combinations(
    scores: Doubles,
    lengths: Integers,
    sizes: Integers,
    few: Few,
    base: float,
    floor: float,
    totals: Doubles,
    ranks: Integers,
) -> int:
    """Fill in the best possible combinations, best first; returns how many there are.

    Each combination has one parent: itself, with the last rank above 0 made one less. So a search
    from the best of all, which goes on from the best that is left, finds each once and in order.
    Of equal totals, those with the lower ranks come first.

    base: what the scores are added to    floor: only totals above it are filled in
    totals: (n,) float64    ranks: (n, slots) int64, which candidate of each slot
    """
    slots = len(lengths)
    for slot in range(slots):
        if lengths[slot] == 0:
            return 0
    capacity = 4 * (len(totals) + slots)
    front = np.zeros((capacity, slots), np.int64)
    front_totals = np.empty(capacity, np.float64)
    from_slot = np.zeros(capacity, np.int64)  # the ranks from here on may be raised
    in_front, found = 1, 0
    front_totals[0] = _total(scores, front[0], base)
    current = np.empty(slots, np.int64)
    while in_front and found < len(totals):
        best = 0
        for place in range(1, in_front):
            if front_totals[place] > front_totals[best] or (
                front_totals[place] == front_totals[best] and _is_lower(front[place], front[best])
            ):
                best = place
        total, first = front_totals[best], from_slot[best]
        current[:] = front[best]
        in_front -= 1
        front_totals[best], from_slot[best] = front_totals[in_front], from_slot[in_front]
        front[best] = front[in_front]
        if not total > floor:
            break
        if are_different(current, sizes, few):
            totals[found], ranks[found] = total, current
            found += 1
        if in_front + slots > capacity:
            capacity *= 2
            wider, wider_totals = np.zeros((capacity, slots), np.int64), np.empty(capacity)
            wider_from = np.zeros(capacity, np.int64)
            wider[:in_front], wider_totals[:in_front] = front[:in_front], front_totals[:in_front]
            wider_from[:in_front] = from_slot[:in_front]
            front, front_totals, from_slot = wider, wider_totals, wider_from
        for slot in range(first, slots):
            if current[slot] + 1 < lengths[slot]:
                front[in_front] = current
                front[in_front, slot] += 1
                next_total = _total(scores, front[in_front], base)
                if next_total > floor:
                    front_totals[in_front], from_slot[in_front] = next_total, slot
                    in_front += 1
    return found


@compiled
def are_different(chosen: Integers, sizes: Integers, few: Few) -> bool:
    """Whether the slots' candidates have different representatives.

    A slot with as many rows as there are slots always finds one that is left; only the others are
    tried, row by row.
    """
    slots = len(chosen)
    tried = np.full(slots, -1, np.int64)
    slot = 0
    while 0 <= slot < slots:
        size = sizes[slot, chosen[slot]]
        if size >= slots:
            if tried[slot] < 0:
                tried[slot] = 0
                slot += 1
            else:  # nothing else to try here
                tried[slot] = -1
                slot -= 1
            continue
        tried[slot] += 1
        while tried[slot] < size:
            row = few[slot, chosen[slot], tried[slot]]
            is_free = True
            for other in range(slot):
                if sizes[other, chosen[other]] < slots:
                    is_free &= few[other, chosen[other], tried[other]] != row
            if is_free:
                break
            tried[slot] += 1
        if tried[slot] < size:
            slot += 1
        else:
            tried[slot] = -1
            slot -= 1
    return slot == slots


@compiled
def _total(scores: Doubles, ranks: Integers, base: float) -> float:
    total = base
    for slot in range(len(ranks)):
        total += scores[slot, ranks[slot]]
    return total


@compiled
def _is_lower(ranks: Integers, other: Integers) -> bool:
    for slot in range(len(ranks)):
        if ranks[slot] != other[slot]:
            return bool(ranks[slot] < other[slot])
    return False
