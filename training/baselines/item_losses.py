"""Losses over items: the exact softmax of the whole catalogue, and one sampled negative.

On a small network the softmax is nearly all the work of a step. So its gradient is computed with
its value, chunk by chunk: no (n, num_items) matrix is kept, and what is touched stays in the cache.

hidden: (n, width) float32, one line a target; items: (num_items, width) float32, one line an item;
targets: (n,) int64. Logits are dot products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

CHUNK = 128  # targets whose logits are held at once


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


def sampled_binary_loss(
    hidden: Tensor, items: Tensor, targets: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean of -log s(target) - log(1 - s(negative)), s the sigmoid of the logit (SASRec, Eq. 7).

    One negative a target, uniform over the other items. The paper also spares the other items of
    the user, which one draw in about num_items / history_length hits.
    """
    step = torch.randint(1, len(items), targets.shape, generator=generator)
    negatives = (targets + step) % len(items)
    positive = (hidden * functional.embedding(targets, items)).sum(dim=-1)
    negative = (hidden * functional.embedding(negatives, items)).sum(dim=-1)
    return -(functional.logsigmoid(positive) + functional.logsigmoid(-negative)).mean()
