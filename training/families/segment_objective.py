"""What objectives have in common whose minibatches are segments of histories.

They look up codes and vectors of rows, with a row more for filler, and multiply in bfloat16 where
the device is made for it. Rows and masks are of the host; what the network reads is on the device.
Knows no loss and no network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.decoding import Catalogue
from training.config import FitConfig
from training.data import Segments
from training.families.device import HOST, matrix_type, multiplying_in, sent
from training.families.family import Counts
from training.families.losses import Total


class Term(NamedTuple):
    """A part of a minibatch's loss: weight * (samples / of_samples) * total.sum / total.count.

    samples, of_samples: where only a share of the minibatch's samples can have this part
    """

    weight: float
    total: Total
    samples: float = 1.0
    of_samples: float = 1.0


class SegmentObjective:
    """The parts of an `Objective` that do not depend on the loss.

    codes:   (num_items + 1, L) int64, on the host; the last row is filler, MASK everywhere
    vectors: (num_items + 1, d) float16, on the device; filler is zeros
    filler:  the row of filler
    device:  where the network is
    of_all:  what counts of a share of a minibatch are in the whole of it, see `Objective`
    """

    def __init__(
        self,
        segments: Segments,
        catalogue: Catalogue,
        config: FitConfig,
        device: torch.device = HOST,
    ) -> None:
        self.segments, self.config = segments, config
        self.num_samples = segments.num_samples
        self.filler = catalogue.num_items
        filler_codes = np.full((1, catalogue.num_subspaces), catalogue.num_codes)
        self.codes = torch.from_numpy(
            np.concatenate((catalogue.codes, filler_codes)).astype(np.int64)
        )
        filler_vector = np.zeros((1, catalogue.vectors.shape[1]), np.float16)
        vectors = torch.from_numpy(np.concatenate((catalogue.vectors, filler_vector)))
        self.device = device
        self.vectors = sent(vectors, device)
        self._codes = sent(self.codes, device)
        self.dtype = matrix_type(device, bf16=config.bf16)
        self.of_all: Counts = np.asarray

    def minibatches(self, size: int, generator: torch.Generator) -> Iterator[NDArray[np.intp]]:
        """Every segment once, in random order, in minibatches of about `size` targets."""
        return self.segments.minibatches(size, generator)

    def num_samples_of(self, minibatch: NDArray[np.intp]) -> int:
        """Targets of these segments."""
        return self.segments.num_samples_of(minibatch)

    def mean_of(self, terms: Sequence[Term]) -> Tensor:
        """The sum of these parts, each with the counts of the whole minibatch."""
        counts = np.array([(one.total.count, one.samples, one.of_samples) for one in terms])
        loss = torch.zeros((), device=self.device)
        for term, (count, samples, of_samples) in zip(terms, self.of_all(counts), strict=True):
            share = float(samples / of_samples)
            loss = loss + share * term.weight * Total(term.total.sum, float(count)).mean
        return loss

    def precision(self) -> torch.autocast | nullcontext[None]:
        """The block in which a step multiplies matrices in `dtype`."""
        return multiplying_in(self.dtype, self.device)

    def sent(self, *made: Tensor) -> Iterator[Tensor]:
        """Tensors of the host on the device."""
        return (sent(one, self.device) for one in made)

    def codes_and_vectors(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of rows, on the device: (..., L) int64 and (..., d) float32. rows: of the host"""
        there = sent(rows, self.device)
        return self._codes[there], self.vectors[there].float()
