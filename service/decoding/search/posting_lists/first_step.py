"""The first decode step where it fills one position: its beams own posting lists.

The children of the fully masked SID are the codes of the chosen position. Ranked by path, no row is
read. The other rankings score every row once, because a child's rank score depends on its rows. The
new beams then get the biases of their rows, or copies of their rows. Knows no pairs of codes.

codes:    (num_items, num_subspaces) uint16    indptr, postings: see `SidTrie`
log_probs: (num_subspaces, num_codes) float32, of the fully masked SID
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Codes, Doubles, Floats, Integers, Postings, Rows
from service.decoding.loops import BLOCK, compiled, exponentiate, heap, highest_of
from service.decoding.search.beams import Beams, PostingListBeams, number_undecided
from service.decoding.search.rows.expansion import BEST, PATH, ROWS
from service.decoding.search.rows.grouping import UNDERFLOW
from service.decoding.search.rows.order import (
    DRAWN,
    LEFT_TO_RIGHT,
    RAW,
    certainty_of_legal,
    certainty_of_shares,
)
from service.decoding.search.rows.whole_catalogue import score_rows


@compiled
def expand_fully_masked(
    codes: Codes,
    indptr: Integers,
    postings: Postings,
    counts: Integers,
    biases: Floats,
    biased_rows: Rows,
    num_excluded: int,
    log_probs: Floats,
    unrolled: tuple[int, ...],
    beam_width: int,
    ranking: int,
    order: int,
    drawn: Floats,
) -> PostingListBeams:
    """The result of `expansion.expand` for one beam that owns all allowed rows, and a width of one.

    The new beams do not list their biased rows yet, see `with_biased_rows`.

    counts: (num_subspaces, num_codes) rows with each code, of those that the filter allows
    biases, biased_rows: `values` and `biased_rows` of `RowBiases`; the last num_excluded of
        `biased_rows` are the excluded rows
    unrolled: num_subspaces zeros, see `whole_catalogue.best_of_catalogue`
    ranking, order, drawn: see `expansion.expand`
    """
    num_subspaces, num_codes = log_probs.shape
    counts = counts.copy()
    for row in biased_rows[len(biased_rows) - num_excluded :]:
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

    chosen, highest_certainty = 0, -np.inf
    scratch = np.empty(num_codes + 1, np.float32)
    for position in range(num_subspaces):
        certainty: float
        if order == DRAWN:
            certainty = drawn[0, position]
        elif order == LEFT_TO_RIGHT:
            certainty = -position
        elif order == RAW:
            certainty = log_probs[position].max()
        elif np.count_nonzero(counts[position]) == 1:
            certainty = -np.inf
        elif ranking == ROWS:
            certainty = certainty_of_shares(sums[position], order)
        else:
            certainty = certainty_of_legal(log_probs[position], counts[position], 1, order, scratch)
        if certainty > highest_certainty:
            chosen, highest_certainty = position, certainty

    capacity = min(beam_width, num_codes)
    kept_scores, kept = np.empty(capacity, np.float64), np.empty(capacity, np.int64)
    num_kept = 0
    for code in range(num_codes):
        if counts[chosen, code] == 0:
            continue
        own = postings[chosen, indptr[chosen, code] : indptr[chosen, code + 1]]
        rank_score: float = np.float64(log_probs[chosen, code])
        if ranking == ROWS and sums[chosen, code] > mass * UNDERFLOW:
            rank_score = np.log(sums[chosen, code] / mass)
        elif ranking != PATH:
            rank_score = _rank_score_of_rows(own, logits, ranking) - (
                highest + np.log(mass) if ranking == ROWS else 0.0
            )
        first = 0
        while first < len(own) - 1 and biases[own[first]] == -np.inf:
            first += 1
        number = int(own[first]) * 65536 + code  # the first row decides ties
        if rank_score > -np.inf:  # not nan either
            num_kept = heap.push(kept_scores, kept, num_kept, rank_score, number)
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
        exponentiate(own, highest)
        for i in range(len(own)):
            weight = np.float64(own[i])
            for position in range(len(unrolled)):
                code = np.uint64(codes[start + i, position])
                flat[np.uint64(position) * num_codes + code] += weight


@compiled
def _rank_score_of_rows(rows: Rows, logits: Floats, ranking: int) -> float:
    """The highest logit of the rows (ranking "best"), or log sum exp of their logits."""
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
) -> PostingListBeams:
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
    bias_starts = np.zeros(len(kept) + 1, np.int64)
    nothing, no_biases = np.empty(0, np.int32), np.empty(0, np.float32)
    no_bits = np.empty(0, np.uint64)
    return PostingListBeams(
        sids, scores, chosen, starts, stops, bias_starts, nothing, no_biases, num_rows, no_bits
    )


@compiled
def with_biased_rows(
    beams: PostingListBeams,
    codes: Codes,
    biased_rows: Rows,
    biases: Floats,
    allowed: NDArray[np.uint64],
) -> PostingListBeams:
    """The beams with their biased rows listed.

    biased_rows: those of all rows, see `RowBiases`    biases: (num_items,) float32, of all rows
    allowed: the bits of the rows that a filter allows, see `PostingListBeams`
    """
    sids, scores, position, starts, stops, _, _, _, num_rows, _ = beams
    # Every beam has MASKs, and MASK is above all codes: so the largest number is num_codes.
    beam_of = np.full(sids.max() if len(sids) else 65536, -1, np.int32)
    for beam in range(len(sids)):
        beam_of[sids[beam, position]] = beam
    all_starts = np.zeros(len(sids) + 1, np.int64)
    for row in biased_rows:
        all_starts[beam_of[codes[row, position]] + 1] += 1
    all_starts[0] = 0  # rows of codes without a beam were counted here
    for beam in range(len(sids)):
        all_starts[beam + 1] += all_starts[beam]
    own_rows = np.empty(all_starts[-1], np.int32)
    free = all_starts[:-1].copy()
    for row in biased_rows:
        beam = beam_of[codes[row, position]]
        if beam >= 0:
            own_rows[free[beam]] = row
            free[beam] += 1
    own_biases = np.empty(len(own_rows), np.float32)
    new_starts = np.zeros(len(sids) + 1, np.int64)
    found = 0
    for beam in range(len(sids)):
        begin = found
        for row in np.sort(own_rows[all_starts[beam] : all_starts[beam + 1]]):
            if found == begin or own_rows[found - 1] != row:  # some rows are listed twice
                own_rows[found], own_biases[found] = row, biases[row]
                found += 1
        new_starts[beam + 1] = found
    return PostingListBeams(
        sids,
        scores,
        position,
        starts,
        stops,
        new_starts,
        own_rows[:found],
        own_biases[:found],
        num_rows,
        allowed,
    )


@compiled
def with_own_rows(
    beams: PostingListBeams, codes: Codes, postings: Postings, biases: Floats, by_rows: bool
) -> Beams:
    """The beams with copies of their rows. biases: (num_items,) float32, of all rows

    by_rows: whether they are ranked by rows
    """
    new_starts = np.zeros(len(beams.sids) + 1, np.int64)
    rows = np.empty(beams.num_rows, np.int32)
    own_biases = np.empty(beams.num_rows, np.float32)
    found = 0
    for beam in range(len(beams.sids)):
        for row in postings[beams.position, beams.starts[beam] : beams.stops[beam]]:
            bias = biases[row]
            if bias > -np.inf:
                rows[found], own_biases[found] = row, bias
                found += 1
        new_starts[beam + 1] = found
    call_index, num_undecided = number_undecided(codes, new_starts, rows, by_rows)
    return Beams(beams.sids, beams.scores, new_starts, rows, own_biases, call_index, num_undecided)
