"""The neighbour prior of a bundle: what is kept of the affinities, and how it is weighed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import log_of

from service.decoding import Catalogue, Decoder, Histories, NeighbourPrior, Schedule, SidTrie
from training.config import NeighboursConfig
from training.embeddings import item_affinities
from training.interactions import Split, leave_last_out
from training.neighbours import fit_prior, weigh_prior

NUM_ITEMS = 40
CONFIG = NeighboursConfig(num_neighbours=8)
ONE_CALL = Schedule((1,))


@settings(max_examples=50, deadline=None)
@given(
    histories=st.lists(st.lists(st.integers(0, 5), max_size=8), min_size=1, max_size=6),
    num_neighbours=st.integers(1, 9),
)
def test_the_strongest_neighbours_are_kept_ties_by_row(
    histories: list[list[int]], num_neighbours: int
) -> None:
    log = log_of(histories)
    config = NeighboursConfig(num_neighbours=num_neighbours)
    prior = fit_prior(log, config)
    affinity = item_affinities(
        log, window=config.window, transition_weight=config.transition_weight
    ).toarray()
    assert prior.neighbours.shape == (7, min(num_neighbours, 7))
    for item, strengths in enumerate(affinity):
        strongest = sorted(np.flatnonzero(strengths), key=lambda row: (-strengths[row], row))
        strongest = strongest[:num_neighbours]
        assert prior.neighbours[item, : len(strongest)].tolist() == strongest
        kept = prior.affinities[item]
        assert np.array_equal(kept[: len(strongest)], strengths[strongest].astype(np.float16))
        assert not kept[len(strongest) :].any()
    positive = prior.affinities[prior.affinities > 0]
    assert prior.scale == pytest.approx(np.median(positive) if len(positive) else 1, rel=1e-3)
    assert prior.weight == 1
    assert prior.decay == config.decays[0]
    assert prior.history_length == config.history_length


def test_an_item_without_an_interaction_calls_for_nothing() -> None:
    prior = fit_prior(log_of([[0, 1], [1, 0], [3]]), CONFIG)
    assert not prior.affinities[[2, 3, 6]].any()
    assert prior.neighbours[0][prior.affinities[0] > 0].tolist() == [1]


class _Network:
    """One code an item; expects the item that is `step` rows behind the newest, or nothing."""

    num_subspaces, num_codes, history_length, repeat_bias = 1, NUM_ITEMS, 4, 0.0

    def __init__(self, step: int | None) -> None:
        self.step = step

    def encode(self, histories: Histories) -> np.ndarray:
        newest = histories.mask.sum(axis=1) - 1
        return histories.codes[np.arange(len(newest)), newest, 0]

    def select(self, memory: np.ndarray, jobs: np.ndarray) -> np.ndarray:
        return memory[jobs]

    def denoise(
        self, memory: np.ndarray, partial_sids: np.ndarray, positions: np.ndarray
    ) -> np.ndarray:
        logits = np.zeros((len(memory), NUM_ITEMS))
        if self.step is not None:
            logits[np.arange(len(memory)), (memory + self.step) % NUM_ITEMS] = 1
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return np.broadcast_to(log_probs[:, None, None], (*positions.shape, NUM_ITEMS)).astype(
            np.float32
        )


def _circle() -> Split:
    """Users who walk over the items in order, each from somewhere."""
    starts = np.random.default_rng(0).permutation(NUM_ITEMS)
    return leave_last_out(
        log_of([((start + np.arange(6)) % NUM_ITEMS).tolist() for start in starts], NUM_ITEMS)
    )


def _decoder(network: _Network, prior: NeighbourPrior) -> Decoder:
    codes = np.arange(NUM_ITEMS, dtype=np.uint16)[:, None]
    catalogue = Catalogue(
        tuple(map(str, range(NUM_ITEMS))), codes, NUM_ITEMS, np.zeros(NUM_ITEMS, np.int64)
    )
    return Decoder(SidTrie(catalogue), network, prior=prior)


def test_a_prior_that_knows_more_than_the_network_is_weighed_in() -> None:
    split = _circle()
    fitted = fit_prior(split.train, CONFIG)
    best, trials = weigh_prior(_decoder(_Network(None), fitted), split.validation, ONE_CALL, CONFIG)
    assert best.weight > 0
    assert best.weight in CONFIG.weights
    assert best.decay in CONFIG.decays
    assert best.scale in [share * fitted.scale for share in CONFIG.scales]
    assert np.array_equal(best.neighbours, fitted.neighbours)
    assert all(trial.keys() == {"weight", "scale", "decay", "ndcg@10"} for trial in trials)
    (chosen,) = [
        trial["ndcg@10"]
        for trial in trials
        if (trial["weight"], trial["scale"], trial["decay"])
        == (best.weight, best.scale, best.decay)
    ]
    assert chosen == max(trial["ndcg@10"] for trial in trials) > 0.9
    assert trials[0]["weight"] == 0
    assert trials[0]["ndcg@10"] < 0.3
    tried = [(trial["weight"], trial["scale"], trial["decay"]) for trial in trials]
    assert len(set(tried)) == len(tried)


def test_a_prior_that_is_noise_or_adds_nothing_is_switched_off() -> None:
    split = _circle()
    fitted = fit_prior(split.train, CONFIG)
    random = np.random.default_rng(1)
    noise = replace(
        fitted, neighbours=random.integers(0, NUM_ITEMS, fitted.neighbours.shape).astype(np.int32)
    )
    silent = replace(fitted, affinities=np.zeros_like(fitted.affinities))
    for network, prior in ((_Network(1), noise), (_Network(1), silent), (_Network(None), silent)):
        best, trials = weigh_prior(_decoder(network, prior), split.validation, ONE_CALL, CONFIG)
        assert best.weight == 0
        assert [trial["weight"] for trial in trials] == sorted(CONFIG.weights)
