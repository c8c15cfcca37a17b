"""The neighbour prior of a bundle: which affinities are kept, and how their weights are chosen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import log_of
from scipy import sparse

from service.bundles import DecodingDefaults
from service.decoding import (
    Catalogue,
    Decoder,
    Histories,
    Job,
    NeighbourPrior,
    SidTrie,
)
from service.decoding.catalogue import RESEMBLANCE, most_alike
from service.decoding.search.row_biases import RowBiases
from training.config import NeighboursConfig
from training.data.splits import Interactions, Split, leave_last_out
from training.fitting.neighbour_prior import (
    count_again,
    fit_priors,
    follower_affinities,
    inherited,
    likeness,
    prior_at,
    weigh_prior,
)

NUM_ITEMS = 40
CONFIG = NeighboursConfig(num_neighbours=8, rarity_powers=(0.5,), likeness_weights=(0.0,))
UNLIKE = np.zeros((NUM_ITEMS, 2), np.float16)  # of items that are like nothing
ONE_CALL = DecodingDefaults(r_warm=0, m_par=1, beam_width=10)


def _affinities(log: Interactions, config: NeighboursConfig) -> np.ndarray:
    found = follower_affinities(
        log, window=config.window, gap_decay=config.gap_decay, rarity_power=config.rarity_powers[0]
    )
    return found.toarray()


def test_what_follows_counts_less_the_further_away_and_the_more_popular() -> None:
    """Popularity 2, 3, 1, 1 and 0. Nothing counts backwards, or for itself."""
    log = log_of([[0, 1, 2, 1], [3, 0, 1]], 5)
    found = follower_affinities(log, window=2, gap_decay=0.5, rarity_power=0.25)
    expected = np.zeros((5, 5))
    expected[0, 1] = 2 / (2**0.5 * 3**0.25)  # next to it, twice
    expected[0, 2] = 0.5 / 2**0.5  # two items later; 1 comes again three later, which is too far
    expected[1, 2] = 1 / 3**0.5
    expected[2, 1] = 1 / 3**0.25
    expected[3, 0] = 1 / 2**0.25
    expected[3, 1] = 0.5 / 3**0.25
    np.testing.assert_allclose(found.toarray(), expected, rtol=1e-6)
    assert found.dtype == np.float32
    assert found.nnz == 6


@settings(max_examples=50, deadline=None)
@given(
    histories=st.lists(st.lists(st.integers(0, 5), max_size=8), min_size=1, max_size=6),
    num_neighbours=st.integers(1, 9),
)
def test_the_strongest_neighbours_are_kept_ties_by_row(
    histories: list[list[int]], num_neighbours: int
) -> None:
    log = log_of(histories)
    config = CONFIG.model_copy(update={"num_neighbours": num_neighbours})
    prior = fit_priors(log, UNLIKE[:7], config)[0.5, 0.0]
    affinity = _affinities(log, config)
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
    prior = fit_priors(log_of([[0, 1], [1, 0], [3]]), UNLIKE[:7], CONFIG)[0.5, 0.0]
    assert not prior.affinities[[2, 3, 6]].any()
    assert prior.neighbours[0][prior.affinities[0] > 0].tolist() == [1]


@settings(max_examples=50, deadline=None)
@given(
    vectors=st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=1, max_size=12),
    num_alike=st.integers(0, 12),
)
def test_likeness_is_the_cubed_cosine_of_the_nearest_others(
    vectors: list[list[int]], num_alike: int
) -> None:
    found = likeness(np.array(vectors, np.float16), num_alike).toarray()
    for item, vector in enumerate(vectors):
        cosines = [_cosine(vector, other) for other in vectors]
        others = sorted(
            (c for at, c in enumerate(cosines) if at != item and c > 1e-6), reverse=True
        )
        kept = sorted(found[item][found[item] > 1e-9] ** (1 / 3), reverse=True)
        assert found[item, item] == 0
        # An item that equals many others may be crowded out of its own list, or one of them.
        assert min(len(others), num_alike) - 1 <= len(kept) <= min(len(others), num_alike + 1)
        assert kept == pytest.approx(others[: len(kept)], abs=1e-3)
        for other in np.flatnonzero(found[item]):
            assert found[item, other] == pytest.approx(cosines[other] ** 3, abs=1e-5)


def _cosine(vector: list[int], other: list[int]) -> float:
    norms = float(np.linalg.norm(vector) * np.linalg.norm(other))
    return float(np.dot(vector, other)) / norms if norms else 0.0


def test_an_item_nobody_bought_is_known_by_what_it_is_like() -> None:
    log = log_of([[0, 1], [1, 0], [3]])
    vectors = np.eye(7, dtype=np.float32)
    vectors[6] = vectors[0] + 0.1 * vectors[1]  # item 6 was never bought, and is nearly item 0
    config = CONFIG.model_copy(update={"likeness_weights": (0.0, 2.0)})
    without, with_likeness = fit_priors(log, vectors, config).values()
    affinity = _affinities(log, config)
    typical = np.median(affinity[affinity > 0])
    for prior, weight in ((without, 0.0), (with_likeness, 2.0)):
        called, calling = (
            {
                int(row): float(affinity)
                for row, affinity in zip(
                    prior.neighbours[item], prior.affinities[item], strict=True
                )
                if affinity
            }
            for item in (6, 0)
        )
        likeness_of_0 = weight * typical * (1 / np.sqrt(1.01)) ** 3
        alike = likeness(vectors, config.num_alike).toarray()
        kept = (affinity + weight * typical * alike).astype(np.float16)
        # As the service takes it for new items: of the neighbours that are kept.
        expected = RESEMBLANCE * float(np.median(kept[kept > 0])) + likeness_of_0
        assert called[0] == pytest.approx(expected, rel=0.01)
        assert calling[6] == pytest.approx(expected, rel=0.01)
        assert called[1] == pytest.approx(affinity[0, 1], rel=0.01), "what calls for item 0's"
        assert calling[1] == pytest.approx(affinity[0, 1], rel=0.01), "is as it was counted"


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_seen=st.integers(1, 8))
def test_an_item_nobody_bought_has_what_a_new_item_has_in_the_service(
    seed: int, num_seen: int
) -> None:
    """Counted as cold in training, or added behind the counted rows: the same biases."""
    random = np.random.default_rng(seed)
    counted = sparse.csr_array(random.integers(0, 3, (num_seen, num_seen)).astype(np.float32) / 4)
    content = random.normal(size=(num_seen + 4, 3)).astype(np.float32)
    seen = np.arange(num_seen + 4) < num_seen
    whole = sparse.block_diag((counted, sparse.csr_array((4, 4))), format="csr")
    strength = 2.0
    cold = (whole + inherited(whole, content, seen, strength)).toarray()
    alike = most_alike(content[~seen], content[seen])
    prior = NeighbourPrior(
        np.tile(np.arange(num_seen, dtype=np.int32), (num_seen, 1)),
        counted.toarray().astype(np.float16),
        history_length=5,
        decay=0.5,
        scale=1.0,
        weight=1.0,
    ).with_rows(alike)
    assert prior.new is not None
    prior.new.strength = strength
    item = int(random.integers(0, num_seen))
    biases = RowBiases(num_seen + 4)
    job = Job(np.array([item], np.int32), 1, ONE_CALL, 1)
    biases.fill(job, prior, 0)
    np.testing.assert_allclose(np.expm1(biases.values), cold[item], rtol=1e-3, atol=1e-4)
    biases.fill(replace(job, history=np.array([num_seen + 1], np.int32)), prior, 0)
    np.testing.assert_allclose(
        np.expm1(biases.values[:num_seen]), cold[num_seen + 1, :num_seen], rtol=1e-3, atol=1e-4
    )


def test_likeness_is_found_among_very_many_items_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.fitting.neighbour_prior.MOST_COMPARED", 500)
    vectors = np.random.default_rng(0).standard_normal((2000, 8)).astype(np.float32)
    vectors[1::2] = vectors[::2] + 0.01  # pairs
    found = likeness(vectors, 4)
    nearest = np.asarray(found.argmax(axis=1)).ravel()
    assert np.mean(nearest == np.arange(2000) ^ 1) > 0.95


def test_the_likeness_weight_is_chosen_too() -> None:
    """The next item always resembles the newest one, and nobody has ever bought both."""
    split = _circle()
    angles = np.arange(NUM_ITEMS) * 2 * np.pi / NUM_ITEMS
    vectors = np.stack((np.cos(angles), np.sin(angles)), axis=1)
    silent = fit_priors(split.train, UNLIKE, CONFIG)[0.5, 0.0]
    silent = replace(silent, affinities=np.zeros_like(silent.affinities))
    config = CONFIG.model_copy(update={"likeness_weights": (0.0, 1.0)})
    alone = log_of([[item] for item in range(NUM_ITEMS)], NUM_ITEMS)
    known = fit_priors(alone, vectors, config)[0.5, 1.0]
    priors = {(0.5, 0.0): silent, (0.5, 1.0): known}
    config = config.model_copy(update={"likeness_weights": (1.0, 0.0)})
    settings, trials = weigh_prior(
        _decoder(_Network(None)), priors, split.validation, ONE_CALL, config, exclude_seen=False
    )
    best = prior_at(priors, settings)
    assert best.weight > 0
    assert np.array_equal(best.affinities, known.affinities)
    assert {trial["likeness_weight"] for trial in trials} == {0.0, 1.0}


def test_the_rarity_power_is_chosen_too() -> None:
    """Every item is followed by the next one. One prior says so, the other is silent."""
    rows = np.arange(NUM_ITEMS, dtype=np.int32)[:, None]
    right = NeighbourPrior(
        (rows + 1) % NUM_ITEMS,
        np.ones((NUM_ITEMS, 1), np.float16),
        history_length=1,
        decay=1.0,
        scale=1.0,
        weight=1.0,
    )
    silent = replace(right, affinities=np.zeros_like(right.affinities))
    for powers in ((0.5, 0.2), (0.2, 0.5)):
        settings, trials = weigh_prior(
            _decoder(_Network(None)),
            {(0.5, 0.0): silent, (0.2, 0.0): right},
            _circle().validation,
            ONE_CALL,
            CONFIG.model_copy(update={"rarity_powers": powers}),
            exclude_seen=False,
        )
        assert settings["rarity_power"] == 0.2
        assert {trial["rarity_power"] for trial in trials} == {0.2, 0.5}


class _Network:
    """One code for each item; expects the item `step` rows after the newest, or nothing."""

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
    """Users who have the items in order, each from a random start."""
    starts = np.random.default_rng(0).permutation(NUM_ITEMS)
    return leave_last_out(
        log_of([((start + np.arange(6)) % NUM_ITEMS).tolist() for start in starts], NUM_ITEMS)
    )


def _decoder(network: _Network) -> Decoder:
    codes = np.arange(NUM_ITEMS, dtype=np.uint16)[:, None]
    catalogue = Catalogue(
        tuple(map(str, range(NUM_ITEMS))), codes, NUM_ITEMS, np.zeros(NUM_ITEMS, np.int64)
    )
    return Decoder(SidTrie(catalogue), network)


def test_a_prior_that_knows_more_than_the_network_is_weighed_in() -> None:
    split = _circle()
    fitted = fit_priors(split.train, UNLIKE, CONFIG)[0.5, 0.0]
    chosen, trials = weigh_prior(
        _decoder(_Network(None)),
        {(0.5, 0.0): fitted},
        split.validation,
        ONE_CALL,
        CONFIG,
        exclude_seen=False,
    )
    best = prior_at({(0.5, 0.0): fitted}, chosen)
    assert best.weight > 0
    assert best.weight in CONFIG.weights
    assert best.decay in CONFIG.decays
    assert best.scale in [share * fitted.scale for share in CONFIG.scales]
    assert np.array_equal(best.neighbours, fitted.neighbours)
    settings = {"rarity_power", "likeness_weight", "weight", "scale", "decay"}
    assert all(trial.keys() == {*settings, "ndcg@10"} for trial in trials)
    (highest,) = [
        trial["ndcg@10"]
        for trial in trials
        if (trial["weight"], trial["scale"] * fitted.scale, trial["decay"])
        == (best.weight, best.scale, best.decay)
    ]
    assert highest == max(trial["ndcg@10"] for trial in trials) > 0.9
    assert trials[0]["weight"] == 0
    assert trials[0]["ndcg@10"] < 0.3
    tried = [(trial["weight"], trial["scale"], trial["decay"]) for trial in trials]
    assert len(set(tried)) == len(tried)


def test_a_prior_that_is_noise_or_adds_nothing_is_switched_off() -> None:
    split = _circle()
    fitted = fit_priors(split.train, UNLIKE, CONFIG)[0.5, 0.0]
    random = np.random.default_rng(1)
    noise = replace(
        fitted, neighbours=random.integers(0, NUM_ITEMS, fitted.neighbours.shape).astype(np.int32)
    )
    silent = replace(fitted, affinities=np.zeros_like(fitted.affinities))
    for network, prior in ((_Network(1), noise), (_Network(1), silent), (_Network(None), silent)):
        settings, trials = weigh_prior(
            _decoder(network),
            {(0.5, 0.0): prior},
            split.validation,
            ONE_CALL,
            CONFIG,
            exclude_seen=False,
        )
        assert settings["weight"] == 0
        assert [trial["weight"] for trial in trials] == sorted(CONFIG.weights)


def test_counting_again_keeps_what_was_chosen() -> None:
    split = _circle()
    config = CONFIG.model_copy(update={"likeness_weights": (0.0, 1.0)})
    angles = np.arange(NUM_ITEMS) * 2 * np.pi / NUM_ITEMS
    vectors = np.stack((np.cos(angles), np.sin(angles)), axis=1)
    priors = fit_priors(split.train, vectors, config)
    settings, _ = weigh_prior(
        _decoder(_Network(None)), priors, split.validation, ONE_CALL, config, exclude_seen=False
    )
    best = prior_at(priors, settings)
    same = count_again(split.train, vectors, config, settings)
    more = count_again(split.before_test, vectors, config, settings)
    for prior in (same, more):
        assert (prior.weight, prior.decay) == (best.weight, best.decay)
    assert same.scale == best.scale
    assert np.array_equal(same.affinities, best.affinities)
    assert np.array_equal(same.neighbours, best.neighbours)
    wanted = fit_priors(split.before_test, vectors, config)[0.5, settings["likeness_weight"]]
    assert np.array_equal(more.affinities, wanted.affinities)
    assert not np.array_equal(more.affinities, best.affinities)
    assert more.scale == settings["scale"] * wanted.scale
