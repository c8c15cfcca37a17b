"""One decode step of one job: its beams choose positions, and their best children are kept.

Everything is a pass over the survivors. What a child is worth is the ranking's affair:

PATH  the log-probs of its filled positions (MDGR Eq. 20-22)
BEST  those, and of its rows' completions the best: what it can still become
ROWS  the log-probability that one of its rows is the next item: a row's logit is the sum of its
      log-probs at masked positions and its bias, a softmax over the beam's rows shares out the
      beam's probability, and a child has that of its rows

log_probs: (num_in_call, n, num_codes) float32    positions: (num_in_call, n) int64, see
`Denoiser.denoise`; of the beams that are not decided (`Beams`)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Codes, Doubles, Floats, Integers, Rows
from service.decoding.loops import AHEAD, compiled, exponentials, heap, prefetch
from service.decoding.network import list_masked
from service.decoding.search.beams import Beams
from service.decoding.search.decided_beams import in_next_call
from service.decoding.search.rows.confidence import (
    choose,
    first_of_codes,
    sureness_of_codes,
    sureness_of_few,
    sureness_of_rows,
)
from service.decoding.search.rows.grouping import (
    group_by_code,
    group_by_tuple,
    power_of_two,
    worth_by_rows,
)

PATH, BEST, ROWS = 0, 1, 2  # rankings
LEGAL, RAW, DRAWN = 0, 1, 2  # confidences


@compiled
def expand(
    codes: Codes,
    num_legal: Integers,
    beams: Beams,
    log_probs: Floats,
    positions: Integers,
    width: int,
    beam_width: int,
    ranking: int,
    confidence: int,
    drawn: Floats,
) -> Beams:
    """The best `beam_width` children of all beams, best first; of equals the one whose parent is
    better, then the one with the lower first row.

    num_legal: (num_subspaces,) how many codes any item has at each position
    width:     positions that each beam fills, fewer than it has masked
    drawn:     (beams, num_subspaces) float32, the confidence if that is DRAWN
    """
    sids, beam_scores, starts, rows, biases, in_call, _ = beams
    num_beams, num_subspaces = sids.shape
    num_codes = log_probs.shape[2]
    # Ranked by path, children that differ in one code need no sums over rows: only who is there.
    lazy = ranking == PATH and width == 1
    capacity = min(len(rows), num_beams * num_codes) if lazy else len(rows)
    child_first = np.empty(capacity, np.int64)  # index of a child's first survivor
    child_parent = np.empty(capacity, np.int32)
    child_score = np.empty(capacity, np.float64)
    child_of = np.empty(0 if lazy else len(rows), np.int32)  # by survivor
    num_children = 0

    num_masked = int(np.count_nonzero(sids[0] == num_codes))  # of every beam alike
    most = 0
    for beam in range(num_beams):
        most = max(most, starts[beam + 1] - starts[beam])
    table = np.full(num_codes if width == 1 else power_of_two(2 * most), -1, np.int32)
    logits = np.empty(0 if ranking == PATH else most, np.float32)
    weights = np.empty(most if ranking == ROWS else 0, np.float32)
    own_codes = np.empty((0 if lazy else most, num_subspaces), np.uint16)
    sums = np.zeros((num_subspaces if ranking == ROWS else 0, num_codes), np.float64)
    first = np.full((num_subspaces, num_codes), -1, np.int64)
    chosen = np.empty((num_beams, width), np.int64)
    slots = np.empty((num_beams, width), np.int64)  # the chosen positions' places in `positions`
    sureness = np.empty(num_subspaces, np.float64)
    most_kept = min(beam_width, capacity)
    kept_scores, kept = np.empty(most_kept, np.float64), np.empty(most_kept, np.int64)
    num_kept = 0

    for beam in range(num_beams):
        start, stop = starts[beam], starts[beam + 1]
        decided = in_call[beam] < 0
        if decided or (lazy and confidence == LEGAL and stop - start == 1):
            # All positions are forced: its only child has all of its rows.
            list_masked(sids[beam], num_codes, chosen[beam])
            score = beam_scores[beam]
            if decided:
                child_of[start:stop] = num_children
            else:
                score += log_probs[in_call[beam], 0, codes[rows[start], chosen[beam, 0]]]
            child_first[num_children], child_parent[num_children] = start, beam
            child_score[num_children] = score
            if score > -np.inf:  # not nan either
                number = start * capacity + num_children
                num_kept = heap.push(kept_scores, kept, num_kept, score, number)
            num_children += 1
            continue
        here, asked = log_probs[in_call[beam]], positions[in_call[beam]]
        own = rows[start:stop]
        if not lazy:
            _gather(codes, own, asked, num_masked, own_codes)
        of_own_codes = own_codes[: 0 if lazy else len(own)]
        of_own_logits = logits[: 0 if ranking == PATH else len(own)]
        highest, mass = 0.0, 1.0
        if ranking != PATH:
            highest = _row_logits(of_own_codes, biases[start:stop], here, num_masked, of_own_logits)
        if not highest > -np.inf:  # every row is impossible, or the network gave nan
            continue
        if ranking == ROWS:
            weights[: len(own)] = of_own_logits
            mass = exponentials(weights[: len(own)], highest)
        elif lazy or confidence == LEGAL:
            first_of_codes(codes, own, num_legal, asked, num_masked, first, start)

        if confidence == DRAWN:
            for place in range(num_masked):
                sureness[place] = drawn[beam, asked[place]]
        elif confidence == RAW:
            for place in range(num_masked):
                sureness[place] = here[place].max()
        elif ranking == ROWS:
            sureness_of_rows(of_own_codes, weights, num_masked, sums, sureness)
        elif 4 * len(own) < num_codes:
            sureness_of_few(codes, own, asked, here, num_masked, first, start, sureness)
        else:
            sureness_of_codes(here, num_masked, first, start, sureness)
        choose(sureness, num_masked, slots[beam])
        for choice in range(width):
            chosen[beam, choice] = asked[slots[beam, choice]]

        before = num_children
        if lazy:
            place = slots[beam, 0]
            for code in range(num_codes):
                if first[place, code] >= start:
                    child_first[num_children] = first[place, code]
                    num_children += 1
        elif width == 1:
            num_children += group_by_code(
                of_own_codes, slots[beam, 0], table, child_first[before:], child_of[start:stop]
            )
        else:
            num_children += group_by_tuple(
                of_own_codes,
                slots[beam],
                table[: power_of_two(2 * len(own))],
                child_first[before:],
                child_of[start:stop],
            )
        worth = child_score[before:num_children]
        for child in range(before, num_children):
            child_first[child] += 0 if lazy else start
            child_parent[child] = beam
            child_score[child] = beam_scores[beam]
            row = rows[child_first[child]]
            for choice in range(width):
                code = codes[row, chosen[beam, choice]]
                child_score[child] += here[slots[beam, choice], code]
        if ranking != PATH:
            worth = worth_by_rows(
                child_of[start:stop],
                num_children - before,
                of_own_logits,
                weights,
                highest,
                mass,
                ranking == ROWS,
            )
            worth += beam_scores[beam]
        if ranking == ROWS:
            child_score[before:num_children] = worth
        if not lazy:
            child_of[start:stop] += before
        for child in range(before, num_children):
            number = child_first[child] * capacity + child  # the first row decides ties
            if worth[child - before] > -np.inf:  # not nan either
                num_kept = heap.push(kept_scores, kept, num_kept, worth[child - before], number)
    heap.sort(kept_scores, kept, num_kept)
    kept = kept[:num_kept] % capacity
    return _children(
        codes,
        beams,
        chosen,
        kept,
        child_first,
        child_parent,
        child_score,
        child_of,
        num_codes,
        ranking,
    )


@compiled
def best_survivors(
    codes: Codes, beams: Beams, log_probs: Floats, positions: Integers, k: int, ranking: int
) -> tuple[Rows, Floats]:
    """The k best survivors once every masked position is filled, best first, ties by row."""
    sids, beam_scores, starts, rows, biases, in_call, _ = beams
    num_codes = log_probs.shape[2]
    num_masked = int(np.count_nonzero(sids[:1] == num_codes))  # of every beam alike
    capacity = min(k, len(rows))
    scores, numbers = np.empty(capacity, np.float64), np.empty(capacity, np.int64)
    size = 0
    for beam in range(len(sids)):
        own = rows[starts[beam] : starts[beam + 1]]
        own_biases = biases[starts[beam] : starts[beam + 1]]
        if in_call[beam] < 0:
            logits = own_biases.copy()
            highest: float = np.float64(logits.max())
        else:
            logits = np.empty(len(own), np.float32)
            own_codes = np.empty((len(own), num_masked), np.uint16)
            _gather(codes, own, positions[in_call[beam]], num_masked, own_codes)
            here = log_probs[in_call[beam]]
            highest = _row_logits(own_codes, own_biases, here, num_masked, logits)
        if not highest > -np.inf:
            continue
        shift = beam_scores[beam]
        if ranking == ROWS:
            mass = 0.0
            for logit in logits:
                mass += np.exp(np.float64(logit) - highest)
            shift -= highest + np.log(mass)
        for i in range(len(own)):
            if logits[i] > -np.inf:
                size = heap.push(scores, numbers, size, logits[i] + shift, own[i])
    heap.sort(scores, numbers, size)
    return numbers[:size].astype(np.int32), scores[:size].astype(np.float32)


@compiled
def _gather(
    codes: Codes, rows: Rows, positions: Integers, num_masked: int, own_codes: Codes
) -> None:
    """Fill in the rows' codes at the masked positions: (n, num_masked), what later passes read."""
    last = len(rows) - 1
    for i in range(len(rows)):
        prefetch(codes, np.int64(rows[min(i + AHEAD, last)]))
        row = np.uint64(rows[i])
        for place in range(num_masked):
            own_codes[i, place] = codes[row, np.uint64(positions[place])]


@compiled
def _row_logits(
    own_codes: Codes, biases: Floats, log_probs: Floats, num_masked: int, logits: Floats
) -> float:
    """Fill in each row's bias + log-probs at the masked positions; returns the highest."""
    highest = np.float32(-np.inf)
    for i in range(len(own_codes)):
        total = biases[i]
        for place in range(num_masked):
            total += log_probs[place, own_codes[i, place]]
        logits[i] = total
        highest = max(highest, total)
    return np.float64(highest)


@compiled
def _children(
    codes: Codes,
    beams: Beams,
    chosen: Integers,
    kept: Integers,
    child_first: Integers,
    child_parent: NDArray[np.int32],
    child_score: Doubles,
    child_of: NDArray[np.int32],
    num_codes: int,
    ranking: int,
) -> Beams:
    """The kept children as beams, in the order given, with their survivors.

    child_of: (survivors,), or of no length where children are the codes of one position
    """
    lazy = len(child_of) < len(beams.rows)
    sids, _, starts, rows, biases, _, _ = beams
    width = chosen.shape[1]
    new_sids = np.empty((len(kept), sids.shape[1]), sids.dtype)
    new_scores = np.empty(len(kept), np.float64)
    beam_of_child = np.full(len(child_first), -1, np.int32)
    is_parent = np.zeros(len(sids), np.bool_)
    for beam in range(len(kept)):
        child = kept[beam]
        parent = child_parent[child]
        is_parent[parent] = True
        beam_of_child[child] = beam
        new_scores[beam] = child_score[child]
        new_sids[beam] = sids[parent]
        for choice in range(width):
            position = chosen[parent, choice]
            new_sids[beam, position] = codes[rows[child_first[child]], position]

    new_beam = np.empty(len(rows), np.int32)  # by survivor; only parents' are filled in
    new_starts = np.zeros(len(kept) + 1, np.int64)
    of_code = np.full(num_codes if lazy else 0, -1, np.int32)
    for parent in range(len(sids)):
        if not is_parent[parent]:
            continue
        if lazy:
            position = chosen[parent, 0]
            for beam in range(len(kept)):
                if child_parent[kept[beam]] == parent:
                    of_code[new_sids[beam, position]] = beam
            last = starts[parent + 1] - 1
            for i in range(starts[parent], starts[parent + 1]):
                prefetch(codes, np.int64(rows[min(i + AHEAD, last)]))
                new_beam[i] = of_code[codes[rows[i], position]]
                if new_beam[i] >= 0:
                    new_starts[new_beam[i] + 1] += 1
            for beam in range(len(kept)):
                of_code[new_sids[beam, position]] = -1
        else:
            for i in range(starts[parent], starts[parent + 1]):
                new_beam[i] = beam_of_child[child_of[i]]
                if new_beam[i] >= 0:
                    new_starts[new_beam[i] + 1] += 1
    for beam in range(len(kept)):
        new_starts[beam + 1] += new_starts[beam]
    new_rows = np.empty(new_starts[-1], np.int32)
    new_biases = np.empty(new_starts[-1], np.float32)
    free = new_starts[:-1].copy()
    for parent in range(len(sids)):
        if is_parent[parent]:
            for i in range(starts[parent], starts[parent + 1]):
                if new_beam[i] >= 0:
                    at = free[new_beam[i]]
                    new_rows[at], new_biases[at] = rows[i], biases[i]
                    free[new_beam[i]] = at + 1
    in_call, num_in_call = in_next_call(codes, new_starts, new_rows, ranking == ROWS)
    return Beams(new_sids, new_scores, new_starts, new_rows, new_biases, in_call, num_in_call)
