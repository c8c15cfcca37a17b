"""The neighbour prior and the biases of rows: sums by hand, and arguments that are refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hashed_denoiser import HashedDenoiser
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_search import reference_biases
from worlds import catalogue_of, catalogues, job_of, jobs, priors

from service.decoding.catalogue.alike import NUM_ALIKE, Alike
from service.decoding.catalogue.neighbour_prior import RESEMBLANCE, NeighbourPrior
from service.decoding.schedule import Schedule
from service.decoding.search.row_biases import RowBiases


def prior_of(**changed: Any) -> NeighbourPrior:
    """After row 0 comes 1 or 3, after row 1 comes 3; row 2 has a neighbour of strength 0."""
    valid: dict[str, Any] = {
        "neighbours": np.array([[1, 3], [3, 0], [2, 0], [0, 2]], np.int32),
        "affinities": np.array([[4, 2], [1, 0], [0, 0], [0.5, 8]], np.float16),
        "history_length": 2,
        "decay": 0.5,
        "scale": 2.0,
        "weight": 3.0,
    }
    return NeighbourPrior(**(valid | changed))


def rows_of(*rows: int) -> np.ndarray:
    return np.array(rows, np.int32)


def biases_of(
    prior: NeighbourPrior | None, *history: int, repeat_bias: float = 0.0, num_items: int = 4
) -> list[float]:
    biases = RowBiases(num_items)
    biases.fill(job_of(schedule=Schedule((1,)), history=history), prior, repeat_bias)
    assert biases.values.dtype == np.float32
    found: list[float] = biases.values.tolist()
    return found


@pytest.mark.parametrize(
    ("history", "memory"),
    [
        ((), [0, 0, 0, 0]),
        ((2,), [0, 0, 0, 0]),
        ((0,), [0, 4, 0, 2]),
        ((0, 1), [0, 2, 0, 1 + 1]),  # row 0 is one older: half as strong
        ((1, 0), [0, 4, 0, 2 + 0.5]),
        ((0, 0), [0, 6, 0, 3]),  # a repeated item counts each time
        ((3, 0, 1), [0, 2, 0, 2]),  # only the newest two are looked up
        ((0, 2), [0, 2, 0, 1]),  # an item without neighbours ages the others
    ],
)
def test_the_prior_by_hand(history: tuple[int, ...], memory: list[float]) -> None:
    """A row gains weight * log(1 + memory / scale)."""
    expected = 3 * np.log1p(np.array(memory) / 2)
    assert biases_of(prior_of(), *history) == pytest.approx(expected)


def test_without_decay_all_items_looked_up_count_alike() -> None:
    prior = prior_of(decay=1.0, history_length=9)
    expected = 3 * np.log1p(np.array([0.5, 8, 8, 5]) / 2)
    assert biases_of(prior, 0, 3, 1, 0) == pytest.approx(expected)


def test_items_behind_the_counted_rows_call_for_nothing_but_age_the_others() -> None:
    expected = 3 * np.log1p(np.array([0, 2, 0, 1, 0, 0, 0, 0]) / 2)
    assert biases_of(prior_of(), 0, 4, num_items=8) == pytest.approx(expected)
    assert not any(biases_of(prior_of(), 7, 4, num_items=8))


def alike_of(*mixtures: dict[int, float]) -> Alike:
    """Rows and shares of new rows, each given as {row: share}."""
    rows = np.zeros((len(mixtures), NUM_ALIKE), np.int32)
    shares = np.zeros((len(mixtures), NUM_ALIKE), np.float32)
    for new, mixture in enumerate(mixtures):
        rows[new, : len(mixture)] = list(mixture)
        shares[new, : len(mixture)] = list(mixture.values())
    return Alike(rows, shares)


# Rows 4 to 6: half of 1 and half of 3; mostly row 0; like nothing.
MIXTURES: tuple[dict[int, float], ...] = ({1: 0.5, 3: 0.5}, {0: 0.75, 3: 0.25}, {})


@pytest.mark.parametrize(
    ("history", "memory"),
    [
        ((), [0, 0, 0, 0]),
        ((2,), [0, 0, 0, 0]),
        ((0,), [0, 4, 0, 2]),
        ((6,), [0, 0, 0, 0]),
        ((6, 0), [0, 4, 0, 2]),
        ((0, 6), [0, 2, 0, 1]),
        ((1, 0), [0, 4, 0, 2 + 0.5]),
    ],
)
def test_new_rows_have_their_shares_of_what_they_are_like(
    history: tuple[int, ...], memory: list[float]
) -> None:
    prior = prior_of().with_rows(alike_of(*MIXTURES))
    assert prior.new is not None
    strength, own = prior.new.strength, [0.0] * 4
    for age, item in enumerate(history[::-1]):
        if item < 4:
            own[item] += 0.5**age * strength
    shared = [
        sum(share * (memory[row] + own[row]) for row, share in mixture.items())
        for mixture in MIXTURES
    ]
    expected = 3 * np.log1p(np.array([*memory, *shared]) / 2)
    assert biases_of(prior, *history, num_items=7) == pytest.approx(expected)


def test_a_new_item_in_a_history_stands_for_what_it_is_like() -> None:
    prior = prior_of().with_rows(alike_of(*MIXTURES))
    assert prior.new is not None
    s = prior.new.strength
    assert s == RESEMBLANCE * np.median([4, 2, 1, 0.5, 8])
    memory = np.array([0.5 * 0.5, 0.5 * s, 0.5 * 8, 0.5 * 1 + 0.5 * s])
    shared = [
        0.5 * (memory[1] + 0.5 * s) + 0.5 * (memory[3] + 0.5 * s),
        0.75 * memory[0] + 0.25 * (memory[3] + 0.5 * s),
        0,
    ]
    expected = 3 * np.log1p(np.array([*memory, *shared]) / 2)
    assert biases_of(prior, 4, num_items=7) == pytest.approx(expected)


@settings(deadline=None)
@given(data=st.data())
def test_new_rows_come_and_go(data: st.DataObject) -> None:
    """One call or many, older priors that go on, removed rows: always the reference's biases."""
    catalogue = data.draw(catalogues())
    prior = data.draw(priors(catalogue))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    num_new = data.draw(st.integers(0, 9))
    rows = random.integers(0, catalogue.num_items, (num_new, NUM_ALIKE)).astype(np.int32)
    shares = random.integers(0, 3, rows.shape).astype(np.float32) / 8
    stages = [prior]
    stops = sorted(data.draw(st.sets(st.integers(0, num_new), max_size=3)) | {num_new})
    for start, stop in pairwise([0, *stops]):
        stages.append(stages[-1].with_rows(Alike(rows[start:stop], shares[start:stop])))
        stages[-2].with_rows(Alike(rows[:3] * 0, shares[:3] + 1))  # another one grows from it too
    whole = prior.with_rows(Alike(rows, shares))
    gone = [row for row in range(whole.num_rows) if data.draw(st.booleans())]
    left = whole.without_rows(np.array(gone, np.int32))
    for each in (*stages, whole, left):
        if not each.num_rows:
            continue
        history = data.draw(st.lists(st.integers(0, each.num_rows - 1), max_size=8))
        denoiser = HashedDenoiser(1, 1)
        world = catalogue_of(np.zeros((each.num_rows, 1), int), 1)
        job = job_of(schedule=Schedule((1,)), history=history)
        biases = RowBiases(each.num_rows)
        biases.fill(job, each, 0)
        expected = reference_biases(job, world, denoiser, each)
        np.testing.assert_allclose(biases.values, expected, atol=1e-4)
        biased = biases.biased_rows.tolist()
        assert len(biased) == len(set(biased))
        biases.clear()
        assert not biases.values.any()
        if each is stages[-1]:
            found = RowBiases(each.num_rows)
            found.fill(job, whole, 0)
            biases.fill(job, each, 0)
            np.testing.assert_array_equal(biases.values, found.values)
    again = whole.without_rows(np.arange(len(prior.neighbours), whole.num_rows, dtype=np.int32))
    assert again.neighbours is prior.neighbours, "nothing that was counted is copied"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"neighbours": np.zeros((4, 3), np.int32)}, "same two dimensions"),
        ({"neighbours": np.zeros(8, np.int32)}, "same two dimensions"),
        ({"neighbours": np.zeros((4, 2), np.int64)}, "neighbours must be int32"),
        ({"affinities": np.zeros((4, 2), np.float32)}, "affinities float16"),
        ({"neighbours": np.full((4, 2), 4, np.int32)}, "a row of the catalogue"),
        ({"neighbours": np.full((4, 2), -1, np.int32)}, "a row of the catalogue"),
        ({"affinities": np.full((4, 2), -1, np.float16)}, "finite and not negative"),
        ({"affinities": np.full((4, 2), np.nan, np.float16)}, "finite and not negative"),
        ({"affinities": np.full((4, 2), np.inf, np.float16)}, "finite and not negative"),
    ],
)
def test_arrays_that_do_not_fit(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prior_of(**changed)


def test_biases_of_repeats_and_of_excluded_rows() -> None:
    """The prior names row 3, the history too, twice; row 1 is excluded twice; all is cleared."""
    biases = RowBiases(4)
    schedule = Schedule((1,))
    prior = prior_of(history_length=9)
    job = job_of(schedule=schedule, history=[3, 0, 3], excluded=[1, 1])
    biases.fill(job, prior, -1.5)
    called = 3 * np.log1p(np.array([0.5 + 0.125, 2, 8 + 2, 1]) / 2)
    expected = [called[0] - 1.5, -np.inf, called[2], called[3] - 1.5]
    assert biases.values.tolist() == pytest.approx(expected)
    assert biases.num_excluded == 1
    assert biases.biased_rows[-1] == 1

    biases.fill(job_of(schedule=schedule, history=[2]), None, -1.5)
    assert biases.values.tolist() == [0, 0, -1.5, 0]
    assert biases.num_excluded == 0
    biases.clear()
    assert not biases.values.any()


@settings(deadline=None)
@given(data=st.data(), repeat_bias=st.sampled_from([0.0, -3.0, 1.5]))
def test_biases_are_those_of_the_reference(data: st.DataObject, repeat_bias: float) -> None:
    catalogue = data.draw(catalogues())
    prior = data.draw(st.none() | priors(catalogue))
    denoiser = HashedDenoiser(catalogue.num_subspaces, catalogue.num_codes, repeat_bias=repeat_bias)
    biases = RowBiases(catalogue.num_items)
    for job in data.draw(st.lists(jobs(catalogue), max_size=4)):
        biases.fill(job, prior, repeat_bias)
        expected = np.array(reference_biases(job, catalogue, denoiser, prior))
        expected[job.excluded] = -np.inf
        np.testing.assert_allclose(biases.values, expected, atol=1e-5)
        assert biases.num_excluded == len(np.unique(job.excluded))


def test_a_prior_is_switched_off_by_replacing_its_weight() -> None:
    assert not any(biases_of(replace(prior_of(), weight=0.0), 0))
