"""A beam's confidence in each masked position, and which positions it fills for this reason.

A position with only one legal code comes after all others: its code follows from the codes that are
filled already, so the denoiser learns nothing new from it. A code is legal if one of the beam's
rows has it. Knows nothing of biases or scores of beams.

codes: (num_items, num_subspaces) uint16    rows: a beam's rows, (n,) int32
positions: the beam's masked positions, ascending; `place` is an index into them
confidences: (num_subspaces,) float64, filled in by place
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Codes, Doubles, Floats, Integers, Rows
from service.decoding.loops import ROWS_AHEAD, compiled, exponentiate, highest_of, prefetch


@compiled
def confidence_by_rows(
    own_codes: Codes, weights: Floats, num_masked: int, sums: Doubles, confidences: Doubles
) -> None:
    """For each masked position: the largest share of the beam's probability that one code has.

    own_codes: (n, >= num_masked) of the beam's rows, by place    weights: (>= n,) float32
    sums: (num_subspaces, num_codes) zeros, and zeros again afterwards
    """
    confidences[:num_masked] = 0
    for i in range(len(own_codes)):
        weight = np.float64(weights[i])
        for place in range(num_masked):
            share = sums[place, own_codes[i, place]] + weight
            sums[place, own_codes[i, place]] = share
            confidences[place] = max(confidences[place], share)
    for place in range(num_masked):
        other = 1
        while other < len(own_codes) and own_codes[other, place] == own_codes[0, place]:
            other += 1
        if other == len(own_codes):
            confidences[place] = -np.inf
    for i in range(len(own_codes)):
        for place in range(num_masked):
            sums[place, own_codes[i, place]] = 0


@compiled
def confidence_by_codes(
    log_probs: Floats, num_masked: int, first: Integers, start: int, confidences: Doubles
) -> None:
    """For each masked position: log of the largest probability of a legal code, among legal codes.

    first: (places, num_codes), as `find_first_rows` filled it in for the beam
    """
    scratch = np.empty(log_probs.shape[1] + 1, np.float32)
    for place in range(num_masked):
        confidences[place] = legal_confidence(log_probs[place], first[place], start, scratch)


@compiled
def confidence_by_few_rows(
    codes: Codes,
    rows: Rows,
    positions: Integers,
    log_probs: Floats,
    num_masked: int,
    first: Integers,
    start: int,
    confidences: Doubles,
) -> None:
    """As `confidence_by_codes`, but reads the rows: for beams with fewer rows than codes."""
    of_legal = np.empty(len(rows), np.float32)
    for place in range(num_masked):
        found = 0
        for i in range(len(rows)):
            code = codes[rows[i], positions[place]]
            if first[place, code] == start + i:
                of_legal[found] = log_probs[place, code]
                found += 1
        confidences[place] = log_share_of_highest(of_legal[:found])


@compiled
def legal_confidence(
    log_probs: Floats, legal: NDArray[np.integer], least: int, scratch: Floats
) -> float:
    """Log of the largest probability of a legal code, among legal codes; -inf for a single one.

    legal: (num_codes,), a code is legal if this is `least` or more
    scratch: (num_codes + 1,)
    """
    found = np.uint64(0)
    for code in range(len(log_probs)):
        scratch[found] = log_probs[code]  # the next one overwrites it if it is not legal
        found += np.uint64(legal[code] >= least)
    return log_share_of_highest(scratch[:found])


@compiled
def log_share_of_highest(log_probs: Floats) -> float:
    """Log of the highest one's share of their sum; -inf for a single one. Overwrites them."""
    mass = exponentiate(log_probs, np.float64(highest_of(log_probs)))
    return -np.inf if len(log_probs) == 1 else float(-np.log(mass))


@compiled
def find_first_rows(
    codes: Codes,
    rows: Rows,
    num_legal: Integers,
    positions: Integers,
    num_masked: int,
    first: Integers,
    start: int,
) -> None:
    """Note the first row of every code at every masked position, as start + its index.

    first: (places, num_codes), below `start` where no row was found yet
    num_legal: (num_subspaces,) codes there are at each position; the loop stops when all are found
    """
    left, last = 0, len(rows) - 1
    for place in range(num_masked):
        left += num_legal[positions[place]]
    for i in range(len(rows)):
        prefetch(codes, np.int64(rows[min(i + ROWS_AHEAD, last)]))
        for place in range(num_masked):
            code = codes[rows[i], positions[place]]
            if first[place, code] < start:
                first[place, code] = start + i
                left -= 1
        if left == 0:
            break


@compiled
def choose_positions(confidences: Doubles, num_masked: int, slots: Integers) -> None:
    """Fill in the places of the most confident positions, ascending; of equals the lower ones.

    slots: (width,) int64
    """
    taken = np.zeros(num_masked, np.bool_)
    for _ in range(len(slots)):
        best = -1
        for place in range(num_masked):
            if not taken[place] and (best < 0 or confidences[place] > confidences[best]):
                best = place
        taken[best] = True
    found = 0
    for place in range(num_masked):
        if taken[place]:
            slots[found] = place
            found += 1
