"""The losses against sums written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.decoding import Catalogue, SidTrie
from training.objective import CatalogueSoftmax, position_loss


def _catalogue(rng: np.random.Generator, items: int, positions: int, codes: int) -> Catalogue:
    return Catalogue(
        tuple(map(str, range(items))),
        rng.integers(0, codes, (items, positions)).astype(np.uint16),
        codes,
        np.zeros(items, np.int64),
    )


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    items=st.integers(1, 30),
    positions=st.integers(1, 4),
    codes=st.integers(2, 5),
)
def test_catalogue_loss_is_a_softmax_over_compatible_rows(
    seed: int, items: int, positions: int, codes: int
) -> None:
    rng = np.random.default_rng(seed)
    catalogue = _catalogue(rng, items, positions, codes)
    samples = 5
    logits = torch.from_numpy(rng.standard_normal((samples, positions, codes))).float()
    logits.requires_grad_()
    targets = torch.from_numpy(rng.integers(0, items, samples))
    masked = torch.from_numpy(rng.random((samples, positions)) < 0.6)
    masked[0] = True

    loss = CatalogueSoftmax(SidTrie(catalogue)).loss(logits, targets, masked)
    (gradient,) = torch.autograd.grad(loss, logits)

    rows = torch.from_numpy(catalogue.codes.astype(np.int64))
    expected = torch.zeros(())
    for sample, target in enumerate(targets.tolist()):
        compatible = ((rows == rows[target]) | masked[sample]).all(dim=1)
        score = torch.zeros(items)
        for position in range(positions):
            if masked[sample, position]:
                score = score + logits[sample, position][rows[:, position]]
        expected = expected + torch.logsumexp(score[compatible], 0) - score[target]
    expected = expected / samples
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    (expected_gradient,) = torch.autograd.grad(expected, logits, allow_unused=True)
    if expected_gradient is not None:
        assert torch.allclose(gradient, expected_gradient, atol=1e-6)


def test_a_target_alone_among_compatible_rows_costs_nothing() -> None:
    catalogue = Catalogue(
        ("a", "b"), np.array([[0, 1], [1, 1]], np.uint16), 2, np.zeros(2, np.int64)
    )
    softmax = CatalogueSoftmax(SidTrie(catalogue))
    logits = torch.randn(1, 2, 2)
    only_second = torch.tensor([[False, True]])
    assert float(softmax.loss(logits, torch.tensor([0]), only_second)) == 0
    assert float(softmax.loss(logits, torch.tensor([0]), torch.ones(1, 2) > 0)) > 0


def test_position_loss_sums_masked_positions_and_averages_samples() -> None:
    logits = torch.randn(3, 4, 5)
    targets = torch.randint(0, 5, (3, 4))
    masked = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 1]]) > 0
    log_probs = logits.log_softmax(dim=-1)
    expected = -sum(
        log_probs[sample, position, targets[sample, position]]
        for sample in range(3)
        for position in range(4)
        if masked[sample, position]
    )
    assert torch.allclose(position_loss(logits, targets, masked), expected / 3)
