"""What MDGR learns: the code of the next item at masked positions, given the items before it.

A sample is a target with a history. Samples come as segments of histories: a causal encoder reads
a segment once and gives a state for each of its samples; a bidirectional one needs a segment for
each target. Knows no optimiser.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.decoding import SidTrie
from training.config import FitConfig, MaskingConfig, ModelConfig
from training.data import Segments, Split
from training.families.losses import CatalogueSoftmax, Repeats, position_loss
from training.families.mdgr.masking import draw_mask
from training.families.mdgr.model import MaskedDiffusionModel
from training.families.mdgr.published import PublishedModel
from training.families.segment_objective import SegmentObjective, Term


class MDGRObjective(SegmentObjective):
    """The weighted sum of `position_loss` and `CatalogueSoftmax.loss` over masked samples.

    A minibatch is an array of segments. One target may give two samples: one with all positions
    masked (`masking.full_share`), one with some (`masking.partial_share`).
    """

    def __init__(
        self,
        model: MaskedDiffusionModel | PublishedModel,
        split: Split,
        trie: SidTrie,
        *,
        model_config: ModelConfig,
        masking: MaskingConfig,
        config: FitConfig,
    ) -> None:
        self.model, self.masking = model, masking
        cut = Segments.of_one_target if model.one_target else Segments.of
        segments = cut(split.train, model_config.history_length)
        super().__init__(segments, trie.catalogue, config, model.bias.device)
        self.catalogue_softmax = CatalogueSoftmax(
            trie, sampled_rows=config.sampled_rows, device=self.device
        )

    def loss(
        self, minibatch: NDArray[np.intp], progress: float, generator: torch.Generator
    ) -> Tensor:
        """Draw masks for the targets of these segments; the mean loss over samples."""
        config = self.config
        rows, is_target = map(torch.from_numpy, self.segments.arrays(minibatch, filler=self.filler))
        inputs, targets = rows[:, :-1], rows[:, 1:]
        full, partial = (
            is_target & (torch.rand(is_target.shape, generator=generator) < share)
            for share in (self.masking.full_share, self.masking.partial_share)
        )
        # Samples: those with all positions masked, then those with some.
        segment, place = torch.cat((full.nonzero(), partial.nonzero())).unbind(dim=1)
        target_rows = targets[segment, place]
        seen = self.segments.seen(minibatch, segment.numpy(), place.numpy())
        length = place + 1
        if config.history_dropout:
            dropped = torch.rand(len(place), generator=generator) < config.history_dropout
            length = torch.where(dropped, 0, length)
            kept = ~dropped.numpy()[seen[1]]
            seen = seen[0][kept], seen[1][kept]
        target_codes = self.codes[target_rows]
        masked = torch.ones_like(target_codes, dtype=torch.bool)
        some = slice(int(full.sum()), None)
        if partial.any():
            masked[some] = draw_mask(
                self.codes[inputs[segment[some]]],
                torch.arange(inputs.shape[1]) < length[some, None],
                target_codes[some],
                progress=progress,
                config=self.masking,
                generator=generator,
            )
        logits = self._logits(inputs, segment, length, target_codes, masked)
        terms = []
        if config.position_weight:
            of_positions = position_loss(
                logits,
                *self.sent(target_codes, masked),
                label_smoothing=config.label_smoothing,
            )
            terms.append(Term(config.position_weight, of_positions))
        if config.catalogue_weight:
            repeats = Repeats(*map(torch.from_numpy, seen), self.model.repeat_bias)
            over_rows = self.catalogue_softmax.loss(logits, target_rows, masked, repeats)
            terms.append(Term(config.catalogue_weight, over_rows))
        return self.mean_of(terms)

    def _logits(
        self, inputs: Tensor, segment: Tensor, length: Tensor, target_codes: Tensor, masked: Tensor
    ) -> Tensor:
        """Logits of every code at every position of each sample: (n, L, num_codes) float32.

        They are on the device; all that is given is of the host.
        """
        partial_sids = torch.where(masked, self.model.num_codes, target_codes)
        of_inputs = self.codes_and_vectors(inputs)
        of_samples = self.sent(segment, length, partial_sids)
        with self.precision():
            logits = self.model.logits_of_samples(*of_inputs, *of_samples)
        return logits.float()
