"""A model with the neighbour prior of our bundles: what a rival gains if it has the prior too.

The prior is the very object that a bundle holds. It is added to the scores of all items, as the
search adds it to those of rows. Knows nothing of how either was fitted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from service.decoding import NeighbourPrior
from training.baselines.item_knn import summed
from training.baselines.scorer import Scorer


class WithPrior:
    """Score = the model's + weight * log(1 + memory / scale), see NeighbourPrior.

    memory: sum over the newest items of the history of decay ** age * affinity
    model:  its scores should be logits. Log-probabilities would be all less by one number a user,
            which changes no order.
    """

    def __init__(self, model: Scorer, prior: NeighbourPrior) -> None:
        self.name = f"{model.name} + prior"
        self._model, self._prior = model, prior
        num_items, num_neighbours = prior.neighbours.shape
        ends = np.arange(num_items + 1) * num_neighbours
        self._affinities = sparse.csr_array(
            (prior.affinities.ravel().astype(np.float32), prior.neighbours.ravel(), ends),
            shape=(num_items, num_items),
        )
        self._affinities.eliminate_zeros()
        self.parameters = model.parameters + bool(prior.weight) * int(self._affinities.nnz)

    def scores(self, histories: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """(n, num_items) float32; see Scorer."""
        scores, prior = self._model.scores(histories), self._prior
        if not prior.weight:
            return scores
        memory = summed(self._affinities, histories, length=prior.history_length, decay=prior.decay)
        return scores + np.float32(prior.weight) * np.log1p(memory / np.float32(prior.scale))
