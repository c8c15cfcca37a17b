"""SASRec and BERT4Rec: their targets, their losses, and how each is asked for the next item.

Both use one `SequenceNetwork`. They differ in what a place attends to and in which items are
masked. Places are counted so that padding does not matter: from the oldest item in SASRec, where a
training pass then equals asking about every prefix; from the newest in BERT4Rec.

The softmax over the whole catalogue is nearly all the work of a step. So its gradient is computed
together with its value, chunk by chunk: no (n, num_items) matrix is kept. Knows no optimiser.

hidden: (n, width) float32, one line a target; items: (num_items, width) float32, one line an item;
targets: (n,) int64. Logits are dot products.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from training.baselines.sequence.config import BERT4RecConfig, SASRecConfig
from training.baselines.sequence.network import SequenceNetwork
from training.baselines.sequence.padded import Padded, padded_histories

CHUNK = 128  # targets whose logits are held at once
GROUP = 32  # targets that share their sampled negatives


class SequenceModel(nn.Module, ABC):
    """A network, its training objective and its question for the next item."""

    network: SequenceNetwork

    @abstractmethod
    def loss(self, sequences: Padded, generator: torch.Generator) -> Tensor:
        """Mean loss over the targets of a minibatch, a scalar."""

    @abstractmethod
    def ask(self, histories: Padded) -> Tensor:
        """(n, width): what should come next, to be compared with the items' embeddings."""

    @property
    @abstractmethod
    def history_length(self) -> int:
        """Newest items the model sees."""

    @torch.no_grad()
    def scores(self, histories: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """(n, num_items) float32, zeros for an empty history; see Scorer."""
        self.eval()
        padded = padded_histories(histories, self.history_length, self.network.num_items)
        scores = self.network.scores(self.ask(padded))
        scores[padded.lengths == 0] = 0
        values: NDArray[np.float32] = scores.numpy()
        return values


class SASRec(SequenceModel):
    """Every place predicts the item that follows, from itself and what is before (1808.09781).

    Beside the paper's binary loss the full softmax, which the paper's successors found better.
    """

    def __init__(self, config: SASRecConfig, *, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.network = SequenceNetwork(
            config, num_items=num_items, num_places=config.history_length
        )

    @property
    def history_length(self) -> int:
        return self.config.history_length

    def loss(self, sequences: Padded, generator: torch.Generator) -> Tensor:
        wanted = sequences.targets[:, 1:]
        hidden = self._hidden(sequences.rows[:, :-1])[wanted]
        targets = sequences.rows[:, 1:][wanted]
        items = self.network.items
        if self.config.loss == "ce":
            return full_softmax_loss(hidden, items, targets)
        if self.config.loss == "bce":
            return sampled_binary_loss(hidden, items, targets, generator)
        shape = (math.ceil(len(targets) / GROUP), self.config.num_negatives)
        negatives = torch.randint(len(items), shape, generator=generator)
        return sampled_softmax_loss(hidden, items, targets, negatives)

    def ask(self, histories: Padded) -> Tensor:
        newest = (histories.lengths - 1).clamp_min(0)
        return self._hidden(histories.rows)[torch.arange(len(newest)), newest]

    def _hidden(self, rows: Tensor) -> Tensor:
        """(n, t, width). Filler at the end is behind every item, so none attends to it."""
        places = torch.arange(rows.shape[1]).expand_as(rows)
        hidden: Tensor = self.network(rows, places, None)
        return hidden


class BERT4Rec(SequenceModel):
    """Masked items are predicted from both sides; the next one by a mask item behind (1904.06690).

    Most sequences have each item masked with `mask_probability`; the others, and those where the
    draw leaves all items, have the last one masked alone, as it will be when asked.
    """

    def __init__(self, config: BERT4RecConfig, *, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.network = SequenceNetwork(
            config, num_items=num_items, num_places=config.history_length + 1
        )

    @property
    def history_length(self) -> int:
        return self.config.history_length

    def loss(self, sequences: Padded, generator: torch.Generator) -> Tensor:
        masked = self._draw(sequences, generator)
        rows = sequences.rows.masked_fill(masked, self.network.num_items)
        hidden = self._hidden(rows, sequences.lengths, sequences.valid)[masked]
        return full_softmax_loss(hidden, self.network.items, sequences.rows[masked])

    def ask(self, histories: Padded) -> Tensor:
        """The mask item is the filler's line of the table, so one more place of filler appends it.

        Where a history is shorter than the longest, its first filler becomes the mask.
        """
        filler = histories.rows.new_full((len(histories.rows), 1), self.network.num_items)
        rows = torch.cat([histories.rows, filler], dim=1)
        lengths = histories.lengths + 1
        valid = torch.arange(rows.shape[1]) < lengths[:, None]
        return self._hidden(rows, lengths, valid)[torch.arange(len(rows)), histories.lengths]

    def _hidden(self, rows: Tensor, lengths: Tensor, valid: Tensor) -> Tensor:
        places = (lengths[:, None] - 1 - torch.arange(rows.shape[1])).clamp_min(0)
        hidden: Tensor = self.network(rows, places, valid)
        return hidden

    def _draw(self, sequences: Padded, generator: torch.Generator) -> Tensor:
        """(n, t) bool: at least one masked item a sequence."""
        shape = sequences.rows.shape
        drawn = torch.rand(shape, generator=generator) < self.config.mask_probability
        drawn &= sequences.valid
        last = torch.arange(shape[1]) == sequences.lengths[:, None] - 1
        only_last = torch.rand(shape[0], generator=generator) < self.config.last_share
        only_last |= ~drawn.any(dim=1)
        return torch.where(only_last[:, None], last, drawn)


class _FullSoftmax(torch.autograd.Function):
    """Cross-entropy whose gradients are ready when its value is."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, items: Tensor, targets: Tensor) -> Tensor:
        of_hidden, of_items = torch.empty_like(hidden), torch.zeros_like(items)
        buffer = hidden.new_empty(min(CHUNK, len(hidden)), len(items))
        total = hidden.new_zeros(())
        for start in range(0, len(hidden), CHUNK):
            chunk = slice(start, min(start + CHUNK, len(hidden)))
            target = targets[chunk, None]
            logits = torch.mm(hidden[chunk], items.T, out=buffer[: len(target)])
            probabilities = torch.softmax(logits, dim=1, out=logits)
            of_target = probabilities.gather(1, target)
            total -= of_target.clamp_min(torch.finfo(hidden.dtype).tiny).log().sum()
            gradient = probabilities.scatter_(1, target, of_target - 1)
            torch.mm(gradient, items, out=of_hidden[chunk])
            of_items.addmm_(gradient.T, hidden[chunk])
        ctx.save_for_backward(of_hidden / len(hidden), of_items / len(hidden))
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor, Tensor, None]:
        of_hidden, of_items = ctx.saved_tensors
        return above[0] * of_hidden, above[0] * of_items, None


def full_softmax_loss(hidden: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over all items, a scalar; for training only (gradients come with it)."""
    loss: Tensor = _FullSoftmax.apply(hidden, items, targets)
    return loss


def sampled_softmax_loss(
    hidden: Tensor, items: Tensor, targets: Tensor, negatives: Tensor
) -> Tensor:
    """Mean cross-entropy over each of n targets and its negatives, a scalar.

    negatives: (ceil(n / GROUP), m) rows, drawn uniformly, of GROUP targets after the other; where
    one is the target itself it is left out.
    With uniform negatives there is nothing to correct for how often an item is drawn (log Q): the
    correction would be one constant in all logits. The published runs (arXiv 2508.06450) draw for
    each target alone. The expected gradient is the same, and reading the embeddings of so many
    negatives would take most of the time.
    """
    num_groups, num_negatives = negatives.shape
    filler = num_groups * GROUP - len(targets)
    embedded = F.embedding(torch.cat((targets, negatives.flatten())), items)
    of_target = (hidden * embedded[: len(targets)]).sum(dim=1, keepdim=True)
    grouped = F.pad(hidden, (0, 0, 0, filler)).view(num_groups, GROUP, -1)
    embedded = embedded[len(targets) :].view(num_groups, num_negatives, -1)
    of_negatives = (grouped @ embedded.transpose(1, 2)).flatten(0, 1)[: len(targets)]
    hit = negatives.repeat_interleave(GROUP, dim=0)[: len(targets)] == targets[:, None]
    of_negatives = of_negatives.masked_fill(hit, -torch.inf)
    return -torch.cat((of_target, of_negatives), dim=1).log_softmax(dim=1)[:, 0].mean()


def sampled_binary_loss(
    hidden: Tensor, items: Tensor, targets: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean of -log s(target) - log(1 - s(negative)), s the sigmoid of the logit (SASRec, Eq. 7).

    One negative a target, uniform over the other items. The paper also spares the other items of
    the user, which one draw in about num_items / history_length hits.
    """
    step = torch.randint(1, len(items), targets.shape, generator=generator)
    negatives = (targets + step) % len(items)
    positive = (hidden * F.embedding(targets, items)).sum(dim=-1)
    negative = (hidden * F.embedding(negatives, items)).sum(dim=-1)
    return -(F.logsigmoid(positive) + F.logsigmoid(-negative)).mean()
