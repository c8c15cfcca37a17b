"""Masks: how often, how heavy, and that the weighted loss is the one that is meant."""

from __future__ import annotations

import math

import pytest
import torch

from training.families.maskgr.masking import (
    LEAST_RATE,
    draw_rates,
    mask_anywhere,
    mask_one_item,
)
from training.families.maskgr.objective import weighted_loss


def test_rates_are_uniform_in_every_minibatch_and_not_too_small() -> None:
    random = torch.Generator().manual_seed(0)
    for n in (1, 7, 100):
        rates = draw_rates(n, random)[0].double()
        parts = (rates * n).floor().clamp(max=n - 1).long().sort().values
        if 1 / n >= 2 * LEAST_RATE:
            assert parts.tolist() == list(range(n))  # one in each n-th part
        assert rates.min() >= LEAST_RATE - 1e-9
        assert rates.max() <= 1
    many = torch.stack([draw_rates(4, random)[0] for _ in range(4000)])
    assert many.mean(dim=0).tolist() == pytest.approx([0.5] * 4, abs=0.02)  # shuffled
    assert float((many <= 0.1).double().mean()) == pytest.approx(0.1, abs=0.01)


def test_cosine_rates_are_higher_and_weigh_the_same_on_average() -> None:
    rates, weights = draw_rates(200_000, torch.Generator().manual_seed(0), "cosine")
    assert float((rates > 0.5).double().mean()) == pytest.approx(2 / 3, abs=0.01)
    assert float((rates * weights).double().mean()) == pytest.approx(1, abs=0.01)
    assert rates.min() >= LEAST_RATE
    assert weights.isfinite().all()


def test_codes_are_masked_independently_with_their_sequences_rate() -> None:
    n = 20_000
    masked, weights = mask_anywhere(n, 5, 4, torch.Generator().manual_seed(1))
    assert masked.shape == (n, 5, 4)
    share, rates = masked.double().mean(dim=(1, 2)), 1 / weights.double()
    assert float((share - rates).mean()) == pytest.approx(0, abs=0.005)
    deviation = ((share - rates) ** 2).sum() / (rates * (1 - rates) / 20).sum()
    assert float(deviation) == pytest.approx(1, abs=0.05)  # binomial: the 20 are independent
    assert weights.max() <= 1 / LEAST_RATE + 1e-4
    counts = masked[:, -1].sum(dim=1).bincount(minlength=5) / n
    assert counts.tolist() == pytest.approx([1 / 5] * 5, abs=0.02)  # none masked, too


def test_one_item_has_as_many_masks_as_wanted_anywhere_in_it() -> None:
    n, positions = 20_000, 4
    random = torch.Generator().manual_seed(2)
    for full_share in (0.0, 0.6, 1.0):
        masked, weights = mask_one_item(n, positions, full_share, random)
        counts = masked.sum(dim=1)
        assert torch.equal(weights, positions / counts)
        expected = [0.0] + [(1 - full_share) / positions] * positions
        expected[-1] += full_share
        found = (counts.bincount(minlength=positions + 1) / n).tolist()
        assert found == pytest.approx(expected, abs=0.02)
        at = masked.double().mean(dim=0)
        assert at.tolist() == pytest.approx([float(at.mean())] * positions, abs=0.02)


def test_both_kinds_of_masks_have_the_same_expected_loss_for_one_item() -> None:
    """A loss that differs by which codes are masked, and by how many."""
    positions, n = 3, 400_000
    random = torch.Generator().manual_seed(3)
    cost = torch.tensor([1.0, 2.0, 5.0])

    def mean(masked: torch.Tensor, weights: torch.Tensor) -> float:
        of_each = cost * (1 + masked.sum(dim=1, keepdim=True)) * masked
        return float((weights.double() * of_each.double().sum(dim=1)).mean())

    anywhere, one_over_t = mask_anywhere(n, 1, positions, random)
    one = mean(anywhere[:, 0], one_over_t)
    cosine, heavy = mask_anywhere(n, 1, positions, random, "cosine")
    assert mean(cosine[:, 0], heavy) == pytest.approx(one, rel=0.03)
    other = mean(*mask_one_item(n, positions, 0.0, random))
    exact = sum((1 + k) * 8 / positions for k in (1, 2, 3))
    assert other == pytest.approx(exact, rel=0.01)
    assert one == pytest.approx(exact, rel=0.03)  # the least rate leaves a little out


def test_the_weighted_loss_is_the_sum_that_it_says() -> None:
    random = torch.Generator().manual_seed(4)
    n, items, positions, codes = 5, 3, 4, 6
    logits = torch.randn(n, items, positions, codes, generator=random, requires_grad=True)
    targets = torch.randint(0, codes, (n, items, positions), generator=random)
    masked, weights = mask_anywhere(n, items, positions, random)
    total = mass = 0.0
    for i in range(n):
        for j in range(items):
            for p in range(positions):
                if masked[i, j, p]:
                    row = [math.exp(x) for x in logits[i, j, p].tolist()]
                    loss = -math.log(row[int(targets[i, j, p])] / sum(row))
                    total, mass = total + float(weights[i]) * loss, mass + float(weights[i])
    loss = weighted_loss(logits, targets, masked, weights).mean
    assert float(loss.detach()) == pytest.approx(total / mass, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[~masked] == 0).all()
    assert (gradient[masked].abs().sum(dim=-1) > 0).all()
    nothing = weighted_loss(logits, targets, torch.zeros_like(masked), weights).mean
    assert float(nothing.detach()) == 0
    nothing.backward()  # a minibatch without a mask is a step that learns nothing
    assert logits.grad is not None
    assert not logits.grad.any()


def test_the_weighted_loss_is_nearly_unbiased() -> None:
    """The mean of minibatches against the exact loss of the process, with costs by mask count."""
    random = torch.Generator().manual_seed(5)
    positions, size, draws = 4, 64, 1500
    found = []
    for _ in range(draws):
        masked, weights = mask_anywhere(size, 1, positions, random)
        # Logits whose cross-entropy is log(1 + e^count): it grows with the number of masks.
        count = masked.sum(dim=(1, 2)).float()
        logits = torch.zeros(size, 1, positions, 2)
        logits[..., 1] = count[:, None, None]
        targets = torch.zeros(size, 1, positions, dtype=torch.int64)
        found.append(float(weighted_loss(logits, targets, masked, weights).mean))
    exact = sum(math.log(1 + math.exp(k)) for k in range(1, positions + 1)) / positions
    assert sum(found) / draws == pytest.approx(exact, rel=0.02)
