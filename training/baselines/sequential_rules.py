"""Sequential rules: what came after the newest item, the sooner the better.

The baseline SR of Ludewig and Jannach 2018 (arXiv 1803.09587, section 3.1): of a history only the
newest item is looked at. Nothing is fitted. Knows no vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from training.baselines.item_knn import summed
from training.data import Interactions, with_followers


class SequentialRules:
    """Score = sum of 1 / gap over all times that the item came `gap` items after the newest one.

    distance: gaps that are counted. The paper divides by the rules of the newest item, which
    changes no order.
    """

    name = "sequential rules"

    def __init__(self, train: Interactions, *, distance: int = 10) -> None:
        none = sparse.csr_array((train.num_items, train.num_items), dtype=np.float32)
        self._rules = with_followers(none, train, [1 / gap for gap in range(1, distance + 1)])
        self.parameters = int(self._rules.nnz)

    def scores(self, histories: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """(n, num_items) float32; see Scorer."""
        return summed(self._rules, histories, length=1, decay=1.0)
