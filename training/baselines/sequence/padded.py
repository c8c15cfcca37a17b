"""Sequences as rectangles, for training and for scoring: filler stands at the end.

Training takes `training.data.segments`, as the generative model does, so both see the same samples.
Filler is `num_items`, never an item. Knows no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data import Segments


@dataclass(frozen=True)
class Padded:
    """n sequences, oldest item first, filler `num_items` at the end.

    rows: (n, t) int64; lengths: (n,) int64, at least 0; targets: (n, t) bool, items to predict
    """

    rows: Tensor
    lengths: Tensor
    targets: Tensor

    @property
    def valid(self) -> Tensor:
        """(n, t) bool: not filler."""
        return torch.arange(self.rows.shape[1]) < self.lengths[:, None]


def training_minibatches(
    segments: Segments, size: int, num_items: int, generator: torch.Generator
) -> Iterator[Padded]:
    """Every segment once, in random minibatches of about `size` targets."""
    for chosen in segments.minibatches(size, generator):
        rows, is_target = segments.arrays(chosen, filler=num_items)
        targets = np.concatenate((np.zeros((len(chosen), 1), bool), is_target), axis=1)
        lengths = segments.ends[chosen] - segments.starts[chosen]
        yield Padded(*map(torch.from_numpy, (rows, lengths, targets)))


def padded_histories(
    histories: Sequence[NDArray[np.int32]], history_length: int, num_items: int
) -> Padded:
    """The newest `history_length` items of each history; none of them is a target."""
    newest = [history[-history_length:] for history in histories]
    lengths = np.array([len(history) for history in newest], np.int64)
    valid = np.arange(max(1, int(lengths.max(initial=0)))) < lengths[:, None]
    rows = np.full(valid.shape, num_items, np.int64)
    rows[valid] = np.concatenate([np.empty(0, np.int32), *newest])
    return Padded(*map(torch.from_numpy, (rows, lengths, np.zeros_like(valid))))
