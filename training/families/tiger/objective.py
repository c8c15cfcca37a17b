"""What TIGER learns: each code of the next item, given the history and the codes before it.

A sample is a history and its next item: every item of a user but the first is a target. The encoder
sees a whole history at once, so a history is encoded again for each of its samples. Knows no
optimiser.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.decoding import SidTrie
from training.config import FitConfig, MaskingConfig, ModelConfig
from training.data import Segments, Split
from training.errors import ConfigError
from training.families.losses import position_loss
from training.families.tiger.model import Tiger


class TigerObjective:
    """Cross-entropy of all codes of the target, summed per sample, averaged over samples.

    A minibatch is an array of segments of one target each. Masks and the loss over rows do not
    apply. Raises ConfigError when `fit.catalogue_weight` asks for that loss.
    """

    def __init__(
        self,
        model: Tiger,
        split: Split,
        trie: SidTrie,
        *,
        model_config: ModelConfig,
        masking: MaskingConfig,
        config: FitConfig,
    ) -> None:
        check_loss(config)
        self.model, self.config = model, config
        self.segments = Segments.of_one_target(split.train, model_config.history_length)
        self.num_samples = self.segments.num_samples
        catalogue = trie.catalogue
        filler_codes = np.full((1, catalogue.num_subspaces), catalogue.num_codes)
        self.codes = torch.from_numpy(
            np.concatenate((catalogue.codes, filler_codes)).astype(np.int64)
        )
        filler_vector = np.zeros((1, catalogue.vectors.shape[1]), np.float16)
        self.vectors = torch.from_numpy(np.concatenate((catalogue.vectors, filler_vector)))
        has_bf16 = torch.cpu._is_avx512_bf16_supported()
        self.dtype = torch.bfloat16 if config.bf16 and has_bf16 else torch.float32

    def minibatches(self, size: int, generator: torch.Generator) -> Iterator[NDArray[np.intp]]:
        """Every sample once, in random order, histories of similar lengths together."""
        return self.segments.minibatches(size, generator)

    def num_samples_of(self, minibatch: NDArray[np.intp]) -> int:
        return len(minibatch)

    def loss(
        self, minibatch: NDArray[np.intp], progress: float, generator: torch.Generator
    ) -> Tensor:
        """Mean loss of these samples. Nothing is drawn."""
        filler = len(self.codes) - 1
        rows, is_target = map(torch.from_numpy, self.segments.arrays(minibatch, filler=filler))
        place = is_target.to(torch.int64).argmax(dim=1, keepdim=True) + 1
        targets = rows.gather(1, place)[:, 0]
        is_item = torch.arange(rows.shape[1] - 1) < place
        history = torch.where(is_item, rows[:, :-1], filler)
        target_codes = self.codes[targets]
        in_bf16 = self.dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16) if in_bf16 else nullcontext():
            remembered = self.model.encoded(
                self.codes[history], self.vectors[history].float(), is_item
            )
            logits = self.model.logits(target_codes, remembered, None)
        everything = torch.ones_like(target_codes, dtype=torch.bool)
        return self.config.position_weight * position_loss(
            logits.float(), target_codes, everything, label_smoothing=self.config.label_smoothing
        )


def check_loss(config: FitConfig) -> None:
    """Raise ConfigError when `fit.catalogue_weight` asks for the loss over rows."""
    if config.catalogue_weight:
        raise ConfigError(
            "fit.catalogue_weight: family tiger has no probability of a row before all of its "
            "codes are known, so it learns by fit.position_weight alone; set "
            "fit.catalogue_weight=0 fit.position_weight=1"
        )
