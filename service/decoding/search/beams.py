"""The live beams of one job, as flat arrays. Data only: the search decides what happens to it.

Beams are sorted, best first. Each owns its surviving rows; beams' rows are disjoint, so two beams
never become the same partial SID. Beams that have filled one position own the posting list of a
code, too long to copy: `CodeBeams` say where it is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Floats, Integers, Rows


class Beams(NamedTuple):
    """Partial SIDs, and the catalogue rows that agree with each.

    sids:   (beams, num_subspaces) uint16, MASK = num_codes where not yet filled
    scores: (beams,) float64, log-probability of the partial SID, as the ranking has it
    starts: (beams + 1,) int64: beam b owns rows[starts[b]:starts[b + 1]]
    rows:   (survivors,) int32, ascending within a beam
    biases: (survivors,) float32, what each row's score gains beside its codes
    in_call: (beams,) int32, a beam's index in the next denoiser call; -1 for a decided one, whose
            score no call can change: ranked by rows, all its rows share one SID
    num_in_call: beams that are not decided
    """

    sids: NDArray[np.uint16]
    scores: NDArray[np.float64]
    starts: NDArray[np.int64]
    rows: Rows
    biases: Floats
    in_call: NDArray[np.int32]
    num_in_call: int

    @property
    def num_rows(self) -> int:
        """Rows that survive, of all beams."""
        return len(self.rows)

    @property
    def rows_each(self) -> Integers:
        """(beams,) rows that survive, of each beam."""
        return np.diff(self.starts)


class CodeBeams(NamedTuple):
    """Beams that have filled one position, the same one, and the posting lists of their codes.

    sids, scores: see `Beams`
    position: the one that is filled
    starts, stops: (beams,) int64: beam b owns trie.rows[position, starts[b]:stops[b]], without the
        excluded ones
    touched_starts: (beams + 1,) int64: what is known of beam b's rows beside their codes is at
        touched_starts[b]:touched_starts[b + 1] of
    touched: (n,) int32, rows, ascending within a beam, and
    biases:  (n,) float32, what their scores gain, -inf = excluded; those of all others gain nothing
    num_rows: rows that survive, of all beams
    """

    sids: NDArray[np.uint16]
    scores: NDArray[np.float64]
    position: int
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    touched_starts: NDArray[np.int64]
    touched: Rows
    biases: Floats
    num_rows: int

    @property
    def in_call(self) -> NDArray[np.int32]:
        """All of them are in it, see `Beams`."""
        return np.arange(len(self.sids), dtype=np.int32)

    @property
    def num_in_call(self) -> int:
        return len(self.sids)

    @property
    def rows_each(self) -> Integers:
        """(beams,) rows that survive, of each beam; `touched` must be known."""
        num_excluded = np.concatenate(([0], np.cumsum(self.biases == -np.inf)))
        return self.stops - self.starts - np.diff(num_excluded[self.touched_starts])
