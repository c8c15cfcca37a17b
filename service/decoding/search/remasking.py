"""Finished SIDs of which the least certain codes are masked again: their beams, and what follows.

A beam then goes back to the catalogue rows that agree with the codes it keeps, so refilling stays
within the trie. It divides the probability of its finished row among these rows. Unlike before, two
beams may own the same row: when they meet, the row is counted once, with the sum of what it is
given. That is one step of Gibbs sampling, in expectation. Knows nothing of denoisers or jobs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Codes, Floats, Integers, Rows
from service.decoding.catalogue import SidTrie
from service.decoding.loops import compiled
from service.decoding.search.beams import Beams, number_undecided
from service.decoding.search.rows.expansion import ROWS, survivor_scores


def least_certain(log_probs: Floats, remask: int) -> NDArray[np.bool_]:
    """The `remask` codes of each SID whose log-prob was lowest; of equal ones the lower position.

    log_probs: (n, num_subspaces), NaN where there was no choice: the most certain of all
    """
    order = np.nan_to_num(log_probs, nan=1.0).argsort(axis=1, kind="stable")
    chosen = np.zeros(log_probs.shape, np.bool_)
    np.put_along_axis(chosen, order[:, :remask], True, axis=1)
    return chosen


def remasked_beams(
    trie: SidTrie,
    rows: Rows,
    scores: Floats,
    log_probs: Floats,
    remask: int,
    biases: Floats,
    ranking: int,
) -> tuple[Beams, Integers]:
    """Beams of finished rows, with their `remask` least certain codes masked.

    rows, scores: (n,) best first, the finished rows
    log_probs: (n, num_subspaces), of their codes when they were filled, see `least_certain`
    biases: (num_items,), -inf = excluded
    Returns the beams, each partial SID once, best first, and for each the place of the finished row
    that it is made of, the best one.
    """
    mask = trie.catalogue.num_codes
    again = least_certain(log_probs, remask)
    sids = np.where(again, np.uint16(mask), trie.codes[rows])
    worth = scores.astype(np.float64)
    if ranking != ROWS:  # biases are no part of a path
        worth -= biases[rows]
    _, made_of, beam_of = np.unique(sids, axis=0, return_index=True, return_inverse=True)
    of_beam = np.full(len(made_of), -np.inf)
    np.logaddexp.at(of_beam, beam_of.reshape(-1), worth)
    order = np.lexsort((made_of, -of_beam))
    made_of, of_beam = made_of[order], of_beam[order]
    starts, own_rows, own_biases = _rows_of_partial_sids(
        trie.codes, trie.indptr, trie.rows, sids[made_of], mask, biases
    )
    undecided = number_undecided(trie.codes, starts, own_rows, True)
    return Beams(sids[made_of], of_beam, starts, own_rows, own_biases, *undecided), made_of


def refilled(
    codes: Codes, beams: Beams, log_probs: Floats, positions: Integers, k: int, ranking: int
) -> tuple[Rows, Floats, Integers]:
    """The k best rows, each once, when all masks are filled: rows, scores, and the beam of each.

    log_probs, positions: of a call for the beams. Ties go to the lower row. The beam of a row is
    the one that gives it most.
    """
    scores = survivor_scores(codes, beams, log_probs, positions, ranking)
    beam_of = np.repeat(np.arange(len(beams.sids)), beams.rows_each)
    possible = np.flatnonzero(scores > -np.inf)  # not nan either
    rows, scores, beam_of = beams.rows[possible], scores[possible], beam_of[possible]
    order = np.lexsort((beam_of, -scores, rows))
    rows, scores, beam_of = rows[order], scores[order], beam_of[order]
    distinct, first, place = np.unique(rows, return_index=True, return_inverse=True)
    total = np.full(len(distinct), -np.inf)
    np.logaddexp.at(total, place.reshape(-1), scores)
    best = np.lexsort((distinct, -total))[:k]
    return distinct[best], total[best].astype(np.float32), beam_of[first[best]]


@compiled
def _rows_of_partial_sids(
    codes: Codes,
    indptr: NDArray[np.integer],
    posting_rows: Rows,
    sids: Codes,
    mask: int,
    biases: Floats,
) -> tuple[NDArray[np.int64], Rows, Floats]:
    """Rows that are not excluded and agree with each partial SID: starts, rows, biases (`Beams`).

    sids: (beams, num_subspaces), each with a code that is not masked; its shortest posting list is
    looked through
    """
    num_beams, num_subspaces = sids.shape
    shortest = np.empty(num_beams, np.int64)
    most = np.int64(0)
    for beam in range(num_beams):
        length = len(codes) + 1
        for position in range(num_subspaces):
            code = sids[beam, position]
            if code != mask:
                own = int(indptr[position, code + 1]) - int(indptr[position, code])
                if own < length:
                    length = own
                    shortest[beam] = position
        most += length
    rows, own_biases = np.empty(most, np.int32), np.empty(most, np.float32)
    starts = np.zeros(num_beams + 1, np.int64)
    found = 0
    for beam in range(num_beams):
        position = shortest[beam]
        code = sids[beam, position]
        for place in range(indptr[position, code], indptr[position, code + 1]):
            row = posting_rows[position, place]
            agrees = biases[row] > -np.inf
            for other in range(num_subspaces):
                if not agrees:
                    break
                agrees = sids[beam, other] == mask or codes[row, other] == sids[beam, other]
            if agrees:
                rows[found], own_biases[found] = row, biases[row]
                found += 1
        starts[beam + 1] = found
    return starts, rows[:found], own_biases[:found]
