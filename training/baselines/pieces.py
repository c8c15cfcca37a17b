"""Sequences for training and scoring: users' histories cut to length and padded to rectangles.

A long history becomes overlapping pieces, so that every item but a user's first is a target exactly
once an epoch and sees at least half of the length it may:

    length 4, history  A B C D E F G H   ->   A B C D E        targets B C D E
                                                  C D E F G    targets F G
                                                      E F G H  targets H

Filler stands at the end and is `num_items`, never an item. Knows no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.interactions import Interactions

BUCKET_MINIBATCHES = 32  # minibatches whose pieces are sorted by length together


@dataclass(frozen=True)
class Padded:
    """n sequences, oldest item first, filler `num_items` at the end.

    rows: (n, t) int64; lengths: (n,) int64, at least 0; fresh: (n, t) bool, targets that no earlier
    piece of the user had
    """

    rows: Tensor
    lengths: Tensor
    fresh: Tensor

    @property
    def valid(self) -> Tensor:
        """(n, t) bool: not filler."""
        return torch.arange(self.rows.shape[1]) < self.lengths[:, None]


class Pieces:
    """Pieces of up to history_length + 1 items of all users with at least two training items."""

    def __init__(self, train: Interactions, history_length: int) -> None:
        self._rows, self._num_items = train.rows, train.num_items
        stride = max(1, history_length // 2)
        bounds = []
        for start, stop in zip(train.indptr[:-1].tolist(), train.indptr[1:].tolist(), strict=True):
            fresh = start + 1
            while fresh < stop:
                end = min(start + history_length + 1, stop)
                bounds.append((start, end, fresh))
                start, fresh = start + stride, end
        table = np.array(bounds, dtype=np.int64).reshape(-1, 3)
        self._starts, self._stops, self._fresh = table.T

    def __len__(self) -> int:
        return len(self._starts)

    def minibatches(self, size: int, generator: torch.Generator) -> Iterator[Padded]:
        """Every piece once, in random minibatches of similar lengths."""
        order = torch.randperm(len(self), generator=generator).numpy()
        lengths = self._stops - self._starts
        minibatches = []
        for start in range(0, len(order), size * BUCKET_MINIBATCHES):
            bucket = order[start : start + size * BUCKET_MINIBATCHES]
            bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
            minibatches += [bucket[at : at + size] for at in range(0, len(bucket), size)]
        for index in torch.randperm(len(minibatches), generator=generator).tolist():
            of = minibatches[index]
            starts, stops, fresh = self._starts[of], self._stops[of], self._fresh[of]
            yield _rectangle(self._rows, starts, stops, fresh, self._num_items)


def padded_histories(
    histories: Sequence[NDArray[np.int32]], history_length: int, num_items: int
) -> Padded:
    """The newest `history_length` items of each history."""
    newest = [history[-history_length:] for history in histories]
    stops = np.cumsum([len(history) for history in newest], dtype=np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), stops])[: len(newest)]
    rows = np.concatenate([np.empty(0, np.int32), *newest])
    return _rectangle(rows, starts, stops, starts, num_items)


def _rectangle(
    rows: NDArray[np.int32],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    fresh: NDArray[np.int64],
    num_items: int,
) -> Padded:
    lengths = stops - starts
    at = starts[:, None] + np.arange(max(1, int(lengths.max(initial=0))))
    valid = at < stops[:, None]
    filled = np.full(at.shape, num_items, np.int64)
    filled[valid] = rows[at[valid]]
    return Padded(
        torch.from_numpy(filled),
        torch.from_numpy(lengths),
        torch.from_numpy(valid & (at >= fresh[:, None])),
    )
