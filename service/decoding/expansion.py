"""One decode step of one job: its beams choose positions, and their best children are kept.

Everything is a pass over the survivors. What a child is worth is the ranking's affair:

PATH  the log-probs of its filled positions (MDGR Eq. 20-22)
BEST  those, and of its rows' completions the best: what it can still become
ROWS  the log-probability that one of its rows is the next item: a row's logit is the sum of its
      log-probs at masked positions and its bias, a softmax over the beam's rows shares out the
      beam's probability, and a child has that of its rows

log_probs: (beams, n, num_codes) float32    positions: (beams, n) int64, see `Denoiser.denoise`
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding import heap
from service.decoding.beams import Beams
from service.decoding.compiled import compiled
from service.decoding.job import Floats, Rows
from service.decoding.softmax import exponentials

PATH, BEST, ROWS = 0, 1, 2  # rankings
LEGAL, RAW, DRAWN = 0, 1, 2  # confidences
UNDERFLOW = 1e-30  # masses below it are summed again, from their own highest term

Codes = NDArray[np.uint16]
Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]


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
    sids, beam_scores, starts, rows, biases = beams
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

    most = 0
    for beam in range(num_beams):
        most = max(most, starts[beam + 1] - starts[beam])
    table = np.full(num_codes if width == 1 else _power_of_two(2 * most), -1, np.int32)
    logits = np.empty(0 if ranking == PATH else most, np.float32)
    weights = np.empty(most if ranking == ROWS else 0, np.float32)
    sums = np.zeros((num_subspaces, num_codes), np.float64)
    first = np.full((num_subspaces, num_codes), -1, np.int64)
    chosen = np.empty((num_beams, width), np.int64)
    slots = np.empty((num_beams, width), np.int64)  # the chosen positions' places in `positions`
    sureness = np.empty(num_subspaces, np.float64)
    kept_scores, kept = np.empty(beam_width, np.float64), np.empty(beam_width, np.int64)
    num_kept = 0

    for beam in range(num_beams):
        here, asked = log_probs[beam], positions[beam]
        own = rows[starts[beam] : starts[beam + 1]]
        num_masked = 0
        for position in range(num_subspaces):
            num_masked += sids[beam, position] == num_codes
        highest, mass = 0.0, 1.0
        if ranking != PATH:
            of_own = logits[: len(own)]
            highest = _row_logits(
                codes, own, biases[starts[beam] : starts[beam + 1]], here, asked, num_masked, of_own
            )
            if ranking == ROWS:
                mass = exponentials(of_own, highest, weights)

        if confidence == DRAWN:
            for place in range(num_masked):
                sureness[place] = drawn[beam, asked[place]]
        elif confidence == RAW:
            for place in range(num_masked):
                sureness[place] = here[place].max()
        elif ranking == ROWS:
            _sureness_of_rows(codes, own, weights, asked, num_masked, sums, sureness)
        else:
            _sureness_of_codes(
                codes, own, num_legal, here, asked, num_masked, first, starts[beam], sureness
            )
        _choose(sureness, num_masked, slots[beam])
        for choice in range(width):
            chosen[beam, choice] = asked[slots[beam, choice]]

        before = num_children
        if lazy:
            place, position = slots[beam, 0], chosen[beam, 0]
            _first_of_codes(codes, own, num_legal, position, first[place], starts[beam])
            for code in range(num_codes):
                if first[place, code] >= starts[beam]:
                    child_first[num_children] = first[place, code]
                    child_score[num_children] = beam_scores[beam] + here[place, code]
                    child_parent[num_children] = beam
                    num_children += 1
        else:
            of_own_child = child_of[starts[beam] : starts[beam + 1]]
            if width == 1:
                num_children = _group_by_code(
                    codes,
                    own,
                    chosen[beam, 0],
                    table,
                    child_first,
                    of_own_child,
                    before,
                    starts[beam],
                )
            else:
                num_children = _group_by_tuple(
                    codes,
                    own,
                    chosen[beam],
                    table[: _power_of_two(2 * len(own))],
                    child_first,
                    of_own_child,
                    before,
                    starts[beam],
                )
            for child in range(before, num_children):
                child_parent[child] = beam
                child_score[child] = beam_scores[beam]
                row = rows[child_first[child]]
                for choice in range(width):
                    code = codes[row, chosen[beam, choice]]
                    child_score[child] += here[slots[beam, choice], code]
        worth = child_score[before:num_children]
        if ranking != PATH:
            worth = np.full(num_children - before, 0.0 if ranking == ROWS else -np.inf)
            for i in range(len(own)):
                child = child_of[starts[beam] + i] - before
                if ranking == ROWS:
                    worth[child] += weights[i]
                else:
                    worth[child] = max(worth[child], np.float64(logits[i]))
            for child in range(len(worth)):
                if ranking == BEST:
                    worth[child] += beam_scores[beam]
                    continue
                if worth[child] > UNDERFLOW:
                    worth[child] = np.log(worth[child])
                else:
                    worth[child] = _log_sum(
                        logits, child_of[starts[beam] : starts[beam + 1]], before + child, highest
                    )
                worth[child] += beam_scores[beam] - np.log(mass)
                child_score[before + child] = worth[child]
        for child in range(before, num_children):
            number = child_first[child] * capacity + child  # the first row decides ties
            num_kept = heap.push(kept_scores, kept, num_kept, worth[child - before], number)
    heap.sort(kept_scores, kept, num_kept)
    kept = kept[:num_kept] % capacity
    return _children(codes, beams, chosen, kept, child_first, child_parent, child_score, child_of)


@compiled
def best_survivors(
    codes: Codes, beams: Beams, log_probs: Floats, positions: Integers, k: int, ranking: int
) -> tuple[Rows, Floats]:
    """The k best survivors once every masked position is filled, best first, ties by row."""
    sids, beam_scores, starts, rows, biases = beams
    num_codes = log_probs.shape[2]
    capacity = min(k, len(rows))
    scores, numbers = np.empty(capacity, np.float64), np.empty(capacity, np.int64)
    size = 0
    for beam in range(len(sids)):
        own = rows[starts[beam] : starts[beam + 1]]
        num_masked = 0
        for position in range(sids.shape[1]):
            num_masked += sids[beam, position] == num_codes
        logits = np.empty(len(own), np.float32)
        highest = _row_logits(
            codes,
            own,
            biases[starts[beam] : starts[beam + 1]],
            log_probs[beam],
            positions[beam],
            num_masked,
            logits,
        )
        shift = beam_scores[beam]
        if ranking == ROWS:
            mass = 0.0
            for logit in logits:
                mass += np.exp(np.float64(logit) - highest)
            shift -= highest + np.log(mass)
        for i in range(len(own)):
            size = heap.push(scores, numbers, size, logits[i] + shift, own[i])
    heap.sort(scores, numbers, size)
    return numbers[:size].astype(np.int32), scores[:size].astype(np.float32)


@compiled
def _row_logits(
    codes: Codes,
    rows: Rows,
    biases: Floats,
    log_probs: Floats,
    positions: Integers,
    num_masked: int,
    logits: Floats,
) -> float:
    """Fill in each row's bias + log-probs at the masked positions; returns the highest."""
    highest = np.float32(-np.inf)
    for i in range(len(rows)):
        total = biases[i]
        for place in range(num_masked):
            total += log_probs[place, codes[rows[i], positions[place]]]
        logits[i] = total
        highest = max(highest, total)
    return np.float64(highest)


@compiled
def _sureness_of_rows(
    codes: Codes,
    rows: Rows,
    weights: Floats,
    positions: Integers,
    num_masked: int,
    sums: Doubles,
    sureness: Doubles,
) -> None:
    """Of each masked position: the largest share of the beam's probability that one code has.

    sums: (num_subspaces, num_codes) zeros, and zeros again afterwards
    """
    for i in range(len(rows)):
        for place in range(num_masked):
            sums[place, codes[rows[i], positions[place]]] += weights[i]
    for place in range(num_masked):
        of_place, position = sums[place], positions[place]
        only, most = True, 0.0
        for i in range(len(rows)):
            code = codes[rows[i], position]
            only &= code == codes[rows[0], position]
            most = max(most, of_place[code])
        for i in range(len(rows)):
            of_place[codes[rows[i], position]] = 0
        sureness[place] = -np.inf if only else most


@compiled
def _sureness_of_codes(
    codes: Codes,
    rows: Rows,
    num_legal: Integers,
    log_probs: Floats,
    positions: Integers,
    num_masked: int,
    first: Integers,
    start: int,
    sureness: Doubles,
) -> None:
    """Of each masked position: the log-probability of its most probable legal code, among those.

    first: (num_subspaces, num_codes), below `start` where nothing was found yet
    """
    for place in range(num_masked):
        position = positions[place]
        found = _first_of_codes(codes, rows, num_legal, position, first[place], start)
        highest, mass = -np.inf, 0.0
        for code in range(log_probs.shape[1]):
            if first[place, code] >= start:
                highest = max(highest, np.float64(log_probs[place, code]))
        for code in range(log_probs.shape[1]):
            if first[place, code] >= start:
                mass += np.exp(log_probs[place, code] - highest)
        sureness[place] = -np.inf if found == 1 else -np.log(mass)


@compiled
def _first_of_codes(
    codes: Codes, rows: Rows, num_legal: Integers, position: int, first: Integers, start: int
) -> int:
    """Note the first row of every code at a position, as start + index; how many codes there are.

    first: (num_codes,), below `start` where nothing was found yet. Stops when no code is left.
    """
    found = 0
    for code in range(len(first)):
        found += first[code] >= start
    if found:  # this position was looked at before
        return found
    for i in range(len(rows)):
        code = codes[rows[i], position]
        if first[code] < start:
            first[code] = start + i
            found += 1
            if found == num_legal[position]:
                break
    return found


@compiled
def _choose(sureness: Doubles, num_masked: int, slots: Integers) -> None:
    """The surest masked positions, the lower ones of equals; ascending."""
    taken = np.zeros(num_masked, np.bool_)
    for _ in range(len(slots)):
        best = -1
        for place in range(num_masked):
            if not taken[place] and (best < 0 or sureness[place] > sureness[best]):
                best = place
        taken[best] = True
    found = 0
    for place in range(num_masked):
        if taken[place]:
            slots[found] = place
            found += 1


@compiled
def _group_by_code(
    codes: Codes,
    own: Rows,
    position: int,
    table: NDArray[np.int32],
    child_first: Integers,
    child_of: NDArray[np.int32],
    num_children: int,
    start: int,
) -> int:
    """Group a beam's rows by their code at a position; the new number of children.

    table: (num_codes,) the child of each code; all -1, and all -1 again afterwards
    """
    for i in range(len(own)):
        code = codes[own[i], position]
        child = table[code]
        if child < 0:
            child = num_children
            table[code] = child
            child_first[child] = start + i
            num_children += 1
        child_of[i] = child
    for i in range(len(own)):
        table[codes[own[i], position]] = -1
    return num_children


@compiled
def _group_by_tuple(
    codes: Codes,
    own: Rows,
    chosen: Integers,
    table: NDArray[np.int32],
    child_first: Integers,
    child_of: NDArray[np.int32],
    num_children: int,
    start: int,
) -> int:
    """The same by the codes at several positions.

    table: open addressing of children, its length a power of two; all -1, and so again afterwards
    """
    mask = np.uint64(len(table) - 1)
    for i in range(len(own)):
        row = own[i]
        at = _hash(codes, row, chosen) & mask
        while True:
            child = table[at]
            if child < 0:
                child = num_children
                table[at] = child
                child_first[child] = start + i
                num_children += 1
                break
            other = own[child_first[child] - start]
            same = True
            for position in chosen:
                same &= codes[row, position] == codes[other, position]
            if same:
                break
            at = (at + np.uint64(1)) & mask
        child_of[i] = child
    table[:] = -1
    return num_children


@compiled
def _hash(codes: Codes, row: int, chosen: Integers) -> np.uint64:
    hashed = np.uint64(0)
    for position in chosen:
        hashed = (hashed ^ np.uint64(codes[row, position])) * np.uint64(0x9E3779B97F4A7C15)
    return hashed >> np.uint64(32)


@compiled
def _log_sum(logits: Floats, child_of: NDArray[np.int32], child: int, highest: float) -> float:
    """log sum exp(logit - highest) over a child's rows, however small."""
    own = -np.inf
    for i in range(len(child_of)):
        if child_of[i] == child:
            own = max(own, np.float64(logits[i]))
    total = 0.0
    for i in range(len(child_of)):
        if child_of[i] == child:
            total += np.exp(np.float64(logits[i]) - own)
    return float(own - highest + np.log(total))


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
) -> Beams:
    """The kept children as beams, in the order given, with their survivors.

    child_of: (survivors,), or of no length where children are the codes of one position
    """
    lazy = len(child_of) < len(beams.rows)
    sids, _, starts, rows, biases = beams
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
    of_code = np.full(65536 if lazy else 0, -1, np.int32)
    for parent in range(len(sids)):
        if not is_parent[parent]:
            continue
        if lazy:
            position = chosen[parent, 0]
            for beam in range(len(kept)):
                if child_parent[kept[beam]] == parent:
                    of_code[new_sids[beam, position]] = beam
            for i in range(starts[parent], starts[parent + 1]):
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
    return Beams(new_sids, new_scores, new_starts, new_rows, new_biases)


@compiled
def _power_of_two(least: int) -> int:
    power = 2
    while power < least:
        power *= 2
    return power
