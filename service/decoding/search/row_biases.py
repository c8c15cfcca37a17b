"""Scores that do not come from codes: the neighbour prior, the repeat bias, boosts, exclusions.

A row's bias is the neighbour prior's score of it, plus the network's repeat bias if the history
holds it, plus the job's boost; it is -inf if the job excludes it. Mostly few rows have a bias. So
one array over all rows is used for one job after the other, and filling and clearing write to those
few rows only. It serves the first step; later, surviving rows carry their biases with them. Knows
no codes and no beams.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Floats, Rows
from service.decoding.catalogue import NUM_ALIKE, NeighbourPrior, NewRows
from service.decoding.job import Job
from service.decoding.loops import compiled


class RowBiases:
    """The biases of all rows, for the job that was filled in last.

    values:       (num_items,) float32
    biased_rows:  (n,) int32, rows whose value may differ from 0, some of them twice; excluded rows
        come last, once each
    num_excluded: rows that are excluded

    Biases within a filter (`allowed`) also are -inf where the filter allows no row; these rows are
    not listed and not counted. They are not filled in but put over it, from other biases.
    """

    def __init__(self, num_items: int, allowed: Rows | None = None) -> None:
        self.values: Floats = np.zeros(num_items, np.float32)
        if allowed is not None:
            _exclude_others(self.values, allowed)
        self.biased_rows: Rows = np.empty(0, np.int32)
        self.num_excluded = 0
        self._before: Floats | None = None  # the values of these rows, where they were put over

    def fill(self, job: Job, prior: NeighbourPrior | None, repeat_bias: float) -> None:
        """Replace the last job's biases by those of this job."""
        self.clear()
        if prior is None or not prior.weight:
            prior = _NO_PRIOR
        newest = job.history[-prior.history_length :]
        new = prior.new or _NO_NEW_ROWS
        num_counted, width = prior.neighbours.shape
        num_new = np.count_nonzero(newest >= num_counted) if new.length else 0
        most = (len(newest) - num_new) * width + num_new * NUM_ALIKE * (width + 1) + new.length
        most += len(job.history) + len(job.excluded)
        biased_rows = np.empty(most, np.int32)
        num_biased, self.num_excluded = _fill(
            self.values,
            biased_rows,
            job.history,
            newest,
            prior.neighbours,
            prior.affinities.view(np.uint16),
            new.heads,
            new.nexts.ravel(),
            new.rows,
            new.shares,
            float(new.strength),  # an int would be another type, and code is compiled per type
            float(prior.decay),
            float(prior.scale),
            float(prior.weight),
            float(repeat_bias),
            job.excluded,
        )
        self.biased_rows = biased_rows[:num_biased]
        if len(job.boosted):
            self.values[job.boosted] += job.boosts  # excluded rows stay at -inf
            self.biased_rows = np.concatenate((job.boosted, self.biased_rows))

    def put_over(self, others: RowBiases) -> None:
        """Replace the last job's biases, within a filter, by those of a job without its filter."""
        self.clear()
        first = len(others.biased_rows) - others.num_excluded
        excluded = others.biased_rows[first:]
        excluded = excluded[self.values[excluded] > -np.inf]
        self.biased_rows = np.concatenate((others.biased_rows[:first], excluded))
        self.num_excluded = len(excluded)
        self._before = self.values[self.biased_rows]
        self.values[self.biased_rows] = self._before + others.values[self.biased_rows]

    def exclude_all_but(self, allowed: Rows) -> None:
        """Exclude all other rows too, until cleared. allowed: ascending"""
        others = _exclude_others(self.values, allowed)
        self.biased_rows = np.concatenate((self.biased_rows, others))
        self.num_excluded += len(others)

    def clear(self) -> None:
        """Make all values zero again, or what the filter makes them."""
        self.values[self.biased_rows] = 0 if self._before is None else self._before
        self.biased_rows, self.num_excluded, self._before = np.empty(0, np.int32), 0, None


_NO_NEW_ROWS = NewRows(0, 0.0)
_NO_PRIOR = NeighbourPrior(
    np.empty((0, 0), np.int32), np.empty((0, 0), np.float16), 1, decay=1, scale=1, weight=0
)
_Counted = tuple[NDArray[np.int32], NDArray[np.uint16]]  # neighbours, affinities
_Likeness = tuple[NDArray[np.int32], NDArray[np.int32], Floats, float]  # heads to strength
# Every float16 as a float32, indexed by its bits: compiled code has no float16.
_FLOATS = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)


@compiled
def _fill(
    values: Floats,
    biased_rows: Rows,
    history: Rows,
    newest: Rows,
    neighbours: NDArray[np.int32],
    affinities: NDArray[np.uint16],
    heads: NDArray[np.int32],
    nexts: NDArray[np.int32],
    alike: NDArray[np.int32],
    shares: Floats,
    strength: float,
    decay: float,
    scale: float,
    weight: float,
    repeat_bias: float,
    excluded: Rows,
) -> tuple[int, int]:
    """Fill in one job; returns how many rows have a bias and how many are excluded (the last ones).

    memory(row) = sum over the newest items, age 0 first: decay ** age * affinity[item, row]

    heads to strength: those of `NewRows`. In a history, a new item stands for its mixture, and it
    calls for the items in it: they gain share * strength. As a row, it has its shares of what they
    have in memory, and of strength for each time that the history holds one of them.
    """
    num_biased = 0
    num_counted = len(neighbours)
    counted, likeness = (neighbours, affinities), (heads, nexts, shares, strength)
    decayed = 1.0
    for item in newest[::-1]:
        if item < num_counted:
            num_biased = _call(values, biased_rows, num_biased, item, decayed, counted, likeness)
        elif item < num_counted + len(alike):
            new = item - num_counted
            for place in range(alike.shape[1]):
                share = decayed * shares[new, place]
                if share == 0:  # there is no such row
                    continue
                row = alike[new, place]
                num_biased = _add(values, biased_rows, num_biased, row, share * strength)
                num_biased = _call(values, biased_rows, num_biased, row, share, counted, likeness)
        decayed *= decay
    if len(alike):
        for row in biased_rows[:num_biased].copy():
            if row < num_counted:
                num_biased = _pass_on(values, biased_rows, num_biased, row, values[row], likeness)
    for row in biased_rows[:num_biased]:
        values[row] = weight * np.log1p(values[row] / scale)
    if repeat_bias != 0:
        for row in np.unique(history):
            biased_rows[num_biased] = row
            num_biased += 1
            values[row] += repeat_bias
    num_excluded = 0
    for row in excluded:
        if values[row] != -np.inf:
            values[row] = -np.inf
            biased_rows[num_biased] = row
            num_biased += 1
            num_excluded += 1
    return num_biased, num_excluded


@compiled
def _add(values: Floats, biased_rows: Rows, num_biased: int, row: int, strength: float) -> int:
    """Add to the memory of one row; returns how many rows have some."""
    added = np.float32(strength)
    if added > 0:
        if values[row] == 0:
            biased_rows[num_biased] = row
            num_biased += 1
        values[row] += added
    return num_biased


@compiled
def _call(
    values: Floats,
    biased_rows: Rows,
    num_biased: int,
    item: int,
    factor: float,
    counted: _Counted,
    likeness: _Likeness,
) -> int:
    """Add, times factor, what a counted item calls for: neighbours, and new rows it is part of."""
    neighbours, affinities = counted
    for place in range(neighbours.shape[1]):
        affinity = _FLOATS[affinities[item, place]] * factor
        num_biased = _add(values, biased_rows, num_biased, neighbours[item, place], affinity)
    return _pass_on(values, biased_rows, num_biased, item, factor * likeness[3], likeness)


@compiled
def _pass_on(
    values: Floats,
    biased_rows: Rows,
    num_biased: int,
    item: int,
    strength: float,
    likeness: _Likeness,
) -> int:
    """Add their shares of strength to the new rows that a counted item is part of."""
    heads, nexts, shares, _ = likeness
    if not len(shares):
        return num_biased
    num_counted, num_alike = len(heads), shares.shape[1]
    entry = heads[item]
    while entry >= 0:
        new, place = entry // num_alike, entry % num_alike
        share = shares[new, place]
        num_biased = _add(values, biased_rows, num_biased, num_counted + new, strength * share)
        entry = nexts[entry]
    return num_biased


@compiled
def _exclude_others(values: Floats, allowed: Rows) -> Rows:
    """Exclude the rows between the allowed ones; returns those that were not excluded before."""
    others = np.empty(len(values) - len(allowed), np.int32)
    found, place = 0, 0
    for row in range(len(values)):
        if place < len(allowed) and allowed[place] == row:
            place += 1
        elif values[row] > -np.inf:
            values[row] = -np.inf
            others[found] = row
            found += 1
    return others[:found]
