"""What objectives have in common whose minibatches are segments of histories.

They look up codes and vectors of rows, with a row more for filler, and multiply in bfloat16 where
the processor has it. Knows no loss and no network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray

from service.decoding import Catalogue
from training.config import FitConfig
from training.data import Segments


class SegmentObjective:
    """The parts of an `Objective` that do not depend on the loss.

    codes:   (num_items + 1, L) int64; the last row is filler, MASK everywhere
    vectors: (num_items + 1, d) float16; filler is zeros
    filler:  the row of filler
    """

    def __init__(self, segments: Segments, catalogue: Catalogue, config: FitConfig) -> None:
        self.segments, self.config = segments, config
        self.num_samples = segments.num_samples
        self.filler = catalogue.num_items
        filler_codes = np.full((1, catalogue.num_subspaces), catalogue.num_codes)
        self.codes = torch.from_numpy(
            np.concatenate((catalogue.codes, filler_codes)).astype(np.int64)
        )
        filler_vector = np.zeros((1, catalogue.vectors.shape[1]), np.float16)
        self.vectors = torch.from_numpy(np.concatenate((catalogue.vectors, filler_vector)))
        has_bf16 = torch.cpu._is_avx512_bf16_supported()
        self.dtype = torch.bfloat16 if config.bf16 and has_bf16 else torch.float32

    def minibatches(self, size: int, generator: torch.Generator) -> Iterator[NDArray[np.intp]]:
        """Every segment once, in random order, in minibatches of about `size` targets."""
        return self.segments.minibatches(size, generator)

    def num_samples_of(self, minibatch: NDArray[np.intp]) -> int:
        """Targets of these segments."""
        return self.segments.num_samples_of(minibatch)

    def precision(self) -> torch.autocast | nullcontext[None]:
        """The block in which a step multiplies matrices in `dtype`."""
        in_bf16 = self.dtype == torch.bfloat16
        return torch.autocast("cpu", torch.bfloat16) if in_bf16 else nullcontext()
