"""What the search reduces arrays of rows to: groups, their sums, and the best few.

Pure functions over flat arrays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.job import Floats, Rows
from service.decoding.live_beams import LiveBeams


def group_rows(
    beams: LiveBeams, chosen: NDArray[np.bool_], codes: NDArray[np.uint16], num_codes: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Survivors grouped by beam and their codes at its chosen positions, in that order.

    chosen: (beams, num_subspaces). Returns the first survivor of each group, and each one's group.
    """
    key = beams.row_beam.astype(np.int64)
    bound = len(beams.job)
    for position in np.flatnonzero(chosen.any(axis=0)):
        if bound > (2**62) // num_codes:
            distinct, key = np.unique(key, return_inverse=True)
            bound = len(distinct)
        code = np.where(chosen[beams.row_beam, position], codes[beams.rows, position], 0)
        key = key * num_codes + code
        bound *= num_codes
    _, first, group = np.unique(key, return_index=True, return_inverse=True)
    return first, group


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
