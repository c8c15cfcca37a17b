"""What counts pairs of items: by hand, compared with the kernel, and on a large catalogue."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from logs import log_of
from numpy.typing import NDArray

from service.decoding import NeighbourPrior, Schedule
from service.decoding.job import Job
from service.decoding.search.row_biases import RowBiases
from training.baselines import Popularity, Scorer, SequentialRules, Transitions, WithPrior

NUM_ITEMS = 30


def rows(*values: int) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def drawn_prior(num_items: int) -> NeighbourPrior:
    """Random neighbours; a third of the places are empty."""
    random = np.random.default_rng(2)
    neighbours = random.permuted(np.tile(np.arange(num_items), (num_items, 1)), axis=1)[:, :6]
    affinities = random.random(neighbours.shape) * (random.random(neighbours.shape) > 1 / 3)
    return NeighbourPrior(
        neighbours.astype(np.int32), affinities.astype(np.float16), 4, 0.7, 0.2, 1.5
    )


def test_sequential_rules_by_hand() -> None:
    scorer = SequentialRules(log_of([[0, 1, 2, 3], [0, 2], [2, 0]]), distance=2)
    scores = scorer.scores([rows(3, 0), rows(2), rows(6)])
    assert scores[0] == pytest.approx([0, 1, 1 / 2 + 1, 0, 0, 0, 0])  # of 0; 3 is too far
    assert scores[1] == pytest.approx([1, 0, 0, 1, 0, 0, 0])
    assert not scores[2].any()
    assert scorer.parameters == 6


def test_transitions_are_sums_of_smoothed_log_probabilities() -> None:
    log = log_of([[0, 1, 2], [0, 1], [3, 3, 1, 0]], num_items=5)
    found = Transitions(
        log, distance=2, gap_decay=0.5, backwards=0.25, pseudo_count=2.0, decay=0.6
    ).scores([rows(2, 1, 0), rows(4)])
    forwards = np.zeros((5, 5))
    for before, after, weight in (
        *[(0, 1, 1), (1, 2, 1), (0, 2, 0.5), (0, 1, 1)],
        *[(3, 3, 1), (3, 1, 0.5), (3, 1, 1), (3, 0, 0.5), (1, 0, 1)],
    ):
        forwards[before, after] += weight
    counts = forwards + 0.25 * forwards.T
    shares = np.array([3, 3, 1, 2, 0.5]) / 9
    smoothed = (counts + 2 * shares) / (counts.sum(axis=1, keepdims=True) + 2)
    log_odds = np.log(smoothed) - np.log(shares)
    wanted = np.log(shares) + log_odds[0] + 0.6 * log_odds[1] + 0.36 * log_odds[2]
    difference = found[0] - wanted
    assert difference == pytest.approx(np.full(5, difference[0]), abs=1e-5)  # the totals
    assert found[1] == pytest.approx(np.log(shares), abs=1e-5)  # of 4 nothing is known


def test_many_items_need_no_matrix_of_all_pairs() -> None:
    log = log_of([list(range(start, start + 5)) for start in range(0, 1000, 5)], 100_000)
    scorer = Transitions(log)
    assert scorer.parameters == 100_000 + 200 * 5 * 4
    assert scorer.scores([rows(7)])[0].argmax() == 8


@pytest.mark.parametrize("weight", [0.0, 1.5])
def test_a_prior_adds_to_a_model_what_it_adds_to_the_network_in_the_search(weight: float) -> None:
    prior = replace(drawn_prior(NUM_ITEMS), weight=weight)
    model: Scorer = Popularity(log_of([[0, 1, 1, 2], [2, 5]], NUM_ITEMS))
    scorer = WithPrior(model, prior)
    assert scorer.parameters == NUM_ITEMS + bool(weight) * np.count_nonzero(prior.affinities)
    biases = RowBiases(NUM_ITEMS)
    for history in (rows(3), rows(), rows(5, 4, 5, 9, 5), rows(*range(20))):
        job = Job(history, 10, Schedule((1,)), 10)
        biases.fill(job, prior, 0.0)
        found = scorer.scores([history])[0] - model.scores([history])[0]
        assert found == pytest.approx(biases.values, abs=1e-5)
        assert found.any() == bool(weight and len(history))
