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
    Ranks before the one that was raised last stay as they are: where these slots cannot be
    different, nothing behind is looked at. Of equal totals, those with the lower ranks come first.

    base: what the scores are added to    floor: only totals above it are filled in
    totals: (n,) float64    ranks: (n, slots) int64, which candidate of each slot
    """
    slots = len(lengths)
    for slot in range(slots):
        if lengths[slot] == 0:
            return 0
    capacity = 4 * (len(totals) + slots)
    made = np.zeros((capacity, slots + 1), np.int64)  # ranks, and from which slot on they may rise
    made_totals = np.empty(capacity, np.float64)
    front = np.zeros(capacity, np.int64)  # a heap of what was made and not yet looked at
    num_made, in_front, found = 1, 1, 0
    made_totals[0] = _total(scores, made[0], base)
    while in_front and found < len(totals):
        current = front[0]
        in_front -= 1
        front[0] = front[in_front]
        _sift_down(front, in_front, made_totals, made)
        if not made_totals[current] > floor:
            break
        if are_different(made[current, :slots], slots, sizes, few):
            totals[found], ranks[found] = made_totals[current], made[current, :slots]
            found += 1
        if num_made + slots > capacity:
            capacity *= 2
            made, made_totals, front = _longer(made, made_totals, front, capacity)
        for slot in range(made[current, slots], slots):
            if not are_different(made[current, :slots], slot, sizes, few):
                break
            if made[current, slot] + 1 < lengths[slot]:
                made[num_made] = made[current]
                made[num_made, slot] += 1
                made[num_made, slots] = slot
                made_totals[num_made] = _total(scores, made[num_made], base)
                if made_totals[num_made] > floor:
                    front[in_front] = num_made
                    in_front += 1
                    num_made += 1
                    _sift_up(front, in_front, made_totals, made)
    return found


@compiled
def are_different(chosen: Integers, num_first: int, sizes: Integers, few: Few) -> bool:
    """Whether the candidates of the first `num_first` slots have different representatives.

    A slot with as many rows as there are slots always finds one that is left; only the others are
    tried, row by row.
    """
    slots = len(chosen)
    tried = np.full(slots, -1, np.int64)
    slot = 0
    while 0 <= slot < num_first:
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
    return slot == num_first


@compiled
def _longer(
    made: Integers, made_totals: Doubles, front: Integers, capacity: int
) -> tuple[Integers, Doubles, Integers]:
    longer = np.zeros((capacity, made.shape[1]), np.int64)
    longer_totals, longer_front = np.empty(capacity, np.float64), np.zeros(capacity, np.int64)
    longer[: len(made)], longer_totals[: len(made)], longer_front[: len(made)] = (
        made,
        made_totals,
        front,
    )
    return longer, longer_totals, longer_front


@compiled
def _sift_up(front: Integers, size: int, totals: Doubles, ranks: Integers) -> None:
    """Put the last of the heap in its place; the best is first."""
    at = size - 1
    while at > 0 and _is_before(front[at], front[(at - 1) >> 1], totals, ranks):
        above = (at - 1) >> 1
        front[at], front[above] = front[above], front[at]
        at = above


@compiled
def _sift_down(front: Integers, size: int, totals: Doubles, ranks: Integers) -> None:
    """Put the first of the heap in its place."""
    at = 0
    while True:
        best = at
        for below in (2 * at + 1, 2 * at + 2):
            if below < size and _is_before(front[below], front[best], totals, ranks):
                best = below
        if best == at:
            break
        front[at], front[best] = front[best], front[at]
        at = best


@compiled
def _is_before(one: int, other: int, totals: Doubles, ranks: Integers) -> bool:
    if totals[one] != totals[other]:
        return bool(totals[one] > totals[other])
    for slot in range(ranks.shape[1] - 1):
        if ranks[one, slot] != ranks[other, slot]:
            return bool(ranks[one, slot] < ranks[other, slot])
    return False


@compiled
def _total(scores: Doubles, ranks: Integers, base: float) -> float:
    total = base
    for slot in range(len(scores)):
        total += scores[slot, ranks[slot]]
    return total
