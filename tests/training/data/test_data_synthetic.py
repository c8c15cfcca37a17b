"""The synthetic world: its structure, its noise, its popularity and its oracle."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from training.config import InteractionsConfig
from training.data.interactions import load_dataset
from training.data.synthetic import (
    MAX_ITEMS,
    MIN_ITEMS,
    World,
    make_world,
    synthesize,
    write_world,
)
from training.errors import ConfigError

NUM_USERS, NUM_ITEMS, SEED = 2000, 300, 11


@pytest.fixture(scope="module")
def worlds() -> dict[float, World]:
    """The same world with three values of noise."""
    return {noise: make_world(NUM_USERS, NUM_ITEMS, noise, SEED) for noise in (0.0, 0.3, 1.0)}


def test_same_seed_same_world_and_another_seed_another() -> None:
    first, again, other = (make_world(50, 100, 0.3, seed) for seed in (1, 1, 2))
    assert first.items == again.items
    assert first.interactions.user_ids == again.interactions.user_ids
    np.testing.assert_array_equal(first.interactions.indptr, again.interactions.indptr)
    np.testing.assert_array_equal(first.interactions.rows, again.interactions.rows)
    assert not np.array_equal(first.interactions.rows, other.interactions.rows)
    assert {item.title for item in first.items} != {item.title for item in other.items}


def test_the_dial_changes_neither_catalogue_nor_law(worlds: dict[float, World]) -> None:
    quiet, noisy = worlds[0.0], worlds[1.0]
    assert quiet.items == noisy.items
    np.testing.assert_array_equal(quiet.transitions, noisy.transitions)
    np.testing.assert_array_equal(quiet.popularity, noisy.popularity)


@pytest.mark.parametrize("num_items", [MIN_ITEMS, 301, MAX_ITEMS])
def test_items_have_distinct_titles_and_a_category(num_items: int) -> None:
    items = make_world(1, num_items, 0.5, SEED).items
    assert len(items) == num_items
    assert len({item.item_id for item in items}) == num_items
    assert len({item.title for item in items}) == num_items
    assert all(len(item.categories) == 1 and " > " in item.categories[0] for item in items)


def test_popularity_is_the_stationary_law_and_uneven(worlds: dict[float, World]) -> None:
    world = worlds[0.3]
    np.testing.assert_allclose(world.transitions.sum(axis=1), 1)
    assert np.all(np.diag(world.transitions) == 0)
    assert world.popularity.min() > 0
    np.testing.assert_allclose(world.popularity @ world.transitions, world.popularity, atol=1e-14)
    largest_first = np.sort(make_world(1, 1200, 0.3, SEED).popularity)[::-1]
    assert 0.25 < largest_first[:120].sum() < 0.5  # a tenth of the items, a third of the interest
    assert largest_first[0] > 5 * np.median(largest_first)


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("place", [0, -1], ids=["first", "test"])
def test_items_follow_one_popularity_law_at_every_noise(
    worlds: dict[float, World], noise: float, place: int
) -> None:
    """One item per user, so the draws are independent and a chi-squared test holds."""
    world = worlds[noise]
    drawn = np.array([world.interactions.history_of(user)[place] for user in range(NUM_USERS)])
    counts = np.bincount(drawn, minlength=NUM_ITEMS)
    groups = np.array_split(np.argsort(world.popularity), 30)
    expected = [NUM_USERS * world.popularity[group].sum() for group in groups]
    assert stats.chisquare([counts[group].sum() for group in groups], expected).pvalue > 1e-3


def test_without_noise_each_item_is_a_move_that_the_law_allows(worlds: dict[float, World]) -> None:
    world = worlds[0.0]
    probabilities = []
    for user in range(NUM_USERS):
        history = world.interactions.history_of(user)
        probabilities.append(world.transitions[history[:-1], history[1:]])
    assert min(p.min() for p in probabilities) > 0
    assert np.mean(np.concatenate(probabilities) > 0.6) > 0.4  # mostly on along the line


def test_tastes_stay_for_a_while_and_drift(worlds: dict[float, World]) -> None:
    world = worlds[0.0]
    topics = np.array([item.categories[0] for item in world.items])
    moves = [
        topics[history[1:]] == topics[history[:-1]]
        for history in map(world.interactions.history_of, range(NUM_USERS))
    ]
    assert np.concatenate(moves).mean() == pytest.approx(0.9, abs=0.01)
    visited = [len(set(topics[world.interactions.history_of(u)])) for u in range(NUM_USERS)]
    assert 1.5 < np.mean(visited) < 4


def test_oracle_equals_summing_over_all_hidden_courses(worlds: dict[float, World]) -> None:
    """Brute force over all ways in which items of a short history may be moves or impulses."""
    world = worlds[0.3]
    lengths = world.interactions.lengths()
    users = np.concatenate([np.flatnonzero(lengths == n)[:5] for n in (5, 6, 8)])
    found = world.next_item_probabilities(users)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    for user, law in zip(users, found, strict=True):
        history = world.interactions.history_of(int(user))[:-1]
        np.testing.assert_allclose(law, _law_by_enumeration(world, history), atol=1e-12)


def _law_by_enumeration(world: World, history: np.ndarray) -> np.ndarray:
    total, evidence = np.zeros(len(world.items)), 0.0
    for impulses in itertools.product((False, True), repeat=len(history)):
        likelihood, law_of_next_move = 1.0, world.popularity
        for item, impulse in zip(history, impulses, strict=True):
            if impulse:
                likelihood *= world.noise * world.popularity[item]
            else:
                likelihood *= (1 - world.noise) * law_of_next_move[item]
                law_of_next_move = world.transitions[item]
        law = (1 - world.noise) * law_of_next_move + world.noise * world.popularity
        total, evidence = total + likelihood * law, evidence + likelihood
    return total / evidence


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_oracle_scores_what_it_expects_and_beats_simpler_rules(
    worlds: dict[float, World], noise: float
) -> None:
    world = worlds[noise]
    users = np.arange(NUM_USERS)
    oracle = _hits(world, world.next_item_probabilities(users))
    error = oracle.std() / NUM_USERS**0.5
    assert oracle.mean() == pytest.approx(world.best_recall(10), abs=3 * error)
    last = [world.interactions.history_of(user)[-2] for user in users]
    assert oracle.mean() >= _hits(world, world.transitions[last]).mean()
    popular = _hits(world, np.broadcast_to(world.popularity, (NUM_USERS, NUM_ITEMS)))
    assert popular.mean() == pytest.approx(world.popularity_recall(10), abs=0.02)
    assert oracle.mean() > 5 * popular.mean()


def _hits(world: World, scores: np.ndarray) -> np.ndarray:
    best = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    targets = world.interactions.rows[world.interactions.indptr[1:] - 1]
    return (best == targets[:, None]).any(axis=1)


def test_the_dial_runs_from_predictable_to_popularity(worlds: dict[float, World]) -> None:
    recalls = [worlds[noise].best_recall(10) for noise in (0.0, 0.3, 1.0)]
    assert recalls == sorted(recalls, reverse=True)
    assert recalls[0] > 0.8
    assert recalls[-1] == pytest.approx(worlds[1.0].popularity_recall(10), abs=1e-12)
    laws = worlds[1.0].next_item_probabilities(np.arange(NUM_USERS))
    np.testing.assert_allclose(laws, np.broadcast_to(worlds[1.0].popularity, laws.shape))


def test_training_reads_back_what_was_written(tmp_path: Path) -> None:
    world = make_world(40, 80, 0.3, SEED)
    write_world(world, tmp_path)
    # As it was written: the bookmark may stay where it is.
    kept = InteractionsConfig(collapse_repeats=False)
    dataset = load_dataset(data_dir=tmp_path, config=kept)
    assert not [said for said in dataset.warnings if "kept, as" not in said]
    assert dataset.embeddings is None
    assert {item.item_id: item for item in dataset.items} == {
        item.item_id: item for item in world.items
    }
    test, log = dataset.split.test, world.interactions
    assert len(test) == log.num_users
    for window, user in enumerate(test.users):
        assert dataset.split.train.user_ids[user] == log.user_ids[window]
        read = [*test.history_of(window), test.targets[window]]
        assert [dataset.items[row].item_id for row in read] == [
            log.item_ids[row] for row in log.history_of(window)
        ]


def test_the_command_writes_a_world_and_says_what_can_be_learnt(tmp_path: Path) -> None:
    said = synthesize(tmp_path / "new" / "world", 40, 80, 0.3, SEED)
    assert said["users"] == 40
    assert said["popularity_recall@10"] < said["best_recall@10"] < 1
    assert {path.name for path in (tmp_path / "new" / "world").iterdir()} == {
        "interactions.parquet",
        "items.parquet",
    }


@pytest.mark.parametrize(
    ("users", "items", "noise", "word"),
    [
        (0, 80, 0.5, "user"),
        (10, MIN_ITEMS - 1, 0.5, "items"),
        (10, MAX_ITEMS + 1, 0.5, "items"),
        (10, 80, -0.1, "noise"),
        (10, 80, 1.1, "noise"),
        (10, 80, float("nan"), "noise"),
    ],
)
def test_numbers_out_of_range_are_refused(users: int, items: int, noise: float, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        make_world(users, items, noise, SEED)
