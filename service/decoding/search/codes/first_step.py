"""The first decode step where it fills one position: straight from the postings.

Its children are the codes of that position. Ranked by path, no row is touched; the other rankings
score every row once to know what a code's rows are worth.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Codes, Doubles, Floats, Integers, Rows
from service.decoding.loops import BLOCK, compiled, exponentials, heap, highest_of
from service.decoding.search.beams import CodeBeams
from service.decoding.search.rows.confidence import highest_legal
from service.decoding.search.rows.expansion import BEST, DRAWN, PATH, RAW, ROWS
from service.decoding.search.rows.grouping import UNDERFLOW
from service.decoding.search.rows.whole_catalogue import score_rows


@compiled
def expand_root(
    codes: Codes,
    indptr: Integers,
    postings: NDArray[np.int32],
    biases: Floats,
    touched: Rows,
    num_excluded: int,
    log_probs: Floats,
    unrolled: tuple[int, ...],
    beam_width: int,
    ranking: int,
    confidence: int,
    drawn: Floats,
) -> CodeBeams:
    """What `expansion.expand` makes of one beam that owns all allowed rows, for a width of one.

    The beams know nothing of touched rows yet, see `code_beams`.

    indptr, postings: see `SidTrie`    log_probs: (num_subspaces, num_codes)
    biases, touched:  see `RowBiases`; the last num_excluded of `touched` are the excluded rows
    unrolled: num_subspaces zeros, see `scan.best_of_all`
    """
    num_subspaces, num_codes = log_probs.shape
    counts = indptr[:, 1:] - indptr[:, :-1]
    for row in touched[len(touched) - num_excluded :]:
        for position in range(num_subspaces):
            counts[position, codes[row, position]] -= 1

    logits = np.empty(0 if ranking == PATH else len(codes), np.float32)
    sums = np.zeros((num_subspaces, num_codes), np.float64)
    highest = 0.0
    if ranking != PATH:
        score_rows(codes, biases, log_probs, unrolled, logits)
        highest = np.float64(highest_of(logits))
    if not highest > -np.inf:  # every row is impossible, or the network gave nan
        return _of_codes(indptr, counts, 0, np.empty(0, np.int64), np.empty(0, np.float64))
    if ranking == ROWS:
        _sum_by_code(codes, logits, highest, unrolled, sums)
    mass = sums[0].sum() if ranking == ROWS else 1.0

    chosen, surest = 0, -np.inf
    scratch = np.empty(num_codes + 1, np.float32)
    for position in range(num_subspaces):
        sureness: float
        if confidence == DRAWN:
            sureness = drawn[0, position]
        elif confidence == RAW:
            sureness = log_probs[position].max()
        elif np.count_nonzero(counts[position]) == 1:
            sureness = -np.inf
        elif ranking == ROWS:
            sureness = sums[position].max()
        else:
            sureness = highest_legal(log_probs[position], counts[position], 1, scratch)
        if sureness > surest:
            chosen, surest = position, sureness

    capacity = min(beam_width, num_codes)
    kept_scores, kept = np.empty(capacity, np.float64), np.empty(capacity, np.int64)
    num_kept = 0
    for code in range(num_codes):
        if counts[chosen, code] == 0:
            continue
        own = postings[chosen, indptr[chosen, code] : indptr[chosen, code + 1]]
        worth: float = np.float64(log_probs[chosen, code])
        if ranking == ROWS and sums[chosen, code] > mass * UNDERFLOW:
            worth = np.log(sums[chosen, code] / mass)
        elif ranking != PATH:
            worth = _worth_of_rows(own, logits, ranking) - (
                highest + np.log(mass) if ranking == ROWS else 0.0
            )
        first = 0
        while first < len(own) - 1 and biases[own[first]] == -np.inf:
            first += 1
        number = int(own[first]) * 65536 + code  # the first row decides ties
        if worth > -np.inf:  # not nan either
            num_kept = heap.push(kept_scores, kept, num_kept, worth, number)
    heap.sort(kept_scores, kept, num_kept)
    scores = kept_scores[:num_kept].copy()
    if ranking == BEST:
        for beam in range(num_kept):
            scores[beam] = log_probs[chosen, kept[beam] % 65536]
    return _of_codes(indptr, counts, chosen, kept[:num_kept] % 65536, scores)


@compiled
def _sum_by_code(
    codes: Codes, logits: Floats, highest: float, unrolled: tuple[int, ...], sums: Doubles
) -> None:
    """Add exp(logit - highest) of each row to the sum of its code at each position."""
    num_codes = np.uint64(sums.shape[1])
    flat = sums.reshape(-1)
    weights = np.empty(BLOCK, np.float32)
    for start in range(0, len(codes), BLOCK):
        own = weights[: len(codes) - start]
        own[:] = logits[start : start + BLOCK]
        exponentials(own, highest)
        for i in range(len(own)):
            weight = np.float64(own[i])
            for position in range(len(unrolled)):
                code = np.uint64(codes[start + i, position])
                flat[np.uint64(position) * num_codes + code] += weight


@compiled
def _worth_of_rows(rows: Rows, logits: Floats, ranking: int) -> float:
    """The highest logit of the rows, or log sum exp of them."""
    highest = -np.inf
    for row in rows:
        highest = max(highest, np.float64(logits[row]))
    if ranking == BEST or highest == -np.inf:
        return highest
    mass = 0.0
    for row in rows:
        mass += np.exp(np.float64(logits[row]) - highest)
    return float(highest + np.log(mass))


@compiled
def _of_codes(
    indptr: Integers, counts: Integers, chosen: int, kept: Integers, scores: Doubles
) -> CodeBeams:
    """A beam per kept code of the chosen position, owning the code's posting list.

    counts: (num_subspaces, num_codes) rows with each code that are not excluded
    """
    num_subspaces, num_codes = counts.shape
    sids = np.full((len(kept), num_subspaces), num_codes, np.uint16)
    starts, stops = np.empty(len(kept), np.int64), np.empty(len(kept), np.int64)
    num_rows = 0
    for beam in range(len(kept)):
        code = kept[beam]
        sids[beam, chosen] = code
        starts[beam], stops[beam] = indptr[chosen, code], indptr[chosen, code + 1]
        num_rows += counts[chosen, code]
    touched_starts = np.zeros(len(kept) + 1, np.int64)
    nothing, no_biases = np.empty(0, np.int32), np.empty(0, np.float32)
    return CodeBeams(
        sids, scores, chosen, starts, stops, touched_starts, nothing, no_biases, num_rows
    )
