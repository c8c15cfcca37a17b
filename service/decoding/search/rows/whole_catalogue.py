"""Passes of the first step over the whole catalogue: all rows are scored exactly, or collected.

Schedules that fill every position at once need no beams: one denoiser call scores every row, and
the best `k` are the answer. A filter that leaves few rows has passes over those. Knows nothing of
schedules or jobs.

codes: (num_items, num_subspaces) uint16    biases: (num_items,) float32, -inf = excluded
log_probs: (num_subspaces, num_codes) float32, of the fully masked SID
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Codes, Floats, Rows
from service.decoding.catalogue import AllowedRows
from service.decoding.loops import BLOCK, compiled, exponentiate, heap, highest_of


def best_of_catalogue(
    codes: NDArray[np.uint16], biases: Floats, log_probs: Floats, k: int, *, normalised: bool
) -> tuple[Rows, Floats]:
    """The k best allowed rows by the sum of their log-probs and bias, best first, ties by row.

    normalised: scores are log-probabilities over all allowed rows; else they are the sums
    """
    # Each length of a tuple is a type. Code is compiled per type, so loops over it are unrolled.
    unrolled = (0,) * codes.shape[1]
    return _best_of_catalogue(codes, biases, log_probs, unrolled, k, normalised)


@compiled
def _best_of_catalogue(
    codes: NDArray[np.uint16],
    biases: Floats,
    log_probs: Floats,
    unrolled: tuple[int, ...],
    k: int,
    normalised: bool,
) -> tuple[Rows, Floats]:
    num_items = len(codes)
    capacity = min(k, num_items)
    scores, numbers = np.empty(capacity, np.float64), np.empty(capacity, np.int64)
    size = 0
    block = np.empty(BLOCK, np.float32)
    highest, mass = -np.inf, 0.0
    for start in range(0, num_items, BLOCK):
        stop = min(start + BLOCK, num_items)
        sums = block[: stop - start]
        score_rows(codes[start:stop], biases[start:stop], log_probs, unrolled, sums)
        best = np.float64(highest_of(sums))
        if best == -np.inf:
            continue
        if size < capacity or best > scores[0]:
            for i in range(len(sums)):
                if sums[i] > -np.inf:
                    size = heap.push(scores, numbers, size, sums[i], start + i)
        if normalised:
            if best > highest:
                mass *= np.exp(highest - best)
                highest = best
            mass += exponentiate(sums, highest)
    heap.sort(scores, numbers, size)
    shift = highest + np.log(mass) if normalised else 0.0
    return numbers[:size].astype(np.int32), (scores[:size] - shift).astype(np.float32)


def best_of_allowed(
    allowed: AllowedRows, biases: Floats, log_probs: Floats, k: int, *, normalised: bool
) -> tuple[Rows, Floats]:
    """As `best_of_catalogue`, of a catalogue that has only these rows, without the excluded ones.

    biases: (num_items,) of all rows
    """
    unrolled = (0,) * allowed.codes.shape[1]
    return _best_of_allowed(allowed.codes, allowed.rows, biases, log_probs, unrolled, k, normalised)


@compiled
def _best_of_allowed(
    codes: Codes,
    rows: Rows,
    biases: Floats,
    log_probs: Floats,
    unrolled: tuple[int, ...],
    k: int,
    normalised: bool,
) -> tuple[Rows, Floats]:
    """codes: (n, num_subspaces), of the rows. Rows that are excluded leave no gap in a block."""
    capacity = min(k, len(rows))
    scores, numbers = np.empty(capacity, np.float64), np.empty(capacity, np.int64)
    size = 0
    block, own_biases = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    own_rows = np.empty(BLOCK, np.int32)
    highest, mass = -np.inf, 0.0
    at = 0
    while at < len(rows):
        length = min(BLOCK, len(rows) - at)
        lowest = np.float32(0)
        for i in range(length):
            bias = biases[np.uint64(rows[at + i])]
            own_biases[i] = bias
            own_rows[i] = rows[at + i]
            lowest = min(lowest, bias)
        if lowest > -np.inf:
            score_rows(
                codes[at : at + length],
                own_biases[:length],
                log_probs,
                unrolled,
                block[:length],
            )
            at += length
        else:  # some are excluded
            length = 0
            while length < BLOCK and at < len(rows):
                begin, first = at, length
                while length < BLOCK and at < len(rows):
                    bias = biases[np.uint64(rows[at])]
                    if bias == -np.inf:
                        break
                    own_rows[length], own_biases[length] = rows[at], bias
                    length += 1
                    at += 1
                run = slice(first, length)
                score_rows(codes[begin:at], own_biases[run], log_probs, unrolled, block[run])
                if length < BLOCK and at < len(rows):
                    at += 1  # over the excluded row
        sums = block[:length]
        best = np.float64(highest_of(sums)) if length else -np.inf
        if best == -np.inf:
            continue
        if size < capacity or best > scores[0]:
            for i in range(length):
                if sums[i] > -np.inf:
                    size = heap.push(scores, numbers, size, sums[i], own_rows[i])
        if normalised:
            if best > highest:
                mass *= np.exp(highest - best)
                highest = best
            mass += exponentiate(sums, highest)
    heap.sort(scores, numbers, size)
    shift = highest + np.log(mass) if normalised else 0.0
    return numbers[:size].astype(np.int32), (scores[:size] - shift).astype(np.float32)


@compiled
def score_rows(
    codes: NDArray[np.uint16],
    biases: Floats,
    log_probs: Floats,
    unrolled: tuple[int, ...],
    sums: Floats,
) -> None:
    """Fill in each row's sum: asymmetric distance computation of product quantisation.

    (Jegou et al., 2011) unrolled: num_subspaces zeros
    """
    num_codes = np.uint64(log_probs.shape[1])
    flat = log_probs.reshape(-1)
    for i in range(len(codes)):
        total = biases[i]
        for position in range(len(unrolled)):
            total += flat[np.uint64(position) * num_codes + np.uint64(codes[i, position])]
        sums[i] = total


@compiled
def allowed_rows(biases: Floats, num_excluded: int) -> tuple[Rows, Floats]:
    """All rows that are not excluded, ascending, and their biases."""
    rows = np.empty(len(biases) - num_excluded, np.int32)
    own_biases = np.empty(len(rows), np.float32)
    found = 0
    for row in range(len(biases)):
        if biases[row] > -np.inf:
            rows[found], own_biases[found] = row, biases[row]
            found += 1
    return rows[:found], own_biases[:found]


@compiled
def rows_not_excluded(allowed: Rows, biases: Floats) -> tuple[Rows, Floats]:
    """Those of `allowed` that are not excluded, in their order, and their biases."""
    rows, own_biases = np.empty(len(allowed), np.int32), np.empty(len(allowed), np.float32)
    found = 0
    for row in allowed:
        if biases[row] > -np.inf:
            rows[found], own_biases[found] = row, biases[row]
            found += 1
    return rows[:found], own_biases[:found]
