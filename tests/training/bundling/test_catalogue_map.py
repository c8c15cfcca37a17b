"""The map of a catalogue: near what is alike, the same for the same seed, whatever the vectors."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.manifold import trustworthiness

from training.bundling import catalogue_map
from training.bundling.catalogue_map import LAST, lay_out


def clusters(num_items: int, dims: int = 24, num_clusters: int = 8) -> NDArray[np.float16]:
    random = np.random.default_rng(5)
    middles = random.normal(size=(num_clusters, dims))
    drawn = random.integers(0, num_clusters, num_items)
    noise = random.normal(size=(num_items, dims))
    return (middles[drawn] + 0.5 * noise).astype(np.float16)


@pytest.fixture
def few_laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_map, "MOST_LAID_OUT", 150)
    monkeypatch.setattr(catalogue_map, "AT_ONCE", 100)  # so that there are several parts


@pytest.mark.usefixtures("few_laid_out")
def test_neighbours_on_the_map_are_neighbours_in_the_vectors() -> None:
    """Of items that t-SNE lays out, and of those that are put beside them."""
    vectors = clusters(400)
    places = lay_out(vectors, 0)
    assert (places.shape, places.dtype) == ((400, 2), np.uint16)
    directions = vectors / np.linalg.norm(vectors.astype(np.float32), axis=1, keepdims=True)
    by_chance = np.random.default_rng(0).permutation(places)
    for part in (slice(0, 150), slice(150, 400)):
        kept = trustworthiness(directions[part], places[part].astype(float), n_neighbors=8)
        chance = trustworthiness(directions[part], by_chance[part].astype(float), n_neighbors=8)
        assert kept > 0.8 > 0.6 > chance


@pytest.mark.usefixtures("few_laid_out")
def test_the_same_seed_gives_the_same_map_and_lengths_do_not_count() -> None:
    vectors = clusters(300)
    places = lay_out(vectors, 3)
    assert np.array_equal(places, lay_out(vectors, 3))
    assert not np.array_equal(places, lay_out(vectors, 4))
    assert np.array_equal(places, lay_out(vectors * np.float16(2), 3))


def test_the_map_fills_its_longer_side_and_keeps_its_shape() -> None:
    places = lay_out(clusters(60), 0).astype(int)
    spans = places.max(axis=0) - places.min(axis=0)
    assert spans.max() == LAST
    assert places.max() <= LAST  # the number after it says that an item has no place
    assert np.abs(places.max(axis=0) + places.min(axis=0) - LAST).max() <= 2  # in the middle


@pytest.mark.parametrize(
    "vectors",
    [
        np.ones((1, 4)),
        np.eye(2),
        np.eye(3, 5),
        np.eye(6),
        np.zeros((30, 4)),
        np.ones((30, 4)),
        np.tile([0.1, 0.2, 0.3, 0.4], (30, 1)),
        np.zeros((30, 0)),
        np.linspace(-1, 1, 30)[:, None],
    ],
)
def test_few_items_and_vectors_that_tell_nothing_have_places_too(
    vectors: NDArray[np.float64],
) -> None:
    places = lay_out(vectors.astype(np.float16), 0)
    assert places.shape == (len(vectors), 2)
    assert places.max() <= LAST
