"""History dropout: what the network then learns is what it is asked without a history."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from logs import log_of

from service.decoding import Catalogue, SidTrie
from training.config import FitConfig, MaskingConfig, ModelConfig
from training.data.splits import Split, Windows
from training.fitting.training_loop import Trainer

NUM_ITEMS, L, V, LENGTH = 30, 3, 5, 4
HISTORIES = [[1, 2, 3], [4, 5], [6, 7, 8, 9, 10, 11, 12], [20], [21, 22, 23]]
FAMILIES: dict[str, dict[str, Any]] = {
    "ours": {"family": "mdgr"},
    "published": {"family": "mdgr", "options": {"encoder": "bidirectional"}},
    "maskgr": {"family": "maskgr", "options": {"target_share": 1.0}},
    "tiger": {"family": "tiger"},
}


def trainer(name: str, dropout: float, **fit: Any) -> Trainer:
    torch.manual_seed(0)
    model = ModelConfig(
        width=16,
        num_heads=2,
        encoder_layers=1,
        decoder_layers=1,
        history_length=LENGTH,
        dropout=0.0,
        **FAMILIES[name],
    )
    codes = np.random.default_rng(1).integers(0, V, (NUM_ITEMS, L)).astype(np.uint16)
    vectors = np.random.default_rng(2).standard_normal((NUM_ITEMS, 6)).astype(np.float16)
    item_ids = tuple(map(str, range(NUM_ITEMS)))
    trie = SidTrie(Catalogue(item_ids, codes, V, np.zeros(NUM_ITEMS, np.int64), vectors))
    log = log_of(HISTORIES, NUM_ITEMS)
    nobody = Windows(log.rows, np.empty(0, np.int32), *np.empty((2, 0), np.int64))
    losses = {"position_weight": 1.0, "catalogue_weight": 0.0} | fit
    config = FitConfig(epochs=1, threads=1, bf16=False, **losses)
    config = config.model_copy(update={"history_dropout": dropout})
    masking = MaskingConfig(full_share=1.0, partial_share=0.0)
    return Trainer(Split(log, log, log, nobody, nobody), trie, model, masking, config)


def loss_of(made: Trainer) -> float:
    objective: Any = made.objective
    everything = np.arange(len(objective.segments))
    return float(objective.loss(everything, 0.5, torch.Generator().manual_seed(3)).detach())


@pytest.mark.parametrize("name", FAMILIES)
def test_all_histories_dropped_is_the_loss_of_users_without_one(name: str) -> None:
    made = trainer(name, 1.0)
    objective: Any = made.objective
    model: Any = made.model
    nothing = torch.full((1, 1, L), V), torch.zeros(1, 1, 6), torch.zeros(1, 1) > 0
    memory = model.remember(*nothing)
    targets = [history[end] for history in HISTORIES for end in range(1, len(history))]
    expected = []
    for target in targets:
        sid = objective.codes[target]
        if name == "tiger":
            logits = model.denoise(sid[None, None], memory)[0, 0]
        else:
            logits = model.denoise(torch.full((1, 1, L), V), memory)[0, 0]
        expected.append(-logits.log_softmax(dim=-1)[range(L), sid].detach().sum().item())
    if name == "maskgr":  # one target of each segment, drawn; the mean is over codes
        assert min(expected) / L - 1e-5 <= loss_of(made) <= max(expected) / L + 1e-5
    else:
        assert loss_of(made) == pytest.approx(np.mean(expected), rel=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_dropped_history_is_not_looked_at(name: str) -> None:
    for dropout, same in ((1.0, True), (0.0, False)):
        made = trainer(name, dropout)
        before = loss_of(made)
        objective: Any = made.objective
        with torch.no_grad():
            objective.vectors[:NUM_ITEMS] += 1  # of the history only: targets give no vector
        assert (loss_of(made) == before) == same


@pytest.mark.parametrize("name", ["ours", "published", "maskgr"])
def test_nothing_of_a_dropped_history_is_a_repeat(name: str) -> None:
    """So the repeat bias learns nothing from it."""
    for dropout in (1.0, 0.0):
        made = trainer(name, dropout, catalogue_weight=1.0)
        objective: Any = made.objective
        everything = np.arange(len(objective.segments))
        objective.loss(everything, 0.5, torch.Generator().manual_seed(3)).backward()
        gradient = made.model.repeat_bias.grad
        assert (gradient is None or float(gradient) == 0) == (dropout == 1)
