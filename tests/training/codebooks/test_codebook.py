"""Fitting a codebook: with and without OPQ, with any number of threads, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from service.decoding import ContentProjection, ProductCodebook
from training.codebooks import CollisionReport, fit_codebook, load_codebook, save_codebook
from training.config import CodebookConfig
from training.errors import DataError

CONFIG = CodebookConfig(num_subspaces=4, num_codes=12, opq_iterations=8, kmeans_iterations=10)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """Most variance in few directions, all in the first subspace: a rotation helps a lot."""
    scales = 0.7 ** np.arange(16)
    rng = np.random.default_rng(5)
    return (rng.normal(size=(600, 16)) * scales).astype(np.float32)


@pytest.fixture(scope="module")
def codebook(vectors: np.ndarray) -> ProductCodebook:
    return fit_codebook(vectors, CONFIG)


def squared_error(codebook: ProductCodebook, vectors: np.ndarray) -> float:
    codes = codebook.codes_of(vectors)
    nearest = codebook.centroids[np.arange(codebook.num_subspaces), codes]
    rebuilt = nearest.reshape(len(codes), -1) @ codebook.rotation.T
    return float(np.square(rebuilt - vectors).sum(axis=1).mean())


def test_the_rotation_is_orthonormal(codebook: ProductCodebook) -> None:
    np.testing.assert_allclose(codebook.rotation @ codebook.rotation.T, np.eye(16), atol=1e-5)


def test_opq_lowers_the_error(codebook: ProductCodebook, vectors: np.ndarray) -> None:
    plain = fit_codebook(vectors, CONFIG.model_copy(update={"opq_iterations": 0}))
    np.testing.assert_array_equal(plain.rotation, np.eye(16))
    assert squared_error(codebook, vectors) < 0.9 * squared_error(plain, vectors)


def test_a_refit_is_the_same_whatever_the_threads(
    codebook: ProductCodebook, vectors: np.ndarray
) -> None:
    with threadpool_limits(2):
        again = fit_codebook(vectors, CONFIG)
    np.testing.assert_array_equal(again.rotation, codebook.rotation)
    np.testing.assert_array_equal(again.centroids, codebook.centroids)
    other = fit_codebook(vectors, CONFIG.model_copy(update={"seed": 8}))
    assert (other.centroids != codebook.centroids).any()


@pytest.mark.parametrize("opq_iterations", [0, 4])
def test_vectors_are_padded_to_whole_subspaces(vectors: np.ndarray, opq_iterations: int) -> None:
    config = CodebookConfig(num_subspaces=5, num_codes=7, opq_iterations=opq_iterations)
    codebook = fit_codebook(vectors, config)
    assert codebook.rotation.shape == (16, 20)
    assert codebook.centroids.shape == (5, 7, 4)
    np.testing.assert_allclose(codebook.rotation @ codebook.rotation.T, np.eye(16), atol=1e-5)
    assert codebook.codes_of(vectors).max() < 7
    assert squared_error(codebook, vectors) < 0.5 * float(np.square(vectors).sum(axis=1).mean())


def test_as_many_vectors_as_codes_is_enough_and_fewer_are_refused(vectors: np.ndarray) -> None:
    config = CodebookConfig(num_subspaces=2, num_codes=300, opq_iterations=2)
    codebook = fit_codebook(vectors[:300], config)
    assert squared_error(codebook, vectors[:300]) < 1e-6  # a code each
    with pytest.raises(DataError, match=r"299 items .* codebook\.num_codes=300; set it to at most"):
        fit_codebook(vectors[:299], config)
    for num_codes in (None, 300):
        config = CodebookConfig(num_codes=num_codes)
        with pytest.raises(DataError, match="at least two items need training interactions; give"):
            fit_codebook(vectors[:1], config)


@pytest.mark.parametrize("with_content", [True, False])
def test_save_and_load(codebook: ProductCodebook, with_content: bool, tmp_path: Path) -> None:
    content = None
    if with_content:
        mean, components = np.arange(3, dtype=np.float32), np.eye(2, 3, dtype=np.float32)
        content = ContentProjection(mean, components, weight=0.3)
    path = tmp_path / "codebook.npz"
    save_codebook(replace(codebook, content=content), path)
    loaded = load_codebook(path)
    for name in ("rotation", "centroids"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(codebook, name))
    if content is None:
        assert loaded.content is None
    else:
        assert loaded.content is not None
        np.testing.assert_array_equal(loaded.content.mean, content.mean)
        np.testing.assert_array_equal(loaded.content.components, content.components)
        assert loaded.content.weight == content.weight


def test_what_is_no_codebook_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "codebook.npz"
    with pytest.raises(DataError, match="is not a codebook"):
        load_codebook(path)
    path.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(DataError, match="is not a codebook"):
        load_codebook(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="is not a codebook"):
        load_codebook(path)
    with path.open("wb") as file:
        np.save(file, np.eye(4))
    with pytest.raises(DataError, match="is not a codebook"):
        load_codebook(path)
    np.savez(path, rotation=np.eye(4))
    with pytest.raises(DataError, match="is not a codebook"):
        load_codebook(path)
    np.savez(path, rotation=np.eye(4, dtype=np.float32), centroids=np.zeros((3, 2, 1), np.float32))
    with pytest.raises(DataError, match="as the centroids say"):
        load_codebook(path)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12),
)
def test_collisions_against_plain_python(sids: list[tuple[int, int]]) -> None:
    report = CollisionReport.of(np.array(sids, dtype=np.uint16), num_codes=4)
    groups = [sids.count(sid) for sid in set(sids)]
    assert report.num_items == len(sids)
    assert report.unique_sids == len(groups)
    assert report.largest_group == max(groups)
    assert report.collided_items == sum(size for size in groups if size > 1)
    assert report.codes_used == tuple(len({sid[p] for sid in sids}) for p in (0, 1))
    for position, entropy in enumerate(report.entropy_bits):
        column = [sid[position] for sid in sids]
        shares = np.array([column.count(code) for code in set(column)]) / len(column)
        assert entropy == pytest.approx(-(shares * np.log2(shares)).sum(), abs=1e-3)


def test_the_report_reads_as_a_sentence() -> None:
    codes = np.array([[0, 0], [0, 0], [0, 0], [1, 2]], dtype=np.uint16)
    assert str(CollisionReport.of(codes, num_codes=3)) == (
        "2 SIDs for 4 items; 3 items share theirs, at most 3 the same; 2 to 2 of 3 codes used"
    )


def test_fewer_vectors_than_dimensions_still_give_a_rotation() -> None:
    """faiss itself ends the process here (heap corruption in OPQ)."""
    vectors = np.random.default_rng(0).standard_normal((20, 64)).astype(np.float32)
    config = CodebookConfig(num_subspaces=4, num_codes=8, opq_iterations=3, kmeans_iterations=3)
    rotation = fit_codebook(vectors, config).rotation
    assert np.allclose(rotation @ rotation.T, np.eye(64), atol=1e-5)
