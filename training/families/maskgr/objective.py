"""What MaskGR learns: masked codes of a user's items, from the other codes.

A sequence is a segment of a history, at most `history_length` items and one to fill. Of each kind
of masking (`masking`) a minibatch has its share of sequences. Knows no optimiser.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from service.decoding import SidTrie
from training.config import FitConfig, MaskingConfig, ModelConfig
from training.data import Segments, Split
from training.families.device import picked, sent
from training.families.losses import CatalogueSoftmax, DenseLoss, Repeats, Total
from training.families.maskgr.masking import mask_anywhere, mask_items, mask_one_item
from training.families.maskgr.model import MaskGR
from training.families.segment_objective import SegmentObjective, Term


class Sequences(NamedTuple):
    """Sequences with their masks; the last item is at the end, filler at the start.

    rows:    (n, items) int64, `num_items` where filler
    is_item: (n, items) bool
    masked:  (n, items, L) bool, never where filler
    weights: (n,) float32, of a masked code of each
    whole:   (n,) bool, masked anywhere; else in the last item only
    asked:   (n, items) bool, items that the dense head is asked for: of their sequence whole items
        were masked, and they are; none without a dense head
    """

    rows: Tensor
    is_item: Tensor
    masked: Tensor
    weights: Tensor
    whole: Tensor
    asked: Tensor


class LossesOfMaskGR(SegmentObjective):
    """What the two objectives of this family have: the network, and the losses beside the paper's.

    full_share: of samples in which one item is filled, the share that has all its codes masked
    """

    def __init__(
        self,
        model: MaskGR,
        split: Split,
        trie: SidTrie,
        *,
        model_config: ModelConfig,
        masking: MaskingConfig,
        config: FitConfig,
    ) -> None:
        self.model = model
        self.full_share = masking.full_share / (masking.full_share + masking.partial_share)
        segments = Segments.of(split.train, model_config.history_length)
        super().__init__(segments, trie.catalogue, config, model.bias.device)
        sampled = {"sampled_rows": config.sampled_rows, "device": self.device}
        self.catalogue_softmax = CatalogueSoftmax(trie, **sampled)
        self.dense_loss = DenseLoss(trie.catalogue, **sampled)


class MaskGRObjective(LossesOfMaskGR):
    """The paper's loss (`fit.position_weight`) and the one over rows (`fit.catalogue_weight`).

    The paper's: over the masked codes, sum of weight * cross-entropy / sum of weights. The other:
    `CatalogueSoftmax.loss` of the last item, where it has a mask. Sequences of the two kinds of
    masking have means of their own, which count by the number of sequences. With a dense head there
    is also `DenseLoss`, with the weight 1, the mean over the items that it is asked for.

    A minibatch is an array of segments. Each is one sequence; where only its last item is masked,
    it is cut off after one of its targets, drawn at random. So every item comes last now and then.
    Of a share `fit.history_dropout`, only the last item is left.
    """

    def __init__(
        self, model: MaskGR, split: Split, trie: SidTrie, *, masking: MaskingConfig, **configs: Any
    ) -> None:
        super().__init__(model, split, trie, masking=masking, **configs)
        self.target_share = model.options.target_share
        self.noise = masking.noise

    def loss(
        self, minibatch: NDArray[np.intp], progress: float, generator: torch.Generator
    ) -> Tensor:
        """Draw masks for these segments; the mean loss over sequences."""
        config = self.config
        sequences = self.draw(minibatch, generator)
        states, lower = self._states(sequences)
        if not config.position_weight:
            states = states[:, -1:]
        logits = self._logits(states)
        terms = []
        for chosen in (sequences.whole, ~sequences.whole):
            share = float(chosen.sum()), len(chosen)
            if config.position_weight:
                of_codes = weighted_loss(
                    picked(logits, chosen),
                    self.codes[sequences.rows[chosen]],
                    sequences.masked[chosen],
                    sequences.weights[chosen],
                    label_smoothing=config.label_smoothing,
                )
                terms.append(Term(config.position_weight, of_codes, *share))
            if config.catalogue_weight:
                over_rows = self._over_rows(logits[:, -1], sequences, chosen, minibatch)
                terms.append(Term(config.catalogue_weight, over_rows, *share))
            if self.model.dense is not None:
                asked = sequences.asked & chosen[:, None]
                queries = self.model.queries(picked(lower, asked).float())
                of_queries = self.dense_loss.loss(queries, sequences.rows[asked])
                terms.append(Term(1, of_queries, *share))
        return self.mean_of(terms)

    def draw(self, minibatch: NDArray[np.intp], generator: torch.Generator) -> Sequences:
        """The sequences of these segments, with masks."""
        rows, is_target = map(torch.from_numpy, self.segments.arrays(minibatch, filler=self.filler))
        n, items = rows.shape
        num_subspaces = self.codes.shape[1]
        whole = torch.rand(n, generator=generator) >= self.target_share
        num_targets = is_target.sum(dim=1)
        lengths = (rows != self.filler).sum(dim=1)
        left_out = (torch.rand(n, generator=generator) * num_targets).long()
        lengths = lengths - torch.where(whole, 0, left_out.clamp(max=num_targets - 1))
        place = torch.arange(items) - (items - lengths[:, None])
        is_item = place >= 0
        if self.config.history_dropout:
            kept = torch.rand(n, generator=generator) >= self.config.history_dropout
            is_item[:, :-1] &= kept[:, None]
        rows = torch.where(is_item, rows.gather(1, place.clamp(min=0)), self.filler)
        masked = torch.zeros(n, items, num_subspaces, dtype=torch.bool)
        weights = torch.ones(n)
        masked[whole], weights[whole] = mask_anywhere(
            int(whole.sum()), items, num_subspaces, generator, self.noise
        )
        masked[~whole, -1], weights[~whole] = mask_one_item(
            int((~whole).sum()), num_subspaces, self.full_share, generator
        )
        asked = torch.zeros(n, items, dtype=torch.bool)
        if self.model.dense is not None:
            by_item = torch.rand(n, generator=generator) < self.model.options.dense_share
            drawn = whole & by_item
            masked[drawn], weights[drawn] = mask_items(
                int(drawn.sum()), items, num_subspaces, generator, self.noise
            )
            asked = masked.all(dim=2) & is_item & (by_item | ~whole)[:, None]
        return Sequences(rows, is_item, masked & is_item[:, :, None], weights, whole, asked)

    def _over_rows(
        self, logits: Tensor, sequences: Sequences, chosen: Tensor, minibatch: NDArray[np.intp]
    ) -> Total:
        """The loss over rows of the last items of the chosen sequences, where they have a mask.

        logits: (n, L, num_codes), of the last items of all sequences
        """
        masked = sequences.masked[:, -1]
        samples = (chosen & masked.any(dim=1)).nonzero()[:, 0]
        if not len(samples):
            return Total(0 * logits.sum(), 0)  # a step can be made of it
        newest = sequences.is_item[samples].sum(dim=1) - 2  # the item before the last one
        seen = self.segments.seen(minibatch, samples.numpy(), newest.numpy())
        has_history = (newest >= 0).numpy()[seen[1]]
        seen = seen[0][has_history], seen[1][has_history]
        repeats = Repeats(*map(torch.from_numpy, seen), self.model.repeat_bias)
        rows = sequences.rows[samples, -1]
        of_samples = logits[sent(samples, self.device)]
        return self.catalogue_softmax.loss(of_samples, rows, masked[samples], repeats)

    def _states(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        codes, vectors = self.codes_and_vectors(sequences.rows)
        [masked, is_item] = self.sent(sequences.masked, sequences.is_item)
        codes = torch.where(masked, self.model.num_codes, codes)
        # A vector would give away the masked codes of its item. Serving does not know the last one.
        vectors = vectors.masked_fill(masked.any(dim=2, keepdim=True), 0)
        vectors[:, -1] = 0
        with self.precision():
            return self.model.both_states(codes, vectors, is_item)

    def _logits(self, states: Tensor) -> Tensor:
        with self.precision():
            return self.model.logits(states).float()


def weighted_loss(
    logits: Tensor,
    target_codes: Tensor,
    masked: Tensor,
    weights: Tensor,
    *,
    label_smoothing: float = 0.0,
) -> Total:
    """Sum of weight * cross-entropy over masked codes, over the sum of their weights.

    That is nearly unbiased where weights are 1 / t; dividing by the sum of the sequences' weights
    is not.

    logits: (n, ..., num_codes), on any device; target_codes, masked: (n, ...) and weights: (n,), of
    the host
    """
    if not masked.any():
        return Total(0 * logits.sum(), 0)  # a step can be made of it
    losses = F.cross_entropy(
        picked(logits, masked),
        sent(target_codes[masked], logits.device),
        reduction="none",
        label_smoothing=label_smoothing,
    )
    weight = weights.reshape(-1, *[1] * (masked.ndim - 1)).expand(masked.shape)[masked]
    return Total((sent(weight, logits.device) * losses).sum(), float(weight.sum()))
