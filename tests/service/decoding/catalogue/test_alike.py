"""Which items a new one is like: against brute force, alone or among others, and like nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.decoding.catalogue import alike as module
from service.decoding.catalogue.alike import NUM_ALIKE, SHARPNESS, most_alike, vectors_like


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_new=st.integers(0, 9),
    num_known=st.integers(0, 60),
    dims=st.integers(1, 5),
)
def test_nearest_by_content_first(seed: int, num_new: int, num_known: int, dims: int) -> None:
    """Few different contents, so that many items are exactly as near as others."""
    random = np.random.default_rng(seed)
    content = random.integers(-2, 3, (num_new, dims)).astype(np.float32)
    known = random.integers(-2, 3, (num_known, dims)).astype(np.float16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "KNOWN_AT_ONCE", 7)
        patch.setattr(module, "NEW_AT_ONCE", 4)
        found = most_alike(content, known)
    assert found.rows.dtype == np.int32
    assert found.shares.dtype == np.float32
    for vector, rows, shares in zip(content, found.rows, found.shares, strict=True):
        exact = known.astype(np.float64)
        lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(vector)
        cosines = (exact @ vector / np.where(lengths, lengths, 1)).astype(np.float32)
        cosines = np.round(cosines, 6)
        nearest = [row for row in np.argsort(-cosines, kind="stable") if cosines[row] >= 0.1]
        nearest = nearest[:NUM_ALIKE]
        assert rows[: len(nearest)].tolist() == nearest
        weights = cosines[nearest] ** SHARPNESS
        expected = weights / max(weights.sum(), 1e-9)
        np.testing.assert_allclose(shares[: len(nearest)], expected, atol=1e-4)
        assert not shares[len(nearest) :].any()


def test_the_others_that_are_asked_for_change_nothing() -> None:
    random = np.random.default_rng(1)
    content = random.normal(size=(600, 16)).astype(np.float32)
    known = random.normal(size=(9000, 24)).astype(np.float16)
    together = most_alike(content, known[:, :16])
    vectors = vectors_like(content, together, known, 0.5)
    for part in (slice(0, 1), slice(3, 300), slice(250, 600)):
        apart = most_alike(content[part], known[:, :16])
        np.testing.assert_array_equal(apart.rows, together.rows[part])
        np.testing.assert_array_equal(apart.shares, together.shares[part])
        np.testing.assert_array_equal(vectors_like(content[part], apart, known, 0.5), vectors[part])
    np.testing.assert_array_equal(vectors[:, :16], content)
    np.testing.assert_allclose(np.linalg.norm(vectors[:, 16:], axis=1), 0.5, rtol=1e-5)


def test_only_the_most_popular_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    known = np.eye(6, dtype=np.float16)
    monkeypatch.setattr(module, "MOST_COMPARED", 3)
    found = most_alike(np.eye(6, dtype=np.float32), known)
    assert found.shares.sum(axis=1).tolist() == [1, 1, 1, 0, 0, 0]
