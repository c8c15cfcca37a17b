"""What is known of rows beside their codes: a dense scratch array, filled for one job at a time.

A row's bias is the neighbour prior's score of it, plus the network's bias for repeats when the
history holds it, and -inf when the job excludes it. Few rows have one, so filling and clearing
touch those only. Survivors of the search carry their biases with them; the array serves the first
step.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Floats, Rows
from service.decoding.catalogue import NeighbourPrior
from service.decoding.job import Job
from service.decoding.loops import compiled


class RowBiases:
    """Biases of all rows for the job that was filled in last.

    values:       (num_items,) float32
    touched:      (n,) int32, rows whose value may differ from 0, some of them twice
    num_excluded: rows that are excluded
    """

    def __init__(self, num_items: int) -> None:
        self.values: Floats = np.zeros(num_items, np.float32)
        self.touched: Rows = np.empty(0, np.int32)
        self.num_excluded = 0

    def fill(self, job: Job, prior: NeighbourPrior | None, repeat_bias: float) -> None:
        """The biases of this job instead of the last one's."""
        self.clear()
        if prior is None or not prior.weight:
            prior = _NO_PRIOR
        newest = job.history[-prior.history_length :]
        most = len(newest) * prior.neighbours.shape[1] + len(job.history) + len(job.excluded)
        touched = np.empty(most, np.int32)
        num_touched, self.num_excluded = _fill(
            self.values,
            touched,
            job.history,
            newest,
            prior.neighbours,
            prior.affinities.view(np.uint16),
            prior.decay,
            prior.scale,
            prior.weight,
            repeat_bias,
            job.excluded,
        )
        self.touched = touched[:num_touched]

    def restrict(self, allowed: Rows) -> None:
        """Exclude all other rows too, until cleared. allowed: ascending"""
        others = _exclude_others(self.values, allowed)
        self.touched = np.concatenate((self.touched, others))
        self.num_excluded += len(others)

    def clear(self) -> None:
        """All zero again."""
        self.values[self.touched] = 0
        self.touched, self.num_excluded = np.empty(0, np.int32), 0


_NO_PRIOR = NeighbourPrior(
    np.empty((0, 0), np.int32), np.empty((0, 0), np.float16), 1, decay=1, scale=1, weight=0
)
# What every float16 is as a float32, by its bits: compiled code does not know the type.
_FLOATS = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)


@compiled
def _fill(
    values: Floats,
    touched: Rows,
    history: Rows,
    newest: Rows,
    neighbours: NDArray[np.int32],
    affinities: NDArray[np.uint16],
    decay: float,
    scale: float,
    weight: float,
    repeat_bias: float,
    excluded: Rows,
) -> tuple[int, int]:
    """How many rows were touched and how many are excluded; the excluded come last, once each.

    memory(row) = sum over the newest items, age 0 first: decay ** age * affinity[item, row]
    """
    num_touched = 0
    decayed = 1.0
    for item in newest[::-1]:
        if item < len(neighbours):  # later rows were added since the prior was fitted
            for place in range(neighbours.shape[1]):
                strength = np.float32(_FLOATS[affinities[item, place]] * decayed)
                if strength > 0:
                    row = neighbours[item, place]
                    if values[row] == 0:
                        touched[num_touched] = row
                        num_touched += 1
                    values[row] += strength
        decayed *= decay
    for row in touched[:num_touched]:
        values[row] = weight * np.log1p(values[row] / scale)
    if repeat_bias != 0:
        for row in np.unique(history):
            touched[num_touched] = row
            num_touched += 1
            values[row] += repeat_bias
    num_excluded = 0
    for row in excluded:
        if values[row] != -np.inf:
            values[row] = -np.inf
            touched[num_touched] = row
            num_touched += 1
            num_excluded += 1
    return num_touched, num_excluded


@compiled
def _exclude_others(values: Floats, allowed: Rows) -> Rows:
    """The rows between the allowed ones that were not excluded yet and now are."""
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
