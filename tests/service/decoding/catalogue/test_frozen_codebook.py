"""The codebook: encoding against brute force, no row looks at another, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import codebook_of

from service.decoding.catalogue.alike import NUM_ALIKE
from service.decoding.catalogue.codebook import CHUNK_ROWS, ContentProjection

EMBEDDINGS = np.random.default_rng(1).normal(size=(3 * CHUNK_ROWS + 9, 5)).astype(np.float32)
CODEBOOK = codebook_of(num_subspaces=4, num_codes=7, vector_dims=10, embedding_dims=5)
KNOWN = np.random.default_rng(2).normal(size=(40, 10)).astype(np.float16)
VECTORS, _ = CODEBOOK.vectors_of(EMBEDDINGS, KNOWN)
CODES = CODEBOOK.codes_of(VECTORS)


def projection() -> ContentProjection:
    assert CODEBOOK.content is not None
    return CODEBOOK.content


def test_sizes() -> None:
    assert (CODEBOOK.num_subspaces, CODEBOOK.num_codes, CODEBOOK.vector_dims) == (4, 7, 10)
    assert projection().embedding_dims == 5
    assert VECTORS.shape == (len(EMBEDDINGS), 10)
    assert VECTORS.dtype == np.float32
    assert CODES.shape == (len(EMBEDDINGS), 4)
    assert CODES.dtype == np.uint16


def test_codes_are_the_nearest_centroids() -> None:
    rotated = (VECTORS.astype(np.float64) @ CODEBOOK.rotation).reshape(len(VECTORS), 4, 3)
    distances = np.linalg.norm(rotated[:, :, None] - CODEBOOK.centroids, axis=3)
    np.testing.assert_array_equal(CODES, distances.argmin(axis=2))
    assert len(np.unique(CODES)) == 7


def test_ties_go_to_the_lower_code() -> None:
    centroids = np.repeat(CODEBOOK.centroids, 2, axis=1)  # codes 2c and 2c + 1 are the same
    twice = replace(CODEBOOK, centroids=centroids)
    np.testing.assert_array_equal(twice.codes_of(VECTORS), 2 * CODES)


def test_vectors_are_the_content_centred_projected_and_of_its_share_of_the_norm() -> None:
    content = projection()
    expected = (EMBEDDINGS.astype(np.float64) - content.mean) @ content.components.T
    expected *= np.sqrt(content.weight) / np.linalg.norm(expected, axis=1, keepdims=True)
    dims = expected.shape[1]
    np.testing.assert_allclose(VECTORS[:, :dims], expected, rtol=1e-5, atol=1e-7)
    assert 0 < dims < 10
    np.testing.assert_array_equal(CODEBOOK.content_of(EMBEDDINGS), VECTORS[:, :dims])
    alone, alike = CODEBOOK.vectors_of(EMBEDDINGS[:3], KNOWN[:0])
    np.testing.assert_array_equal(alone[:, :dims], VECTORS[:3, :dims])
    assert not alone[:, dims:].any(), "nothing is known, no collaborative part"
    assert not alike.shares.any()


def test_what_interactions_would_give_comes_from_the_items_that_are_like_it() -> None:
    """An item with the content of one known item, and unlike all others, gets its other half."""
    dims, weight = len(projection().components), projection().weight
    known = np.zeros((2, 10), np.float16)
    known[0, :dims], known[1, :dims] = -VECTORS[0, :dims], VECTORS[0, :dims]
    known[:, dims:] = [[1] * (10 - dims), [0, 3, *[0] * (8 - dims)]]
    [vector], alike = CODEBOOK.vectors_of(EMBEDDINGS[:1], known)
    np.testing.assert_allclose(vector[dims:], np.sqrt(1 - weight) * (known[1, dims:] / 3))
    assert alike.rows[0, 0] == 1
    assert alike.shares[0].tolist() == [1] + [0] * (NUM_ALIKE - 1)


def test_a_sid_says_about_which_vector_it_is_of() -> None:
    about = CODEBOOK.vectors_with(CODES)
    assert about.dtype == np.float32
    for row in (0, -1):
        parts = [CODEBOOK.centroids[subspace, code] for subspace, code in enumerate(CODES[row])]
        np.testing.assert_allclose(about[row], CODEBOOK.rotation @ np.concatenate(parts), rtol=1e-4)
    ours, others = about - VECTORS, np.roll(about, 1, axis=0) - VECTORS
    assert np.square(ours).sum() < 0.9 * np.square(others).sum()


def test_an_item_without_content_has_no_direction() -> None:
    texts = np.stack([np.zeros(5), EMBEDDINGS[0], projection().mean])
    vectors, _ = CODEBOOK.vectors_of(texts, KNOWN)
    assert vectors.any(axis=1).tolist() == [False, True, False]
    np.testing.assert_array_equal(vectors[1], VECTORS[0])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, len(EMBEDDINGS)))
def test_what_comes_of_a_row_does_not_depend_on_the_rows_beside_it(seed: int, size: int) -> None:
    rows = np.random.default_rng(seed).permutation(len(EMBEDDINGS))[:size]
    vectors, _ = CODEBOOK.vectors_of(EMBEDDINGS[rows].astype(np.float64), KNOWN)
    np.testing.assert_array_equal(vectors, VECTORS[rows])
    np.testing.assert_array_equal(CODEBOOK.codes_of(vectors), CODES[rows])


def test_without_a_projection_no_embedding_is_taken() -> None:
    without = replace(CODEBOOK, content=None)
    with pytest.raises(ValueError, match="takes no embeddings: its item vectors"):
        without.vectors_of(EMBEDDINGS, KNOWN)
    np.testing.assert_array_equal(without.codes_of(VECTORS), CODES)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    embeddings = EMBEDDINGS[:3].astype(np.float64)
    embeddings[1, 2] = bad
    with pytest.raises(ValueError, match="embeddings must be finite numbers, not too large"):
        CODEBOOK.vectors_of(embeddings, KNOWN)


def test_other_widths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \(n, 5\) here, not \(2, 4\)"):
        CODEBOOK.vectors_of(np.zeros((2, 4), np.float32), KNOWN)
    with pytest.raises(ValueError, match=r"must be \(n, 5\) here, not \(5,\)"):
        CODEBOOK.vectors_of(np.zeros(5, np.float32), KNOWN)
    with pytest.raises(ValueError, match=r"encodes \(n, 10\) vectors, not \(2, 9\)"):
        CODEBOOK.codes_of(np.zeros((2, 9), np.float32))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"centroids": np.zeros((4, 7), np.float32)}, "centroids must be a"),
        ({"centroids": np.zeros((4, 0, 3), np.float32)}, "centroids must be a"),
        ({"centroids": np.zeros((4, 7, 2), np.float32)}, "as the centroids say"),
        ({"centroids": np.zeros((4, 7, 3))}, "centroids must be finite float32"),
        ({"rotation": np.zeros(12, np.float32)}, "as the centroids say"),
        ({"rotation": np.full((10, 12), np.nan, np.float32)}, "rotation must be finite float32"),
        ({"rotation": np.zeros((2, 12), np.float32)}, "more dimensions than the vectors"),
    ],
)
def test_parts_that_do_not_fit(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CODEBOOK, **changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mean": np.zeros(4, np.float32)}, "content components must be"),
        ({"mean": np.zeros((1, 5), np.float32)}, "content components must be"),
        ({"mean": np.zeros(5)}, "content mean must be finite float32"),
        ({"components": np.zeros(5, np.float32)}, "content components must be"),
        ({"components": np.full((3, 5), np.inf, np.float32)}, "components must be finite float32"),
        ({"weight": -0.1}, r"must be in \[0, 1\]"),
        ({"weight": float("nan")}, r"must be in \[0, 1\]"),
    ],
)
def test_a_projection_whose_parts_do_not_fit(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(projection(), **changed)


def test_nothing_is_encoded_as_nothing() -> None:
    vectors, _ = CODEBOOK.vectors_of(np.zeros((0, 5)), KNOWN)
    assert vectors.shape == (0, 10)
    assert CODEBOOK.codes_of(vectors).shape == (0, 4)
