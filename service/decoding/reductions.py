"""What the search reduces arrays of rows to: sums of groups, and the best few.

Pure functions over flat arrays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.job import Floats, Rows


def log_sums(log_values: Floats, group: NDArray[np.intp], num_groups: int) -> Floats:
    """(num_groups,) float32: log of the summed exp of each group's values."""
    highest = np.full(num_groups, -np.inf)
    np.maximum.at(highest, group, log_values)
    sums = np.bincount(group, np.exp(log_values - highest[group]), minlength=num_groups)
    sums_of_groups: Floats = (np.log(sums) + highest).astype(np.float32)
    return sums_of_groups


def best_rows(rows: Rows, scores: Floats, k: int) -> tuple[Rows, Floats]:
    """The k rows of highest score, best first, ties by row."""
    if len(rows) > k:
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        candidates = np.flatnonzero(scores >= threshold)
        rows, scores = rows[candidates], scores[candidates]
    order = np.lexsort((rows, -scores))[:k]
    return rows[order], scores[order]
