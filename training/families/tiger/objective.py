"""What TIGER learns: each code of the next item, given the history and the codes before it.

A sample is a history and its next item: every item of a user but the first is a target. The encoder
sees a whole history at once, so a history is encoded again for each of its samples. Knows no
optimiser.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.decoding import SidTrie
from training.config import FitConfig, MaskingConfig, ModelConfig
from training.data import Segments, Split
from training.errors import ConfigError
from training.families.losses import DenseLoss, position_loss
from training.families.segment_objective import SegmentObjective, Term
from training.families.tiger.model import Tiger


class TigerObjective(SegmentObjective):
    """Cross-entropy of all codes of the target, summed per sample, averaged over samples.

    With a dense head also `DenseLoss`, with the weight 1 (arXiv 2411.18814).
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
        self.model = model
        segments = Segments.of_one_target(split.train, model_config.history_length)
        super().__init__(segments, trie.catalogue, config, model.bias.device)
        self.dense_loss = DenseLoss(
            trie.catalogue, sampled_rows=config.sampled_rows, device=self.device
        )

    def loss(
        self, minibatch: NDArray[np.intp], progress: float, generator: torch.Generator
    ) -> Tensor:
        """Mean loss of these samples. Nothing is drawn but whose history is left out."""
        rows, is_target = map(torch.from_numpy, self.segments.arrays(minibatch, filler=self.filler))
        place = is_target.to(torch.int64).argmax(dim=1, keepdim=True) + 1
        targets = rows.gather(1, place)[:, 0]
        is_item = torch.arange(rows.shape[1] - 1) < place
        if self.config.history_dropout:
            kept = torch.rand(len(rows), generator=generator) >= self.config.history_dropout
            is_item = is_item & kept[:, None]
        history = torch.where(is_item, rows[:, :-1], self.filler)
        [target_codes, is_there] = self.sent(self.codes[targets], is_item)
        with self.precision():
            remembered = self.model.encoded(*self.codes_and_vectors(history), is_there)
            states = self.model.states(target_codes, remembered)
            logits = self.model.logits(states)
        everything = torch.ones_like(target_codes, dtype=torch.bool)
        of_codes = position_loss(
            logits.float(), target_codes, everything, label_smoothing=self.config.label_smoothing
        )
        terms = [Term(self.config.position_weight, of_codes)]
        if self.model.dense is not None:
            of_queries = self.dense_loss.loss(self.model.queries(states.float()), targets)
            terms.append(Term(1, of_queries))
        return self.mean_of(terms)


def check_loss(config: FitConfig) -> None:
    """Raise ConfigError when `fit.catalogue_weight` asks for the loss over rows."""
    if config.catalogue_weight:
        raise ConfigError(
            "fit.catalogue_weight: family tiger has no probability of a row before all of its "
            "codes are known, so it learns by fit.position_weight alone; set "
            "fit.catalogue_weight=0 fit.position_weight=1"
        )
