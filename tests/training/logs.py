"""Logs written as lists of rows, for tests."""

from __future__ import annotations

import numpy as np

from training.data.splits import Interactions


def log_of(histories: list[list[int]], num_items: int = 7) -> Interactions:
    """Users u0, u1, ... with these rows, oldest to newest, over items i0, i1, ..."""
    return Interactions(
        user_ids=tuple(f"u{user}" for user in range(len(histories))),
        item_ids=tuple(f"i{row}" for row in range(num_items)),
        indptr=np.cumsum([0, *map(len, histories)]).astype(np.int64),
        rows=np.array([row for history in histories for row in history], dtype=np.int32),
    )
