"""Item-item nearest neighbours: what users of the same items also had, in whatever order.

Cosine between columns of the binary user-item matrix of training. It is shrunk towards zero where
items are rare, and only each item's nearest neighbours are kept (Deshpande and Karypis 2004,
item-based top-N recommendation). The order of a history matters only for which items are newest.

`recency_weights` turns histories into a sparse matrix, one line a user. `summed` is this matrix
times one of similarities between items: the scores of every baseline that counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from training.data import Interactions, users_with_both


class ItemKNN:
    """Score = sum over the newest `history_length` items of their similarity to the item.

    neighbours: nearest items kept for each item; shrinkage: added to the cosine's denominator.
    Both defaults had the best validation ndcg@10 on 5-core Amazon Beauty (2014).
    """

    name = "item kNN"

    def __init__(
        self,
        train: Interactions,
        *,
        neighbours: int = 10,
        shrinkage: float = 50.0,
        history_length: int = 20,
    ) -> None:
        self._similarities = nearest(item_cosines(train, shrinkage=shrinkage), neighbours)
        self._history_length = history_length
        self.parameters = int(self._similarities.nnz)

    def scores(self, histories: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """(n, num_items) float32; see Scorer."""
        return summed(self._similarities, histories, length=self._history_length, decay=1.0)


def summed(
    similarities: sparse.csr_array,
    histories: Sequence[NDArray[np.int32]],
    *,
    length: int,
    decay: float,
) -> NDArray[np.float32]:
    """Sum over the newest `length` items i of decay ** age * similarities[i], (n, num_items)."""
    weights = recency_weights(histories, similarities.shape[0], length=length, decay=decay)
    scores: NDArray[np.float32] = (weights @ similarities).toarray()
    return scores


def recency_weights(
    histories: Sequence[NDArray[np.int32]], num_items: int, *, length: int, decay: float
) -> sparse.csr_array:
    """decay ** age of the newest `length` items, (n, num_items) sparse float32.

    Age 0 is the newest item; an item that is there twice has the sum of its weights.
    """
    newest = [history[-length:] for history in histories]
    lengths = np.array([len(history) for history in newest], dtype=np.int64)
    rows = np.concatenate([np.empty(0, np.int32), *newest])
    ages = np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(len(rows))
    weights = np.float_power(decay, ages).astype(np.float32)
    users = np.repeat(np.arange(len(newest)), lengths)
    return sparse.csr_array((weights, (users, rows)), shape=(len(newest), num_items))


def item_cosines(train: Interactions, *, shrinkage: float) -> sparse.csr_array:
    """users with both / (sqrt(users_i * users_j) + shrinkage), (num_items, num_items) float32.

    Sparse, with a zero diagonal. Users are counted by `users_with_both`.
    """
    together = sparse.coo_array(users_with_both(train))
    num_users = together.diagonal()
    here, there = together.coords
    cosine = together.data / (np.sqrt(num_users[here] * num_users[there]) + shrinkage)
    cosine[here == there] = 0
    similarities = sparse.csr_array(
        (cosine.astype(np.float32), (here, there)), shape=together.shape
    )
    similarities.eliminate_zeros()
    return similarities


def nearest(similarities: sparse.csr_array, neighbours: int) -> sparse.csr_array:
    """The `neighbours` largest entries of each line; of equal ones those in lower columns."""
    entries = sparse.coo_array(similarities)
    lines, columns = entries.coords
    order = np.lexsort((columns, -entries.data, lines))
    first = np.concatenate([[0], np.cumsum(np.bincount(lines, minlength=entries.shape[0]))])
    place = np.arange(len(order)) - first[lines[order]]
    kept = order[place < neighbours]
    return sparse.csr_array((entries.data[kept], (lines[kept], columns[kept])), shape=entries.shape)
