"""Shares of a minibatch add up to its loss, in every family: what several processes rely on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from service.decoding import Catalogue, SidTrie
from training.config import FitConfig, MaskingConfig, ModelConfig
from training.data.splits import Interactions, Split, leave_last_out
from training.families.maskgr import causal_objective
from training.families.maskgr.objective import MaskGRObjective, Sequences
from training.fitting.training_loop import Trainer

NUM_ITEMS, NUM_USERS, NUM_SHARES = 60, 40, 3
MINIBATCH = np.arange(11)
PAPER = {"position_weight": 1.0, "catalogue_weight": 0.0}
BOTH = {"position_weight": 1.0}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mdgr": ({}, BOTH),
    "mdgr to the letter": ({"options": {"encoder": "bidirectional"}}, PAPER),
    "maskgr, full": ({"family": "maskgr", "options": {"attention": "full"}}, BOTH),
    "maskgr, prefix and dense": (
        {"family": "maskgr", "options": {"attention": "prefix", "dense": True}},
        BOTH,
    ),
    "maskgr, causal and dense": (
        {"family": "maskgr", "options": {"attention": "causal", "dense": True}},
        BOTH,
    ),
    "tiger and dense": ({"family": "tiger", "options": {"dense": True}}, PAPER),
}


@pytest.fixture(scope="module")
def world() -> tuple[Split, SidTrie]:
    rng = np.random.default_rng(0)
    item_ids = tuple(map(str, range(NUM_ITEMS)))
    lengths = np.where(np.arange(NUM_USERS) % 2, 4, 14)  # so shares differ
    log = Interactions(
        tuple(map(str, range(NUM_USERS))),
        item_ids,
        np.concatenate(([0], np.cumsum(lengths))),
        rng.integers(0, NUM_ITEMS, lengths.sum()).astype(np.int32),
    )
    codes = rng.integers(0, 5, (NUM_ITEMS, 4)).astype(np.uint16)
    vectors = rng.standard_normal((NUM_ITEMS, 8)).astype(np.float16)
    vectors[:, :5] /= np.linalg.norm(vectors[:, :5].astype(np.float32), axis=1, keepdims=True)
    newest = np.arange(NUM_ITEMS, 0, -1, dtype=np.int64)
    return leave_last_out(log), SidTrie(
        Catalogue(item_ids, codes, 5, newest, vectors, content_dims=5)
    )


@pytest.mark.parametrize("case", CASES)
def test_shares_add_up(
    world: tuple[Split, SidTrie], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, fit = CASES[case]
    split, trie = world
    torch.manual_seed(3)
    trainer = Trainer(
        split,
        trie,
        ModelConfig(width=16, num_heads=2, encoder_layers=1, dropout=0, history_length=20, **model),
        MaskingConfig(full_share=1, partial_share=0),
        FitConfig(epochs=1, minibatch=16, threads=1, bf16=False, **fit),
    )
    learnt = [one for one in trainer.model.parameters() if one.requires_grad]
    for parameter in learnt:  # one that has opinions
        parameter.data *= 3
    objective = trainer.objective
    shares = [MINIBATCH[i::NUM_SHARES] for i in range(NUM_SHARES)]
    draw_for_shares_what_the_whole_has(objective, monkeypatch)

    def loss_of(minibatch: NDArray[np.intp]) -> torch.Tensor:
        return objective.loss(minibatch, 0.5, torch.Generator().manual_seed(0))

    def gradients(loss: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(loss, learnt, allow_unused=True, materialize_grads=True)

    whole = loss_of(MINIBATCH)
    expected = gradients(whole)
    means = [float(loss_of(share).detach()) for share in shares]

    counts: list[NDArray[np.float64]] = []
    objective.of_all = lambda of_share: counts.append(of_share) or of_share
    for share in shares:
        loss_of(share)
    of_all = np.sum(counts, axis=0)
    objective.of_all = lambda of_share: of_all
    parts = [loss_of(share) for share in shares]
    assert float(sum(parts).detach()) == pytest.approx(float(whole.detach()), rel=1e-5)
    assert np.mean(means) != pytest.approx(float(whole.detach()), rel=1e-3)  # no mean of means
    found = [torch.stack(one).sum(0) for one in zip(*map(gradients, parts), strict=True)]
    torch.testing.assert_close(found, list(expected), rtol=1e-3, atol=1e-6)


def draw_for_shares_what_the_whole_has(objective: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The masks of a segment are then the same in whichever minibatch it comes."""
    if isinstance(objective, MaskGRObjective):
        drawn = objective.draw(MINIBATCH, torch.Generator().manual_seed(1))

        def of_share(minibatch: NDArray[np.intp], generator: torch.Generator) -> Sequences:
            return Sequences(*(part[torch.from_numpy(minibatch)] for part in drawn))

        monkeypatch.setattr(objective, "draw", of_share)
    elif isinstance(objective, causal_objective.CausalObjective):
        num_of = [objective.num_samples_of(np.array([one])) for one in MINIBATCH]
        first = np.concatenate(([0], np.cumsum(num_of)))
        masked, weights = causal_objective.mask_one_item(
            int(first[-1]), objective.codes.shape[1], 0.3, torch.Generator().manual_seed(1)
        )
        of_loss = objective.loss

        def loss(minibatch: NDArray[np.intp], *others: Any) -> torch.Tensor:
            mine = np.concatenate([np.arange(first[i], first[i + 1]) for i in minibatch])
            drawn = masked[mine], weights[mine]
            monkeypatch.setattr(causal_objective, "mask_one_item", lambda *_: drawn)
            return of_loss(minibatch, *others)

        monkeypatch.setattr(objective, "loss", loss)
