"""What is known of rows beside their codes: a dense scratch array, filled for one job at a time.

A row's bias is the neighbour prior's score of it, plus the network's bias for repeats when the
history holds it, and -inf when the job excludes it. Few rows have one, so filling and clearing
touch those only. Survivors of the search carry their biases with them; the array serves the first
step.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.compiled import compiled
from service.decoding.job import Floats, Job, Rows
from service.decoding.neighbours import NeighbourPrior


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
        neighbours, strengths = _NO_NEIGHBOURS
        weight, scale = 0.0, 1.0
        if prior is not None and prior.weight:
            neighbours, strengths = prior.called_for(job.history)
            weight, scale = prior.weight, prior.scale
        repeated = np.unique(job.history) if repeat_bias else np.empty(0, np.int32)
        touched = np.empty(neighbours.size + len(repeated) + len(job.excluded), np.int32)
        num_touched, self.num_excluded = _fill(
            self.values,
            touched,
            neighbours,
            strengths,
            scale,
            weight,
            repeated,
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


_NO_NEIGHBOURS = np.empty((0, 0), np.int32), np.empty((0, 0), np.float32)


@compiled
def _fill(
    values: Floats,
    touched: Rows,
    neighbours: NDArray[np.int32],
    strengths: NDArray[np.float32],
    scale: float,
    weight: float,
    repeated: Rows,
    repeat_bias: float,
    excluded: Rows,
) -> tuple[int, int]:
    """How many rows were touched and how many are excluded."""
    num_touched = 0
    for item in range(neighbours.shape[0]):
        for place in range(neighbours.shape[1]):
            strength = strengths[item, place]
            if strength > 0:
                row = neighbours[item, place]
                if values[row] == 0:
                    touched[num_touched] = row
                    num_touched += 1
                values[row] += strength
    for row in touched[:num_touched]:
        values[row] = weight * np.log1p(values[row] / scale)
    for row in repeated:
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
