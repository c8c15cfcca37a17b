"""The neighbour prior: which items usually follow the items of a history, as a sparse memory.

Fitted by counting (training/fitting/neighbour_prior.py). It knows exact pairs of items. A network
that sees codes knows tastes. The two make different mistakes. The prior's score is added to the
scores of rows in the search: ranked by rows it steers the beams, and it orders items that share a
SID. Knows no codes.

neighbours: (num_rows, num_neighbours) int32 rows    affinities: the same shape, float16, 0 = none
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class NeighbourPrior:
    """What a history says about catalogue rows.

    neighbours: (num_rows, num_neighbours) int32, rows that follow the item of each row
    affinities: (num_rows, num_neighbours) float16 >= 0, how strongly; 0 where there are fewer
    history_length: how many of the newest items of a history are looked up
    decay:  weight of an item relative to the next newer one, in (0, 1]
    scale:  the memory at which a row gains weight * log 2
    weight: a row gains weight * log(1 + memory / scale); 0 = the prior is off
    The items that were counted are the first num_rows rows of the catalogue. The prior says nothing
    about later rows. Raises ValueError when the arrays do not fit together.
    """

    neighbours: NDArray[np.int32]
    affinities: NDArray[np.float16]
    history_length: int
    decay: float
    scale: float
    weight: float

    def __post_init__(self) -> None:
        if self.neighbours.ndim != 2 or self.neighbours.shape != self.affinities.shape:
            raise ValueError("neighbours and affinities must be arrays of the same two dimensions")
        if self.neighbours.dtype != np.int32 or self.affinities.dtype != np.float16:
            raise ValueError("neighbours must be int32 and affinities float16")
        if self.neighbours.size and not (
            self.neighbours.min() >= 0 and self.neighbours.max() < len(self.neighbours)
        ):
            raise ValueError("every neighbour must be a row of the catalogue")
        if self.history_length < 1 or not 0 < self.decay <= 1:
            raise ValueError("history_length must be at least 1 and decay in (0, 1]")
        if not 0 < self.scale < np.inf or not 0 <= self.weight < np.inf:
            raise ValueError("scale must be positive, weight not negative, and both finite")
        if not (np.isfinite(self.affinities).all() and (self.affinities >= 0).all()):
            raise ValueError("affinities must be finite and not negative")

    def without_rows(self, removed: NDArray[np.int32]) -> NeighbourPrior:
        """The prior of a catalogue without these rows, whose later rows move up."""
        there = np.ones(len(self.neighbours), np.bool_)
        there[removed[removed < len(there)]] = False
        kept = np.flatnonzero(there)
        new_row_of = np.zeros(len(there), np.int32)
        new_row_of[kept] = np.arange(len(kept))
        neighbours, affinities = (
            self.neighbours.take(kept, axis=0),
            self.affinities.take(kept, axis=0),
        )
        affinities[~there.take(neighbours)] = 0
        return replace(self, neighbours=new_row_of.take(neighbours), affinities=affinities)
