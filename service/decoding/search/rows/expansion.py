"""One decode step of one job: its beams choose positions, and their best children are kept.

Everything is a pass over the surviving rows. Children are compared by a rank score, which depends
on the ranking:

PATH  the sum of the log-probs of the child's filled positions (MDGR Eq. 20-22)
BEST  that sum, plus the best completion that one of the child's rows offers
ROWS  the log-probability that one of the child's rows is the next item: a row's logit is the sum of
      its log-probs at masked positions and its bias, a softmax over the beam's rows divides the
      beam's probability among them, and a child has the probability of its rows

log_probs: (num_undecided, n, num_codes) float32    positions: (num_undecided, n) int64, see
`Denoiser.denoise`; of the beams that are not decided (`Beams`)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Codes, Doubles, Floats, Integers, Rows
from service.decoding.loops import ROWS_AHEAD, compiled, exponentiate, heap, prefetch
from service.decoding.network import list_masked
from service.decoding.search.beams import Beams, number_undecided
from service.decoding.search.rows.grouping import (
    group_by_code,
    group_by_tuple,
    power_of_two,
    rank_scores_by_rows,
)
from service.decoding.search.rows.order import (
    DRAWN,
    LEFT_TO_RIGHT,
    OF_LEGAL_CODES,
    RAW,
    certainty_by_codes,
    certainty_by_few_rows,
    certainty_by_rows,
    choose_positions,
    find_first_rows,
)

PATH, BEST, ROWS = 0, 1, 2  # rankings


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
    order: int,
    drawn: Floats,
) -> Beams:
    """The best `beam_width` children of all beams, best first; ties as `beam_search.decode` says.

    num_legal: (num_subspaces,) how many codes any item has at each position
    width:     positions that each beam fills, fewer than it has masked
    ranking:   PATH, BEST or ROWS    order: one of those in `rows.order`
    drawn:     (beams, num_subspaces) float32, the certainties if the order is DRAWN
    """
    sids, beam_scores, starts, rows, biases, call_index, _ = beams
    num_beams, num_subspaces = sids.shape
    num_codes = log_probs.shape[2]
    # Ranked by path, a child that fills one position needs no sum over its rows: its code gives
    # its score, and the rows only show which codes there are.
    by_code_alone = ranking == PATH and width == 1
    capacity = min(len(rows), num_beams * num_codes) if by_code_alone else len(rows)
    child_first = np.empty(capacity, np.int64)  # index of a child's first survivor
    child_parent = np.empty(capacity, np.int32)
    child_score = np.empty(capacity, np.float64)
    child_of_row = np.empty(0 if by_code_alone else len(rows), np.int32)  # per survivor
    num_children = 0

    num_masked = int(np.count_nonzero(sids[0] == num_codes))  # the same for every beam
    most = 0
    for beam in range(num_beams):
        most = max(most, starts[beam + 1] - starts[beam])
    table = np.full(num_codes if width == 1 else power_of_two(2 * most), -1, np.int32)
    logits = np.empty(0 if ranking == PATH else most, np.float32)
    weights = np.empty(most if ranking == ROWS else 0, np.float32)
    own_codes = np.empty((0 if by_code_alone else most, num_subspaces), np.uint16)
    sums = np.zeros((num_subspaces if ranking == ROWS else 0, num_codes), np.float64)
    first = np.full((num_subspaces, num_codes), -1, np.int64)
    chosen = np.empty((num_beams, width), np.int64)
    slots = np.empty((num_beams, width), np.int64)  # the same, as indices into `positions`
    certainties = np.empty(num_subspaces, np.float64)
    most_kept = min(beam_width, capacity)
    kept_scores, kept = np.empty(most_kept, np.float64), np.empty(most_kept, np.int64)
    num_kept = 0

    for beam in range(num_beams):
        start, stop = starts[beam], starts[beam + 1]
        decided = call_index[beam] < 0
        if decided or (by_code_alone and order not in (RAW, DRAWN) and stop - start == 1):
            # All positions are forced: the only child has all rows of the beam.
            list_masked(sids[beam], num_codes, chosen[beam])
            score = beam_scores[beam]
            if decided:
                child_of_row[start:stop] = num_children
            else:
                score += log_probs[call_index[beam], 0, codes[rows[start], chosen[beam, 0]]]
            child_first[num_children], child_parent[num_children] = start, beam
            child_score[num_children] = score
            if score > -np.inf:  # not nan either
                number = start * capacity + num_children
                num_kept = heap.push(kept_scores, kept, num_kept, score, number)
            num_children += 1
            continue
        own_log_probs, own_positions = log_probs[call_index[beam]], positions[call_index[beam]]
        own = rows[start:stop]
        if not by_code_alone:
            _gather(codes, own, own_positions, num_masked, own_codes)
        of_own_codes = own_codes[: 0 if by_code_alone else len(own)]
        of_own_logits = logits[: 0 if ranking == PATH else len(own)]
        highest, mass = 0.0, 1.0
        if ranking != PATH:
            highest = _row_logits(
                of_own_codes, biases[start:stop], own_log_probs, num_masked, of_own_logits
            )
        if not highest > -np.inf:  # every row is impossible, or the network gave nan
            continue
        if ranking == ROWS:
            weights[: len(own)] = of_own_logits
            mass = exponentiate(weights[: len(own)], highest)
        elif by_code_alone or order in OF_LEGAL_CODES:
            find_first_rows(codes, own, num_legal, own_positions, num_masked, first, start)

        if order == DRAWN:
            for place in range(num_masked):
                certainties[place] = drawn[beam, own_positions[place]]
        elif order == LEFT_TO_RIGHT:
            for place in range(num_masked):
                certainties[place] = -place
        elif order == RAW:
            for place in range(num_masked):
                certainties[place] = own_log_probs[place].max()
        elif ranking == ROWS:
            certainty_by_rows(of_own_codes, weights, num_masked, order, sums, certainties)
        elif 4 * len(own) < num_codes:
            certainty_by_few_rows(
                codes,
                own,
                own_positions,
                own_log_probs,
                num_masked,
                order,
                first,
                start,
                certainties,
            )
        else:
            certainty_by_codes(own_log_probs, num_masked, order, first, start, certainties)
        choose_positions(certainties, num_masked, slots[beam])
        for choice in range(width):
            chosen[beam, choice] = own_positions[slots[beam, choice]]

        before = num_children
        if by_code_alone:
            place = slots[beam, 0]
            for code in range(num_codes):
                if first[place, code] >= start:
                    child_first[num_children] = first[place, code]
                    num_children += 1
        elif width == 1:
            num_children += group_by_code(
                of_own_codes, slots[beam, 0], table, child_first[before:], child_of_row[start:stop]
            )
        else:
            num_children += group_by_tuple(
                of_own_codes,
                slots[beam],
                table[: power_of_two(2 * len(own))],
                child_first[before:],
                child_of_row[start:stop],
            )
        rank_scores = child_score[before:num_children]
        for child in range(before, num_children):
            child_first[child] += 0 if by_code_alone else start
            child_parent[child] = beam
            child_score[child] = beam_scores[beam]
            row = rows[child_first[child]]
            for choice in range(width):
                code = codes[row, chosen[beam, choice]]
                child_score[child] += own_log_probs[slots[beam, choice], code]
        if ranking != PATH:
            rank_scores = rank_scores_by_rows(
                child_of_row[start:stop],
                num_children - before,
                of_own_logits,
                weights,
                highest,
                mass,
                ranking == ROWS,
            )
            rank_scores += beam_scores[beam]
        if ranking == ROWS:
            child_score[before:num_children] = rank_scores
        if not by_code_alone:
            child_of_row[start:stop] += before
        for child in range(before, num_children):
            number = child_first[child] * capacity + child  # the first row decides ties
            if rank_scores[child - before] > -np.inf:  # not nan either
                num_kept = heap.push(
                    kept_scores, kept, num_kept, rank_scores[child - before], number
                )
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
        child_of_row,
        num_codes,
        ranking,
    )


@compiled
def best_survivors(
    codes: Codes, beams: Beams, log_probs: Floats, positions: Integers, k: int, ranking: int
) -> tuple[Rows, Floats]:
    """The k best survivors once every masked position is filled, best first, ties by row."""
    sids, beam_scores, starts, rows, biases, call_index, _ = beams
    num_codes = log_probs.shape[2]
    num_masked = int(np.count_nonzero(sids[:1] == num_codes))  # the same for every beam
    capacity = min(k, len(rows))
    scores, numbers = np.empty(capacity, np.float64), np.empty(capacity, np.int64)
    size = 0
    for beam in range(len(sids)):
        own = rows[starts[beam] : starts[beam + 1]]
        own_biases = biases[starts[beam] : starts[beam + 1]]
        if call_index[beam] < 0:
            logits = own_biases.copy()
            highest: float = np.float64(logits.max())
        else:
            logits = np.empty(len(own), np.float32)
            own_codes = np.empty((len(own), num_masked), np.uint16)
            _gather(codes, own, positions[call_index[beam]], num_masked, own_codes)
            own_log_probs = log_probs[call_index[beam]]
            highest = _row_logits(own_codes, own_biases, own_log_probs, num_masked, logits)
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
def survivor_scores(
    codes: Codes, beams: Beams, log_probs: Floats, positions: Integers, ranking: int
) -> Doubles:
    """Every survivor's share of its beam's probability, as a log: (survivors,), in their order.

    A softmax over the sums of the rows' log-probs at masked positions divides a beam's probability
    among its rows; ranked by rows, their biases are in it, else they are added to the result. A row
    that several beams own has a share of each.
    """
    sids, beam_scores, starts, rows, biases, call_index, _ = beams
    num_masked = int(np.count_nonzero(sids[:1] == log_probs.shape[2]))
    scores = np.full(len(rows), -np.inf, np.float64)
    for beam in range(len(sids)):
        start, stop = starts[beam], starts[beam + 1]
        inside = biases[start:stop].copy()
        if ranking != ROWS:
            inside[:] = 0
        logits = inside.copy()
        highest: float = np.float64(logits.max())
        if call_index[beam] >= 0:
            own_codes = np.empty((stop - start, num_masked), np.uint16)
            _gather(codes, rows[start:stop], positions[call_index[beam]], num_masked, own_codes)
            own_log_probs = log_probs[call_index[beam]]
            highest = _row_logits(own_codes, inside, own_log_probs, num_masked, logits)
        if not highest > -np.inf:
            continue
        mass = 0.0
        for logit in logits:
            mass += np.exp(np.float64(logit) - highest)
        shift = beam_scores[beam] - highest - np.log(mass)
        for i in range(stop - start):
            outside = biases[start + i] - inside[i]
            scores[start + i] = logits[i] + shift + outside
    return scores


@compiled
def _gather(
    codes: Codes, rows: Rows, positions: Integers, num_masked: int, own_codes: Codes
) -> None:
    """Fill in the rows' codes at the masked positions, (n, num_masked): later passes read these."""
    last = len(rows) - 1
    for i in range(len(rows)):
        prefetch(codes, np.int64(rows[min(i + ROWS_AHEAD, last)]))
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
    child_of_row: NDArray[np.int32],
    num_codes: int,
    ranking: int,
) -> Beams:
    """The kept children as beams, in the order given, with their survivors.

    child_of_row: (survivors,), or empty where children are the codes of one position
    """
    by_code_alone = len(child_of_row) < len(beams.rows)
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

    new_beam = np.empty(len(rows), np.int32)  # per survivor, filled in for parents of children
    new_starts = np.zeros(len(kept) + 1, np.int64)
    of_code = np.full(num_codes if by_code_alone else 0, -1, np.int32)
    for parent in range(len(sids)):
        if not is_parent[parent]:
            continue
        if by_code_alone:
            position = chosen[parent, 0]
            for beam in range(len(kept)):
                if child_parent[kept[beam]] == parent:
                    of_code[new_sids[beam, position]] = beam
            last = starts[parent + 1] - 1
            for i in range(starts[parent], starts[parent + 1]):
                prefetch(codes, np.int64(rows[min(i + ROWS_AHEAD, last)]))
                new_beam[i] = of_code[codes[rows[i], position]]
                if new_beam[i] >= 0:
                    new_starts[new_beam[i] + 1] += 1
            for beam in range(len(kept)):
                of_code[new_sids[beam, position]] = -1
        else:
            for i in range(starts[parent], starts[parent + 1]):
                new_beam[i] = beam_of_child[child_of_row[i]]
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
    call_index, num_undecided = number_undecided(codes, new_starts, new_rows, ranking == ROWS)
    return Beams(new_sids, new_scores, new_starts, new_rows, new_biases, call_index, num_undecided)
