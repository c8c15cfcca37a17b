"""The same list for everybody: items by their number of training interactions.

The floor every other model must be clearly above. Never looks at a history, so an empty one gets
the same scores as all others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.data import Interactions


class Popularity:
    """Score = training interactions of the item, a repeat counted again."""

    name = "popularity"

    def __init__(self, train: Interactions) -> None:
        self._popularity = train.popularity().astype(np.float32)
        self.parameters = len(self._popularity)

    def scores(self, histories: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """(n, num_items) float32, every line the same; see Scorer."""
        return np.tile(self._popularity, (len(histories), 1))
