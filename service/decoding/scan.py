"""The first step's passes over the catalogue: all rows scored exactly, or collected.

Schedules that fill every position at once need no beams: one denoiser call scores every row, and
the best `k` are the answer.

codes: (num_items, num_subspaces) uint16    biases: (num_items,) float32, -inf = excluded
log_probs: (num_subspaces, num_codes) float32, of the fully masked SID
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding import heap
from service.decoding.compiled import compiled, compiled_in_any_order
from service.decoding.job import Floats, Rows

BLOCK = 1024  # rows scored before the best of them are looked for; their scores stay in L1


def best_of_all(
    codes: NDArray[np.uint16], biases: Floats, log_probs: Floats, k: int, *, normalised: bool
) -> tuple[Rows, Floats]:
    """The k best allowed rows by the sum of their log-probs and bias, best first, ties by row.

    normalised: scores are log-probabilities over all allowed rows, else the sums themselves
    """
    unrolled = (0,) * codes.shape[1]  # a type of its own for each length: loops of known length
    return _best_of_all(codes, biases, log_probs, unrolled, k, normalised)


@compiled
def _best_of_all(
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
        _score(codes[start:stop], biases[start:stop], log_probs, unrolled, sums)
        best = np.float64(_highest(sums))
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
            mass += _sum_of_exp(sums, np.float32(highest))
    heap.sort(scores, numbers, size)
    shift = highest + np.log(mass) if normalised else 0.0
    return numbers[:size].astype(np.int32), (scores[:size] - shift).astype(np.float32)


@compiled
def _score(
    codes: NDArray[np.uint16],
    biases: Floats,
    log_probs: Floats,
    unrolled: tuple[int, ...],
    sums: Floats,
) -> None:
    """Asymmetric distance computation, as of product quantisation (Jegou et al., 2011)."""
    num_codes = np.uint64(log_probs.shape[1])
    flat = log_probs.reshape(-1)
    for i in range(len(codes)):
        total = biases[i]
        for position in range(len(unrolled)):
            total += flat[np.uint64(position) * num_codes + np.uint64(codes[i, position])]
        sums[i] = total


@compiled_in_any_order
def _highest(values: Floats) -> float:
    highest = values[0]
    for value in values:
        highest = value if value > highest else highest
    return highest


@compiled_in_any_order
def _sum_of_exp(values: Floats, highest: float) -> float:
    """Sum of exp(value - highest) of values that are at most `highest`, to about 1e-6 of it.

    2 ** x by Taylor's series around the nearest integer, in a form the compiler makes SIMD of.
    """
    total = np.float32(0)
    for value in values:
        x = (value - highest) * np.float32(1.4426950408889634)
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
        total += power * exponent.view(np.float32)
    return np.float64(total)


@compiled
def allowed_rows(biases: Floats, num_excluded: int) -> tuple[Rows, Floats]:
    """All rows that are not excluded, ascending, and their biases."""
    rows = np.empty(len(biases) - num_excluded, np.int32)
    of_rows = np.empty(len(rows), np.float32)
    found = 0
    for row in range(len(biases)):
        if biases[row] > -np.inf:
            rows[found], of_rows[found] = row, biases[row]
            found += 1
    return rows, of_rows
