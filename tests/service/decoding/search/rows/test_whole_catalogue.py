"""One pass over the catalogue against numpy, across block boundaries and with far-off scores."""

from __future__ import annotations

import numpy as np
import pytest

from service.decoding.loops.softmax import BLOCK, exponentiate, highest_of
from service.decoding.search.rows.whole_catalogue import allowed_rows, best_of_catalogue


@pytest.mark.parametrize("num_items", [1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
@pytest.mark.parametrize("num_subspaces", [1, 3, 8])
@pytest.mark.parametrize("spread", [1.0, 200.0])
def test_the_best_of_all_rows(num_items: int, num_subspaces: int, spread: float) -> None:
    random = np.random.default_rng(num_items)
    codes = random.integers(0, 9, (num_items, num_subspaces)).astype(np.uint16)
    log_probs = (spread * random.standard_normal((num_subspaces, 9))).astype(np.float32)
    biases = np.where(random.random(num_items) < 0.3, random.standard_normal(num_items), 0)
    biases = biases.astype(np.float32)
    biases[random.random(num_items) < 0.2] = -np.inf
    biases[-1] = 0.5

    sums = log_probs[np.arange(num_subspaces), codes].sum(axis=1, dtype=np.float64) + biases
    order = np.lexsort((np.arange(num_items), -sums))
    expected = order[: np.count_nonzero(sums > -np.inf)][:20]
    rows, scores = best_of_catalogue(codes, biases, log_probs, 20, normalised=False)
    np.testing.assert_allclose(scores, sums[expected], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sums[rows], sums[expected], rtol=1e-5, atol=1e-5)
    assert (rows.dtype, scores.dtype) == (np.int32, np.float32)

    _, normalised = best_of_catalogue(codes, biases, log_probs, 20, normalised=True)
    mass = np.log(np.exp(sums - sums.max()).sum()) + sums.max()
    np.testing.assert_allclose(normalised, sums[expected] - mass, rtol=1e-5, atol=1e-4)

    kept, of_kept = allowed_rows(biases, int(np.count_nonzero(biases == -np.inf)))
    assert kept.tolist() == np.flatnonzero(biases > -np.inf).tolist()
    assert of_kept.tolist() == biases[kept].tolist()


def test_ties_go_to_the_lower_row() -> None:
    """Every row of an odd number has the higher score, and all of those the same."""
    codes = np.arange(2 * BLOCK + 3, dtype=np.uint16)[:, None] % np.uint16(2)
    log_probs = np.array([[-1.0, -0.5]], np.float32)
    biases = np.zeros(len(codes), np.float32)
    biases[3] = -np.inf
    rows, _ = best_of_catalogue(codes, biases, log_probs, 4, normalised=True)
    assert rows.tolist() == [1, 5, 7, 9]


def test_exponentials_to_a_millionth_down_to_where_they_vanish() -> None:
    values = np.linspace(-80, 0, 5001, dtype=np.float32) + np.float32(3)
    expected = np.exp(values.astype(np.float64) - 3)
    assert highest_of(values) == 3
    total = exponentiate(values, 3.0)
    np.testing.assert_allclose(values, expected, rtol=5e-6)
    assert total == pytest.approx(expected.sum(), rel=1e-5)
    assert exponentiate(np.array([-np.inf, -1e30], np.float32), 3.0) < 1e-37


def test_sums_of_exponentials_do_not_depend_on_the_place_in_memory() -> None:
    values = np.random.default_rng(0).normal(size=37).astype(np.float32)
    sums, memory = set(), np.empty(200, np.float32)
    for offset in range(128):
        moved = memory[offset : offset + len(values)]
        moved[:] = values
        sums.add((exponentiate(moved, 5.0), moved.tobytes()))
    assert len(sums) == 1
