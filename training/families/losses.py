"""The two training losses, over logits of masked positions, and that of a dense head.

`position_loss` is the paper's: one softmax per masked position (MDGR Eq. 15). `CatalogueSoftmax` is
ours: one softmax over the catalogue rows that are compatible with the codes not masked, a row's
logit being the sum of its codes' logits at masked positions. That is the set the trie keeps while
decoding, so no probability goes to SIDs nobody has, and none is gained by reciting the catalogue.

logits: (n, L, num_codes) float32    masked: (n, L) bool    target_codes: (n, L) int64

Which rows are looked at is found on the host, and sent to the device of the logits (`device`):
nothing has to come back from there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from service.decoding import Catalogue, SidTrie
from training.families.device import HOST, picked, sent


class Repeats(NamedTuple):
    """Which rows each sample's history holds: `rows[i]` is in the history of `samples[i]`.

    rows, samples: (m,) int64, of the host, no pair twice
    bias: scalar, on the device, added to the scores of these rows
    """

    rows: Tensor
    samples: Tensor
    bias: Tensor


class Total(NamedTuple):
    """A loss before it is a mean. Processes that share a minibatch add up both parts.

    sum: scalar with gradients; count: what it is divided by, at least 1 unless there is nothing
    """

    sum: Tensor
    count: float

    @property
    def mean(self) -> Tensor:
        """The loss of one process alone; 0 of nothing."""
        return self.sum / max(self.count, 1.0)


def position_loss(
    logits: Tensor, target_codes: Tensor, masked: Tensor, *, label_smoothing: float = 0.0
) -> Total:
    """Cross-entropies of the masked positions, summed per sample, over the number of samples."""
    losses = F.cross_entropy(
        logits.flatten(0, 1),
        target_codes.flatten(),
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return Total((losses * masked.flatten()).sum(), len(logits))


class CatalogueSoftmax:
    """The catalogue as index arrays, ready to turn code logits into row losses.

    Fully masked samples are compatible with every row: all rows are scored by one `embedding_bag`
    forward (over the codes) and one backward (over the posting lists). Where the catalogue has more
    than `sampled_rows` rows, that number is drawn uniformly for each minibatch, and the loss is
    weighted for it. Other samples have few compatible rows, which are listed and scored one by one.
    """

    def __init__(self, trie: SidTrie, *, sampled_rows: int, device: torch.device = HOST) -> None:
        """device: where logits will be."""
        self.trie = trie
        codes = torch.from_numpy(trie.catalogue.codes.astype(np.int64))
        self.num_items, self.num_subspaces = codes.shape
        self.num_codes = trie.catalogue.num_codes
        self.sampled_rows = sampled_rows
        bags = (codes + torch.arange(self.num_subspaces) * self.num_codes).contiguous()
        self.bags = sent(bags, device)
        self.postings = sent(torch.from_numpy(trie.rows.astype(np.int64)).flatten(), device)
        starts = trie.indptr[:, :-1] + np.arange(self.num_subspaces)[:, None] * len(codes)
        self.starts = sent(torch.from_numpy(starts.ravel()), device)

    def loss(self, logits: Tensor, target_rows: Tensor, masked: Tensor, repeats: Repeats) -> Total:
        """Cross-entropy over compatible rows, over the number of samples.

        target_rows: (n,) int64, and masked: of the host
        """
        full = masked.all(dim=1)
        losses = 0 * logits.sum() if not len(logits) else logits.new_zeros(())
        if full.any():
            number = full.cumsum(0) - 1  # of a sample among the fully masked ones
            here = full[repeats.samples]
            of_full = Repeats(repeats.rows[here], number[repeats.samples[here]], repeats.bias)
            over_rows = self._all_rows if self.num_items <= self.sampled_rows else self._some_rows
            losses = losses + over_rows(picked(logits, full), target_rows[full], of_full)
        if not full.all():
            losses = losses + self._compatible_rows(
                logits, target_rows, masked, torch.nonzero(~full).squeeze(1), repeats
            )
        return Total(losses, len(logits))

    def compatible(
        self, target_rows: NDArray[np.int64], masked: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows that agree with each target where it is not masked, and the sample of each.

        Every sample must have a position that is not masked. Starts from its shortest posting list.
        """
        trie = self.trie
        codes = trie.catalogue.codes
        positions = np.arange(self.num_subspaces)
        target_codes = codes[target_rows]
        lengths = np.where(masked, self.num_items + 1, trie.counts[positions, target_codes])
        shortest = lengths.argmin(axis=1)
        starts = trie.indptr[shortest, target_codes[np.arange(len(shortest)), shortest]]
        lengths = lengths.min(axis=1)
        sample = np.repeat(np.arange(len(target_rows)), lengths)
        within = np.arange(len(sample)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        rows = trie.rows[shortest[sample], starts[sample] + within].astype(np.int64)
        for position in positions:
            agrees = (codes[rows, position] == target_codes[sample, position]) | masked[
                sample, position
            ]
            rows, sample = rows[agrees], sample[agrees]
        return rows, sample

    def _all_rows(self, logits: Tensor, target_rows: Tensor, repeats: Repeats) -> Tensor:
        told = (sent(one, logits.device) for one in (target_rows, repeats.rows, repeats.samples))
        losses: Tensor = _RowCrossEntropy.apply(logits, *told, repeats.bias, self)
        return losses.sum()

    def _some_rows(self, logits: Tensor, target_rows: Tensor, repeats: Repeats) -> Tensor:
        """Sampled softmax. The target and the history's rows count once; each drawn row that is
        none of them stands for as many of the other rows as make up the catalogue.
        """
        device = logits.device
        drawn = torch.randperm(self.num_items)[: self.sampled_rows]
        table = logits.flatten(1)
        bags = self.bags[sent(drawn, device)]
        scores = F.embedding_bag(bags, table.t().contiguous(), mode="sum")
        place = torch.full((self.num_items,), -1).scatter(0, drawn, torch.arange(len(drawn)))
        exact = torch.cat((repeats.rows, target_rows))
        exact_sample = torch.cat((repeats.samples, torch.arange(len(target_rows))))
        keys = torch.unique(exact_sample * self.num_items + exact)
        exact, exact_sample = keys % self.num_items, keys // self.num_items
        others = self.num_items - torch.bincount(exact_sample, minlength=len(target_rows))
        was_drawn = place[exact] >= 0
        struck_at = place[exact[was_drawn]], exact_sample[was_drawn]
        num_struck = torch.bincount(struck_at[1], minlength=len(target_rows))
        stands_for = others / (len(drawn) - num_struck).clamp(min=1)
        struck = torch.zeros(scores.shape, dtype=torch.bool, device=device)
        struck[tuple(sent(at, device) for at in struck_at)] = True
        scores = (scores + sent(stands_for.log(), device)).masked_fill(struck, -torch.inf)
        seen = torch.isin(keys, repeats.samples * self.num_items + repeats.rows)
        is_target = exact == target_rows[exact_sample]
        exact, exact_sample, seen = (sent(one, device) for one in (exact, exact_sample, seen))
        exact_scores = table[exact_sample[:, None], self.bags[exact]].sum(dim=1)
        exact_scores = exact_scores + seen * repeats.bias
        drawn_mass = scores.logsumexp(dim=0)
        exact_mass = _segment_logsumexp(exact_scores, exact_sample, len(target_rows))
        mass = torch.logaddexp(drawn_mass, exact_mass)
        return mass.sum() - picked(exact_scores, is_target).sum()

    def _compatible_rows(
        self,
        logits: Tensor,
        target_rows: Tensor,
        masked: Tensor,
        samples: Tensor,
        repeats: Repeats,
    ) -> Tensor:
        listed, listed_sample = self.compatible(
            target_rows[samples].numpy(), masked[samples].numpy()
        )
        rows, sample = torch.from_numpy(listed), torch.from_numpy(listed_sample)
        seen = torch.isin(
            samples[sample] * self.num_items + rows,
            repeats.samples * self.num_items + repeats.rows,
        )
        is_target = rows == target_rows[samples[sample]]
        told = (rows, sample, samples[sample], seen, masked)
        rows, sample, of_sample, seen, masked = (sent(one, logits.device) for one in told)
        gathered = logits.flatten(1)[of_sample[:, None], self.bags[rows]]
        scores = (gathered * masked[of_sample]).sum(dim=1)
        scores = scores + seen * repeats.bias
        mass = _segment_logsumexp(scores, sample, len(samples))
        return mass.sum() - picked(scores, is_target).sum()


def _segment_logsumexp(values: Tensor, segment: Tensor, num_segments: int) -> Tensor:
    """log sum exp of the values of each segment: (num_segments,); each must have a value."""
    highest = values.new_full((num_segments,), -torch.inf)
    highest = highest.scatter_reduce(0, segment, values.detach(), "amax")
    mass = values.new_zeros(num_segments)
    mass = mass.index_add(0, segment, (values - highest[segment]).exp())
    return mass.log() + highest


class _RowCrossEntropy(torch.autograd.Function):
    """Per-sample -log softmax over all rows; keeps only the row probabilities."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        logits: Tensor,
        target_rows: Tensor,
        seen_rows: Tensor,
        seen_samples: Tensor,
        repeat_bias: Tensor,
        softmax: CatalogueSoftmax,
    ) -> Tensor:
        samples = torch.arange(len(logits), device=logits.device)
        table = logits.flatten(1).t().contiguous()
        scores = F.embedding_bag(softmax.bags, table, mode="sum")  # (num_items, n)
        scores[seen_rows, seen_samples] += repeat_bias
        scores -= scores.amax(dim=0)
        target_scores = scores[target_rows, samples]
        probabilities = scores.exp_()
        mass = probabilities.sum(dim=0)
        probabilities /= mass
        ctx.save_for_backward(probabilities, target_rows, seen_rows, seen_samples)
        ctx.softmax = softmax
        return mass.log() - target_scores

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        probabilities, target_rows, seen_rows, seen_samples = ctx.saved_tensors
        softmax: CatalogueSoftmax = ctx.softmax
        samples = torch.arange(len(target_rows), device=gradient.device)
        probabilities[target_rows, samples] -= 1  # saved for this one backward pass
        probabilities *= gradient
        bias_gradient = probabilities[seen_rows, seen_samples].sum()
        table = F.embedding_bag(softmax.postings, probabilities, softmax.starts, mode="sum")
        shape = (softmax.num_subspaces, softmax.num_codes, len(target_rows))
        return table.reshape(shape).permute(2, 0, 1), None, None, None, bias_gradient, None


class DenseLoss:
    """Cross-entropy of the target's content among that of all items with interactions.

    Items without interactions are no wrong answers, so they are not pushed away. Where there are
    more than `sampled_rows` rows, that number is drawn, and the loss is weighted for it.
    """

    def __init__(
        self, catalogue: Catalogue, *, sampled_rows: int, device: torch.device = HOST
    ) -> None:
        """device: where queries will be."""
        content = catalogue.vectors[:, : catalogue.content_dims].astype(np.float32)
        self.content = sent(torch.from_numpy(content), device)
        self.num_known, self.sampled_rows = catalogue.num_known, sampled_rows

    def loss(self, queries: Tensor, target_rows: Tensor) -> Total:
        """Over the number of samples.

        queries: (n, dims), see `DenseHead`; target_rows: (n,) int64, of the host
        """
        if not len(queries):
            return Total(queries.sum(), 0)  # a step can be made of it
        rows = torch.arange(self.num_known)
        if self.num_known > self.sampled_rows:
            rows = torch.randperm(self.num_known)[: self.sampled_rows]
        rows, target_rows = (sent(one, queries.device) for one in (rows, target_rows))
        is_target = rows == target_rows[:, None]
        others = self.num_known - (target_rows < self.num_known).long()
        stands_for = others / (len(rows) - is_target.sum(dim=1)).clamp(min=1)
        scores = queries @ self.content[rows].T + stands_for.log()[:, None]
        own = (queries * self.content[target_rows]).sum(dim=1, keepdim=True)
        scores = torch.cat((scores.masked_fill(is_target, -torch.inf), own), dim=1)
        return Total((scores.logsumexp(dim=1) - own[:, 0]).sum(), len(queries))
