"""The first decode step of a job ranked by path: straight from the postings.

A beam per code of the chosen position; no row is touched but those of the codes that are kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding import heap
from service.decoding.beams import Beams
from service.decoding.compiled import compiled
from service.decoding.expansion import DRAWN, RAW, Codes
from service.decoding.job import Floats, Rows


@compiled
def expand_root(
    codes: Codes,
    indptr: NDArray[np.int64],
    postings: NDArray[np.int32],
    biases: Floats,
    touched: Rows,
    num_excluded: int,
    log_probs: Floats,
    beam_width: int,
    confidence: int,
    drawn: Floats,
) -> Beams:
    """What `expansion.expand` makes of one beam that owns all allowed rows, in steps of one.

    indptr, postings: see `SidTrie`    log_probs: (num_subspaces, num_codes)
    biases, touched:  see `RowBiases`; the last num_excluded of `touched` are the excluded rows
    """
    num_subspaces, num_codes = log_probs.shape
    counts = indptr[:, 1:] - indptr[:, :-1]
    for row in touched[len(touched) - num_excluded :]:
        for position in range(num_subspaces):
            counts[position, codes[row, position]] -= 1

    chosen, surest = 0, -np.inf
    for position in range(num_subspaces):
        sureness = _sureness(counts[position], log_probs[position], confidence, drawn[0, position])
        if sureness > surest:
            chosen, surest = position, sureness

    kept_scores, kept = np.empty(beam_width, np.float64), np.empty(beam_width, np.int64)
    num_kept = 0
    for code in range(num_codes):
        if counts[chosen, code]:
            first = indptr[chosen, code]
            while biases[postings[chosen, first]] == -np.inf:
                first += 1
            number = np.int64(postings[chosen, first]) * 65536 + code  # the first row decides ties
            score = np.float64(log_probs[chosen, code])
            num_kept = heap.push(kept_scores, kept, num_kept, score, number)
    heap.sort(kept_scores, kept, num_kept)

    sids = np.full((num_kept, num_subspaces), num_codes, np.uint16)
    starts = np.zeros(num_kept + 1, np.int64)
    beam_of = np.full(num_codes, -1, np.int32)
    for beam in range(num_kept):
        code = kept[beam] % 65536
        beam_of[code] = beam
        sids[beam, chosen] = code
        starts[beam + 1] = starts[beam] + indptr[chosen, code + 1] - indptr[chosen, code]
    rows = np.empty(starts[-1], np.int32)
    of_rows = np.zeros(starts[-1], np.float32)
    for beam in range(num_kept):
        code = kept[beam] % 65536
        own = postings[chosen, indptr[chosen, code] : indptr[chosen, code + 1]]
        rows[starts[beam] : starts[beam + 1]] = own
    for row in touched:
        beam = beam_of[codes[row, chosen]]
        if beam >= 0:
            own = rows[starts[beam] : starts[beam + 1]]
            of_rows[starts[beam] + np.searchsorted(own, row)] = biases[row]
    scores = kept_scores[:num_kept]
    if not num_excluded:
        return Beams(sids, scores, starts, rows, of_rows)
    return _without_excluded(sids, scores, starts, rows, of_rows)


@compiled
def _sureness(counts: NDArray[np.int64], log_probs: Floats, confidence: int, drawn: float) -> float:
    if confidence == DRAWN:
        return np.float64(drawn)
    if confidence == RAW:
        return np.float64(log_probs.max())
    highest, mass, found = -np.inf, 0.0, 0
    for code in range(len(counts)):
        if counts[code]:
            highest = max(highest, np.float64(log_probs[code]))
            found += 1
    for code in range(len(counts)):
        if counts[code]:
            mass += np.exp(log_probs[code] - highest)
    return -np.inf if found == 1 else -np.log(mass)


@compiled
def _without_excluded(
    sids: Codes, scores: NDArray[np.float64], starts: NDArray[np.int64], rows: Rows, biases: Floats
) -> Beams:
    """The beams without the survivors whose bias is -inf; every beam has others."""
    left = 0
    new_starts = np.zeros_like(starts)
    for beam in range(len(sids)):
        for i in range(starts[beam], starts[beam + 1]):
            if biases[i] > -np.inf:
                rows[left], biases[left] = rows[i], biases[i]
                left += 1
        new_starts[beam + 1] = left
    return Beams(sids, scores, new_starts, rows[:left], biases[:left])
