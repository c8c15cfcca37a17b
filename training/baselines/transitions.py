"""Pairwise transitions in log space: each item of a history multiplies the odds of what follows it.

Rebuilt from a description of PCTM (arXiv 2608.19833); no code of it was read. Without any network
it is close to one on small data, so it shows what pairs alone can do. Knows no vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from training.baselines.item_knn import summed
from training.data import Interactions, with_followers


class Transitions:
    """Score = log p(j) + sum over the newest items i of decay ** age * log(p(j | i) / p(j)).

    p(j | i) = (count[i, j] + pseudo_count * p(j)) / (total of i + pseudo_count), where p(j) is the
    share of j in all interactions: of the many log p(j) in the sum one is left. Each j that follows
    i `gap` items later, at most `distance`, adds gap_decay ** (gap - 1) to count[i, j], and
    `backwards` times this to count[j, i]. The total of i is the same for all j, so it is left out.

    What is stored are the logarithms where a count is not 0: no matrix of all pairs. `decay` may be
    changed: it is not in the counts.
    """

    name = "transitions in log space"

    def __init__(
        self,
        train: Interactions,
        *,
        distance: int = 20,
        gap_decay: float = 0.7,
        backwards: float = 0.2,
        pseudo_count: float = 300.0,
        decay: float = 0.6,
        history_length: int = 20,
    ) -> None:
        none = sparse.csr_array((train.num_items, train.num_items), dtype=np.float32)
        forwards = with_followers(none, train, gap_decay ** np.arange(distance))
        lifts = sparse.csr_array(forwards + backwards * forwards.T)
        popularity = train.popularity()
        # An item that nobody had counts as half an interaction: less than all others, but not 0.
        shares = np.maximum(popularity, 0.5) / max(1, popularity.sum())
        lifts.data = np.log1p(lifts.data / (pseudo_count * shares[lifts.indices]), dtype=np.float32)
        self._lifts, self._log_shares = lifts, np.log(shares).astype(np.float32)
        self.decay, self._history_length = decay, history_length
        self.parameters = int(lifts.nnz) + train.num_items

    def scores(self, histories: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """(n, num_items) float32; see Scorer."""
        scores = summed(self._lifts, histories, length=self._history_length, decay=self.decay)
        known = np.array([len(history) > 0 for history in histories], dtype=bool)
        scores[known] += self._log_shares
        return scores
