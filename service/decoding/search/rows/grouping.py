"""A beam's rows grouped by their codes at chosen positions, and the rank score of each group.

A group is a child of the beam. Children are numbered from 0, in the order of their first rows.
Knows nothing of other beams.

own_codes: (n, places) uint16, codes of the beam's rows at its masked positions
firsts: filled in with the index of each child's first row
child_of_row: (n,) int32, filled in with the child of each row
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Codes, Doubles, Floats, Integers
from service.decoding.loops import compiled

UNDERFLOW = 1e-30  # a smaller mass is summed again, relative to its own highest term


@compiled
def group_by_code(
    own_codes: Codes,
    slot: int,
    table: NDArray[np.int32],
    firsts: Integers,
    child_of_row: NDArray[np.int32],
) -> int:
    """Group rows by their code at one place; returns how many children there are.

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
        child_of_row[i] = child
    for child in range(num_children):
        table[own_codes[firsts[child], slot]] = -1
    return num_children


@compiled
def group_by_tuple(
    own_codes: Codes,
    slots: Integers,
    table: NDArray[np.int32],
    firsts: Integers,
    child_of_row: NDArray[np.int32],
) -> int:
    """Group rows by their codes at several places; returns how many children there are.

    table: children by hash (open addressing), its length a power of two; all -1, and all -1 again
        afterwards
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
        child_of_row[i] = child
    table[:] = -1
    return num_children


@compiled
def rank_scores_by_rows(
    child_of_row: NDArray[np.int32],
    num_children: int,
    logits: Floats,
    weights: Floats,
    highest: float,
    mass: float,
    summed: bool,
) -> Doubles:
    """(num_children,) log of each child's share of the beam's mass, or its best logit.

    child_of_row: the child of each of the beam's rows, counted from 0
    logits: of the rows; highest: the largest of them
    weights, mass: exp(logit - highest) of the rows, and their sum; read if `summed`
    summed: whether the result is the share; else it is the best logit
    """
    rank_scores = np.full(num_children, 0.0 if summed else -np.inf)
    if not summed:
        for i in range(len(child_of_row)):
            rank_scores[child_of_row[i]] = max(rank_scores[child_of_row[i]], np.float64(logits[i]))
        return rank_scores
    for i in range(len(child_of_row)):
        rank_scores[child_of_row[i]] += weights[i]
    for child in range(num_children):
        if rank_scores[child] > UNDERFLOW:
            rank_scores[child] = np.log(rank_scores[child] / mass)
        else:
            rank_scores[child] = _log_sum(logits, child_of_row, child, highest) - np.log(mass)
    return rank_scores


@compiled
def _log_sum(logits: Floats, child_of_row: NDArray[np.int32], child: int, highest: float) -> float:
    """log sum exp(logit - highest) over a child's rows, however small they are."""
    own = -np.inf
    for i in range(len(child_of_row)):
        if child_of_row[i] == child:
            own = max(own, np.float64(logits[i]))
    if own == -np.inf:
        return own
    total = 0.0
    for i in range(len(child_of_row)):
        if child_of_row[i] == child:
            total += np.exp(np.float64(logits[i]) - own)
    return float(own - highest + np.log(total))


@compiled
def power_of_two(least: int) -> int:
    power = 2
    while power < least:
        power *= 2
    return power
