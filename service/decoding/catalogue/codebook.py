"""The frozen codebook: content embeddings become item vectors, and item vectors become SIDs.

Training fits it and encodes with it, and the bundle keeps it. So a new item gets the vector and the
SID that a cold item of training got: both are like the same items with interactions (`alike`). The
last bits of a matrix product depend on its shape, threads and machine. So products here are of
float64: such differences are too small to change a float32 number or a code. Knows nothing of items
or files.

embeddings: (n, embedding_dims)    vectors: (n, d) float32    codes: (n, num_subspaces) uint16
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.decoding.catalogue.alike import Alike, most_alike, vectors_like

CHUNK_ROWS = 1024  # rows at a time: limits memory, and only a few calls wait for the GIL

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ContentProjection:
    """Turns a content embedding into the content part of an item vector.

    mean:       (embedding_dims,) float32, subtracted first
    components: (content_dims, embedding_dims) float32, the principal axes
    weight:     share of the content part in the squared norm of a vector that has all parts
    Raises ValueError when the arrays do not fit together.
    """

    mean: Floats
    components: Floats
    weight: float

    def __post_init__(self) -> None:
        if self.components.ndim != 2 or self.mean.shape != self.components.shape[1:]:
            raise ValueError("content components must be (content_dims, embedding_dims), as mean")
        _check_floats("content mean", self.mean)
        _check_floats("content components", self.components)
        if not 0 <= self.weight <= 1:
            raise ValueError("the content weight must be in [0, 1]")

    @property
    def embedding_dims(self) -> int:
        return int(self.mean.shape[0])

    def vectors_of(self, embeddings: NDArray[np.floating]) -> Floats:
        """Centred, projected, of norm sqrt(weight): (n, embedding_dims) -> (n, content_dims).

        An item without content is a row of zeros and stays one. Raises ValueError for another
        number of dimensions, and for numbers that are not finite or too large for float32.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embedding_dims:
            raise ValueError(
                f"embeddings must be (n, {self.embedding_dims}) here, not {embeddings.shape}"
            )
        vectors = np.empty((len(embeddings), len(self.components)), np.float32)
        mean, axes = self.mean.astype(np.float64), self.components.T.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            for rows, chunk in _chunks(embeddings):
                projected = (chunk - mean) @ axes
                projected[~chunk.any(axis=1)] = 0
                norms = np.linalg.norm(projected, axis=1, keepdims=True)
                norms[norms == 0] = 1
                vectors[rows] = projected / norms * np.sqrt(self.weight)
        if not np.isfinite(vectors).all():
            raise ValueError("embeddings must be finite numbers, not too large for float32")
        return vectors


@dataclass(frozen=True, eq=False)
class Codebook:
    """Rotation and centroids of all subspaces, and the projection that makes vectors of embeddings.

    rotation:  (d, num_subspaces * d_sub) float32 with orthonormal rows. It has more columns than
        rows
               when d is not divisible by num_subspaces: the vectors are then padded with zeros
    centroids: (num_subspaces, num_codes, d_sub) float32
    content:   makes the first dimensions of a vector; None when no embedding can be projected
    Raises ValueError when the arrays do not fit together.
    """

    rotation: Floats
    centroids: Floats
    content: ContentProjection | None = None

    def __post_init__(self) -> None:
        if self.centroids.ndim != 3 or not self.centroids.size:
            raise ValueError("centroids must be a (num_subspaces, num_codes, d_sub) array")
        num_subspaces, _, d_sub = self.centroids.shape
        if self.rotation.ndim != 2 or self.rotation.shape[1] != num_subspaces * d_sub:
            raise ValueError("rotation must be (d, num_subspaces * d_sub), as the centroids say")
        _check_floats("rotation", self.rotation)
        _check_floats("centroids", self.centroids)
        if self.content is not None and len(self.content.components) > self.vector_dims:
            raise ValueError("the content part cannot have more dimensions than the vectors")

    @property
    def num_subspaces(self) -> int:
        return int(self.centroids.shape[0])

    @property
    def num_codes(self) -> int:
        return int(self.centroids.shape[1])

    @property
    def vector_dims(self) -> int:
        return int(self.rotation.shape[0])

    def content_of(self, embeddings: NDArray[np.floating]) -> Floats:
        """Content parts of vectors, (n, content_dims) float32.

        embeddings: (n, embedding_dims), made as in training.
        Raises ValueError as `ContentProjection.vectors_of` does, or when there is no projection.
        """
        if self.content is None:
            raise ValueError(
                "this codebook takes no embeddings: the item vectors it was fitted on hold no "
                "content, or content that was made from titles by TF-IDF"
            )
        return self.content.vectors_of(embeddings)

    def vectors_of(
        self, embeddings: NDArray[np.floating], known: NDArray[np.floating]
    ) -> tuple[Floats, Alike]:
        """Vectors of items without interactions, (n, d) float32, and which items they are like.

        known: (num_known, d) vectors of items with interactions, most popular first. The same ones
            give the same vectors, however many items are asked for at once.
        Raises ValueError as `content_of` does.
        """
        content = self.content_of(embeddings)
        assert self.content is not None
        alike = most_alike(content, known[:, : content.shape[1]])
        return vectors_like(content, alike, known, np.sqrt(1 - self.content.weight)), alike

    def vectors_with(self, codes: NDArray[np.uint16]) -> Floats:
        """About the vectors that have these SIDs: (n, num_subspaces) -> (n, d) float32."""
        subspaces = np.arange(self.num_subspaces)
        vectors = np.empty((len(codes), self.vector_dims), np.float32)
        rotation = self.rotation.T.astype(np.float64)
        for start in range(0, len(codes), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            nearest = self.centroids[subspaces, codes[part]].reshape(-1, len(rotation))
            vectors[part] = nearest.astype(np.float64) @ rotation
        return vectors

    def codes_of(self, vectors: NDArray[np.floating]) -> NDArray[np.uint16]:
        """SIDs of vectors: (n, d) -> (n, num_subspaces) uint16.

        The code of a subspace is its nearest centroid (Euclidean; ties to the lower code).
        Raises ValueError when d is not that of the fitted vectors.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.vector_dims:
            raise ValueError(
                f"the codebook encodes (n, {self.vector_dims}) vectors, not {vectors.shape}"
            )
        codes = np.empty((len(vectors), self.num_subspaces), np.uint16)
        rotation = self.rotation.astype(np.float64)
        axes = self.centroids.transpose(0, 2, 1).astype(np.float64)
        half_norms = np.square(axes).sum(axis=1)[:, None] / 2
        for rows, chunk in _chunks(vectors):
            rotated = (chunk @ rotation).reshape(len(chunk), self.num_subspaces, -1)
            nearness = rotated.transpose(1, 0, 2) @ axes  # (num_subspaces, rows, num_codes)
            nearness -= half_norms
            codes[rows] = nearness.argmax(axis=2).T
        return codes


def _chunks(rows: NDArray[np.floating]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """CHUNK_ROWS rows at a time, rounded to float32 and given as float64, with their slice."""
    for start in range(0, len(rows), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        yield part, rows[part].astype(np.float32).astype(np.float64)


def _check_floats(name: str, array: Floats) -> None:
    if array.dtype != np.float32 or not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite float32 numbers")
