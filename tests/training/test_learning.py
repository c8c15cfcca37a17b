"""The whole pipeline: it must learn a world that can be learnt, and nothing from a random one.

A world without noise and one of noise alone go through `training.pipeline.run`. The figures come
from the bundle, through the production decoder. They are compared with the world's own oracle.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from training.data.interactions import load_dataset
from training.data.synthetic import World, make_world, write_world
from training.pipeline import run
from training.preset import load_config

K = 10
SHARE_OF_BEST = 0.7
NUM_USERS, NUM_ITEMS, SEED = 600, 300, 1


@dataclass(frozen=True)
class Learnt:
    """A world, the bundle trained on it, and which users got their test item.

    hits, popular_hits: (num_users,) bool, is the test item among the K best or most popular items
    """

    world: World
    record: dict[str, Any]
    hits: NDArray[np.bool_]
    popular_hits: NDArray[np.bool_]


def _learn(noise: float, folder: Path) -> Learnt:
    world = make_world(NUM_USERS, NUM_ITEMS, noise, SEED)
    write_world(world, folder / "world")
    # The oracle names items that the user has had, too: hold it against a system that may.
    repeats = ["interactions.collapse_repeats=false", "evaluation.exclude_seen=false"]
    config = load_config("tiny", repeats)
    dataset = load_dataset(folder / "world", config=config.interactions)
    record = run(config, dataset, folder / "run", Console(quiet=True), until="evaluation")
    lines = (folder / "run" / "evaluation" / "ranks.jsonl").read_text().splitlines()
    ranks = [json.loads(line)["rank"] for line in lines]
    targets = dataset.split.test.targets  # rows: the most popular item is row 0
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
        assert learnt.record["invalid_sid_share"] == 0
        assert learnt.record["default"]["recall@10"] == round(learnt.hits.mean(), 5)
        assert learnt.record["popularity"]["recall@10"] == round(learnt.popular_hits.mean(), 5)
