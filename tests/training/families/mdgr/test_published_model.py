"""MDGR's network as published: what it may and may not see, and that serving computes the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from logs import log_of

from service.decoding import Catalogue, Histories, SidTrie
from training.config import FitConfig, MaskingConfig, ModelConfig
from training.data.splits import Split, Windows
from training.errors import ConfigError
from training.families import family_of
from training.families.denoiser import TorchDenoiser
from training.families.export import PARITY_TOLERANCE, export_graphs
from training.families.mdgr.objective import MDGRObjective
from training.families.mdgr.options import build
from training.families.mdgr.published import PublishedModel
from training.fitting.training_loop import Trainer
from training.preset import load_config

L, V, D = 3, 7, 4
NUM_ITEMS, LENGTH = 30, 4
HISTORIES = [[1, 2, 3], [4, 5], [6, 7, 8, 9, 10, 11, 12], [20], [21, 22, 23]]


def config_of(**settings: Any) -> ModelConfig:
    return ModelConfig(
        options={"encoder": "bidirectional"},
        width=16,
        num_heads=2,
        encoder_layers=2,
        decoder_layers=2,
        history_length=6,
    ).model_copy(update=settings)


def published(**settings: Any) -> PublishedModel:
    """Weights far from their small first values, so that every difference is visible."""
    torch.manual_seed(0)
    model = PublishedModel(config_of(**settings), num_subspaces=L, num_codes=V, vector_dims=D)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def histories_of(lengths: list[int], padded_to: int) -> Histories:
    rng = np.random.default_rng(1)
    mask = np.arange(padded_to) < np.array(lengths)[:, None]
    codes = rng.integers(0, V, (len(lengths), padded_to, L)).astype(np.uint16)
    vectors = rng.standard_normal((len(lengths), padded_to, D)).astype(np.float16)
    codes[~mask], vectors[~mask] = V, 0
    return Histories(codes, vectors, mask)


def log_probs_of(model: PublishedModel, histories: Histories, sids: np.ndarray) -> np.ndarray:
    """At all positions: (jobs, beams, L, V)."""
    denoiser = TorchDenoiser(model)
    positions = np.broadcast_to(np.arange(L), sids.shape).copy()
    return denoiser.denoise(denoiser.encode(histories), sids.astype(np.uint16), positions)


@pytest.mark.parametrize("item_vectors", [True, False])
@pytest.mark.parametrize("tied_head", [True, False])
def test_filler_batches_and_beams_change_nothing(item_vectors: bool, tied_head: bool) -> None:
    model = published(item_vectors=item_vectors, tied_head=tied_head)
    lengths = [2, 0, 5]
    histories = histories_of(lengths, padded_to=6)
    sids = np.random.default_rng(2).integers(0, V + 1, (3, 4, L))
    together = log_probs_of(model, histories, sids)
    assert np.allclose(np.exp(together).sum(axis=-1), 1, atol=1e-5)
    for job, length in enumerate(lengths):
        own = Histories(*(array[job : job + 1, : max(1, length)] for array in histories))
        for beam in range(4):
            alone = log_probs_of(model, own, sids[job : job + 1, beam : beam + 1])
            assert np.allclose(alone[0, 0], together[job, beam], atol=1e-5)


def test_every_position_sees_every_other_one_and_all_items_in_their_order() -> None:
    model, histories = published(), histories_of([4], padded_to=4)
    sids = np.array([[[1, V, 3]]])
    before = log_probs_of(model, histories, sids)[0, 0]
    for position in (0, 2):
        changed = sids.copy()
        changed[..., position] = 0
        after = log_probs_of(model, histories, changed)[0, 0]
        assert (np.abs(after - before).max(axis=-1) > 1e-4).all()
    for place in range(4):
        codes = histories.codes.copy()
        codes[0, place, 1] = (codes[0, place, 1] + 1) % V
        after = log_probs_of(model, histories._replace(codes=codes), sids)[0, 0]
        assert np.abs(after - before).max() > 1e-4
    turned = Histories(histories.codes[:, ::-1], histories.vectors[:, ::-1], histories.mask)
    assert np.abs(log_probs_of(model, turned, sids)[0, 0] - before).max() > 1e-4


def test_the_difficulty_is_told_and_can_be_switched_off() -> None:
    sids = torch.tensor([[V, V, V], [V, 1, V], [0, 1, V]])
    for switched_on in (True, False):
        model = published(difficulty_embedding=switched_on)
        histories = histories_of([3], padded_to=3)
        before = log_probs_of(model, histories, sids.numpy()[None])
        with torch.no_grad():
            model.difficulty_embedding.weight[1] += torch.linspace(-1, 1, 16)
        after = log_probs_of(model, histories, sids.numpy()[None])
        changed = np.abs(after - before).max(axis=(0, 2, 3)) > 1e-3
        assert changed.tolist() == [False, switched_on, False]


def test_the_published_network_is_exported() -> None:
    model = published(encoder_layers=1, decoder_layers=1)
    assert model.memory_size == 6 * (2 * 16 + 1)  # keys and values of six items, and which are
    assert export_graphs(model).difference <= PARITY_TOLERANCE


def split_of_histories() -> Split:
    log = log_of(HISTORIES, NUM_ITEMS)
    nobody = Windows(log.rows, np.empty(0, np.int32), *np.empty((2, 0), np.int64))
    return Split(log, log, log, nobody, nobody)


def trainer(*, masking: dict[str, Any], **fit: Any) -> Trainer:
    torch.manual_seed(0)
    codes = np.random.default_rng(1).integers(0, V, (NUM_ITEMS, L)).astype(np.uint16)
    vectors = np.random.default_rng(2).standard_normal((NUM_ITEMS, 6)).astype(np.float16)
    item_ids = tuple(map(str, range(NUM_ITEMS)))
    trie = SidTrie(Catalogue(item_ids, codes, V, np.zeros(NUM_ITEMS, np.int64), vectors))
    losses = {"position_weight": 1.0, "catalogue_weight": 0.0}
    config = FitConfig(epochs=1, threads=1, bf16=False, **(losses | fit))
    model = config_of(history_length=LENGTH, dropout=0.0)
    return Trainer(split_of_histories(), trie, model, MaskingConfig(**masking), config)


def test_the_loss_is_that_of_fully_masked_targets_asked_as_serving_asks() -> None:
    """Every item but a user's first is learnt once, from its own history."""
    made = trainer(masking={"full_share": 1.0, "partial_share": 0.0})
    objective, model = made.objective, made.model
    assert isinstance(objective, MDGRObjective)
    everything = np.arange(len(objective.segments))
    loss = objective.loss(everything, 0.5, torch.Generator().manual_seed(0))
    samples = [
        (history[max(0, end - LENGTH) : end], history[end])
        for history in HISTORIES
        for end in range(1, len(history))
    ]
    assert objective.num_samples == len(samples)
    total = 0.0
    for history, target in samples:
        rows = torch.tensor([history])
        vectors = objective.vectors[rows].float()
        memory = model.remember(objective.codes[rows], vectors, torch.ones_like(rows) > 0)
        logits = model.denoise(torch.full((1, 1, L), V), memory)[0, 0]
        total -= logits.log_softmax(dim=-1)[range(L), objective.codes[target]].sum().item()
    assert float(loss.detach()) == pytest.approx(total / len(samples), rel=1e-5)


def test_a_step_gives_every_parameter_a_gradient_but_the_repeat_bias() -> None:
    made = trainer(masking={"full_share": 0.0, "partial_share": 1.0})
    objective = made.objective
    loss = objective.loss(np.arange(9), 0.5, torch.Generator().manual_seed(0))
    loss.backward()
    without = [name for name, one in made.model.named_parameters() if one.grad is None]
    assert without == ["repeat_bias"]


def test_the_encoder_is_an_option_and_the_default_is_as_before() -> None:
    catalogue = Catalogue(("a",), np.zeros((1, L), np.uint16), V, np.zeros(1, np.int64))
    assert isinstance(build(catalogue, config_of(item_vectors=False)), PublishedModel)
    assert not isinstance(build(catalogue, ModelConfig(item_vectors=False)), PublishedModel)
    with pytest.raises(ConfigError, match=r"model\.options\.encoder"):
        family_of("mdgr").check(config_of(options={"encoder": "both"}))


def test_the_published_sizes_are_those_of_the_paper_and_can_be_trained() -> None:
    config = load_config("mdgr-paper", [])
    ours = load_config("mdgr", [])
    assert config.model.options == ours.model.options == {"encoder": "bidirectional"}
    for one in (config, ours):
        assert (one.fit.position_weight, one.fit.catalogue_weight) == (1, 0)
        assert (one.masking.full_share, one.masking.partial_share) == (0, 1)
        assert one.masking.curriculum
        assert one.masking.history_aware
    codes = np.random.default_rng(0).integers(0, 300, (NUM_ITEMS, 8)).astype(np.uint16)
    item_ids = tuple(map(str, range(NUM_ITEMS)))
    catalogue = Catalogue(item_ids, codes, 300, np.zeros(NUM_ITEMS, np.int64))
    fit = config.fit.model_copy(update={"epochs": 1, "threads": 1})
    torch.manual_seed(0)
    made = Trainer(split_of_histories(), SidTrie(catalogue), config.model, config.masking, fit)
    layer = 12 * 256 * 256 + 13 * 256  # matrices, their biases, two norms
    encoder = [p for name, p in made.model.named_parameters() if name.startswith("encoder.")]
    assert sum(p.numel() for p in encoder) == 6 * layer
    assert len(made.model.decoder) == 6
    losses = [float(made.step(np.arange(5))) for _ in range(3)]
    assert all(np.isfinite(loss) for loss in losses)
    made.check_finite()
