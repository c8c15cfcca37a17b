"""What becomes of beams that own whole posting lists: their biases, their copies, their best rows.

Nothing is known of most of their rows but the codes. The few that biases touched are listed beam by
beam; a list of them is merged with a posting list, and no other row is looked up.

codes:    (num_items, num_subspaces) uint16    postings: (num_subspaces, num_items) int32
log_probs: (beams, n, num_codes) float32    positions: (beams, n) int64, see `Denoiser.denoise`
"""

from __future__ import annotations

import numpy as np

from service.decoding.arrays import Codes, Floats, Integers, Postings, Rows
from service.decoding.loops import AHEAD, BLOCK, compiled, exponentials, heap, highest_of, prefetch
from service.decoding.search.beams import Beams, CodeBeams
from service.decoding.search.decided_beams import in_next_call
from service.decoding.search.rows.expansion import ROWS


@compiled
def with_touched(beams: CodeBeams, codes: Codes, touched: Rows, biases: Floats) -> CodeBeams:
    """The beams with what is known of rows; touched, biases: see `RowBiases`."""
    sids, scores, position, starts, stops, _, _, _, num_rows = beams
    # MASK is above all codes, and every beam has MASKs.
    beam_of = np.full(sids.max() if len(sids) else 65536, -1, np.int32)
    for beam in range(len(sids)):
        beam_of[sids[beam, position]] = beam
    all_starts = np.zeros(len(sids) + 1, np.int64)
    for row in touched:
        all_starts[beam_of[codes[row, position]] + 1] += 1
    all_starts[0] = 0  # was counted up by rows of codes without a beam
    for beam in range(len(sids)):
        all_starts[beam + 1] += all_starts[beam]
    own_rows = np.empty(all_starts[-1], np.int32)
    free = all_starts[:-1].copy()
    for row in touched:
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
            if found == begin or own_rows[found - 1] != row:  # some are listed twice
                own_rows[found], own_biases[found] = row, biases[row]
                found += 1
        new_starts[beam + 1] = found
    return CodeBeams(
        sids,
        scores,
        position,
        starts,
        stops,
        new_starts,
        own_rows[:found],
        own_biases[:found],
        num_rows,
    )


@compiled
def copied(
    beams: CodeBeams, codes: Codes, postings: Postings, biases: Floats, by_rows: bool
) -> Beams:
    """The beams with rows of their own. biases: (num_items,) float32, of all rows.

    by_rows: whether they are ranked by rows
    """
    new_starts = np.zeros(len(beams.sids) + 1, np.int64)
    rows = np.empty(beams.num_rows, np.int32)
    of_rows = np.empty(beams.num_rows, np.float32)
    found = 0
    for beam in range(len(beams.sids)):
        for row in postings[beams.position, beams.starts[beam] : beams.stops[beam]]:
            bias = biases[row]
            if bias > -np.inf:
                rows[found], of_rows[found] = row, bias
                found += 1
        new_starts[beam + 1] = found
    in_call, num_in_call = in_next_call(codes, new_starts, rows, by_rows)
    return Beams(beams.sids, beams.scores, new_starts, rows, of_rows, in_call, num_in_call)


@compiled
def best_of_codes(
    codes: Codes,
    postings: Postings,
    beams: CodeBeams,
    log_probs: Floats,
    positions: Integers,
    unrolled: tuple[int, ...],
    k: int,
    ranking: int,
) -> tuple[Rows, Floats]:
    """What `expansion.best_survivors` finds: the k best rows, best first, ties by row.

    unrolled: num_subspaces - 1 zeros, see `scan.best_of_all`
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
        here, asked = log_probs[beam, :num_places], positions[beam, :num_places]
        begin, end = beams.touched_starts[beam], beams.touched_starts[beam + 1]
        touched, biases = beams.touched[begin:end], beams.biases[begin:end]
        shift = beams.scores[beam]
        if ranking != ROWS and size == capacity and highest_sum(here) + shift < scores[0]:
            # None of the rows without a bias is good enough, and only the others are looked at.
            for i in range(len(touched)):
                logit = biases[i]
                for place in range(num_places):
                    logit += here[place, codes[touched[i], asked[place]]]
                if logit > -np.inf:
                    size = heap.push(scores, numbers, size, logit + shift, touched[i])
            continue
        logits = buffer[: len(own)]
        score_postings(codes, own, here, asked, unrolled, logits)
        for i in range(len(touched)):
            logit = biases[i]
            for place in range(num_places):
                logit += here[place, codes[touched[i], asked[place]]]
            logits[np.searchsorted(own, touched[i])] = logit
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
def score_postings(
    codes: Codes,
    rows: Rows,
    log_probs: Floats,
    positions: Integers,
    unrolled: tuple[int, ...] | Integers,
    sums: Floats,
) -> None:
    """Fill in each row's sum of log-probs at the positions, in their order.

    log_probs: (n, num_codes)    positions: (n,)
    unrolled:  n zeros, a tuple where n is always the same, see `scan.best_of_all`
    """
    num_codes = np.uint64(log_probs.shape[1])
    flat = log_probs.reshape(-1)
    last = len(rows) - 1
    for i in range(len(rows)):
        prefetch(codes, np.int64(rows[min(i + AHEAD, last)]))
        row = np.uint64(rows[i])
        total = np.float32(0)
        for place in range(len(unrolled)):
            code = np.uint64(codes[row, np.uint64(positions[place])])
            total += flat[np.uint64(place) * num_codes + code]
        sums[i] = total


@compiled
def highest_sum(log_probs: Floats) -> float:
    """No smaller than the sum of any row without a bias: rounding keeps the order of numbers.

    log_probs: (n, num_codes) float32, added up as in `score_postings`
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
        total += exponentials(own, highest)
    return total
