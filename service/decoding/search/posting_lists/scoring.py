"""Scores of rows in posting lists, and the last step for beams that own such lists.

Most rows of a list have no bias, and their score depends on their codes alone. The few that have
one are listed beam by beam, and only these are looked up. Knows nothing of how the beams were made.

codes:    (num_items, num_subspaces) uint16    postings: (num_subspaces, num_items) int32
log_probs: (beams, n, num_codes) float32    positions: (beams, n) int64, see `Denoiser.denoise`
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Codes, Floats, Integers, Postings, Rows
from service.decoding.loops import (
    BLOCK,
    ROWS_AHEAD,
    compiled,
    exponentiate,
    heap,
    highest_of,
    prefetch,
)
from service.decoding.search.beams import PostingListBeams
from service.decoding.search.rows.expansion import ROWS


@compiled
def best_of_posting_lists(
    codes: Codes,
    postings: Postings,
    beams: PostingListBeams,
    log_probs: Floats,
    positions: Integers,
    unrolled: tuple[int, ...],
    k: int,
    ranking: int,
) -> tuple[Rows, Floats]:
    """The result of `expansion.best_survivors`: the k best rows, best first, ties by row.

    unrolled: num_subspaces - 1 zeros, see `whole_catalogue.best_of_catalogue`
    """
    num_places = len(unrolled)
    capacity = min(k, beams.num_rows)
    scores, numbers = np.empty(capacity, np.float64), np.empty(capacity, np.int64)
    size, longest = 0, 0
    for beam in range(len(beams.sids)):
        longest = max(longest, beams.stops[beam] - beams.starts[beam])
    buffer = np.empty(longest, np.float32)
    for beam in range(len(beams.sids)):
        own = postings[beams.position, beams.starts[beam] : beams.stops[beam]]
        own_log_probs, own_positions = log_probs[beam, :num_places], positions[beam, :num_places]
        begin, end = beams.bias_starts[beam], beams.bias_starts[beam + 1]
        biased_rows, biases = beams.biased_rows[begin:end], beams.biases[begin:end]
        shift = beams.scores[beam]
        if ranking != ROWS and size == capacity and highest_sum(own_log_probs) + shift < scores[0]:
            # No row without a bias is good enough, so only the biased rows are scored.
            for i in range(len(biased_rows)):
                logit = biases[i]
                for place in range(num_places):
                    logit += own_log_probs[place, codes[biased_rows[i], own_positions[place]]]
                if logit > -np.inf:
                    size = heap.push(scores, numbers, size, logit + shift, biased_rows[i])
            continue
        logits = buffer[: len(own)]
        score_posting_list(codes, own, own_log_probs, own_positions, unrolled, logits)
        if len(beams.allowed):
            exclude_others(own, beams.allowed, logits)
        for i in range(len(biased_rows)):
            logit = biases[i]
            for place in range(num_places):
                logit += own_log_probs[place, codes[biased_rows[i], own_positions[place]]]
            logits[np.searchsorted(own, biased_rows[i])] = logit
        if ranking == ROWS:
            highest = np.float64(highest_of(logits))
            if not highest > -np.inf:
                continue
            shift -= highest + np.log(_mass(logits, highest))
        for start in range(0, len(logits), BLOCK):
            block = logits[start : start + BLOCK]
            if size == capacity and highest_of(block) + shift < scores[0]:
                continue
            for i in range(len(block)):
                if block[i] > -np.inf:
                    size = heap.push(scores, numbers, size, block[i] + shift, own[start + i])
    heap.sort(scores, numbers, size)
    return numbers[:size].astype(np.int32), scores[:size].astype(np.float32)


@compiled
def score_posting_list(
    codes: Codes,
    rows: Rows,
    log_probs: Floats,
    positions: Integers,
    unrolled: tuple[int, ...] | Integers,
    sums: Floats,
) -> None:
    """Fill in each row's sum of log-probs at the positions, in their order.

    log_probs: (n, num_codes)    positions: (n,)
    unrolled:  n zeros; a tuple where n is always the same, see `whole_catalogue.best_of_catalogue`
    """
    num_codes = np.uint64(log_probs.shape[1])
    flat = log_probs.reshape(-1)
    last = len(rows) - 1
    for i in range(len(rows)):
        prefetch(codes, np.int64(rows[min(i + ROWS_AHEAD, last)]))
        row = np.uint64(rows[i])
        total = np.float32(0)
        for place in range(len(unrolled)):
            code = np.uint64(codes[row, np.uint64(positions[place])])
            total += flat[np.uint64(place) * num_codes + code]
        sums[i] = total


@compiled
def exclude_others(rows: Rows, allowed: NDArray[np.uint64], sums: Floats) -> None:
    """Make the sums of rows whose bits are not set -inf. allowed: see `PostingListBeams`"""
    one, low = np.uint64(1), np.uint64(63)
    for i in range(len(rows)):
        row = np.uint64(rows[i])
        is_allowed = (allowed[row >> np.uint64(6)] >> (row & low)) & one
        sums[i] = sums[i] if is_allowed else np.float32(-np.inf)


@compiled
def highest_sum(log_probs: Floats) -> float:
    """An upper bound of the sum of any row without a bias. Rounding keeps the order of numbers.

    log_probs: (n, num_codes) float32, added up as in `score_posting_list`
    """
    total = np.float32(0)
    for place in range(len(log_probs)):
        total += highest_of(log_probs[place])
    return np.float64(total)


@compiled
def _mass(logits: Floats, highest: float) -> float:
    """sum exp(logit - highest)"""
    total = 0.0
    weights = np.empty(BLOCK, np.float32)
    for start in range(0, len(logits), BLOCK):
        own = weights[: len(logits) - start]
        own[:] = logits[start : start + BLOCK]
        total += exponentiate(own, highest)
    return total
