"""Residual, RQ-VAE and random codebooks: by hand, against a slow reference, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from worlds import codebook_of

from service.decoding import Codebook, RandomCodebook, ResidualCodebook, RQVAECodebook
from service.decoding.catalogue.codebook import CHUNK_ROWS

VECTORS = np.random.default_rng(3).normal(size=(CHUNK_ROWS + 50, 6)).astype(np.float32)
CENTROIDS = (np.random.default_rng(4).normal(size=(3, 5, 6)) * [[[2]], [[1]], [[0.5]]]).astype("f4")
PLAIN = ResidualCodebook(CENTROIDS)
NORMALISED = ResidualCodebook(CENTROIDS, np.array([1.5, 0.8, 0.3], np.float32))


def test_levels_by_hand() -> None:
    """(4, 3): the first level leaves (1, 3), of which the second takes (0, 2.5)."""
    centroids = np.array([[[3, 0], [0, 5], [-9, 0]], [[2, 0], [0, 2.5], [-1, 0]]], dtype=np.float32)
    plain = ResidualCodebook(centroids)
    assert plain.codes_of(np.array([[4.0, 3.0]])).tolist() == [[0, 1]]
    np.testing.assert_array_equal(plain.vectors_with(np.array([[0, 1]], np.uint16)), [[3, 2.5]])
    np.testing.assert_array_equal(plain.residuals_of(np.array([[4.0, 3.0]], "f4")), [[1, 0.5]])
    # (.8, .6) leaves (-2.2, .6) of (3, 0), and (.8, -4.4) of (0, 5): the first is nearer
    normalised = ResidualCodebook(centroids, np.array([1, 2], np.float32))
    assert normalised.codes_of(np.array([[4.0, 3.0]])).tolist() == [[0, 2]]
    np.testing.assert_array_equal(normalised.vectors_with(np.array([[0, 2]], np.uint16)), [[1, 0]])


def encoded_slowly(codebook: ResidualCodebook, vector: np.ndarray) -> list[int]:
    left, codes = vector.astype(np.float64), []
    for centroids in codebook.centroids.astype(np.float64):
        if codebook.weights is not None:
            left = left / np.linalg.norm(left)
        distances = [np.square(left - centroid).sum() for centroid in centroids]
        codes.append(int(np.argmin(distances)))
        left = left - centroids[codes[-1]]
    return codes


@pytest.mark.parametrize("codebook", [PLAIN, NORMALISED], ids=["plain", "normalised"])
def test_greedy_codes_equal_a_slow_reference_in_any_company(codebook: ResidualCodebook) -> None:
    codes = codebook.codes_of(VECTORS)
    assert codes.dtype == np.uint16
    rows = np.random.default_rng(0).permutation(len(VECTORS))[:200]
    assert codes[rows].tolist() == [encoded_slowly(codebook, VECTORS[row]) for row in rows]
    np.testing.assert_array_equal(codebook.codes_of(VECTORS[rows].astype(np.float64)), codes[rows])
    assert (codes != (NORMALISED if codebook is PLAIN else PLAIN).codes_of(VECTORS)).any()
    assert codebook.codes_of(VECTORS[:0]).shape == (0, 3)


@pytest.mark.parametrize(
    "codebook",
    [PLAIN, NORMALISED, codebook_of(num_subspaces=2, num_codes=5, vector_dims=6, embedding_dims=3)],
    ids=["plain", "normalised", "opq"],
)
def test_the_last_code_is_the_nearest_of_its_subspace(codebook: Codebook) -> None:
    nearness = codebook.nearness_of_last(VECTORS)
    assert nearness.shape == (len(VECTORS), 5)
    np.testing.assert_array_equal(nearness.argmax(axis=1), codebook.codes_of(VECTORS)[:, -1])


def test_vectors_of_sids_are_sums_whether_or_not_there_is_a_digit() -> None:
    codes = PLAIN.codes_of(VECTORS)
    expected = sum(CENTROIDS[level, codes[:, level]] for level in range(3))
    np.testing.assert_allclose(PLAIN.vectors_with(codes), expected, rtol=1e-5, atol=1e-6)
    weighted = sum(
        np.float32([1.5, 0.8, 0.3][level]) * CENTROIDS[level, codes[:, level]] for level in range(3)
    )
    np.testing.assert_allclose(NORMALISED.vectors_with(codes), weighted, rtol=1e-5, atol=1e-6)
    for codebook in (PLAIN, codebook_of(num_subspaces=3, num_codes=5, vector_dims=6,
                                        embedding_dims=3)):  # fmt: skip
        codes = codebook.codes_of(VECTORS)
        with_digits = replace(codebook, collisions="digit")
        assert (codebook.num_positions, with_digits.num_positions) == (3, 4)
        sids = np.pad(codes, ((0, 0), (0, 1)), constant_values=4)
        np.testing.assert_array_equal(with_digits.vectors_with(sids), codebook.vectors_with(codes))


def test_what_is_left_of_a_centroid_has_no_direction() -> None:
    """Rounding of float32 must not decide a code, nor a division by nothing."""
    own = ResidualCodebook(
        np.stack([np.eye(6, dtype=np.float32), np.diag(np.arange(6, 0, -1)).astype("f4") / 9]),
        np.ones(2, np.float32),
    )
    nudged = np.eye(6)[2:4] * 7 + np.array([[1e-7], [0]])
    for vectors in (nudged, np.zeros((2, 6))):
        codes = own.codes_of(vectors)
        assert codes[:, 1].tolist() == [5, 5]  # the shortest: nearest to nothing
        assert np.isfinite(own.residuals_of(vectors.astype(np.float32))).all()


def identity(*signs: float) -> Any:
    """Three layers that give relu(x) - relu(-x), which is x, times a sign for each number."""
    d = len(signs)
    eye, none = np.eye(d, dtype=np.float32), np.zeros((1, 2 * d), np.float32)
    first = np.concatenate((np.hstack((eye, -eye)), none))
    second = np.concatenate((np.eye(2 * d, dtype=np.float32), none))
    third = np.concatenate((np.vstack((eye, -eye)), np.zeros((1, d), np.float32)))
    return first, second, third * np.float32(signs)


def test_an_rqvae_whose_networks_change_nothing_is_the_plain_residual_codebook() -> None:
    same = RQVAECodebook(CENTROIDS, identity(*[1] * 6), identity(*[1] * 6))
    np.testing.assert_array_equal(same.latents_of(VECTORS), VECTORS)
    codes = PLAIN.codes_of(VECTORS)
    np.testing.assert_array_equal(same.codes_of(VECTORS), codes)
    np.testing.assert_array_equal(same.nearness_of_last(VECTORS), PLAIN.nearness_of_last(VECTORS))
    np.testing.assert_array_equal(same.vectors_with(codes), PLAIN.vectors_with(codes))
    sids = np.pad(codes, ((0, 0), (0, 1)), constant_values=4)
    digit = replace(same, collisions="digit")
    np.testing.assert_array_equal(digit.vectors_with(sids), PLAIN.vectors_with(codes))
    turned = RQVAECodebook(CENTROIDS, identity(*[-1] * 6), identity(*[-1] * 6))
    np.testing.assert_array_equal(turned.codes_of(-VECTORS), codes)
    np.testing.assert_array_equal(turned.vectors_with(codes), -PLAIN.vectors_with(codes))
    assert (same.num_subspaces, same.num_codes, same.vector_dims) == (3, 5, 6)


def test_a_bias_is_added_before_what_is_negative_is_cut_off() -> None:
    """relu(2 * 3 - 7) = 0 and relu(-2 * 3 + 7) = 1; then 1 * 5 + 2."""
    first = np.array([[2, -2], [-7, 7]], np.float32)
    second = np.concatenate((np.eye(2), np.zeros((1, 2)))).astype(np.float32)
    third = np.array([[1], [5], [2]], np.float32)
    back = np.array([[1], [0]], np.float32)
    one = RQVAECodebook(np.zeros((1, 2, 1), np.float32), (first, second, third), (back,) * 3)
    assert one.latents_of(np.array([[3.0]])).tolist() == [[7]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"to_latent": identity(*[1] * 5)}, "to_latent: a layer must have 6 inputs and a bias"),
        ({"from_latent": identity(*[1] * 7)}, "to_latent: a layer must have 7 inputs"),
        ({"centroids": np.zeros((3, 5, 4), np.float32)}, "to_latent must give 4 numbers"),
        ({"to_latent": tuple(layer.astype("f8") for layer in identity(*[1] * 6))}, "float32"),
    ],
)
def test_networks_that_do_not_fit(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RQVAECodebook(CENTROIDS, identity(*[1] * 6), identity(*[1] * 6)), **changed)


def test_random_codes_take_no_new_items() -> None:
    codebook = RandomCodebook((4, 16, 6), collisions="digit")
    assert (codebook.num_subspaces, codebook.num_positions, codebook.num_codes) == (4, 5, 16)
    assert (codebook.vector_dims, codebook.arrays) == (6, {})
    with pytest.raises(ValueError, match="encodes no vectors: its codes were drawn at random"):
        codebook.codes_of(VECTORS)
    with pytest.raises(ValueError, match="takes no embeddings: its codes were drawn at random"):
        codebook.vectors_of(VECTORS, VECTORS)
    with pytest.raises(ValueError, match="of no vectors: its codes were drawn at random"):
        codebook.vectors_with(np.zeros((1, 5), np.uint16))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"centroids": np.zeros((4, 7), np.float32)}, "centroids must be a"),
        ({"centroids": np.full((3, 5, 6), np.nan, np.float32)}, "centroids must be finite float32"),
        ({"weights": np.ones(2, np.float32)}, "weights must have one number per level"),
        ({"weights": np.ones(3)}, "weights must be finite float32"),
        ({"content": codebook_of(num_subspaces=1, num_codes=2, vector_dims=20,
                                 embedding_dims=3).content},
         "more dimensions than the vectors"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(NORMALISED, **changed)


def test_sizes_and_content_that_random_codes_cannot_have() -> None:
    with pytest.raises(ValueError, match="sizes must be"):
        RandomCodebook((0, 16, 6))
    content = codebook_of(num_subspaces=1, num_codes=2, vector_dims=6, embedding_dims=3).content
    with pytest.raises(ValueError, match="no content projection"):
        RandomCodebook((4, 16, 6), content=content)


def test_other_widths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"encodes \(n, 6\) vectors, not \(2, 5\)"):
        PLAIN.codes_of(np.zeros((2, 5), np.float32))
