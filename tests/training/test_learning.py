"""The whole pipeline, from scratch: it must learn a world that can be learnt, and no other.

One world at both ends of its dial goes through `training.pipeline.run`; the figures come from the
bundle it wrote, through the production decoder. The measure of success is the world's own oracle.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console

from service.decoding import Catalogue, SidTrie
from training.config import RunConfig, load_config
from training.fit import FitState, fit
from training.interactions import Dataset, load_dataset
from training.pipeline import Sources, run
from training.synthetic import World, make_world, write_world

K = 10
SHARE_OF_BEST = 0.7
NUM_USERS, NUM_ITEMS, SEED = 600, 300, 1


@dataclass(frozen=True)
class Learnt:
    """A world, what the pipeline made of it, and who was served right.

    hits, popular_hits: (num_users,) bool, is the test item among the K best, or most popular, ones
    """

    world: World
    record: dict[str, Any]
    hits: NDArray[np.bool_]
    popular_hits: NDArray[np.bool_]


def _learn(noise: float, folder: Path) -> Learnt:
    world = make_world(NUM_USERS, NUM_ITEMS, noise, SEED)
    write_world(world, folder / "world")
    sources = Sources(data_dir=folder / "world")
    config = load_config("tiny")
    record = run(config, sources, folder / "run", Console(quiet=True))
    lines = (folder / "run" / "evaluation" / "ranks.jsonl").read_text().splitlines()
    ranks = [json.loads(line)["rank"] for line in lines]
    targets = sources.load(config).split.test.targets  # rows: the most popular item is row 0
    hits = np.array([rank is not None and rank <= K for rank in ranks])
    return Learnt(world, record, hits, targets < K)


@pytest.fixture(scope="module")
def structured(tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    return _learn(0.0, tmp_path_factory.mktemp("structured"))


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    return _learn(1.0, tmp_path_factory.mktemp("random"))


def test_a_structured_world_is_learnt(structured: Learnt) -> None:
    recall, popular = structured.hits.mean(), structured.popular_hits.mean()
    best = structured.world.best_recall(K)
    assert recall >= 5 * popular
    assert recall >= SHARE_OF_BEST * best
    error = structured.hits.std() / NUM_USERS**0.5
    assert recall <= best + 3 * error, "better than the oracle: the test item leaks"


def test_a_random_world_is_not_learnt(random: Learnt) -> None:
    gain = random.hits.astype(int) - random.popular_hits
    assert gain.mean() <= 3 * gain.std() / NUM_USERS**0.5


def test_the_report_has_the_figures_of_the_users(structured: Learnt, random: Learnt) -> None:
    for learnt in (structured, random):
        assert learnt.record["users"] == NUM_USERS == len(learnt.hits)
        assert learnt.record["invalid_sids"] == 0
        assert learnt.record["default"]["recall@10"] == round(learnt.hits.mean(), 5)
        assert learnt.record["popularity"]["recall@10"] == round(learnt.popular_hits.mean(), 5)


@pytest.fixture
def short_fit(tmp_path: Path) -> tuple[Dataset, SidTrie, RunConfig]:
    """Three short epochs over a small world with SIDs drawn at random."""
    write_world(make_world(100, 80, 0.0, SEED), tmp_path / "world")
    dataset = load_dataset(data_dir=tmp_path / "world")
    config = load_config("tiny", ["fit.epochs=3", "fit.validate_every_epochs=1"])
    train, shape = dataset.split.train, (80, config.codebook.num_subspaces)
    codes = np.random.default_rng(SEED).integers(0, config.codebook.num_codes, shape)
    catalogue = Catalogue(
        train.item_ids, codes.astype(np.uint16), config.codebook.num_codes, train.popularity()
    )
    return dataset, SidTrie(catalogue), config


def test_a_resumed_fit_ends_bit_for_bit_where_an_uninterrupted_one_does(
    short_fit: tuple[Dataset, SidTrie, RunConfig], tmp_path: Path
) -> None:
    def weights_and_state(
        folder: str, stop_after_epochs: int | None = None
    ) -> tuple[dict[str, torch.Tensor], FitState]:
        dataset, trie, config = short_fit
        model, state = fit(
            dataset.split,
            trie,
            tmp_path / folder,
            model_config=config.model,
            masking=config.masking,
            config=config.fit,
            console=Console(quiet=True),
            stop_after_epochs=stop_after_epochs,
        )
        return model.state_dict(), state

    straight, straight_state = weights_and_state("straight")
    cut, cut_state = weights_and_state("resumed", stop_after_epochs=1)
    resumed, resumed_state = weights_and_state("resumed")
    assert cut_state.epoch == 1
    assert resumed_state.epoch == straight_state.epoch == 3
    assert resumed_state.validations == straight_state.validations
    assert resumed_state.best_epoch == straight_state.best_epoch
    for name, weights in straight.items():
        assert torch.equal(weights, resumed[name]), name
    if straight_state.best_epoch > 1:
        assert any(not torch.equal(weights, cut[name]) for name, weights in straight.items())
