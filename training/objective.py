"""The two training losses, over logits of masked positions.

`position_loss` is the paper's: one softmax per masked position (MDGR Eq. 15). `catalogue_loss` is
ours: one softmax over the catalogue rows that are compatible with the codes not masked, a row's
logit being the sum of its codes' logits. That is the set the trie keeps while decoding, so no
probability goes to SIDs nobody has, and none is gained by reciting the catalogue.

logits: (n, L, num_codes) float32    masked: (n, L) bool    target_codes: (n, L) int64
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from service.decoding import SidTrie


def position_loss(
    logits: Tensor, target_codes: Tensor, masked: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropies of the masked positions, summed per sample, averaged over samples."""
    losses = F.cross_entropy(
        logits.flatten(0, 1),
        target_codes.flatten(),
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return (losses * masked.flatten()).sum() / len(logits)


class CatalogueSoftmax:
    """The catalogue as index arrays, ready to turn code logits into row losses.

    Forward: a row's logit gathers its codes' logits. Backward: a code's gradient gathers those of
    its posting list. Both are one `embedding_bag` over (L * num_codes, n) and (num_items, n).
    """

    def __init__(self, trie: SidTrie) -> None:
        codes = torch.from_numpy(trie.catalogue.codes.astype(np.int64))
        self.num_subspaces, self.num_codes = codes.shape[1], trie.catalogue.num_codes
        self.codes = codes.to(torch.int32)
        self.bags = (codes + torch.arange(self.num_subspaces) * self.num_codes).contiguous()
        self.postings = torch.from_numpy(trie.rows.astype(np.int64)).flatten()
        starts = trie.indptr[:, :-1] + np.arange(self.num_subspaces)[:, None] * len(codes)
        self.starts = torch.from_numpy(starts.ravel())

    def loss(self, logits: Tensor, target_rows: Tensor, masked: Tensor) -> Tensor:
        """Cross-entropy over compatible rows, averaged over samples. target_rows: (n,) int64."""
        return _RowCrossEntropy.apply(logits, target_rows, masked, self).mean()

    def incompatible(self, target_rows: Tensor, masked: Tensor) -> Tensor:
        """Rows that differ from the target at a position not masked: (num_items, n) bool."""
        found = torch.zeros(len(self.codes), len(target_rows), dtype=torch.bool)
        for position in range(self.num_subspaces):
            codes = self.codes[:, position]
            found |= (codes[:, None] != codes[target_rows]) & ~masked[:, position]
        return found


class _RowCrossEntropy(torch.autograd.Function):
    """Per-sample -log softmax over compatible rows; keeps only the row probabilities."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, logits: Tensor, target_rows: Tensor, masked: Tensor, softmax: CatalogueSoftmax
    ) -> Tensor:
        samples = torch.arange(len(logits))
        table = (logits * masked[:, :, None]).flatten(1).t().contiguous()
        scores = F.embedding_bag(softmax.bags, table, mode="sum")  # (num_items, n)
        partial = torch.nonzero(~masked.all(dim=1)).squeeze(1)
        if len(partial):
            excluded = torch.zeros(scores.shape, dtype=torch.bool)
            excluded[:, partial] = softmax.incompatible(target_rows[partial], masked[partial])
            scores.masked_fill_(excluded, -torch.inf)
        scores -= scores.amax(dim=0)
        target_scores = scores[target_rows, samples]
        probabilities = scores.exp_()
        mass = probabilities.sum(dim=0)
        probabilities /= mass
        ctx.save_for_backward(probabilities, target_rows, masked)
        ctx.softmax = softmax
        return mass.log() - target_scores

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        probabilities, target_rows, masked = ctx.saved_tensors
        softmax: CatalogueSoftmax = ctx.softmax
        samples = torch.arange(len(target_rows))
        probabilities[target_rows, samples] -= 1  # saved for this one backward pass
        probabilities *= gradient
        table = F.embedding_bag(softmax.postings, probabilities, softmax.starts, mode="sum")
        shape = (softmax.num_subspaces, softmax.num_codes, len(target_rows))
        return table.reshape(shape).permute(2, 0, 1) * masked[:, :, None], None, None, None
