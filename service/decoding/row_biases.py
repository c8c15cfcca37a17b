"""What is known of rows beside their codes, for all jobs of a batch: one ascending array of keys.

A row's bias is the neighbour prior's score of it, plus the network's bias for repeats when the
history holds it. Few rows of a job have one; the others' is zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.decoding.job import Floats, Job, Rows
from service.decoding.neighbours import NeighbourPrior


class RowBiases:
    """Biases by (job, row). keys: (n,) int64 ascending, job * num_items + row; values: (n,)."""

    def __init__(
        self, jobs: Sequence[Job], prior: NeighbourPrior | None, repeat_bias: float, num_items: int
    ) -> None:
        self.num_items = num_items
        keys, values = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        for index, job in enumerate(jobs):
            rows, biases = _of_history(job.history, prior, repeat_bias)
            keys.append(index * num_items + rows.astype(np.int64))
            values.append(biases)
        self.keys: NDArray[np.int64] = np.concatenate(keys)
        self.values: Floats = np.concatenate(values)

    def of_job(self, job: int) -> tuple[NDArray[np.int64], Floats]:
        """Rows of a job that have a bias, ascending, and the biases."""
        start, stop = np.searchsorted(self.keys, [job * self.num_items, (job + 1) * self.num_items])
        return self.keys[start:stop] - job * self.num_items, self.values[start:stop]

    def of(self, jobs: NDArray[np.intp], rows: Rows) -> Floats:
        """(n,) float32: the bias of each row for the job beside it, both (n,)."""
        if not len(self.keys):
            return np.zeros(len(rows), np.float32)
        keys = jobs * self.num_items + rows
        found = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return np.where(self.keys[found] == keys, self.values[found], np.float32(0))


def _of_history(
    history: Rows, prior: NeighbourPrior | None, repeat_bias: float
) -> tuple[Rows, Floats]:
    rows, scores = np.empty(0, np.int32), np.empty(0, np.float32)
    if prior is not None:
        rows, scores = prior.row_scores(history)
    if not repeat_bias:
        return rows, scores
    seen = np.unique(history)
    all_rows = np.union1d(rows, seen)
    biases = np.zeros(len(all_rows), np.float32)
    biases[np.searchsorted(all_rows, rows)] = scores
    biases[np.searchsorted(all_rows, seen)] += np.float32(repeat_bias)
    return all_rows, biases
