"""The losses compared with sums that are written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.decoding import Catalogue, SidTrie
from training.families.losses import CatalogueSoftmax, Repeats, position_loss


def _catalogue(rng: np.random.Generator, items: int, positions: int, codes: int) -> Catalogue:
    return Catalogue(
        tuple(map(str, range(items))),
        rng.integers(0, codes, (items, positions)).astype(np.uint16),
        codes,
        np.zeros(items, np.int64),
    )


def _softmax(catalogue: Catalogue, sampled_rows: int = 1000) -> CatalogueSoftmax:
    return CatalogueSoftmax(SidTrie(catalogue), sampled_rows=sampled_rows)


def _no_repeats() -> Repeats:
    nothing = torch.empty(0, dtype=torch.int64)
    return Repeats(nothing, nothing, torch.zeros(()))


def _drawn_repeats(
    rng: np.random.Generator, items: int, samples: int, share: float, bias: float
) -> Repeats:
    """A share of all pairs, in random order; `bias` wants its gradient."""
    rows, of_samples = np.nonzero(rng.random((items, samples)) < share)
    order = rng.permutation(len(rows))
    rows_in_order, samples_in_order = (torch.from_numpy(a[order]) for a in (rows, of_samples))
    return Repeats(rows_in_order, samples_in_order, torch.tensor(bias, requires_grad=True))


def _logits(rng: np.random.Generator, samples: int, positions: int, codes: int) -> Tensor:
    logits = torch.from_numpy(rng.standard_normal((samples, positions, codes))).float()
    return logits.requires_grad_()


def _written_out(
    catalogue: Catalogue, logits: Tensor, targets: Tensor, masked: Tensor, repeats: Repeats
) -> Tensor:
    rows = torch.from_numpy(catalogue.codes.astype(np.int64))
    pairs = set(zip(repeats.rows.tolist(), repeats.samples.tolist(), strict=True))
    loss = torch.zeros(())
    for sample, target in enumerate(targets.tolist()):
        compatible = ((rows == rows[target]) | masked[sample]).all(dim=1)
        score = torch.zeros(len(rows))
        for position in range(rows.shape[1]):
            if masked[sample, position]:
                score = score + logits[sample, position][rows[:, position]]
        seen = torch.tensor([(row, sample) in pairs for row in range(len(rows))])
        score = score + seen * repeats.bias
        loss = loss + torch.logsumexp(score[compatible], 0) - score[target]
    return loss / len(targets)


def _gradients(loss: Tensor, logits: Tensor, repeats: Repeats) -> tuple[Tensor, Tensor]:
    found = torch.autograd.grad(loss, (logits, repeats.bias), allow_unused=True)
    of_logits, of_bias = found
    return (
        torch.zeros_like(logits) if of_logits is None else of_logits,
        torch.zeros(()) if of_bias is None else of_bias,
    )


@pytest.mark.parametrize("masked_share", [0.0, 0.6, 1.0])
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    items=st.integers(1, 30),
    positions=st.integers(1, 4),
    codes=st.integers(2, 5),
    repeated=st.sampled_from([0.0, 0.3, 1.0]),
    bias=st.sampled_from([0.0, -2.0, 1.5]),
)
def test_catalogue_loss_is_a_softmax_over_compatible_rows(
    masked_share: float,
    seed: int,
    items: int,
    positions: int,
    codes: int,
    repeated: float,
    bias: float,
) -> None:
    """No position is masked everywhere, or some, or all: each branch alone and both together."""
    rng = np.random.default_rng(seed)
    catalogue = _catalogue(rng, items, positions, codes)
    samples = 5
    logits = _logits(rng, samples, positions, codes)
    targets = torch.from_numpy(rng.integers(0, items, samples))
    masked = torch.from_numpy(rng.random((samples, positions)) < masked_share)
    repeats = _drawn_repeats(rng, items, samples, repeated, bias)

    loss = _softmax(catalogue, items).loss(logits, targets, masked, repeats).mean
    expected = _written_out(catalogue, logits, targets, masked, repeats)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    if not expected.requires_grad:
        return
    for found, wanted in zip(
        _gradients(loss, logits, repeats), _gradients(expected, logits, repeats), strict=True
    ):
        assert torch.allclose(found, wanted, atol=1e-5)


def test_a_target_alone_among_compatible_rows_costs_nothing() -> None:
    catalogue = Catalogue(
        ("a", "b"), np.array([[0, 1], [1, 1]], np.uint16), 2, np.zeros(2, np.int64)
    )
    softmax = _softmax(catalogue)
    logits = torch.randn(1, 2, 2)
    only_second = torch.tensor([[False, True]])
    assert float(softmax.loss(logits, torch.tensor([0]), only_second, _no_repeats()).mean) == 0
    assert (
        float(softmax.loss(logits, torch.tensor([0]), torch.ones(1, 2) > 0, _no_repeats()).mean) > 0
    )


def test_the_loss_pulls_the_repeat_bias_towards_what_happens() -> None:
    """It goes down if targets are new, and up if they are repeats."""
    rng = np.random.default_rng(0)
    catalogue = _catalogue(rng, 20, 3, 4)
    masked = torch.ones(1, 3) > 0
    for target, sign in ((5, 1), (2, -1)):
        repeats = Repeats(
            torch.tensor([2, 7]), torch.tensor([0, 0]), torch.zeros((), requires_grad=True)
        )
        logits = _logits(rng, 1, 3, 4)
        loss = _softmax(catalogue).loss(logits, torch.tensor([target]), masked, repeats).mean
        (gradient,) = torch.autograd.grad(loss, repeats.bias)
        assert sign * float(gradient) > 0


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    items=st.integers(1, 30),
    positions=st.integers(1, 5),
    codes=st.integers(1, 5),
)
def test_compatible_rows_are_those_that_agree_where_nothing_is_masked(
    seed: int, items: int, positions: int, codes: int
) -> None:
    rng = np.random.default_rng(seed)
    catalogue = _catalogue(rng, items, positions, codes)
    targets = rng.integers(0, items, 6)
    masked = rng.random((6, positions)) < 0.5
    masked[np.arange(6), rng.integers(0, positions, 6)] = False
    rows, samples = _softmax(catalogue).compatible(targets, masked)
    expected = [
        (sample, row)
        for sample, target in enumerate(targets)
        for row in range(items)
        if all(masked[sample] | (catalogue.codes[row] == catalogue.codes[target]))
    ]
    assert sorted(zip(samples.tolist(), rows.tolist(), strict=True)) == expected


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    items=st.integers(15, 40),
    repeated=st.sampled_from([0.0, 0.2]),
    bias=st.sampled_from([0.0, -2.0, 1.5]),
)
def test_a_sampled_softmax_that_draws_every_row_is_the_full_one(
    seed: int, items: int, repeated: float, bias: float
) -> None:
    rng = np.random.default_rng(seed)
    catalogue = _catalogue(rng, items, 3, 4)
    softmax = _softmax(catalogue, items)
    logits = _logits(rng, 6, 3, 4)
    targets = torch.from_numpy(rng.integers(0, items, 6))
    repeats = _drawn_repeats(rng, items, 6, repeated, bias)
    full = softmax._all_rows(logits, targets, repeats)
    sampled = softmax._some_rows(logits, targets, repeats)
    assert float(sampled.detach()) == pytest.approx(float(full.detach()), abs=1e-4)
    for found, wanted in zip(
        _gradients(sampled, logits, repeats), _gradients(full, logits, repeats), strict=True
    ):
        assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("target", [3, 11])  # in the history and not
def test_the_mass_of_a_sampled_softmax_is_right_on_average(target: int) -> None:
    """Rows that always count do not vary; drawn rows represent all others."""
    rng = np.random.default_rng(1)
    torch.manual_seed(1)
    items, draws = 60, 2000
    catalogue = _catalogue(rng, items, 3, 5)
    logits = _logits(rng, 1, 3, 5).detach()
    repeats = Repeats(torch.tensor([3, 8, 20]), torch.zeros(3).long(), torch.tensor(0.7))
    of_target = torch.tensor([target])
    full = _softmax(catalogue)._all_rows(logits, of_target, repeats).item()
    softmax = _softmax(catalogue, 12)
    losses = [softmax._some_rows(logits, of_target, repeats).item() for _ in range(draws)]
    ratios = np.exp(np.array(losses) - full)  # of the masses: the target's score is in both
    assert ratios.std() > 0.02
    assert ratios.mean() == pytest.approx(1, abs=4 * ratios.std() / draws**0.5)


def test_rows_are_sampled_only_where_there_are_more_than_are_drawn() -> None:
    catalogue = _catalogue(np.random.default_rng(0), 40, 3, 4)
    logits, targets = torch.randn(4, 3, 4), torch.arange(4)
    full, some = torch.ones(4, 3) > 0, torch.tensor([[True, True, False]] * 4)

    def losses(sampled_rows: int, masked: Tensor) -> set[float]:
        softmax = _softmax(catalogue, sampled_rows)
        return {float(softmax.loss(logits, targets, masked, _no_repeats()).mean) for _ in range(5)}

    assert len(losses(40, full)) == 1
    assert len(losses(39, full)) > 1
    assert losses(39, some) == losses(40, some)


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
    assert torch.allclose(position_loss(logits, targets, masked).mean, expected / 3)
