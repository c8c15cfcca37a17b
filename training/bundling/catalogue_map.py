"""The map of a catalogue: a place in two dimensions for every item, near items that are like it.

The MOST_LAID_OUT most popular items are laid out by t-SNE; every other item lies in the middle of
those of them that it is most like. So time grows with the number of items, and slowly. One thread:
with several, sums would be added in another order each time. Knows vectors, and no items.
"""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

MOST_LAID_OUT = 4_000
NUM_NEIGHBOURS = 3  # the median of their places
MOST_DIMS = 50  # principal components that t-SNE sees, as is usual
PERPLEXITY = 30
STEPS = 500
ANGLE = 0.8  # of Barnes and Hut's approximation: coarser than the usual .5, and twice as fast
SPREAD = 1e-4  # of the first places, as is usual
LEAST_SPREAD = 1e-6  # of directions, which have a length of 1; less is rounding
LAST = 65_534  # 65535 says that an item has no place
AT_ONCE = 50_000

Vectors = NDArray[np.float32]


def lay_out(vectors: NDArray[np.floating], seed: int) -> NDArray[np.uint16]:
    """Places of items, (num_items, 2) uint16; both axes have one scale. The same for the same seed.

    vectors: (num_items, d), the most popular first; only their directions count
    """
    num_laid_out = min(len(vectors), MOST_LAID_OUT)
    first = _directions(vectors[:num_laid_out])
    with threadpool_limits(1):
        laid_out = _tsne(first, seed)
        parts = [laid_out]
        for start in range(num_laid_out, len(vectors), AT_ONCE):
            others = _directions(vectors[start : start + AT_ONCE])
            _, nearest = faiss.knn(others, first, NUM_NEIGHBOURS, metric=faiss.METRIC_INNER_PRODUCT)
            parts.append(np.median(laid_out[nearest], axis=1))
    places = np.concatenate(parts)
    least, most = places.min(axis=0), places.max(axis=0)
    scale = LAST / max(float((most - least).max()), 1e-12)
    centred = (places - (least + most) / 2) * scale + LAST / 2
    return np.clip(np.rint(centred), 0, LAST).astype(np.uint16)


def _directions(vectors: NDArray[np.floating]) -> Vectors:
    found = np.ascontiguousarray(vectors, np.float32)
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    norms[norms == 0] = 1
    return found / norms


def _tsne(directions: Vectors, seed: int) -> Vectors:
    """(n, 2)"""
    directions = directions.astype(np.float64)  # a mean in float32 is not that of equal vectors
    centred = directions - directions.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)  # the last ones vary most
    components = (centred @ axes[:, ::-1][:, :MOST_DIMS]).astype(np.float32)
    spread = float(components[:, 0].std()) if components.shape[1] else 0.0
    start = np.random.default_rng(seed).normal(0, SPREAD / 100, (len(directions), 2))
    if components.shape[1] > 1 and spread > LEAST_SPREAD:
        start += components[:, :2] * (SPREAD / spread)
    start = start.astype(np.float32)
    if len(directions) < 4 or spread <= LEAST_SPREAD:  # there is nothing to tell apart
        return start
    tsne = TSNE(
        init=start,
        perplexity=min(PERPLEXITY, (len(directions) - 1) / 3),
        max_iter=STEPS,
        angle=ANGLE,
        random_state=seed,
        n_jobs=1,
    )
    places: Vectors = tsne.fit_transform(components)
    return places
