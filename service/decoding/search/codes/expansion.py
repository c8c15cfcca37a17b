"""The second step, ranked by path, from posting lists: few of their rows can matter.

What codes a beam's rows have at other positions is in the table of pairs, so positions are chosen
without a look at rows. A step that fills one position then knows its children and their scores, and
only those that are kept get rows, by intersecting two posting lists. A step that fills several
scores every row, as the last one does, and leaves to `expansion.expand` the few that are good
enough.

codes: (num_items, num_subspaces) uint16    indptr, postings: see `SidTrie`
log_probs: (beams, n, num_codes) float32    positions: (beams, n) int64, see `Denoiser.denoise`
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Codes, Doubles, Floats, Integers, Postings, Rows
from service.decoding.catalogue import Pairs
from service.decoding.loops import BLOCK, compiled, heap, highest_of
from service.decoding.search.beams import Beams, CodeBeams
from service.decoding.search.codes.beams import highest_sum, score_postings
from service.decoding.search.decided_beams import in_next_call
from service.decoding.search.rows.confidence import choose, highest_legal
from service.decoding.search.rows.expansion import DRAWN, PATH, RAW, expand

LOWEST = -float(np.finfo(np.float64).max)
SLACK = 1e-4  # of a score: sums in float32 are nearer than that to sums in float64


@compiled
def expand_codes(
    codes: Codes,
    indptr: Integers,
    postings: Postings,
    pairs: Pairs,
    num_legal: Integers,
    beams: CodeBeams,
    log_probs: Floats,
    positions: Integers,
    width: int,
    beam_width: int,
    confidence: int,
    drawn: Floats,
) -> Beams:
    """What `expansion.expand` makes of the same beams, ranked by path.

    At most 254 rows may be excluded: a count of pairs says no more than that it is 255 or above.
    """
    num_beams, num_places = len(beams.sids), beams.sids.shape[1] - 1
    legal = _legal_codes(codes, pairs, beams)
    sureness = np.empty(num_places, np.float64)
    scratch = np.empty(log_probs.shape[2] + 1, np.float32)
    slots = np.empty((num_beams, width), np.int64)
    for beam in range(num_beams):
        here, asked = log_probs[beam], positions[beam]
        for place in range(num_places):
            if confidence == DRAWN:
                sureness[place] = drawn[beam, asked[place]]
            elif confidence == RAW:
                sureness[place] = here[place].max()
            else:
                sureness[place] = highest_legal(here[place], legal[beam, asked[place]], 1, scratch)
        choose(sureness, num_places, slots[beam])
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
def _legal_codes(codes: Codes, pairs: Pairs, beams: CodeBeams) -> Pairs:
    """(beams, num_subspaces, num_codes): how many of a beam's rows have each code, 255 = or more.

    Excluded rows are not counted; where there are 255 or more rows, some are left.
    """
    num_subspaces, num_codes = pairs.shape[:2]
    legal = np.empty((len(beams.sids), num_subspaces, num_codes), np.uint8)
    for beam in range(len(beams.sids)):
        legal[beam] = pairs[beams.position, beams.sids[beam, beams.position]]
        for i in range(beams.touched_starts[beam], beams.touched_starts[beam + 1]):
            if beams.biases[i] == -np.inf:
                for position in range(num_subspaces):
                    legal[beam, position, codes[beams.touched[i], position]] -= np.uint8(1)
    return legal


@compiled
def _children_of_one_code(
    codes: Codes,
    indptr: Integers,
    postings: Postings,
    beams: CodeBeams,
    legal: Pairs,
    log_probs: Floats,
    positions: Integers,
    slots: Integers,
    beam_width: int,
) -> Beams:
    """The best children that differ in one code, the one at each beam's chosen place."""
    num_beams, num_codes = len(beams.sids), log_probs.shape[2]
    num_items = len(codes)
    child_scores = _scores_of_codes(beams, legal, log_probs, positions, slots)
    least = _least_score(child_scores, beam_width)

    # The rows of all children that are good enough: lists of one position, so that they share none.
    capacity = 0
    for beam in range(num_beams):
        length, chosen = beams.stops[beam] - beams.starts[beam], positions[beam, slots[beam]]
        most = 0
        for code in range(num_codes):
            if child_scores[beam, code] >= least:
                most += min(length, indptr[chosen, code + 1] - indptr[chosen, code])
        capacity += min(length, most)
    rows = np.empty(capacity + 1, np.int32)  # one more: what is written last need not be kept
    child_starts = np.empty((num_beams, num_codes), np.int64)
    child_stops = np.empty((num_beams, num_codes), np.int64)
    is_own = np.zeros(num_items // 64 + 1, np.uint64)  # a bit a row
    most_kept = min(beam_width, num_beams * num_codes)
    kept_scores, kept = np.empty(most_kept, np.float64), np.empty(most_kept, np.int64)
    num_kept, found = 0, 0
    for beam in range(num_beams):
        if not child_scores[beam].max() >= least:
            continue
        own = postings[beams.position, beams.starts[beam] : beams.stops[beam]]
        begin, end = beams.touched_starts[beam], beams.touched_starts[beam + 1]
        _mark(is_own, own, beams.touched[begin:end], beams.biases[begin:end])
        chosen = positions[beam, slots[beam]]
        for code in range(num_codes):
            score = child_scores[beam, code]
            if not score >= least:
                continue
            if num_kept == most_kept and score == kept_scores[0] and kept[0] < beam * num_items:
                continue  # a child as good of a better parent is the worst that is kept
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
    in_call, num_in_call = in_next_call(codes, starts, new_rows, False)
    return Beams(
        sids, kept_scores[:num_kept].copy(), starts, new_rows, biases, in_call, num_in_call
    )


@compiled
def _scores_of_codes(
    beams: CodeBeams, legal: Pairs, log_probs: Floats, positions: Integers, slots: Integers
) -> Doubles:
    """(beams, num_codes) scores of children, -inf where the code is not legal at the place."""
    num_beams, num_codes = len(beams.sids), log_probs.shape[2]
    scores = np.empty((num_beams, num_codes), np.float64)
    for beam in range(num_beams):
        own, here = legal[beam, positions[beam, slots[beam]]], log_probs[beam, slots[beam]]
        for code in range(num_codes):
            score = beams.scores[beam] + here[code]
            scores[beam, code] = score if own[code] > 0 and score > -np.inf else -np.inf  # no nan
    return scores


@compiled
def _least_score(scores: Doubles, beam_width: int) -> float:
    """The score of the last child that can be kept; the lowest number there is where all can."""
    best = np.empty(min(beam_width, scores.size), np.float64)
    nothing = np.zeros(len(best), np.int64)
    size = 0
    for beam in range(len(scores)):
        for score in scores[beam]:
            if score > -np.inf and (size < len(best) or score > best[0]):
                size = heap.push(best, nothing, size, score, 0)
    return best[0] if size == len(best) else LOWEST


@compiled
def _mark(is_own: NDArray[np.uint64], own: Rows, touched: Rows, biases: Floats) -> None:
    """Set the bits of a beam's rows, but not of those that are excluded."""
    one, low = np.uint64(1), np.uint64(63)
    for i in range(len(own)):
        row = np.uint64(own[i])
        is_own[row >> np.uint64(6)] |= one << (row & low)
    for i in range(len(touched)):
        if biases[i] == -np.inf:
            row = np.uint64(touched[i])
            is_own[row >> np.uint64(6)] &= ~(one << (row & low))


@compiled
def _marked(is_own: NDArray[np.uint64], others: Rows, rows: Rows, found: int) -> int:
    """Append those of the other rows whose bits are set; how many rows there are now.

    No branch depends on a bit: each row is written, and the next one over it if it is not marked.
    """
    one, low = np.uint64(1), np.uint64(63)
    for i in range(len(others)):
        row = np.uint64(others[i])
        rows[found] = others[i]
        found += int(np.int64((is_own[row >> np.uint64(6)] >> (row & low)) & one))
    return found


@compiled
def _biases_of(
    codes: Codes, beams: CodeBeams, parents: Integers, sids: Codes, starts: Integers, rows: Rows
) -> Floats:
    """The biases of the children's rows: those of their parents' touched rows, else none."""
    biases = np.zeros(len(rows), np.float32)
    for child in range(len(parents)):
        own = rows[starts[child] : starts[child + 1]]
        begin, end = beams.touched_starts[parents[child]], beams.touched_starts[parents[child] + 1]
        for i in range(begin, end):
            at = np.searchsorted(own, beams.touched[i])
            if at < len(own) and own[at] == beams.touched[i]:
                biases[starts[child] + at] = beams.biases[i]
    return biases


@compiled
def _good_enough(
    codes: Codes,
    postings: Postings,
    beams: CodeBeams,
    log_probs: Floats,
    positions: Integers,
    slots: Integers,
    beam_width: int,
) -> Beams:
    """The beams with those rows only that a kept child may have.

    A row is good enough if its codes at the chosen places score as high as the last of the best
    `beam_width` tuples of codes, or higher. Rows of a beam with equal scores count as one tuple,
    so that this score is never too high.
    """
    num_beams, width = slots.shape
    lengths = beams.stops - beams.starts
    longest, total = lengths.max(), lengths.sum()
    capacity = min(beam_width, total)
    best, of_beams = np.empty(capacity, np.float64), np.empty(capacity, np.int64)
    rows, scores = np.empty(total, np.int32), np.empty(total, np.float64)
    here, asked = np.empty((width, log_probs.shape[2]), np.float32), np.empty(width, np.int64)
    sums = np.empty(longest, np.float32)
    ends = np.empty(num_beams, np.int64)
    size, found = 0, 0
    least = -np.inf
    for beam in range(num_beams):
        for choice in range(width):
            here[choice] = log_probs[beam, slots[beam, choice]]
            asked[choice] = positions[beam, slots[beam, choice]]
        ends[beam] = found
        shift = beams.scores[beam]
        if highest_sum(here) + shift < least:
            continue
        own = postings[beams.position, beams.starts[beam] : beams.stops[beam]]
        score_postings(codes, own, here, asked, slots[beam], sums)
        for i in range(beams.touched_starts[beam], beams.touched_starts[beam + 1]):
            if beams.biases[i] == -np.inf:
                sums[np.searchsorted(own, beams.touched[i])] = -np.inf
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
                if place == size:  # a tuple that is not among the best yet
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
    in_call, num_in_call = in_next_call(codes, starts, rows, False)
    return Beams(beams.sids, beams.scores, starts, rows[:left].copy(), biases, in_call, num_in_call)
