"""The neighbour prior and the biases of rows: sums by hand, and arguments that are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hashed_denoiser import HashedDenoiser
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_search import reference_biases
from worlds import catalogues, job_of, jobs, priors

from service.decoding.catalogue.neighbour_prior import NeighbourPrior
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
