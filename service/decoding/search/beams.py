"""The live beams of one job, as flat arrays. Knows nothing of how the search makes them.

Beams are sorted, best first. Each owns its surviving rows: the catalogue rows that agree with it.
Two beams share no row, so they never become the same partial SID. A beam that has filled one
position owns the posting list of its code, which is too long to copy: `PostingListBeams` say where
the lists are.

A beam is decided if no denoiser call can change its score: ranked by rows, that is a beam whose
rows all share one SID.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Codes, Floats, Integers, Rows
from service.decoding.loops import compiled


class Beams(NamedTuple):
    """Partial SIDs, and the catalogue rows that agree with each.

    sids:   (beams, num_subspaces) uint16, MASK = num_codes where not yet filled
    scores: (beams,) float64, log-probability of the partial SID, by the job's ranking
    starts: (beams + 1,) int64: beam b owns rows[starts[b]:starts[b + 1]]
    rows:   (survivors,) int32, ascending within a beam
    biases: (survivors,) float32, what each row's score gains besides its codes
    call_index: (beams,) int32, a beam's index in the next denoiser call; -1 for a decided beam
    num_undecided: beams in the next denoiser call: those that are not decided
    """

    sids: NDArray[np.uint16]
    scores: NDArray[np.float64]
    starts: NDArray[np.int64]
    rows: Rows
    biases: Floats
    call_index: NDArray[np.int32]
    num_undecided: int

    @property
    def num_rows(self) -> int:
        """Rows that survive, over all beams."""
        return len(self.rows)

    @property
    def rows_each(self) -> Integers:
        """(beams,) rows that survive, of each beam."""
        return np.diff(self.starts)


class PostingListBeams(NamedTuple):
    """Beams that have filled one position, the same one, and own the posting lists of their codes.

    Most rows have no bias. Those that may have one are listed, beam by beam: beam b has
    biased_rows[bias_starts[b]:bias_starts[b + 1]] and the biases at the same places.

    sids, scores: see `Beams`
    position: the one that is filled
    starts, stops: (beams,) int64: beam b owns trie.rows[position, starts[b]:stops[b]], but not the
        excluded rows among them
    bias_starts: (beams + 1,) int64
    biased_rows: (n,) int32, ascending within a beam
    biases:  (n,) float32, what their scores gain, -inf = excluded; all other rows gain nothing
    num_rows: rows that survive, over all beams
    allowed: (num_items // 64 + 1,) uint64, bits of the rows that a filter allows, see
        `AllowedRows.bits`; a beam owns no others. Empty = all rows
    """

    sids: NDArray[np.uint16]
    scores: NDArray[np.float64]
    position: int
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    bias_starts: NDArray[np.int64]
    biased_rows: Rows
    biases: Floats
    num_rows: int
    allowed: NDArray[np.uint64]

    @property
    def call_index(self) -> NDArray[np.int32]:
        """(beams,) int32: all of them are in the next call, see `Beams`."""
        return np.arange(len(self.sids), dtype=np.int32)

    @property
    def num_undecided(self) -> int:
        return len(self.sids)

    @property
    def rows_each(self) -> Integers:
        """(beams,) rows that survive, of each beam; the biased rows must be filled in.

        Without a filter only: jobs that ask for this get copies of rows if they have one.
        """
        num_excluded = np.concatenate(([0], np.cumsum(self.biases == -np.inf)))
        return self.stops - self.starts - np.diff(num_excluded[self.bias_starts])


class SequenceBeams(NamedTuple):
    """Beams of several items: partial SIDs side by side, and the rows that agree with each SID.

    A slot is the place of an item in the sequence, the next item first. A slot that is all masked
    owns every allowed row, so its rows are not listed.

    sids:   (beams, horizon * num_subspaces) uint16, MASK where not yet filled
    scores: (beams,) float64, the sum of the log-probs of the filled positions
    starts, stops: (beams, horizon) int64: the slot owns rows[start:stop]; both 0 if all masked
    rows:   (n,) int32, ascending within a slot
    """

    sids: Codes
    scores: NDArray[np.float64]
    starts: Integers
    stops: Integers
    rows: Rows

    @property
    def call_index(self) -> NDArray[np.int32]:
        """(beams,) int32: all of them are in the next call, see `Beams`."""
        return np.arange(len(self.sids), dtype=np.int32)

    @property
    def num_undecided(self) -> int:
        return len(self.sids)


@compiled
def number_undecided(
    codes: Codes, starts: Integers, rows: Rows, by_rows: bool
) -> tuple[NDArray[np.int32], int]:
    """`call_index` and `num_undecided` of beams with these rows (`Beams`).

    codes: (num_items, num_subspaces) uint16
    by_rows: whether they are ranked by rows; else no beam is decided
    """
    call_index = np.empty(len(starts) - 1, np.int32)
    num_undecided = 0
    for beam in range(len(call_index)):
        first = rows[starts[beam]]
        decided = by_rows
        for i in range(starts[beam] + 1, starts[beam + 1]):
            if not decided:
                break
            for position in range(codes.shape[1]):
                decided &= codes[rows[i], position] == codes[first, position]
        call_index[beam] = -1 if decided else num_undecided
        num_undecided += not decided
    return call_index, num_undecided
