"""The neighbour prior: which items usually follow the items of a history, as a sparse memory.

Fitted by counting (training/fitting/neighbour_prior.py). It knows exact pairs of items. A network
that sees codes knows tastes. The two make different mistakes. The prior's score is added to the
scores of rows in the search: ranked by rows it steers the beams, and it orders items that share a
SID. Nothing was counted for new items: each counts as a mixture of items that it is like (`alike`).
Knows no codes.

neighbours: (num_rows, num_neighbours) int32 rows    affinities: the same shape, float16, 0 = none
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from service.decoding.catalogue.alike import NUM_ALIKE, Alike
from service.decoding.catalogue.growing_arrays import SharedRows

RESEMBLANCE = 12.0  # median affinities: how strongly an item calls for one that is like it alone
ROWS_FOR_MEDIAN = 1000


class NewRows:
    """Rows behind the counted ones, and what each is a mixture of. Grows as catalogues do.

    The counted rows know theirs as linked lists in two arrays. An entry is a place in `alike`: row
    entry // NUM_ALIKE of it, counted from `first`.

    first:    the row after the last counted one
    strength: affinity of an item to one that is like it alone
    rows, shares: (n, NUM_ALIKE) int32 and float32, as in `Alike`
    heads: (first,) int32, the newest entry that names each counted row; -1 = none
    nexts: (n, NUM_ALIKE) int32, the entry before this one that names the same row; -1 = none
    """

    def __init__(self, first: int, strength: float, heads: NDArray[np.int32] | None = None) -> None:
        self.first = first
        self.strength = strength
        self.length = 0
        self.heads = np.full(first, -1, np.int32) if heads is None else heads
        self._rows = SharedRows(np.empty((0, NUM_ALIKE), np.int32))
        self._shares = SharedRows(np.empty((0, NUM_ALIKE), np.float32))
        self._nexts = SharedRows(np.empty((0, NUM_ALIKE), np.int32))

    @property
    def rows(self) -> NDArray[np.int32]:
        return self._rows.first(self.length)

    @property
    def shares(self) -> NDArray[np.float32]:
        return self._shares.first(self.length)

    @property
    def nexts(self) -> NDArray[np.int32]:
        return self._nexts.first(self.length)

    def with_rows(self, alike: Alike) -> NewRows:
        """These rows and more behind them. This object does not change."""
        grown = copy.copy(self)
        grown.heads = self.heads.copy()
        named = np.where(alike.shares > 0, alike.rows, -1).ravel()
        nexts = _linked(grown.heads, named, self.length * NUM_ALIKE).reshape(alike.rows.shape)
        grown._rows = self._rows.with_rows(self.length, alike.rows)
        grown._shares = self._shares.with_rows(self.length, alike.shares)
        grown._nexts = self._nexts.with_rows(self.length, nexts)
        grown.length = self.length + len(alike.rows)
        return grown

    def without(self, there: NDArray[np.bool_], new_row_of: NDArray[np.int32]) -> NewRows:
        """There: (first + length,) bool. Shares of counted rows that are gone are lost."""
        kept = there[self.first :]
        rows, shares = self.rows[kept], self.shares[kept]
        alike = Alike(new_row_of[rows], np.where(there[rows], shares, np.float32(0)))
        first = int(np.count_nonzero(there[: self.first]))
        return NewRows(first, self.strength).with_rows(alike)


def _linked(
    heads: NDArray[np.int32], named: NDArray[np.int32], first_entry: int
) -> NDArray[np.int32]:
    """Put entries in front of the lists of the rows they name (-1 = none); returns their nexts."""
    order = np.argsort(named, kind="stable").astype(np.int32)
    order = order[np.searchsorted(named[order], 0) :]
    nexts = np.full(len(named), -1, np.int32)
    if len(order):
        rows = named[order]
        is_first = np.concatenate(([True], rows[1:] != rows[:-1]))
        before = np.concatenate((order[:1], order[:-1])) + np.int32(first_entry)
        nexts[order] = np.where(is_first, heads[rows], before)
        is_last = np.concatenate((is_first[1:], [True]))
        heads[rows[is_last]] = order[is_last] + np.int32(first_entry)
    return nexts


@dataclass(frozen=True, eq=False)
class NeighbourPrior:
    """What a history says about catalogue rows.

    neighbours: (num_rows, num_neighbours) int32, rows that follow the item of each row
    affinities: (num_rows, num_neighbours) float16 >= 0, how strongly; 0 where there are fewer
    history_length: how many of the newest items of a history are looked up
    decay:  weight of an item relative to the next newer one, in (0, 1]
    scale:  the memory at which a row gains weight * log 2
    weight: a row gains weight * log(1 + memory / scale); 0 = the prior is off
    new:    the rows behind the num_rows counted ones; None = there are none
    Raises ValueError when the arrays do not fit together.
    """

    neighbours: NDArray[np.int32]
    affinities: NDArray[np.float16]
    history_length: int
    decay: float
    scale: float
    weight: float
    new: NewRows | None = field(default=None, repr=False)

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

    @property
    def num_rows(self) -> int:
        """Rows that the prior knows, with the new ones."""
        return len(self.neighbours) + (self.new.length if self.new else 0)

    def aged(self, num_items: int) -> NeighbourPrior:
        """What it says when every item of a history is older by `num_items` unknown items.

        Its memory is then decay ** num_items of what it was, so the scale grows instead.
        """
        prior = copy.copy(self)
        object.__setattr__(prior, "scale", self.scale / self.decay**num_items)  # frozen
        return prior

    def with_rows(self, alike: Alike) -> NeighbourPrior:
        """The prior of a catalogue with more rows behind these. Nothing that was counted is copied.

        alike: counted rows that each new row is a mixture of
        """
        new = self.new
        if new is None:
            strength = RESEMBLANCE * typical_affinity(self.affinities)
            new = NewRows(len(self.neighbours), strength)
        return self._with(new.with_rows(alike))

    def _with(self, new: NewRows | None) -> NeighbourPrior:
        """Checks nothing again: of a million rows it would take long."""
        prior = copy.copy(self)
        object.__setattr__(prior, "new", new)  # frozen
        return prior

    def without_rows(self, removed: NDArray[np.int32]) -> NeighbourPrior:
        """The prior of a catalogue without these rows, whose later rows move up."""
        num_counted = len(self.neighbours)
        there = np.ones(self.num_rows, np.bool_)
        there[removed[removed < len(there)]] = False
        kept = np.flatnonzero(there)
        new_row_of = np.zeros(len(there), np.int32)
        new_row_of[kept] = np.arange(len(kept))
        new = self.new and self.new.without(there, new_row_of)
        if there[:num_counted].all():
            return self._with(new)
        kept = kept[kept < num_counted]
        neighbours, affinities = (
            self.neighbours.take(kept, axis=0),
            self.affinities.take(kept, axis=0),
        )
        affinities[~there.take(neighbours)] = 0
        return replace(self, neighbours=new_row_of.take(neighbours), affinities=affinities, new=new)


def typical_affinity(affinities: NDArray[np.float16]) -> float:
    """The median affinity of some rows, evenly spread; 1 if they have none.

    affinities: (num_rows, num_neighbours), as in `NeighbourPrior`
    """
    some = affinities[:: max(1, len(affinities) // ROWS_FOR_MEDIAN)]
    some = some[some > 0]
    return float(np.median(some)) if len(some) else 1.0
