"""The steps of a search for several items: beams choose positions over all slots, and are expanded.

A slot is the place of an item in the sequence. In each slot, the rows that agree with its partial
SID are narrowed as in the search for one item; what a step fills in several slots is combined by
`combinations`, so the items of a beam can always be different. Beams are ranked by path: the sum of
the log-probs of filled positions; rows gain their biases when the last step chooses among them.

codes: (num_items, L) uint16    indptr, postings: those of the trie
log_probs: (beams, n, num_codes) float32    positions: (beams, n) int64, over all slots; place is
an index into these    L: num_subspaces
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Codes, Doubles, Floats, Integers, Rows
from service.decoding.loops import compiled, heap
from service.decoding.search.beams import SequenceBeams
from service.decoding.search.rows.grouping import group_by_tuple, power_of_two
from service.decoding.search.rows.order import (
    DRAWN,
    LEFT_TO_RIGHT,
    RAW,
    certainty_of_legal,
    certainty_of_log_probs,
    choose_positions,
)
from service.decoding.search.sequences.combinations import Few, best_combinations
from service.decoding.search.sequences.slots import (
    AllowedRows,
    SlotBiases,
    is_all_masked,
    places_of,
    rows_of,
)


class _Candidates(NamedTuple):
    """The candidates of each slot, see `combinations`. rows: (slots, most) int32, the first rows"""

    scores: Doubles
    lengths: Integers
    sizes: Integers
    few: Few
    rows: Rows


@compiled
def expand_sequences(
    codes: Codes,
    indptr: Integers,
    postings: Rows,
    allowed: AllowedRows,
    beams: SequenceBeams,
    log_probs: Floats,
    positions: Integers,
    width: int,
    beam_width: int,
    order: int,
    drawn: Floats,
) -> SequenceBeams:
    """The best `beam_width` children of all beams, best first.

    width: positions that each beam fills, fewer than it has masked
    order: one of those in `rows.order`    drawn: (beams, horizon * L), read if the order is DRAWN
    """
    num_beams, num_positions = beams.sids.shape
    num_codes = log_probs.shape[2]
    horizon = num_positions // codes.shape[1]
    capacity = num_beams * beam_width
    child_parent = np.empty(capacity, np.int64)
    child_rows = np.empty((capacity, horizon), np.int32)  # a row of each slot's set
    child_score = np.empty(capacity, np.float64)
    num_children = 0
    chosen = np.empty((num_beams, width), np.int64)
    places = np.empty(width, np.int64)
    certainties = np.empty(num_positions, np.float64)
    kept_scores, kept = np.empty(beam_width, np.float64), np.empty(beam_width, np.int64)
    num_kept = 0
    totals, ranks = np.empty(beam_width, np.float64), np.empty((beam_width, horizon), np.int64)
    candidates = _no_candidates(horizon, beam_width)
    num_masked = int(np.count_nonzero(beams.sids[0] == num_codes))  # the same for every beam
    for beam in range(num_beams):
        floor = kept_scores[0] if num_kept == beam_width else -np.inf
        own_log_probs, own_positions = log_probs[beam], positions[beam]
        _fill_certainties(
            codes,
            allowed,
            beams,
            beam,
            own_log_probs,
            own_positions[:num_masked],
            order,
            drawn,
            certainties,
        )
        choose_positions(certainties, num_masked, places)
        for choice in range(width):
            chosen[beam, choice] = own_positions[places[choice]]
        for slot in range(horizon):
            _fill_candidates(
                codes,
                indptr,
                postings,
                allowed,
                beams,
                beam,
                slot,
                own_log_probs,
                places,
                chosen[beam],
                candidates,
            )
        num_found = best_combinations(
            candidates.scores,
            candidates.lengths,
            candidates.sizes,
            candidates.few,
            beams.scores[beam],
            floor,
            totals,
            ranks,
        )
        for found in range(num_found):
            child_parent[num_children] = beam
            child_score[num_children] = totals[found]
            for slot in range(horizon):
                child_rows[num_children, slot] = candidates.rows[slot, ranks[found, slot]]
            num_kept = heap.push(kept_scores, kept, num_kept, totals[found], num_children)
            num_children += 1
    heap.sort(kept_scores, kept, num_kept)
    kept = kept[:num_kept]
    return _children(
        codes,
        indptr,
        postings,
        allowed.is_allowed,
        beams,
        chosen,
        child_parent[kept],
        child_rows[kept],
        child_score[kept],
        num_codes,
    )


@compiled
def best_sequences(
    codes: Codes,
    allowed: AllowedRows,
    biases: SlotBiases,
    beams: SequenceBeams,
    log_probs: Floats,
    positions: Integers,
    k: int,
) -> tuple[Rows, Floats]:
    """The k best sequences of different rows once every masked position is filled, best first.

    Returns rows (n, horizon) int32 and scores (n,) float32.
    """
    num_beams, num_positions = beams.sids.shape
    num_subspaces, num_codes = codes.shape[1], log_probs.shape[2]
    horizon = num_positions // num_subspaces
    num_masked = int(np.count_nonzero(beams.sids[0] == num_codes))
    found_rows = np.empty((num_beams * k, horizon), np.int32)
    best_scores, best = np.empty(k, np.float64), np.empty(k, np.int64)
    size, num_sequences = 0, 0
    totals, ranks = np.empty(k, np.float64), np.empty((k, horizon), np.int64)
    candidates = _no_candidates(horizon, k)
    candidates.sizes[:] = 1
    most = candidates.scores.shape[1]
    slot_scores, slot_rows = np.empty(most, np.float64), np.empty(most, np.int64)
    for beam in range(num_beams):
        floor = best_scores[0] if size == k else -np.inf
        for slot in range(horizon):
            own = rows_of(allowed.rows, beams, beam, slot, num_subspaces, num_codes)
            begin, end = places_of(positions[beam, :num_masked], slot, num_subspaces)
            next_bias = np.searchsorted(biases.rows, own[0]) if len(own) else 0
            length = 0
            for row in own:
                score = 0.0
                while next_bias < len(biases.rows) and biases.rows[next_bias] < row:
                    next_bias += 1
                if next_bias < len(biases.rows) and biases.rows[next_bias] == row:
                    score += biases.values[slot, next_bias]
                for place in range(begin, end):
                    position = positions[beam, place] % num_subspaces
                    score += log_probs[beam, place, codes[row, position]]
                if score > -np.inf:  # not nan either
                    length = heap.push(slot_scores, slot_rows, length, score, row)
            heap.sort(slot_scores, slot_rows, length)
            candidates.lengths[slot] = length
            candidates.scores[slot, :length] = slot_scores[:length]
            for place in range(length):
                candidates.rows[slot, place] = slot_rows[place]
                candidates.few[slot, place, 0] = slot_rows[place]
        num_found = best_combinations(
            candidates.scores,
            candidates.lengths,
            candidates.sizes,
            candidates.few,
            beams.scores[beam],
            floor,
            totals,
            ranks,
        )
        for found in range(num_found):
            for slot in range(horizon):
                found_rows[num_sequences, slot] = candidates.rows[slot, ranks[found, slot]]
            size = heap.push(best_scores, best, size, totals[found], num_sequences)
            num_sequences += 1
    heap.sort(best_scores, best, size)
    return found_rows[best[:size]], best_scores[:size].astype(np.float32)


@compiled
def _no_candidates(horizon: int, wanted: int) -> _Candidates:
    """Room for as many candidates of each slot as `wanted` combinations can need.

    A candidate that is worse than these cannot be among them: any better one could take its place,
    except those that share one of the few rows of another slot.
    """
    most = wanted + horizon * horizon
    return _Candidates(
        np.empty((horizon, most), np.float64),
        np.zeros(horizon, np.int64),
        np.zeros((horizon, most), np.int64),
        np.zeros((horizon, most, horizon), np.int32),
        np.zeros((horizon, most), np.int32),
    )


@compiled
def _fill_certainties(
    codes: Codes,
    allowed: AllowedRows,
    beams: SequenceBeams,
    beam: int,
    log_probs: Floats,
    positions: Integers,
    order: int,
    drawn: Floats,
    certainties: Doubles,
) -> None:
    """The certainty of each masked position, by place; legal codes are those of the slot's rows."""
    num_subspaces, num_codes = codes.shape[1], log_probs.shape[1]
    scratch = np.empty(num_codes + 1, np.float32)
    seen = np.full(num_codes, -1, np.int64)
    for place in range(len(positions)):
        slot, position = positions[place] // num_subspaces, positions[place] % num_subspaces
        if order == DRAWN:
            certainties[place] = drawn[beam, positions[place]]
        elif order == LEFT_TO_RIGHT:
            certainties[place] = -place
        elif order == RAW:
            certainties[place] = log_probs[place].max()
        elif is_all_masked(beams, beam, slot, num_subspaces, num_codes):
            certainties[place] = certainty_of_legal(
                log_probs[place], allowed.first[position], 0, order, scratch
            )
        else:
            num_legal = 0
            for i in range(beams.starts[beam, slot], beams.stops[beam, slot]):
                code = codes[beams.rows[i], position]
                if seen[code] != place:
                    seen[code] = place
                    scratch[num_legal] = log_probs[place, code]
                    num_legal += 1
            certainties[place] = certainty_of_log_probs(scratch[:num_legal], order)


@compiled
def _fill_candidates(
    codes: Codes,
    indptr: Integers,
    postings: Rows,
    allowed: AllowedRows,
    beams: SequenceBeams,
    beam: int,
    slot: int,
    log_probs: Floats,
    places: Integers,
    chosen: Integers,
    candidates: _Candidates,
) -> None:
    """Fill in a slot's candidates: its rows, grouped by their codes at the chosen positions there.

    places, chosen: (width,) of the beam's choice over all slots, ascending
    """
    num_subspaces, num_codes = codes.shape[1], log_probs.shape[1]
    scores, lengths, sizes, few, rows = candidates
    horizon, most = scores.shape
    own = rows_of(allowed.rows, beams, beam, slot, num_subspaces, num_codes)
    begin, end = places_of(chosen, slot, num_subspaces)
    width = end - begin
    if width == 0:  # one candidate: the slot as it is
        lengths[slot], scores[slot, 0] = 1, 0.0
        sizes[slot, 0] = min(len(own), horizon)
        few[slot, 0, : sizes[slot, 0]] = own[: sizes[slot, 0]]
        rows[slot, 0] = own[0]
        return
    best_scores, best = np.empty(most, np.float64), np.empty(most, np.int64)
    size = 0
    if width == 1 and is_all_masked(beams, beam, slot, num_subspaces, num_codes):
        position = chosen[begin] % num_subspaces
        for code in range(num_codes):
            score: float = np.float64(log_probs[places[begin], code])
            if allowed.first[position, code] >= 0 and score > -np.inf:
                number = allowed.first[position, code]
                size = heap.push(best_scores, best, size, score, number)
        heap.sort(best_scores, best, size)
        for place in range(size):
            code = codes[best[place], position]
            rows[slot, place] = best[place]
            sizes[slot, place] = min(allowed.counts[position, code], horizon)
            found, i = 0, indptr[position, code]
            while found < sizes[slot, place]:
                if allowed.is_allowed[postings[position, i]]:
                    few[slot, place, found] = postings[position, i]
                    found += 1
                i += 1
    else:
        own_codes = np.empty((len(own), width), np.uint16)
        for i in range(len(own)):
            for choice in range(width):
                own_codes[i, choice] = codes[own[i], chosen[begin + choice] % num_subspaces]
        table = np.full(power_of_two(2 * len(own)), -1, np.int32)
        firsts, group_of_row = np.empty(len(own), np.int64), np.empty(len(own), np.int32)
        num_groups = group_by_tuple(own_codes, np.arange(width), table, firsts, group_of_row)
        for group in range(num_groups):
            score = 0.0
            for choice in range(width):
                score += log_probs[places[begin + choice], own_codes[firsts[group], choice]]
            if score > -np.inf:  # not nan either
                size = heap.push(best_scores, best, size, score, group)
        heap.sort(best_scores, best, size)
        place_of = np.full(num_groups, -1, np.int64)
        for place in range(size):
            place_of[best[place]] = place
            rows[slot, place] = own[firsts[best[place]]]
            sizes[slot, place] = 0
        for i in range(len(own)):
            place = place_of[group_of_row[i]]
            if place >= 0 and sizes[slot, place] < horizon:
                few[slot, place, sizes[slot, place]] = own[i]
                sizes[slot, place] += 1
    lengths[slot] = size
    scores[slot, :size] = best_scores[:size]


@compiled
def _children(
    codes: Codes,
    indptr: Integers,
    postings: Rows,
    is_allowed: NDArray[np.bool_],
    beams: SequenceBeams,
    chosen: Integers,
    parents: Integers,
    child_rows: Rows,
    child_scores: Doubles,
    num_codes: int,
) -> SequenceBeams:
    """The children as beams, with the rows of each slot.

    chosen: (beams, width) of the parents    child_rows: (children, horizon), a row of each slot
    """
    num_subspaces = codes.shape[1]
    num_children, horizon = child_rows.shape
    sids = np.empty((num_children, horizon * num_subspaces), np.uint16)
    starts, stops = np.zeros((2, num_children, horizon), np.int64)
    rows = np.empty(1024, np.int32)
    size = 0
    for child in range(num_children):
        parent = parents[child]
        sids[child] = beams.sids[parent]
        for slot in range(horizon):
            begin, end = places_of(chosen[parent], slot, num_subspaces)
            was_all_masked = is_all_masked(beams, parent, slot, num_subspaces, num_codes)
            if begin == end and was_all_masked:
                continue
            row = child_rows[child, slot]
            for choice in range(begin, end):
                position = chosen[parent, choice]
                sids[child, position] = codes[row, position % num_subspaces]
            if was_all_masked:
                first = chosen[parent, begin] % num_subspaces
                code = codes[row, first]
                source = postings[first, indptr[first, code] : indptr[first, code + 1]]
            else:
                source = beams.rows[beams.starts[parent, slot] : beams.stops[parent, slot]]
            if size + len(source) > len(rows):
                wider = np.empty(2 * (size + len(source)), np.int32)
                wider[:size] = rows[:size]
                rows = wider
            starts[child, slot] = size
            for other in source:
                agrees = is_allowed[other]
                for choice in range(begin, end):
                    position = chosen[parent, choice] % num_subspaces
                    agrees &= codes[other, position] == codes[row, position]
                rows[size] = other
                size += agrees
            stops[child, slot] = size
    return SequenceBeams(sids, child_scores, starts, stops, rows[:size].copy())
