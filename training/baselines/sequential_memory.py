"""A memory of what followed what: no parameters are fitted, training interactions are counted.

Item affinities (co-occurrence plus transitions forward in time, `training.data.embeddings`)
weighted by how new an item of the history is. On small sparse data it is hard to beat, so a model
that learns has to show that it beats this. Knows no vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.baselines.item_knn import summed
from training.data import Interactions, item_affinities


class SequentialMemory:
    """Score = sum over the newest `history_length` items i of decay ** age * affinity[i, item].

    Age 0 is the newest item. window, transition_weight: see `item_affinities`. `decay` may be
    changed: it is not in the counts.
    """

    name = "sequential memory"

    def __init__(
        self,
        train: Interactions,
        *,
        window: int = 3,
        transition_weight: float = 5.0,
        decay: float = 0.7,
        history_length: int = 20,
    ) -> None:
        self._affinities = item_affinities(
            train, window=window, transition_weight=transition_weight
        )
        self.decay, self._history_length = decay, history_length
        self.parameters = int(self._affinities.nnz)

    def scores(self, histories: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """(n, num_items) float32; see Scorer."""
        return summed(self._affinities, histories, length=self._history_length, decay=self.decay)
