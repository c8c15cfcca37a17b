"""How sure a beam is of each masked position, and which positions it fills therefore.

A position that has only one legal code comes after all others: filling it tells the denoiser
nothing that it could not know.

codes: (num_items, num_subspaces) uint16    rows: a beam's rows, (n,) int32
positions: the beam's masked positions, ascending; `place` is an index among them
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Codes, Doubles, Floats, Integers, Rows
from service.decoding.loops import AHEAD, compiled, exponentials, highest_of, prefetch


@compiled
def sureness_of_rows(
    own_codes: Codes, weights: Floats, num_masked: int, sums: Doubles, sureness: Doubles
) -> None:
    """Of each masked position: the largest share of the beam's probability that one code has.

    own_codes: (n, >= num_masked) of the beam's rows, by place    weights: (>= n,) float32
    sums: (num_subspaces, num_codes) zeros, and zeros again afterwards
    """
    sureness[:num_masked] = 0
    for i in range(len(own_codes)):
        weight = np.float64(weights[i])
        for place in range(num_masked):
            share = sums[place, own_codes[i, place]] + weight
            sums[place, own_codes[i, place]] = share
            sureness[place] = max(sureness[place], share)
    for place in range(num_masked):
        other = 1
        while other < len(own_codes) and own_codes[other, place] == own_codes[0, place]:
            other += 1
        if other == len(own_codes):
            sureness[place] = -np.inf
    for i in range(len(own_codes)):
        for place in range(num_masked):
            sums[place, own_codes[i, place]] = 0


@compiled
def sureness_of_codes(
    log_probs: Floats, num_masked: int, first: Integers, start: int, sureness: Doubles
) -> None:
    """Of each masked position: the log-probability of its most probable legal code, among those.

    first: (places, num_codes), what `first_of_codes` noted of the beam
    """
    scratch = np.empty(log_probs.shape[1] + 1, np.float32)
    for place in range(num_masked):
        sureness[place] = highest_legal(log_probs[place], first[place], start, scratch)


@compiled
def sureness_of_few(
    codes: Codes,
    rows: Rows,
    positions: Integers,
    log_probs: Floats,
    num_masked: int,
    first: Integers,
    start: int,
    sureness: Doubles,
) -> None:
    """As `sureness_of_codes`, by way of the rows: for beams with fewer of them than codes."""
    of_legal = np.empty(len(rows), np.float32)
    for place in range(num_masked):
        found = 0
        for i in range(len(rows)):
            code = codes[rows[i], positions[place]]
            if first[place, code] == start + i:
                of_legal[found] = log_probs[place, code]
                found += 1
        sureness[place] = log_share_of_highest(of_legal[:found])


@compiled
def highest_legal(
    log_probs: Floats, legal: NDArray[np.integer], least: int, scratch: Floats
) -> float:
    """Log-probability of the most probable legal code among legal ones; -inf for a single one.

    legal: (num_codes,), at least `least` where a code is legal
    scratch: (num_codes + 1,)
    """
    found = np.uint64(0)
    for code in range(len(log_probs)):
        scratch[found] = log_probs[code]  # and the next one over it if it is not legal
        found += np.uint64(legal[code] >= least)
    return log_share_of_highest(scratch[:found])


@compiled
def log_share_of_highest(log_probs: Floats) -> float:
    """Log of the most probable one's share of their sum; -inf for a single one. Overwrites them."""
    mass = exponentials(log_probs, np.float64(highest_of(log_probs)))
    return -np.inf if len(log_probs) == 1 else float(-np.log(mass))


@compiled
def first_of_codes(
    codes: Codes,
    rows: Rows,
    num_legal: Integers,
    positions: Integers,
    num_masked: int,
    first: Integers,
    start: int,
) -> None:
    """Note the first row of every code at every masked position, as start + its index.

    first: (places, num_codes), below `start` where nothing was found yet
    num_legal: (num_subspaces,) codes there are at each position; stops when no more can be found
    """
    left, last = 0, len(rows) - 1
    for place in range(num_masked):
        left += num_legal[positions[place]]
    for i in range(len(rows)):
        prefetch(codes, np.int64(rows[min(i + AHEAD, last)]))
        for place in range(num_masked):
            code = codes[rows[i], positions[place]]
            if first[place, code] < start:
                first[place, code] = start + i
                left -= 1
        if left == 0:
            break


@compiled
def choose(sureness: Doubles, num_masked: int, slots: Integers) -> None:
    """The surest masked positions, the lower ones of equals; ascending."""
    taken = np.zeros(num_masked, np.bool_)
    for _ in range(len(slots)):
        best = -1
        for place in range(num_masked):
            if not taken[place] and (best < 0 or sureness[place] > sureness[best]):
                best = place
        taken[best] = True
    found = 0
    for place in range(num_masked):
        if taken[place]:
            slots[found] = place
            found += 1
