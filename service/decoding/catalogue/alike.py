"""Which trained items a new item is like, by content: so it is found before anybody had it.

Nobody had a new item, so nothing says who will. Items that read like it say it: it counts as a
mixture of them. Their vectors give the half of its vector that interactions give, and so its SID
(`vectors_like`). Their places in the neighbour prior give its own (`neighbour_prior`). Only items
with interactions of their own are looked at. So it does not matter in how many calls new items
come, nor in which order. Products are of float64, for the reason that `codebook` gives. Knows
nothing of item ids or histories.

content: (n, content_dims) float32, content parts of vectors
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NUM_ALIKE = 10  # as measured: docs/decisions/038
SHARPNESS = 8  # an item's share grows with this power of its cosine
LEAST_COSINE = 0.1  # less is chance
MOST_COMPARED = 50_000  # the most popular items: their neighbours are known best
NEW_AT_ONCE, KNOWN_AT_ONCE = 256, 8192  # limits memory; the products do not hold the GIL
TIE = 1e-13  # far below the steps of float32: of equal cosines, the lower row


class Alike(NamedTuple):
    """What each of n items is a mixture of.

    rows:   (n, NUM_ALIKE) int32, in the arrays that were looked through, the nearest first
    shares: (n, NUM_ALIKE) float32, the sum of a row is 1; 0 where an item has fewer
    """

    rows: NDArray[np.int32]
    shares: NDArray[np.float32]


def most_alike(content: NDArray[np.floating], known: NDArray[np.floating]) -> Alike:
    """The items that share most content with each item.

    known: (num_known, content_dims) content parts of trained items, most popular first; only the
        first MOST_COMPARED are looked at
    An item has its share by cosine ** SHARPNESS, if the cosine is at least LEAST_COSINE. An item
    without content is like nothing.
    """
    known = known[:MOST_COMPARED]
    rows = np.zeros((len(content), NUM_ALIKE), np.int32)
    shares = np.zeros((len(content), NUM_ALIKE), np.float32)
    for start in range(0, len(content), NEW_AT_ONCE):
        part = slice(start, start + NEW_AT_ONCE)
        rows[part], cosines = _nearest(_directions(content[part]), known)
        weights = np.where(cosines < LEAST_COSINE, 0, cosines) ** SHARPNESS
        sums = weights.sum(axis=1, keepdims=True)
        shares[part] = np.divide(weights, sums, out=np.zeros_like(weights), where=sums > 0)
    return Alike(rows, shares)


def _nearest(
    directions: NDArray[np.float64], known: NDArray[np.floating]
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Rows and cosines, (n, NUM_ALIKE), nearest first; of equals the lower row. 0 = no such row"""
    best = np.zeros((len(directions), NUM_ALIKE))
    rows = np.zeros((len(directions), NUM_ALIKE), np.int32)
    for start in range(0, len(known), KNOWN_AT_ONCE):
        cosines = directions @ _directions(known[start : start + KNOWN_AT_ONCE]).T
        cosines = np.maximum(cosines.astype(np.float32), 0)  # items of equal content are equal
        kept = min(NUM_ALIKE, cosines.shape[1])
        keys = TIE * np.arange(cosines.shape[1]) - cosines
        found = np.argpartition(keys, kept - 1, axis=1)[:, :kept].astype(np.int32)
        found.sort(axis=1)
        all_rows = np.concatenate((rows, found + np.int32(start)), axis=1)
        all_cosines = np.concatenate((best, np.take_along_axis(cosines, found, axis=1)), axis=1)
        order = np.argsort(-all_cosines, axis=1, kind="stable")[:, :NUM_ALIKE]
        rows = np.take_along_axis(all_rows, order, axis=1)
        best = np.take_along_axis(all_cosines, order, axis=1)
    return rows, best


def vectors_like(
    content: NDArray[np.float32], alike: Alike, known: NDArray[np.floating], norm: float
) -> NDArray[np.float32]:
    """Vectors of items without interactions: their content, and what those they are like have.

    known: (num_known, d) vectors of the items that `alike` names, the content part first
    norm:  of the collaborative part of an item that has one
    Returns (n, d) float32. The collaborative part is zeros for an item that is like nothing.
    """
    num_content = content.shape[1]
    vectors = np.zeros((len(content), known.shape[1]), np.float32)
    vectors[:, :num_content] = content
    if not len(known):
        return vectors
    for start in range(0, len(content), NEW_AT_ONCE):
        part = slice(start, start + NEW_AT_ONCE)
        of_known = known[alike.rows[part], num_content:].astype(np.float64)
        mixed = (alike.shares[part, :, None].astype(np.float64) * of_known).sum(axis=1)
        vectors[part, num_content:] = norm * _directions(mixed)
    return vectors


def _directions(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Each row divided by its L2 norm, as float64; a row of zeros stays zero."""
    vectors = vectors.astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
