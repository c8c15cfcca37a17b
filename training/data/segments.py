"""Cuts histories into segments for training: each needs one pass of the causal encoder.

Every item of a history, except the first, is the target of one sample.

    a history  A B C D      one segment: inputs A B C, targets B C D
    longer than history_length + 1 (here 3 + 1)
    A B C D E F G           A B C D: targets B C D;  C D E F: E F;  D E F G: G

A later segment repeats items of the segment before. So each of its targets has at least
`history_length / 2` items before it. Knows nothing of codes or networks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from service.bundles import HISTORY_CAP
from training.data.splits import Interactions

BUCKET_SAMPLES = 8192  # segments with about this many samples are sorted by length together


@dataclass(frozen=True, eq=False)
class Segments:
    """Segment s is `rows[starts[s]:ends[s]]`; its targets begin at `firsts[s]`.

    rows:   (num_interactions,) int32, the rows of the Interactions (not a copy)
    begins: where the interactions of its user begin
    begins, starts, firsts, ends: (num_segments,) int64, begins <= starts < firsts < ends
    """

    rows: NDArray[np.int32]
    begins: NDArray[np.int64]
    starts: NDArray[np.int64]
    firsts: NDArray[np.int64]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, train: Interactions, history_length: int) -> Segments:
        """Segments in which every interaction, except a user's first, is a target exactly once."""
        stride = max(1, history_length // 2)
        lengths = train.lengths()
        later = np.maximum(lengths - history_length - 1, 0)  # items after the first segment
        num_segments = np.where(lengths > 1, 1 + -(-later // stride), 0)
        user = np.repeat(np.arange(train.num_users), num_segments)
        number = np.arange(len(user)) - np.repeat(
            np.cumsum(num_segments) - num_segments, num_segments
        )
        begins, stops = train.indptr[user], train.indptr[user + 1]
        ends = np.minimum(begins + history_length + 1 + number * stride, stops)
        starts = np.maximum(begins, ends - history_length - 1)
        firsts = np.where(
            number == 0, begins + 1, begins + history_length + 1 + (number - 1) * stride
        )
        return cls(train.rows, begins, starts, firsts, ends)

    @classmethod
    def of_one_target(cls, train: Interactions, history_length: int) -> Segments:
        """A segment for each target: for networks that read a whole history for one target."""
        windows = train.windows()
        begins, ends = windows.starts, windows.ends
        starts = np.maximum(begins, ends - history_length)
        return cls(train.rows, begins, starts, ends, ends + 1)

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def num_samples(self) -> int:
        """Targets of all segments."""
        return int((self.ends - self.firsts).sum())

    def num_samples_of(self, chosen: NDArray[np.intp]) -> int:
        """Targets of some segments."""
        return int((self.ends[chosen] - self.firsts[chosen]).sum())

    def minibatches(self, size: int, generator: torch.Generator) -> Iterator[NDArray[np.intp]]:
        """Every segment once, in random order, in minibatches of about `size` samples.

        The segments of a minibatch have similar lengths, so it needs little filler.
        """
        order = torch.randperm(len(self), generator=generator).numpy()
        samples, lengths = self.ends - self.firsts, self.ends - self.starts
        minibatches = []
        for bucket in _split(order, samples, size * max(1, BUCKET_SAMPLES // size)):
            bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
            minibatches += _split(bucket, samples, size)
        for index in torch.randperm(len(minibatches), generator=generator).tolist():
            yield minibatches[index]

    def arrays(
        self, chosen: NDArray[np.intp], filler: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Rows of some segments, and where their targets are.

        The first array, (n, length + 1) int64, has filler at the ends. The second, (n, length)
        bool, marks the inputs whose next item is a target.
        """
        lengths = self.ends[chosen] - self.starts[chosen]
        place = np.arange(lengths.max())
        inside = place < lengths[:, None]
        rows = np.full(inside.shape, filler, np.int64)
        rows[inside] = self.rows[(self.starts[chosen][:, None] + place)[inside]]
        firsts = (self.firsts - self.starts)[chosen]
        return rows, (inside & (place >= firsts[:, None]))[:, 1:]

    def seen(
        self, chosen: NDArray[np.intp], segment: NDArray[np.int64], place: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows that each sample has seen, and for each of these rows its sample: both int64.

        Sample i is the input at `place[i]` of segment `chosen[segment[i]]`. It has seen the newest
        HISTORY_CAP rows up to that input. No pair of row and sample comes twice.
        """
        ends = self.starts[chosen][segment] + place + 1
        begins = np.maximum(self.begins[chosen][segment], ends - HISTORY_CAP)
        lengths = ends - begins
        sample = np.repeat(np.arange(len(segment)), lengths)
        within = np.arange(len(sample)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        num_rows = int(self.rows.max()) + 1
        pairs = np.unique(sample * num_rows + self.rows[begins[sample] + within])
        return pairs % num_rows, pairs // num_rows


def _split(
    order: NDArray[np.intp], samples: NDArray[np.int64], size: int
) -> list[NDArray[np.intp]]:
    """Cut `order` into parts with about `size` samples each; no part is empty."""
    total = int(samples[order].sum())
    num_parts = max(1, round(total / size))
    part = (np.cumsum(samples[order]) - 1) * num_parts // total
    return np.split(order, np.flatnonzero(np.diff(part)) + 1)
