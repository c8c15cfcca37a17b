"""What MaskGR learns with causal attention: every item of a segment, from the items before it.

A step gives a masked copy of each target, and one pass through the network fills all of them, as in
block diffusion (arXiv 2503.09573). So a segment of n items gives n - 1 next items, where masks in
its last item give one. Knows no optimiser.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from training.families.device import picked
from training.families.losses import Repeats
from training.families.maskgr.masking import mask_one_item
from training.families.maskgr.objective import LossesOfMaskGR, weighted_loss
from training.families.segment_objective import Term


class CausalObjective(LossesOfMaskGR):
    """The losses of `MaskGRObjective`, of all targets of these segments.

    Of a target k codes are masked, k uniform in 1 .. L, with weight L / k; of a share of them all
    (`masking.full_share` to `masking.partial_share`). With a dense head, targets whose codes are
    all masked are also retrieved, with weight 1. Of a share `fit.history_dropout` of the segments
    no target knows what came before it.
    """

    def loss(
        self, minibatch: NDArray[np.intp], progress: float, generator: torch.Generator
    ) -> Tensor:
        """Draw masks for the targets of these segments; the mean loss over targets."""
        config, model = self.config, self.model
        rows, is_target = map(torch.from_numpy, self.segments.arrays(minibatch, filler=self.filler))
        is_target = F.pad(is_target, (1, 0))  # of the item itself
        segment, place = is_target.nonzero(as_tuple=True)
        masked, weights = mask_one_item(len(place), self.codes.shape[1], self.full_share, generator)
        hears = torch.rand(len(rows), generator=generator) >= config.history_dropout
        targets = rows[is_target]
        copies = self.codes[rows]
        copies[is_target] = torch.where(masked, model.num_codes, copies[is_target])
        codes, vectors = self.codes_and_vectors(rows)
        with self.precision():
            of_copies = self.sent(copies, hears)
            states, lower = model.states_of_copies(codes, vectors, *of_copies)
            logits = model.logits(picked(states, is_target)).float()
        terms = []
        if config.position_weight:
            of_codes = weighted_loss(
                logits,
                self.codes[targets],
                masked,
                weights,
                label_smoothing=config.label_smoothing,
            )
            terms.append(Term(config.position_weight, of_codes))
        if config.catalogue_weight:
            seen = self.segments.seen(minibatch, segment.numpy(), place.numpy() - 1)
            seen_rows, samples = map(torch.from_numpy, seen)
            known = hears[segment[samples]]
            repeats = Repeats(seen_rows[known], samples[known], model.repeat_bias)
            over_rows = self.catalogue_softmax.loss(logits, targets, masked, repeats)
            terms.append(Term(config.catalogue_weight, over_rows))
        if model.dense is not None:
            whole = masked.all(dim=1)
            queries = model.queries(picked(picked(lower, is_target), whole).float())
            terms.append(Term(1, self.dense_loss.loss(queries, targets[whole])))
        return self.mean_of(terms)
