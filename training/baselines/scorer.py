"""What every baseline is, and how it is measured: scores for all items, ranks of the targets.

A scorer cuts histories itself to what it looks at; it knows neither windows nor targets. `ranks`
knows no model. Ties go to the lower row: rows are ordered by popularity, so a scorer that cannot
tell two items apart prefers the popular one. Ranks feed `training.evaluation.evaluation.metrics`
directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from training.data import Windows
from training.evaluation import NOT_FOUND


class Scorer(Protocol):
    """A model that gives every item of the catalogue a score.

    name: for tables. parameters: numbers it holds (weights, or stored similarities), for tables.
    """

    name: str
    parameters: int

    def scores(self, histories: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """(n, num_items) float32, finite, higher is better.

        histories: n arrays of rows, oldest to newest, perhaps empty. Where nothing is known
        of a user the scores are zeros.
        """
        ...


def ranks(
    windows: Windows,
    scorer: Scorer,
    *,
    k: int = 40,
    exclude_seen: bool = False,
    batch: int = 512,
) -> NDArray[np.int32]:
    """1-based ranks of the targets of n windows among all items, (n,) int32, NOT_FOUND beyond k.

    The place a full stable sort by score would give. exclude_seen: items of the history are
    struck out first, so a target that the user had before is never found. batch: users scored
    together (memory is batch * num_items * 4 bytes, a few times).
    """
    found = np.full(len(windows), NOT_FOUND, np.int32)
    targets = windows.targets
    for start in range(0, len(windows), batch):
        users = range(start, min(start + batch, len(windows)))
        histories = [windows.history_of(user) for user in users]
        scores = scorer.scores(histories)
        target = targets[users.start : users.stop, None]
        reached = np.ones(len(users), dtype=bool)
        if exclude_seen:
            owners = np.repeat(np.arange(len(users)), [len(history) for history in histories])
            seen = np.concatenate(histories)
            scores = scores.copy()  # a scorer may return a view of what it holds
            scores[owners, seen] = -np.inf
            reached[owners[seen == target[owners, 0]]] = False
        of_target = np.take_along_axis(scores, target, axis=1)
        ahead = scores > of_target
        ahead |= (scores == of_target) & (np.arange(scores.shape[1]) < target)
        rank = np.count_nonzero(ahead, axis=1) + 1
        found[users.start : users.stop] = np.where(reached & (rank <= k), rank, NOT_FOUND)
    return found
