"""The order in which a beam fills its masked positions: the most certain ones come first.

Every order has its own certainty of a position:

CONFIDENCE     the probability of the most probable legal code
ENTROPY        minus the entropy of the legal codes' probabilities
MARGIN         the probability of the most probable legal code, minus that of the second
LEFT_TO_RIGHT  minus the position
RAW            the probability of the most probable code, whether legal or not (MDGR Eq. 18)
DRAWN          given by the caller: random numbers, or what it has chosen itself

A code is legal if one of the beam's rows has it. The first three are of legal codes alone, whose
probabilities add up to 1. For them, a position with only one legal code comes after all others: its
code follows from the codes that are filled already, so the denoiser learns nothing new from it.
Knows nothing of biases or scores of beams.

codes: (num_items, num_subspaces) uint16    rows: a beam's rows, (n,) int32
positions: the beam's masked positions, ascending; `place` is an index into them
order: CONFIDENCE, ENTROPY or MARGIN, unless a function says otherwise
certainties: (num_subspaces,) float64, filled in by place
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Codes, Doubles, Floats, Integers, Rows
from service.decoding.loops import ROWS_AHEAD, compiled, exponentiate, highest_of, prefetch

CONFIDENCE, ENTROPY, MARGIN, LEFT_TO_RIGHT, RAW, DRAWN = range(6)
OF_LEGAL_CODES = CONFIDENCE, ENTROPY, MARGIN
LEAST_LOG = np.float32(-100)  # exp of it is 0 beside 1; a log-prob of -inf would make nan of 0


def drawn_certainties(history: Rows, call: int, num_beams: int, num_subspaces: int) -> Floats:
    """Random certainties for the n-th denoiser call of a job: (num_beams, num_subspaces) float32.

    They depend on the history, so a job has the same in every batch.
    """
    seed = call, zlib.crc32(history.tobytes())
    return np.random.default_rng(seed).random((num_beams, num_subspaces), np.float32)


@compiled
def certainty_of_shares(shares: Doubles, order: int) -> float:
    """Of a position whose codes have these shares of the beam's probability.

    It is not divided by the sum of the shares, which is the same for all positions of a beam: so
    positions of equal highest shares are equal.

    shares: (n,) of codes, each at least 0
    """
    if order == CONFIDENCE:
        return float(shares.max())
    if order == MARGIN:
        highest, second = 0.0, 0.0
        for share in shares:
            second = max(second, min(highest, share))
            highest = max(highest, share)
        return float(highest - second)
    logs = 0.0
    for share in shares:
        if share > 0:
            logs += share * np.log(share)
    return float(logs)


@compiled
def certainty_of_log_probs(log_probs: Floats, order: int) -> float:
    """Of a position whose legal codes have these log-probs; -inf for a single one.

    Overwrites them. CONFIDENCE: the log of the highest probability.
    """
    if len(log_probs) == 1:
        return -np.inf
    highest = np.float64(highest_of(log_probs))
    if order == CONFIDENCE:
        return float(-np.log(exponentiate(log_probs, highest)))
    if order == MARGIN:
        mass = exponentiate(log_probs, highest)
        first, second = np.float32(0), np.float32(0)
        for weight in log_probs:
            second = max(second, min(first, weight))
            first = max(first, weight)
        return float(np.float64(first - second) / mass)
    logs = log_probs.copy()
    mass = exponentiate(log_probs, highest)
    total = 0.0
    for code in range(len(logs)):
        log = logs[code] - np.float32(highest)
        total += np.float64(log_probs[code]) * (log if log > LEAST_LOG else LEAST_LOG)
    return float(total / mass - np.log(mass))


@compiled
def certainty_by_rows(
    own_codes: Codes,
    weights: Floats,
    num_masked: int,
    order: int,
    sums: Doubles,
    certainties: Doubles,
) -> None:
    """The certainty of each masked position; a code's share is that of the rows which have it.

    own_codes: (n, >= num_masked) of the beam's rows, by place    weights: (>= n,) float32
    sums: (num_subspaces, num_codes) zeros, and zeros again afterwards
    """
    if order == CONFIDENCE:
        _highest_shares(own_codes, weights, num_masked, sums, certainties)
        return
    for i in range(len(own_codes)):
        weight = np.float64(weights[i])
        for place in range(num_masked):
            sums[place, own_codes[i, place]] += weight
    shares = np.empty(len(own_codes), np.float64)
    for place in range(num_masked):
        found = 0
        for i in range(len(own_codes)):
            share = sums[place, own_codes[i, place]]
            if share > 0:
                shares[found] = share
                found += 1
            sums[place, own_codes[i, place]] = 0
        certainties[place] = certainty_of_shares(shares[:found], order) if found > 1 else -np.inf


@compiled
def _highest_shares(
    own_codes: Codes, weights: Floats, num_masked: int, sums: Doubles, certainties: Doubles
) -> None:
    """`certainty_by_rows` for CONFIDENCE: fewer passes, because no sum has to be complete."""
    certainties[:num_masked] = 0
    for i in range(len(own_codes)):
        weight = np.float64(weights[i])
        for place in range(num_masked):
            share = sums[place, own_codes[i, place]] + weight
            sums[place, own_codes[i, place]] = share
            certainties[place] = max(certainties[place], share)
    for place in range(num_masked):
        other = 1
        while other < len(own_codes) and own_codes[other, place] == own_codes[0, place]:
            other += 1
        if other == len(own_codes):
            certainties[place] = -np.inf
    for i in range(len(own_codes)):
        for place in range(num_masked):
            sums[place, own_codes[i, place]] = 0


@compiled
def certainty_by_codes(
    log_probs: Floats,
    num_masked: int,
    order: int,
    first: Integers,
    start: int,
    certainties: Doubles,
) -> None:
    """The certainty of each masked position; a code's probability is the denoiser's.

    first: (places, num_codes), as `find_first_rows` filled it in for the beam
    """
    scratch = np.empty(log_probs.shape[1] + 1, np.float32)
    for place in range(num_masked):
        certainties[place] = certainty_of_legal(
            log_probs[place], first[place], start, order, scratch
        )


@compiled
def certainty_by_few_rows(
    codes: Codes,
    rows: Rows,
    positions: Integers,
    log_probs: Floats,
    num_masked: int,
    order: int,
    first: Integers,
    start: int,
    certainties: Doubles,
) -> None:
    """As `certainty_by_codes`, but reads the rows: for beams with fewer rows than codes."""
    of_legal = np.empty(len(rows), np.float32)
    for place in range(num_masked):
        found = 0
        for i in range(len(rows)):
            code = codes[rows[i], positions[place]]
            if first[place, code] == start + i:
                of_legal[found] = log_probs[place, code]
                found += 1
        certainties[place] = certainty_of_log_probs(of_legal[:found], order)


@compiled
def certainty_of_legal(
    log_probs: Floats, legal: NDArray[np.integer], least: int, order: int, scratch: Floats
) -> float:
    """`certainty_of_log_probs` of the legal codes.

    legal: (num_codes,), a code is legal if this is `least` or more
    scratch: (num_codes + 1,)
    """
    found = np.uint64(0)
    for code in range(len(log_probs)):
        scratch[found] = log_probs[code]  # the next one overwrites it if it is not legal
        found += np.uint64(legal[code] >= least)
    return certainty_of_log_probs(scratch[:found], order)


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
def choose_positions(certainties: Doubles, num_masked: int, slots: Integers) -> None:
    """Fill in the places of the most certain positions, ascending; of equals the lower ones.

    slots: (width,) int64
    """
    taken = np.zeros(num_masked, np.bool_)
    for _ in range(len(slots)):
        best = -1
        for place in range(num_masked):
            if not taken[place] and (best < 0 or certainties[place] > certainties[best]):
                best = place
        taken[best] = True
    found = 0
    for place in range(num_masked):
        if taken[place]:
            slots[found] = place
            found += 1
