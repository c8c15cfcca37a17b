"""The dense head of maskgr and tiger: its loss, what it is asked in training, its graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from logs import log_of
from rich.console import Console

from service.decoding import Catalogue, SidTrie
from service.decoding.network import Histories
from training.config import FitConfig, MaskingConfig, ModelConfig
from training.data.interactions import load_dataset
from training.data.splits import Split, Windows
from training.data.synthetic import make_world, write_world
from training.errors import ConfigError
from training.families import family_of
from training.families.denoiser import TorchDenoiser
from training.families.losses import DenseLoss
from training.families.maskgr.masking import mask_items
from training.families.maskgr.objective import MaskGRObjective
from training.families.network import DenseHead, Network
from training.fitting.training_loop import Trainer
from training.pipeline import run
from training.preset import load_config

NUM_ITEMS, L, V, D, DIMS, LENGTH = 30, 3, 5, 6, 4, 5
HISTORIES = [[1, 2, 3], [4, 5], [6, 7, 8, 9, 10, 11, 12, 13, 14], [20], [21, 22, 23, 24, 25]]
KINDS = {
    "prefix": {"attention": "prefix", "dense": True},
    "full": {"attention": "full", "dense": True},
    "causal": {"attention": "causal", "dense": True},
    "tiger": {"dense": True},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def catalogue_of(*, content_dims: int = DIMS, cold: int = 0) -> Catalogue:
    """Content of norm .5; the last `cold` items have no interactions."""
    random = np.random.default_rng(1)
    vectors = random.standard_normal((NUM_ITEMS, D))
    vectors[:, :DIMS] /= 2 * np.linalg.norm(vectors[:, :DIMS], axis=1, keepdims=True)
    popularity = np.arange(NUM_ITEMS)[::-1] + 1
    popularity[NUM_ITEMS - cold :] = 0
    return Catalogue(
        tuple(map(str, range(NUM_ITEMS))),
        random.integers(0, V, (NUM_ITEMS, L)).astype(np.uint16),
        V,
        popularity,
        vectors.astype(np.float16),
        content_dims=content_dims,
    )


def config_of(kind: str, **options: Any) -> ModelConfig:
    return ModelConfig(
        family="tiger" if kind == "tiger" else "maskgr",
        width=16,
        num_heads=2,
        encoder_layers=2,
        history_length=LENGTH,
        dropout=0,
        options=KINDS[kind] | options,
    )


def network(kind: str, **options: Any) -> Network:
    """Weights far from their first values, so that every difference is visible."""
    torch.manual_seed(0)
    config = config_of(kind, **options)
    model = family_of(config.family).build(catalogue_of(), config)
    assert isinstance(model, Network)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def trainer_of(kind: str, **options: Any) -> Trainer:
    torch.manual_seed(0)
    train = log_of(HISTORIES, NUM_ITEMS)
    nobody = Windows(train.rows, np.empty(0, np.int32), *np.empty((2, 0), np.int64))
    config = FitConfig(
        epochs=1, threads=1, bf16=False, position_weight=1, catalogue_weight=kind != "tiger"
    )
    split = Split(train, train, train, nobody, nobody)
    return Trainer(
        split, SidTrie(catalogue_of()), config_of(kind, **options), MaskingConfig(), config
    )


@pytest.mark.parametrize("cold", [0, 5])
def test_the_loss_is_a_softmax_over_the_content_of_items_with_interactions(cold: int) -> None:
    catalogue, random = catalogue_of(cold=cold), torch.Generator().manual_seed(0)
    queries = torch.randn(4, DIMS, generator=random)
    targets = torch.tensor([0, 7, 24, 29])  # the last one may be cold; it still is right
    content = torch.from_numpy(catalogue.vectors[:, :DIMS].astype(np.float32))
    scores = queries @ content.T
    expected = 0.0
    for own, target in zip(scores, targets.tolist(), strict=True):
        among = sorted({*range(NUM_ITEMS - cold), target})
        expected += float(own[among].logsumexp(dim=0) - own[target])
    found = DenseLoss(catalogue, sampled_rows=NUM_ITEMS).loss(queries, targets).mean
    assert float(found) == pytest.approx(expected / 4, rel=1e-5)


def test_the_sampled_loss_is_about_the_whole_one() -> None:
    catalogue = catalogue_of()
    queries, targets = torch.randn(8, DIMS), torch.arange(8)
    whole = float(DenseLoss(catalogue, sampled_rows=NUM_ITEMS).loss(queries, targets).mean)
    torch.manual_seed(1)
    sampled = DenseLoss(catalogue, sampled_rows=10)
    found = [float(sampled.loss(queries, targets).mean) for _ in range(300)]
    assert np.mean(found) == pytest.approx(whole, abs=0.03)
    assert np.std(found) > 0


def test_a_query_times_content_is_cosine_over_temperature() -> None:
    head = DenseHead(8, catalogue_of(), temperature=0.1)
    queries = head(torch.randn(5, 8)).detach()
    content = torch.from_numpy(catalogue_of().vectors[:, :DIMS].astype(np.float32))
    cosine = torch.nn.functional.cosine_similarity(queries[:, None], content[None], dim=2)
    assert torch.allclose(queries @ content.T, cosine / 0.1, atol=0.02)  # norms are of float16


@pytest.mark.parametrize("family", ["maskgr", "tiger"])
def test_without_content_there_is_no_head(family: str) -> None:
    config = config_of("tiger" if family == "tiger" else "prefix")
    with pytest.raises(ConfigError, match="no item has content"):
        family_of(family).build(catalogue_of(content_dims=0), config)


@each_kind
def test_it_is_off_by_default_and_then_leaves_no_trace(kind: str) -> None:
    config = config_of(kind).model_copy(update={"options": {}})
    torch.manual_seed(3)
    plain = family_of(config.family).build(catalogue_of(content_dims=0), config)
    assert not [name for name in plain.state_dict() if "dense" in name]
    assert isinstance(plain, Network)
    assert plain.dense is None


@each_kind
def test_serving_asks_what_was_learnt(kind: str) -> None:
    """The query of a memory is that of training, where the next item is masked."""
    model, random = network(kind), np.random.default_rng(2)
    lengths = [1, 3, LENGTH]
    codes = np.full((3, LENGTH, L), V, np.uint16)
    vectors, mask = np.zeros((3, LENGTH, D), np.float16), np.zeros((3, LENGTH), bool)
    for user, length in enumerate(lengths):
        codes[user, :length] = random.integers(0, V, (length, L))
        vectors[user, :length] = random.standard_normal((length, D))
        mask[user, :length] = True
    memory = TorchDenoiser(model).encode(Histories(codes, vectors, mask))
    with torch.inference_mode():
        found = model.query(memory)
        whole: Any = model
        as_learnt = []
        for user, length in enumerate(lengths):
            own_codes = torch.from_numpy(codes[user : user + 1, :length].astype(np.int64))
            own_vectors = torch.from_numpy(vectors[user : user + 1, :length]).float()
            if kind == "tiger":
                history = whole.encoded(own_codes, own_vectors, torch.ones(1, length).bool())
                states = whole.states(torch.randint(0, V, (1, L)), history)
                as_learnt.append(whole.queries(states))
            else:
                own_codes = torch.cat((own_codes, torch.full((1, 1, L), V)), dim=1)
                own_vectors = torch.cat((own_vectors, torch.zeros(1, 1, D)), dim=1)
                is_item = torch.ones(1, length + 1).bool()
                _, lower = whole.both_states(own_codes, own_vectors, is_item)
                as_learnt.append(whole.queries(lower[:, -1]))
    assert torch.allclose(found, torch.cat(as_learnt), atol=1e-4)


@each_kind
def test_a_step_teaches_the_head(kind: str) -> None:
    trainer = trainer_of(kind)
    minibatch = np.arange(len(trainer.objective.segments))  # type: ignore[attr-defined]
    loss = trainer.objective.loss(minibatch, 0.5, torch.Generator().manual_seed(0))
    loss.backward()
    head: Any = trainer.model.dense
    assert float(head.down.weight.grad.abs().sum()) > 0


def test_whole_items_are_masked_with_the_weight_of_codes() -> None:
    masked, weights = mask_items(400, 6, L, torch.Generator().manual_seed(0))
    assert torch.equal(masked.all(dim=2), masked.any(dim=2))
    rates = masked.any(dim=2).float().mean(dim=1)
    assert float(rates.mean()) == pytest.approx(0.5, abs=0.03)
    assert torch.corrcoef(torch.stack((rates, 1 / weights)))[0, 1] > 0.8


def test_the_head_is_asked_for_wholly_masked_items_of_the_right_sequences() -> None:
    for share, target_share in ((1.0, 0.0), (0.3, 0.5), (0.3, 1.0)):
        trainer = trainer_of("prefix", dense_share=share, target_share=target_share)
        objective = trainer.objective
        assert isinstance(objective, MaskGRObjective)
        asked_last = 0
        for seed in range(30):
            minibatch = np.arange(len(objective.segments))
            drawn = objective.draw(minibatch, torch.Generator().manual_seed(seed))
            assert bool(drawn.masked.all(dim=2)[drawn.asked].all())
            assert bool(drawn.is_item[drawn.asked].all())
            last_only = ~drawn.whole
            assert not drawn.asked[last_only, :-1].any()
            asked_last += int(drawn.asked[last_only, -1].sum())
            full = drawn.masked.all(dim=2) & drawn.is_item
            assert torch.equal(drawn.asked[last_only], full[last_only])
            if share == 1.0:
                assert torch.equal(drawn.asked, full)
        assert (asked_last > 0) == (target_share > 0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.retrievals=['dense']"], "need a network with a dense head"),
        (
            ["model.family=maskgr", "model.options={dense=true}", "model.item_vectors=false"],
            "set model.item_vectors=true",
        ),
        (
            ["model.family=maskgr", "model.options={dense=true}", "embeddings.content_dims=0"],
            "set embeddings.content_dims above 0",
        ),
    ],
)
def test_what_does_not_go_together_is_said(overrides: list[str], message: str) -> None:
    config = load_config("tiny", overrides)
    with pytest.raises(ConfigError, match=message):
        family_of(config.model.family).check_run(config)


SMALL = [
    "interactions.core=0",
    "codebook.num_codes=16",
    "embeddings.content_dims=8",
    "fit.epochs=1",
    "fit.minibatch=64",
    "fit.validation_users=10",
    "fit.validation_beam_width=10",
    "fit.threads=1",
    "model.history_length=4",
]


@pytest.mark.parametrize("preset", ["liger", "liger-paper", "maskgr-causal", "maskgr-paper"])
def test_a_preset_with_a_dense_head_takes_steps(preset: str, tmp_path: Path) -> None:
    write_world(make_world(30, 60, 0.1, 7), tmp_path / "world")
    config = load_config(preset, SMALL)
    assert set(config.evaluation.retrievals) == {"generate", "dense", "fused"}
    dataset = load_dataset(tmp_path / "world", config=config.interactions)
    record = run(config, dataset, tmp_path / "run", Console(quiet=True), until="fit")
    assert record["step"] > 1
    assert np.isfinite(record["best_recall"])
