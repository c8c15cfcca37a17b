"""How new items fare: items are taken out of a bundle and put back as new ones, by its own code.

Protocol: a tenth of the items that somebody has as test target, drawn once. Users whose target is
one of them ask the bundle as it was trained, and the bundle to which these items were added as
the service adds them; so do all others, who may lose by it. Their histories hold new items too.
The whole catalogue is ranked through the production decoder at the bundle's default. A bundle that
was trained without these items is measured by the same functions. Knows no model and no baseline.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.data import Dataset
from training.errors import DataError

SHARE, SEED = 0.1, 0


def draw_new_items(dataset: Dataset) -> NDArray[np.int32]:
    """Rows of the items that are to be new, ascending: a tenth of those that can be measured.

    These have content, training interactions, and a test user whose target they are.
    Raises DataError when there is none.
    """
    if dataset.embeddings is None:
        raise DataError(
            "new items cannot be measured on this data, because new items come with content "
            "embeddings, and this data has none; give --embeddings"
        )
    eligible = np.zeros(dataset.split.train.num_items, dtype=bool)
    eligible[dataset.split.test.targets] = True
    eligible &= dataset.split.train.popularity() > 0
    eligible &= dataset.embeddings.any(axis=1)
    rows = np.flatnonzero(eligible)
    if not len(rows):
        raise DataError(
            "new items cannot be measured on this data, because no item has content, training "
            "interactions and a test user whose target it is"
        )
    number = max(1, round(SHARE * len(rows)))
    drawn = np.random.default_rng(SEED).choice(rows, number, replace=False)
    return np.sort(drawn).astype(np.int32)
