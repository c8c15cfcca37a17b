"""The neighbour prior and the biases of rows: sums by hand, and what is refused."""

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

from service.decoding.neighbours import NeighbourPrior
from service.decoding.row_biases import RowBiases
from service.decoding.schedule import Schedule


def prior_of(**changed: Any) -> NeighbourPrior:
    """After row 0 comes 1 or 3, after row 1 comes 3; row 2 has a neighbour of no strength."""
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


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ((), {}),
        ((2,), {}),
        ((0,), {1: 4.0, 3: 2.0}),
        ((0, 1), {1: 2.0, 3: 1.0 + 1.0}),  # row 0 is one older: half as strong
        ((1, 0), {1: 4.0, 3: 2.0 + 0.5}),
        ((0, 0), {1: 6.0, 3: 3.0}),  # a repeated item counts each time
        ((3, 0, 1), {1: 2.0, 3: 2.0}),  # only the newest two are looked up
        ((0, 2), {1: 2.0, 3: 1.0}),  # an item without neighbours ages the others
    ],
)
def test_memory_by_hand(history: tuple[int, ...], expected: dict[int, float]) -> None:
    rows, memory = prior_of().memory(rows_of(*history))
    assert rows.dtype == np.int32
    assert memory.dtype == np.float64
    assert rows.tolist() == sorted(expected)
    assert dict(zip(rows.tolist(), memory.tolist(), strict=True)) == expected


def test_without_decay_all_items_looked_up_count_alike() -> None:
    rows, memory = prior_of(decay=1.0, history_length=9).memory(rows_of(0, 3, 1, 0))
    assert rows.tolist() == [0, 1, 2, 3]
    assert memory.tolist() == [0.5, 8.0, 8.0, 5.0]


def test_row_scores_are_the_weighted_log_of_one_and_the_memory_over_the_scale() -> None:
    rows, scores = prior_of().row_scores(rows_of(0))
    assert scores.dtype == np.float32
    assert rows.tolist() == [1, 3]
    assert scores.tolist() == pytest.approx([3 * np.log(3), 3 * np.log(2)])
    for off in (prior_of(weight=0.0).row_scores(rows_of(0)), prior_of().row_scores(rows_of())):
        assert off[0].size == off[1].size == 0
        assert (off[0].dtype, off[1].dtype) == (np.int32, np.float32)


def test_items_behind_the_counted_rows_call_for_nothing_but_age_the_others() -> None:
    rows, memory = prior_of().memory(rows_of(0, 4))
    assert dict(zip(rows.tolist(), memory.tolist(), strict=True)) == {1: 2.0, 3: 1.0}
    assert not len(prior_of().memory(rows_of(7, 4))[0])


@settings(deadline=None)
@given(data=st.data())
def test_without_rows_the_others_are_called_for_as_before(data: st.DataObject) -> None:
    catalogue = data.draw(catalogues())
    prior, num_rows = data.draw(priors(catalogue)), catalogue.num_items
    num_items = num_rows + data.draw(st.integers(0, 3))  # the last rows were added later
    removed = data.draw(st.sets(st.integers(0, num_items - 1)))
    kept = [row for row in range(num_items) if row not in removed]
    history = data.draw(st.lists(st.sampled_from(kept), max_size=8)) if kept else []
    shrunk = prior.without_rows(np.array(sorted(removed), np.int32))
    assert len(shrunk.neighbours) == sum(row < num_rows for row in kept)
    assert (shrunk.neighbours.dtype, shrunk.affinities.dtype) == (np.int32, np.float16)
    new_row_of = {row: new for new, row in enumerate(kept)}
    rows, scores = prior.row_scores(np.array(history, np.int32))
    expected = {
        new_row_of[row]: score
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
        if row in new_row_of
    }
    found = shrunk.row_scores(np.array([new_row_of[row] for row in history], np.int32))
    assert dict(zip(found[0].tolist(), found[1].tolist(), strict=True)) == expected


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


def test_biases_by_hand() -> None:
    """Row 3 is called for and in the history; the second job's history is empty."""
    schedule = Schedule((1,))
    batch = [job_of(schedule=schedule, history=rows) for rows in ([3, 0], [], [2])]
    biases = RowBiases(batch, prior_of(), -1.5, num_items=4)

    def of_job(job: int) -> list[float]:
        found = biases.of(np.full(4, job), np.arange(4, dtype=np.int32))
        assert found.dtype == np.float32
        return found.tolist()

    # memory: 0.5 * (row 0: 0.5, row 2: 8) + (row 1: 4, row 3: 2)
    called = 3 * np.log1p(np.array([0.25, 4, 4, 2]) / 2)
    assert of_job(0) == pytest.approx([called[0] - 1.5, called[1], called[2], called[3] - 1.5])
    assert of_job(1) == [0, 0, 0, 0]
    assert of_job(2) == [0, 0, -1.5, 0]
    assert np.all(np.diff(biases.keys) > 0)

    repeats_only = RowBiases(batch, None, -1.5, num_items=4)
    assert repeats_only.keys.tolist() == [0, 3, 8 + 2]
    assert repeats_only.values.tolist() == [-1.5] * 3
    nothing = RowBiases(batch, None, 0.0, num_items=4)
    assert not len(nothing.keys)
    assert nothing.of(np.array([0, 2]), rows_of(3, 2)).tolist() == [0, 0]


@settings(deadline=None)
@given(data=st.data(), repeat_bias=st.sampled_from([0.0, -3.0, 1.5]))
def test_biases_are_those_of_the_reference(data: st.DataObject, repeat_bias: float) -> None:
    catalogue = data.draw(catalogues())
    batch = data.draw(st.lists(jobs(catalogue), max_size=4))
    prior = data.draw(st.none() | priors(catalogue))
    denoiser = HashedDenoiser(catalogue.num_subspaces, catalogue.num_codes, repeat_bias=repeat_bias)
    biases = RowBiases(batch, prior, repeat_bias, catalogue.num_items)
    every_row = np.arange(catalogue.num_items, dtype=np.int32)
    for index, job in enumerate(batch):
        found = biases.of(np.full(catalogue.num_items, index), every_row)
        expected = reference_biases(job, catalogue, denoiser, prior)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_prior_is_switched_off_by_replacing_its_weight() -> None:
    off = replace(prior_of(), weight=0.0)
    assert not len(RowBiases([job_of(schedule=Schedule((1,)), history=[0])], off, 0.0, 4).keys)
