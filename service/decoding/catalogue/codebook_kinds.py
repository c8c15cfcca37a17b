"""The kinds of codebooks: parallel parts of a vector (MDGR), residual levels (MaskGR) of it or of
its latent (TIGER's RQ-VAE), random.

Each answers what `codebook` says. Products are of float64, for the reason given there. Knows
nothing of items or files.

vectors: (n, d) float32    codes: (n, num_subspaces) uint16
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NoReturn

import numpy as np
from numpy.typing import NDArray

from service.decoding.catalogue.codebook import (
    CHUNK_ROWS,
    Codebook,
    CodebookKind,
    Floats,
    check_floats,
    chunks_of,
)
from service.decoding.catalogue.collisions import by_number

LEAST_NORM = 1e-6  # a residual that is shorter is rounding, and has no direction


class _CentroidCodebook(Codebook):
    """A codebook of centroids: (num_subspaces, num_codes, ...)."""

    centroids: Floats

    @property
    def num_subspaces(self) -> int:
        return int(self.centroids.shape[0])

    @property
    def num_codes(self) -> int:
        return int(self.centroids.shape[1])


@dataclass(frozen=True, eq=False)
class ProductCodebook(_CentroidCodebook):
    """A rotation, and centroids of the parts into which it cuts a vector (MDGR sec. 4.2).

    rotation:  (d, num_subspaces * d_sub) float32 with orthonormal rows. It has more columns than
        rows when d is not divisible by num_subspaces: the vectors are then padded with zeros
    centroids: (num_subspaces, num_codes, d_sub) float32
    Raises ValueError when the arrays do not fit together.
    """

    kind: ClassVar[CodebookKind] = "opq"
    rotation: Floats
    centroids: Floats

    def __post_init__(self) -> None:
        _check_centroids(self.centroids)
        num_subspaces, _, d_sub = self.centroids.shape
        if self.rotation.ndim != 2 or self.rotation.shape[1] != num_subspaces * d_sub:
            raise ValueError("rotation must be (d, num_subspaces * d_sub), as the centroids say")
        check_floats("rotation", self.rotation)
        self._check_content()

    @property
    def vector_dims(self) -> int:
        return int(self.rotation.shape[0])

    @property
    def arrays(self) -> dict[str, Floats]:
        return {"rotation": self.rotation, "centroids": self.centroids}

    def codes_of(self, vectors: NDArray[np.floating]) -> NDArray[np.uint16]:
        """The nearest centroid of each subspace (Euclidean; ties to the lower code)."""
        self._check_dims(vectors)
        codes = np.empty((len(vectors), self.num_subspaces), np.uint16)
        rotation = self.rotation.astype(np.float64)
        for rows, chunk in chunks_of(vectors):
            rotated = (chunk @ rotation).reshape(len(chunk), self.num_subspaces, -1)
            nearness = _nearness(rotated.transpose(1, 0, 2), self.centroids)
            codes[rows] = nearness.argmax(axis=2).T
        return codes

    def nearness_of_last(self, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
        last = self.centroids[-1]
        rotation = self.rotation[:, -last.shape[1] :].astype(np.float64)
        nearness = np.empty((len(vectors), self.num_codes))
        for rows, chunk in chunks_of(vectors):
            nearness[rows] = _nearness(chunk @ rotation, last)
        return nearness

    def vectors_with(self, codes: NDArray[np.uint16]) -> Floats:
        subspaces = np.arange(self.num_subspaces)
        vectors = np.empty((len(codes), self.vector_dims), np.float32)
        rotation = self.rotation.T.astype(np.float64)
        for start in range(0, len(codes), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            nearest = self.centroids[subspaces, codes[part, : self.num_subspaces]]
            vectors[part] = nearest.reshape(-1, len(rotation)).astype(np.float64) @ rotation
        return vectors


@dataclass(frozen=True, eq=False)
class ResidualCodebook(_CentroidCodebook):
    """Centroids of levels: each says what those before it left of a vector (GRID, MaskGR).

    A level takes the centroid that is nearest to the residual and subtracts it. If residuals are
    normalised, every level first divides by the residual's norm: later levels then see directions
    only, and use their codes more evenly.
    centroids: (num_subspaces, num_codes, d) float32, one subspace a level
    weights:   (num_subspaces,) float32, what the centroid of a level counts in a vector; None =
        residuals are not normalised, and a vector is the plain sum
    Raises ValueError when the arrays do not fit together.
    """

    kind: ClassVar[CodebookKind] = "residual"
    centroids: Floats
    weights: Floats | None = None

    def __post_init__(self) -> None:
        _check_centroids(self.centroids)
        if self.weights is not None:
            if self.weights.shape != self.centroids.shape[:1]:
                raise ValueError("weights must have one number per level of the centroids")
            check_floats("weights", self.weights)
        self._check_content()

    @property
    def vector_dims(self) -> int:
        return int(self.centroids.shape[2])

    @property
    def arrays(self) -> dict[str, Floats]:
        weights = {} if self.weights is None else {"weights": self.weights}
        return {"centroids": self.centroids, **weights}

    def codes_of(self, vectors: NDArray[np.floating]) -> NDArray[np.uint16]:
        """Level by level the nearest centroid, never looking back (ties to the lower code)."""
        self._check_dims(vectors)
        codes = np.empty((len(vectors), self.num_subspaces), np.uint16)
        for rows, chunk in chunks_of(vectors):
            codes[rows], _, _ = self._encoded(chunk)
        return codes

    def nearness_of_last(self, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
        nearness = np.empty((len(vectors), self.num_codes))
        for rows, chunk in chunks_of(vectors):
            _, nearness[rows], _ = self._encoded(chunk)
        return nearness

    def residuals_of(self, vectors: NDArray[np.floating]) -> Floats:
        """What all levels leave of vectors: (n, d) -> (n, d) float32, normalised if they are."""
        residuals = np.empty(vectors.shape, np.float32)
        for rows, chunk in chunks_of(vectors):
            _, _, left = self._encoded(chunk)
            residuals[rows] = left if self.weights is None else directions_of(left)
        return residuals

    def vectors_with(self, codes: NDArray[np.uint16]) -> Floats:
        vectors = np.empty((len(codes), self.vector_dims), np.float32)
        weights = np.ones(self.num_subspaces) if self.weights is None else self.weights
        weighted = self.centroids.astype(np.float64) * weights.astype(np.float64)[:, None, None]
        for start in range(0, len(codes), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            levels = range(self.num_subspaces)
            vectors[part] = sum(weighted[level, codes[part, level]] for level in levels)
        return vectors

    def _encoded(
        self, chunk: NDArray[np.float64]
    ) -> tuple[NDArray[np.uint16], NDArray[np.float64], NDArray[np.float64]]:
        """Codes, nearness of the last level's codes, and what is left of the vectors."""
        codes = np.empty((len(chunk), self.num_subspaces), np.uint16)
        left = chunk
        for level, centroids in enumerate(self.centroids):
            residuals = left if self.weights is None else directions_of(left)
            nearness = _nearness(residuals, centroids)
            codes[:, level] = nearness.argmax(axis=1)
            left = residuals - centroids[codes[:, level]]
        return codes, nearness, left


@dataclass(frozen=True, eq=False)
class RQVAECodebook(_CentroidCodebook):
    """Residual levels of a vector's latent, which a small network makes of it (TIGER, RQ-VAE).

    Both networks are layers (inputs + 1, outputs) float32, the last row of which is the bias; all
    layers but the last are followed by a ReLU. A vector is rebuilt by the second one from the sum
    of its levels' centroids.
    centroids:   (num_subspaces, num_codes, latent_dims) float32, one subspace a level
    to_latent:   d -> hidden -> hidden -> latent_dims
    from_latent: latent_dims -> hidden -> hidden -> d
    Raises ValueError when the arrays do not fit together.
    """

    kind: ClassVar[CodebookKind] = "rqvae"
    centroids: Floats
    to_latent: tuple[Floats, Floats, Floats]
    from_latent: tuple[Floats, Floats, Floats]

    def __post_init__(self) -> None:
        _check_centroids(self.centroids)
        latent_dims = self.centroids.shape[2]
        last = self.from_latent[-1].shape[-1]
        wanted = {"to_latent": (last, latent_dims), "from_latent": (latent_dims, last)}
        for name, layers in (("to_latent", self.to_latent), ("from_latent", self.from_latent)):
            inputs, outputs = wanted[name]
            for layer in layers:
                check_floats(name, layer)
                if layer.ndim != 2 or len(layer) != inputs + 1:
                    raise ValueError(f"{name}: a layer must have {inputs} inputs and a bias")
                inputs = layer.shape[1]
            if inputs != outputs:
                raise ValueError(f"{name} must give {outputs} numbers, as the other arrays say")
        self._check_content()

    @property
    def vector_dims(self) -> int:
        return int(self.from_latent[-1].shape[1])

    @property
    def arrays(self) -> dict[str, Floats]:
        layers = {
            f"{name}_{number}": layer
            for name, network in (("to_latent", self.to_latent), ("from_latent", self.from_latent))
            for number, layer in enumerate(network, start=1)
        }
        return {"centroids": self.centroids, **layers}

    def latents_of(self, vectors: NDArray[np.floating]) -> Floats:
        """What the levels see of vectors: (n, d) -> (n, latent_dims) float32."""
        self._check_dims(vectors)
        return _through(self.to_latent, vectors)

    def codes_of(self, vectors: NDArray[np.floating]) -> NDArray[np.uint16]:
        """Level by level the nearest centroid to what is left of the latent."""
        return self._levels.codes_of(self.latents_of(vectors))

    def nearness_of_last(self, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
        return self._levels.nearness_of_last(self.latents_of(vectors))

    def vectors_with(self, codes: NDArray[np.uint16]) -> Floats:
        return _through(self.from_latent, self._levels.vectors_with(codes))

    @property
    def _levels(self) -> ResidualCodebook:
        return ResidualCodebook(self.centroids)


@dataclass(frozen=True, eq=False)
class RandomCodebook(Codebook):
    """Codes that were drawn at random say nothing of an item, so no new item can get some.

    It is for measurements: what are codes worth that say something?
    sizes: num_subspaces, num_codes, and d of the vectors beside the codes
    """

    kind: ClassVar[CodebookKind] = "random"
    sizes: tuple[int, int, int]

    def __post_init__(self) -> None:
        if len(self.sizes) != 3 or min(self.sizes[:2]) < 1 or self.sizes[2] < 0:
            raise ValueError("sizes must be num_subspaces, num_codes and the vectors' dimensions")
        if self.content is not None:
            raise ValueError("a codebook of random codes has no content projection")

    @property
    def num_subspaces(self) -> int:
        return self.sizes[0]

    @property
    def num_codes(self) -> int:
        return self.sizes[1]

    @property
    def vector_dims(self) -> int:
        return self.sizes[2]

    @property
    def arrays(self) -> dict[str, Floats]:
        return {}

    @property
    def refusal(self) -> str:
        return "its codes were drawn at random"

    def codes_of(self, vectors: NDArray[np.floating]) -> NoReturn:
        raise ValueError(f"this codebook encodes no vectors: {self.refusal}")

    def nearness_of_last(self, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
        """No code is nearer than another: the lowest comes first."""
        return by_number(len(vectors), self.num_codes)

    def vectors_with(self, codes: NDArray[np.uint16]) -> NoReturn:
        raise ValueError(f"the codes of this codebook are of no vectors: {self.refusal}")


def directions_of(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each row divided by its L2 norm; a row that is shorter than LEAST_NORM is left as it is."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    norms[norms < LEAST_NORM] = 1
    found: NDArray[np.float64] = vectors / norms
    return found


def _through(layers: Sequence[Floats], rows: NDArray[np.floating]) -> Floats:
    """The answers of a network of layers, see `RQVAECodebook`: (n, inputs) -> (n, outputs)."""
    *hidden, last = [layer.astype(np.float64) for layer in layers]
    found = np.empty((len(rows), last.shape[1]), np.float32)
    for part, chunk in chunks_of(rows):
        for layer in hidden:
            chunk = np.maximum(chunk @ layer[:-1] + layer[-1], 0)
        found[part] = chunk @ last[:-1] + last[-1]
    return found


def _nearness(vectors: NDArray[np.float64], centroids: Floats) -> NDArray[np.float64]:
    """(..., n, d) and (..., num_codes, d) -> (..., n, num_codes): the largest is the nearest.

    It is minus half the squared distance, without the part that is the same for all codes.
    """
    axes = centroids.swapaxes(-1, -2).astype(np.float64)
    nearness: NDArray[np.float64] = vectors @ axes
    nearness -= np.square(axes).sum(axis=-2)[..., None, :] / 2
    return nearness


def _check_centroids(centroids: Floats) -> None:
    if centroids.ndim != 3 or not centroids.size:
        raise ValueError("centroids must be a (num_subspaces, num_codes, d_sub) array")
    check_floats("centroids", centroids)
