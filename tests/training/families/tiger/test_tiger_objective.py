"""What TIGER learns: every item but a user's first, from its own history, all codes at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from logs import log_of

from service.decoding import Catalogue, SidTrie
from training.config import FitConfig, MaskingConfig, ModelConfig
from training.data.splits import Split, Windows
from training.errors import ConfigError
from training.families.tiger.objective import TigerObjective
from training.fitting.training_loop import Trainer

NUM_ITEMS, L, V, LENGTH = 30, 3, 5, 4
HISTORIES = [[1, 2, 3], [4, 5], [6, 7, 8, 9, 10, 11, 12], [20], [21, 22, 23]]
SAMPLES = [
    (tuple(history[max(0, end - LENGTH) : end]), history[end])
    for history in HISTORIES
    for end in range(1, len(history))
]


def trainer(**fit: Any) -> Trainer:
    torch.manual_seed(0)
    model = ModelConfig(
        family="tiger",
        width=16,
        num_heads=2,
        encoder_layers=1,
        decoder_layers=1,
        history_length=LENGTH,
        dropout=0,
    )
    codes = np.random.default_rng(1).integers(0, V, (NUM_ITEMS, L)).astype(np.uint16)
    vectors = np.random.default_rng(2).standard_normal((NUM_ITEMS, 6)).astype(np.float16)
    item_ids = tuple(map(str, range(NUM_ITEMS)))
    trie = SidTrie(Catalogue(item_ids, codes, V, np.zeros(NUM_ITEMS, np.int64), vectors))
    log = log_of(HISTORIES, NUM_ITEMS)
    nobody = Windows(log.rows, np.empty(0, np.int32), *np.empty((2, 0), np.int64))
    config = FitConfig(epochs=1, threads=1, bf16=False, **{"catalogue_weight": 0.0} | fit)
    return Trainer(Split(log, log, log, nobody, nobody), trie, model, MaskingConfig(), config)


def test_every_item_but_a_users_first_is_learnt_once_from_its_own_history() -> None:
    objective = trainer(position_weight=1.0).objective
    assert isinstance(objective, TigerObjective)
    assert objective.num_samples == len(SAMPLES)
    generator = torch.Generator().manual_seed(1)
    found = []
    for minibatch in objective.minibatches(3, generator):
        assert objective.num_samples_of(minibatch) == len(minibatch)
        rows, is_target = objective.segments.arrays(minibatch, filler=-1)
        for line, marked in zip(rows.tolist(), is_target, strict=True):
            [place] = np.flatnonzero(marked)
            found.append((tuple(line[: place + 1]), line[place + 1]))
            assert set(line[place + 2 :]) <= {-1}
    assert sorted(found) == sorted(SAMPLES)


def test_the_loss_is_the_cross_entropy_of_each_code_after_those_before_it() -> None:
    """Computed once more: a sample and a position at a time, asked as serving asks."""
    made = trainer(position_weight=2.0)
    objective, model = made.objective, made.model
    assert isinstance(objective, TigerObjective)
    everything = np.arange(len(objective.segments))
    loss = objective.loss(everything, 0.5, torch.Generator())
    total = 0.0
    for history, target in SAMPLES:
        rows = torch.tensor([history])
        vectors = objective.vectors[rows].float()
        memory = model.remember(objective.codes[rows], vectors, torch.ones_like(rows) > 0)
        sid = objective.codes[target].clone()
        for position in range(L):
            asked = sid.clone()
            asked[position:] = V  # what is not filled yet
            place = torch.tensor([[[position]]])
            logits = model.denoise(asked[None, None], memory, place)
            total -= logits.log_softmax(dim=-1)[0, 0, 0, sid[position]].item()
    assert float(loss.detach()) == pytest.approx(2 * total / len(SAMPLES), rel=1e-5)


def test_the_loss_over_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"set fit.catalogue_weight=0 fit.position_weight=1"):
        trainer(catalogue_weight=1.0)


def test_nothing_learns_the_repeat_bias() -> None:
    made = trainer(position_weight=1.0)
    for _ in made.epoch():
        pass
    assert made.model.repeat_bias.item() == 0
