"""The second step, ranked by path, from posting lists: few of their rows are read.

The table of pairs says which codes a beam's rows have at other positions. So positions are chosen
without reading rows. If the step fills one position, the table gives the children and their scores
too. Only the children that are kept get rows: two posting lists are intersected. If the step fills
several positions, it scores every row, as the last step does, and passes the few that are good
enough to `expansion.expand`.

codes: (num_items, num_subspaces) uint16    indptr, postings: see `SidTrie`
log_probs: (beams, n, num_codes) float32    positions: (beams, n) int64, see `Denoiser.denoise`
slots: (beams, width) int64, a beam's chosen positions, as indices into its `positions`
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Codes, Doubles, Floats, Integers, Postings, Rows
from service.decoding.catalogue import Pairs, code_pairs
from service.decoding.loops import BLOCK, ROWS_AHEAD, compiled, heap, highest_of, prefetch
from service.decoding.search.beams import Beams, PostingListBeams, number_undecided
from service.decoding.search.posting_lists.scoring import (
    exclude_others,
    highest_sum,
    score_posting_list,
)
from service.decoding.search.rows.expansion import PATH, expand
from service.decoding.search.rows.order import (
    DRAWN,
    LEFT_TO_RIGHT,
    RAW,
    certainty_of_legal,
    choose_positions,
)

MAX_COUNT = code_pairs.MAX_COUNT
LOWEST = -float(np.finfo(np.float64).max)
SLACK = 1e-4  # relative to a score: sums in float32 differ by less from sums in float64


@compiled
def expand_posting_lists(
    codes: Codes,
    indptr: Integers,
    postings: Postings,
    pairs: Pairs,
    num_legal: Integers,
    beams: PostingListBeams,
    log_probs: Floats,
    positions: Integers,
    width: int,
    beam_width: int,
    order: int,
    drawn: Floats,
) -> Beams:
    """The result of `expansion.expand` for the same beams, ranked by path.

    pairs: the table of `code_pairs`. At most 254 rows may be excluded, beside those that a filter
    does not allow: a count of 255 may stand for any larger number.
    """
    num_beams, num_places = len(beams.sids), beams.sids.shape[1] - 1
    legal = _legal_codes(codes, postings, pairs, beams)
    certainties = np.empty(num_places, np.float64)
    scratch = np.empty(log_probs.shape[2] + 1, np.float32)
    slots = np.empty((num_beams, width), np.int64)
    for beam in range(num_beams):
        own_log_probs, own_positions = log_probs[beam], positions[beam]
        for place in range(num_places):
            if order == DRAWN:
                certainties[place] = drawn[beam, own_positions[place]]
            elif order == LEFT_TO_RIGHT:
                certainties[place] = -place
            elif order == RAW:
                certainties[place] = own_log_probs[place].max()
            else:
                certainties[place] = certainty_of_legal(
                    own_log_probs[place], legal[beam, own_positions[place]], 1, order, scratch
                )
        choose_positions(certainties, num_places, slots[beam])
    if width == 1:
        found = _children_of_one_code(
            codes, indptr, postings, beams, legal, log_probs, positions, slots[:, 0], beam_width
        )
        return found
    few = _good_enough(codes, postings, beams, log_probs, positions, slots, beam_width)
    chosen = np.zeros(beams.sids.shape, np.float32)
    for beam in range(num_beams):
        for slot in slots[beam]:
            chosen[beam, positions[beam, slot]] = 1
    return expand(
        codes, num_legal, few, log_probs, positions, width, beam_width, PATH, DRAWN, chosen
    )


@compiled
def _legal_codes(codes: Codes, postings: Postings, pairs: Pairs, beams: PostingListBeams) -> Pairs:
    """(beams, num_subspaces, num_codes) uint8: 0 for the codes that none of a beam's rows has.

    Without a filter, excluded rows are subtracted from the table; at most 254 are excluded, so 255
    never becomes 0. With a filter, the rows that it allows are counted, or those that it does not
    allow, whichever are fewer.
    """
    num_subspaces, num_codes = pairs.shape[:2]
    legal = np.empty((len(beams.sids), num_subspaces, num_codes), np.uint8)
    longest = 0
    for beam in range(len(beams.sids)):
        longest = max(longest, beams.stops[beam] - beams.starts[beam])
    own = np.empty(longest + 1 if len(beams.allowed) else 0, np.int32)
    counts = np.empty((num_subspaces, num_codes), np.int64)
    for beam in range(len(beams.sids)):
        of_beam = pairs[beams.position, beams.sids[beam, beams.position]]
        legal[beam] = of_beam
        begin, end = beams.bias_starts[beam], beams.bias_starts[beam + 1]
        excluded, biases = beams.biased_rows[begin:end], beams.biases[begin:end]
        if not len(beams.allowed):
            for i in range(len(excluded)):
                if biases[i] == -np.inf:
                    for position in range(num_subspaces):
                        legal[beam, position, codes[excluded[i], position]] -= np.uint8(1)
            continue
        rows = postings[beams.position, beams.starts[beam] : beams.stops[beam]]
        num_own = _with_bit(rows, beams.allowed, 1, own)
        if 2 * num_own > len(rows):
            _count(codes, own[: _with_bit(rows, beams.allowed, 0, own)], counts)
            _count_excluded(codes, excluded, biases, beams.allowed, 1, counts)
            num_unknown = 0
            for position in range(num_subspaces):
                for code in range(num_codes):
                    have, gone = np.int64(of_beam[position, code]), counts[position, code]
                    is_legal = have > gone
                    if have == MAX_COUNT and gone >= MAX_COUNT:  # it may stand for more
                        num_unknown += 1
                    legal[beam, position, code] = is_legal
            if not num_unknown:
                continue
            num_own = _with_bit(rows, beams.allowed, 1, own)
        _count(codes, own[:num_own], counts)
        _count_excluded(codes, excluded, biases, beams.allowed, -1, counts)
        for position in range(num_subspaces):
            for code in range(num_codes):
                legal[beam, position, code] = counts[position, code] > 0
    return legal


@compiled
def _with_bit(rows: Rows, allowed: NDArray[np.uint64], bit: int, found: Rows) -> int:
    """Fill in those of the rows that are allowed (bit 1) or not (0); returns how many.

    allowed: see `PostingListBeams`    found: one longer than the rows, as the last is overwritten
    """
    one, low, wanted = np.uint64(1), np.uint64(63), np.uint64(bit)
    num_found = 0
    for i in range(len(rows)):
        row = np.uint64(rows[i])
        found[num_found] = rows[i]
        num_found += int(((allowed[row >> np.uint64(6)] >> (row & low)) & one) == wanted)
    return num_found


@compiled
def _count(codes: Codes, rows: Rows, counts: Integers) -> None:
    """Fill in how many of the rows have each code, (num_subspaces, num_codes)."""
    counts[:] = 0
    last = len(rows) - 1
    for i in range(len(rows)):
        prefetch(codes, np.int64(rows[min(i + ROWS_AHEAD, last)]))
        row = np.uint64(rows[i])
        for position in range(codes.shape[1]):
            counts[position, codes[row, np.uint64(position)]] += 1


@compiled
def _count_excluded(
    codes: Codes,
    rows: Rows,
    biases: Floats,
    allowed: NDArray[np.uint64],
    sign: int,
    counts: Integers,
) -> None:
    """Add those of the biased rows that the job excludes, though the filter allows them."""
    for i in range(len(rows)):
        row = np.uint64(rows[i])
        bit = (allowed[row >> np.uint64(6)] >> (row & np.uint64(63))) & np.uint64(1)
        if biases[i] == -np.inf and bit:
            for position in range(codes.shape[1]):
                counts[position, codes[row, np.uint64(position)]] += sign


@compiled
def _children_of_one_code(
    codes: Codes,
    indptr: Integers,
    postings: Postings,
    beams: PostingListBeams,
    legal: Pairs,
    log_probs: Floats,
    positions: Integers,
    slots: Integers,
    beam_width: int,
) -> Beams:
    """The best children that differ in one code, at each beam's chosen position. slots: (beams,)"""
    num_beams, num_codes = len(beams.sids), log_probs.shape[2]
    num_items = len(codes)
    child_scores = _scores_of_codes(beams, legal, log_probs, positions, slots)
    least = _least_score(child_scores, beam_width)

    # Room for the rows of all children that are good enough. Posting lists of one position share
    # no row, so a beam's children together have no more rows than the beam.
    capacity = 0
    for beam in range(num_beams):
        length, chosen = beams.stops[beam] - beams.starts[beam], positions[beam, slots[beam]]
        most = 0
        for code in range(num_codes):
            if child_scores[beam, code] >= least:
                most += min(length, indptr[chosen, code + 1] - indptr[chosen, code])
        capacity += min(length, most)
    rows = np.empty(capacity + 1, np.int32)  # one more: `_marked` also writes rows it drops
    child_starts = np.empty((num_beams, num_codes), np.int64)
    child_stops = np.empty((num_beams, num_codes), np.int64)
    is_own = np.zeros(num_items // 64 + 1, np.uint64)  # one bit per row
    most_kept = min(beam_width, num_beams * num_codes)
    kept_scores, kept = np.empty(most_kept, np.float64), np.empty(most_kept, np.int64)
    num_kept, found = 0, 0
    for beam in range(num_beams):
        if not child_scores[beam].max() >= least:
            continue
        own = postings[beams.position, beams.starts[beam] : beams.stops[beam]]
        begin, end = beams.bias_starts[beam], beams.bias_starts[beam + 1]
        _mark(is_own, own, beams.allowed, beams.biased_rows[begin:end], beams.biases[begin:end])
        chosen = positions[beam, slots[beam]]
        for code in range(num_codes):
            score = child_scores[beam, code]
            if not score >= least:
                continue
            if num_kept == most_kept and score == kept_scores[0] and kept[0] < beam * num_items:
                continue  # it ties with the worst that is kept, whose parent is better
            others = postings[chosen, indptr[chosen, code] : indptr[chosen, code + 1]]
            child_starts[beam, code] = found
            found = _marked(is_own, others, rows, found)
            child_stops[beam, code] = found
            number = beam * num_items + int(rows[child_starts[beam, code]])  # first row: ties
            num_kept = heap.push(kept_scores, kept, num_kept, score, number)
        for row in own:
            is_own[np.uint64(row) >> np.uint64(6)] = 0
    heap.sort(kept_scores, kept, num_kept)

    sids = np.empty((num_kept, codes.shape[1]), np.uint16)
    starts = np.zeros(num_kept + 1, np.int64)
    parents = kept[:num_kept] // num_items
    for child in range(num_kept):
        parent = parents[child]
        chosen = positions[parent, slots[parent]]
        code = codes[kept[child] % num_items, chosen]
        sids[child] = beams.sids[parent]
        sids[child, chosen] = code
        starts[child + 1] = starts[child] + child_stops[parent, code] - child_starts[parent, code]
    new_rows = np.empty(starts[-1], np.int32)
    for child in range(num_kept):
        parent = parents[child]
        code = sids[child, positions[parent, slots[parent]]]
        new_rows[starts[child] : starts[child + 1]] = rows[
            child_starts[parent, code] : child_stops[parent, code]
        ]
    biases = _biases_of(codes, beams, parents, sids, starts, new_rows)
    call_index, num_undecided = number_undecided(codes, starts, new_rows, False)
    return Beams(
        sids, kept_scores[:num_kept].copy(), starts, new_rows, biases, call_index, num_undecided
    )


@compiled
def _scores_of_codes(
    beams: PostingListBeams, legal: Pairs, log_probs: Floats, positions: Integers, slots: Integers
) -> Doubles:
    """(beams, num_codes) scores of children, -inf where the code is not legal.

    slots: (beams,)
    """
    num_beams, num_codes = len(beams.sids), log_probs.shape[2]
    scores = np.empty((num_beams, num_codes), np.float64)
    for beam in range(num_beams):
        own, own_log_probs = legal[beam, positions[beam, slots[beam]]], log_probs[beam, slots[beam]]
        for code in range(num_codes):
            score = beams.scores[beam] + own_log_probs[code]
            scores[beam, code] = score if own[code] > 0 and score > -np.inf else -np.inf  # no nan
    return scores


@compiled
def _least_score(scores: Doubles, beam_width: int) -> float:
    """The lowest score of a child that may be kept; the lowest finite number if all may be kept."""
    best = np.empty(min(beam_width, scores.size), np.float64)
    nothing = np.zeros(len(best), np.int64)
    size = 0
    for beam in range(len(scores)):
        for score in scores[beam]:
            if score > -np.inf and (size < len(best) or score > best[0]):
                size = heap.push(best, nothing, size, score, 0)
    return best[0] if size == len(best) else LOWEST


@compiled
def _mark(
    is_own: NDArray[np.uint64],
    own: Rows,
    allowed: NDArray[np.uint64],
    biased_rows: Rows,
    biases: Floats,
) -> None:
    """Set the bits of a beam's rows, except for excluded rows."""
    one, low = np.uint64(1), np.uint64(63)
    if len(allowed):
        for i in range(len(own)):
            row = np.uint64(own[i])
            is_own[row >> np.uint64(6)] |= (one << (row & low)) & allowed[row >> np.uint64(6)]
    else:
        for i in range(len(own)):
            row = np.uint64(own[i])
            is_own[row >> np.uint64(6)] |= one << (row & low)
    for i in range(len(biased_rows)):
        if biases[i] == -np.inf:
            row = np.uint64(biased_rows[i])
            is_own[row >> np.uint64(6)] &= ~(one << (row & low))


@compiled
def _marked(is_own: NDArray[np.uint64], others: Rows, rows: Rows, found: int) -> int:
    """Append those of the other rows whose bits are set; returns how many rows there are now.

    No branch depends on a bit: each row is written, and the next one overwrites it if its bit is 0.
    """
    one, low = np.uint64(1), np.uint64(63)
    for i in range(len(others)):
        row = np.uint64(others[i])
        rows[found] = others[i]
        found += int(np.int64((is_own[row >> np.uint64(6)] >> (row & low)) & one))
    return found


@compiled
def _biases_of(
    codes: Codes,
    beams: PostingListBeams,
    parents: Integers,
    sids: Codes,
    starts: Integers,
    rows: Rows,
) -> Floats:
    """The biases of the children's rows: those of their parents' biased rows, else 0."""
    biases = np.zeros(len(rows), np.float32)
    for child in range(len(parents)):
        own = rows[starts[child] : starts[child + 1]]
        begin, end = beams.bias_starts[parents[child]], beams.bias_starts[parents[child] + 1]
        for i in range(begin, end):
            at = np.searchsorted(own, beams.biased_rows[i])
            if at < len(own) and own[at] == beams.biased_rows[i]:
                biases[starts[child] + at] = beams.biases[i]
    return biases


@compiled
def _good_enough(
    codes: Codes,
    postings: Postings,
    beams: PostingListBeams,
    log_probs: Floats,
    positions: Integers,
    slots: Integers,
    beam_width: int,
) -> Beams:
    """The beams with only those rows that a kept child may have.

    A row is good enough if its codes at the chosen positions score as high as the last of the best
    `beam_width` tuples of codes, or higher. Rows of a beam with equal scores count as one tuple, so
    this limit is never too high.
    """
    num_beams, width = slots.shape
    lengths = beams.stops - beams.starts
    longest, total = lengths.max(), lengths.sum()
    capacity = min(beam_width, total)
    best, of_beams = np.empty(capacity, np.float64), np.empty(capacity, np.int64)
    rows, scores = np.empty(total, np.int32), np.empty(total, np.float64)
    own_log_probs, own_positions = (
        np.empty((width, log_probs.shape[2]), np.float32),
        np.empty(width, np.int64),
    )
    sums = np.empty(longest, np.float32)
    ends = np.empty(num_beams, np.int64)
    size, found = 0, 0
    least = -np.inf
    for beam in range(num_beams):
        for choice in range(width):
            own_log_probs[choice] = log_probs[beam, slots[beam, choice]]
            own_positions[choice] = positions[beam, slots[beam, choice]]
        ends[beam] = found
        shift = beams.scores[beam]
        if highest_sum(own_log_probs) + shift < least:
            continue
        own = postings[beams.position, beams.starts[beam] : beams.stops[beam]]
        score_posting_list(codes, own, own_log_probs, own_positions, slots[beam], sums)
        if len(beams.allowed):
            exclude_others(own, beams.allowed, sums)
        for i in range(beams.bias_starts[beam], beams.bias_starts[beam + 1]):
            if beams.biases[i] == -np.inf:
                sums[np.searchsorted(own, beams.biased_rows[i])] = -np.inf
        for start in range(0, len(own), BLOCK):
            block = sums[start : min(start + BLOCK, len(own))]
            if not highest_of(block) + shift >= least:
                continue
            for i in range(len(block)):
                score = block[i] + shift
                if not (score >= least and score > -np.inf):
                    continue
                rows[found], scores[found] = own[start + i], score
                found += 1
                if size == capacity and score <= best[0]:
                    continue
                place = 0
                while place < size and (best[place] != score or of_beams[place] != beam):
                    place += 1
                if place == size:  # this tuple is not among the best yet
                    size = heap.push(best, of_beams, size, score, beam)
                    if size == capacity:
                        least = best[0] - SLACK * (1 + abs(best[0]))
        ends[beam] = found

    left = 0
    starts = np.zeros(num_beams + 1, np.int64)
    begin = 0
    for beam in range(num_beams):
        for i in range(begin, ends[beam]):
            if scores[i] >= least:
                rows[left] = rows[i]
                left += 1
        begin = ends[beam]
        starts[beam + 1] = left
    parents = np.arange(num_beams)
    biases = _biases_of(codes, beams, parents, beams.sids, starts, rows[:left])
    call_index, num_undecided = number_undecided(codes, starts, rows, False)
    return Beams(
        beams.sids, beams.scores, starts, rows[:left].copy(), biases, call_index, num_undecided
    )
