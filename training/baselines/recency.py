"""Histories as a sparse matrix: one line a user, a weight for each of the newest items.

The input of every baseline that counts: its scores are this matrix times a matrix of item-to-item
similarities. Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


def recency_weights(
    histories: Sequence[NDArray[np.int32]], num_items: int, *, length: int, decay: float
) -> sparse.csr_array:
    """decay ** age of the newest `length` items, (n, num_items) sparse float32.

    Age 0 is the newest item; an item that is there twice has the sum of its weights.
    """
    newest = [history[-length:] for history in histories]
    lengths = np.array([len(history) for history in newest], dtype=np.int64)
    rows = np.concatenate([np.empty(0, np.int32), *newest])
    ages = np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(len(rows))
    weights = np.float_power(decay, ages).astype(np.float32)
    users = np.repeat(np.arange(len(newest)), lengths)
    return sparse.csr_array((weights, (users, rows)), shape=(len(newest), num_items))
