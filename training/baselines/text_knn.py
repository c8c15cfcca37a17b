"""Nearest items by content: which items read like the newest ones of the history.

Needs no interaction at all, so it is what a catalogue of new items can be ranked with. Looks at
content embeddings as they are; knows nothing of where they come from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.baselines.item_knn import recency_weights
from training.baselines.scorer import ranks
from training.data import Windows, normalised


class TextKNN:
    """Score = cosine of an item's embedding to a weighted mean of the history's.

    embeddings: (num_items, d) float32, zeros where an item has no content; such items score 0.
    decay: weight of an item against the next newer one. The history's embeddings are normalised
    before they are averaged. On 5-core Amazon Beauty (2014) validation is flat from .1 to .3 and
    falls beyond.
    """

    name = "text kNN"

    def __init__(
        self, embeddings: NDArray[np.floating], *, decay: float = 0.2, history_length: int = 20
    ) -> None:
        self._directions = normalised(embeddings.astype(np.float32))
        self._decay, self._history_length = decay, history_length
        self.parameters = self._directions.size

    def scores(self, histories: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """(n, num_items) float32 in [-1, 1]; see Scorer."""
        weights = recency_weights(
            histories, len(self._directions), length=self._history_length, decay=self._decay
        )
        return normalised(weights @ self._directions) @ self._directions.T


def ranks_by_content(
    windows: Windows, embeddings: NDArray[np.floating], *, k: int, exclude_seen: bool
) -> NDArray[np.int32]:
    """Ranks of the targets by `TextKNN`: see `training.baselines.scorer.ranks`."""
    return ranks(windows, TextKNN(embeddings), k=k, exclude_seen=exclude_seen)
