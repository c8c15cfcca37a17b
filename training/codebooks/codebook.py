"""Fits the codebook: of parallel parts of vectors (MDGR sec. 4.2), of residual levels (GRID), or as
an RQ-VAE (`rqvae`).

It is fitted on the vectors of items with training interactions: (num_vectors, d) float32. The
resulting `Codebook` encodes any item, here and in the service. faiss.ProductQuantizer allows only
2^n codes; so OPQ gives the rotation, and k-means in each subspace allows any `num_codes`. Levels
are k-means too: faiss.ResidualQuantizer searches with a beam of 5, and half of its codes are not
those that level by level give. Knows nothing of items or models.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import faiss
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from service.decoding import (
    Codebook,
    ContentProjection,
    ProductCodebook,
    RandomCodebook,
    ResidualCodebook,
    RQVAECodebook,
)
from service.decoding.catalogue import chunks_of, directions_of
from training.codebooks.rqvae import fit_rqvae
from training.config import CodebookConfig
from training.errors import DataError

MOST_CODES, ITEMS_PER_CODE = 300, 10  # used when the configuration gives no num_codes


def fit_codebook(
    vectors: NDArray[np.float32], config: CodebookConfig, content: ContentProjection | None = None
) -> Codebook:
    """Learn the codebook from vectors: (num_vectors, d) float32.

    content: the projection that made the first dimensions of the vectors; it is stored with the
    codebook.
    Runs on one thread, because the last bits of a sum depend on the number of threads, and so would
    the codes.
    Raises DataError if there are fewer vectors than codes, or fewer than two vectors.
    """
    num_vectors = len(vectors)
    if num_vectors < 2:
        raise DataError("at least two items need training interactions; give more data")
    num_codes = config.num_codes or max(2, min(MOST_CODES, num_vectors // ITEMS_PER_CODE))
    if num_vectors < num_codes:
        raise DataError(
            f"{num_vectors} items have training interactions, too few for "
            f"codebook.num_codes={num_codes}; set it to at most {num_vectors}"
        )
    if config.kind == "random":
        sizes = config.num_subspaces, num_codes, vectors.shape[1]
        return RandomCodebook(sizes, collisions=config.collisions)
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    with threadpool_limits(1):
        codebook: Codebook
        if config.kind == "rqvae":
            plain = config.model_copy(update={"normalise_residuals": False})
            codebook = fit_rqvae(
                vectors,
                num_codes,
                config,
                lambda latents: _residual(latents, num_codes, plain).centroids,
            )
        else:
            fitted = _product if config.kind == "opq" else _residual
            codebook = fitted(vectors, num_codes, config)
    return replace(codebook, content=content, collisions=config.collisions)


def save_codebook(codebook: Codebook, path: Path) -> None:
    """Write an .npz file (no pickle)."""
    arrays: dict[str, NDArray[Any]] = dict(codebook.arrays)
    if content := codebook.content:
        arrays |= {"mean": content.mean, "components": content.components}
        arrays["weight"] = np.array(content.weight)
    if isinstance(codebook, RandomCodebook):
        arrays["sizes"] = np.array(codebook.sizes)
    if codebook.kind != "opq":
        arrays["kind"] = np.array(codebook.kind)
    if codebook.collisions != "keep":
        arrays["collisions"] = np.array(codebook.collisions)
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # typeshed: allow_pickle may be a name


def load_codebook(path: Path) -> Codebook:
    """Read what `save_codebook` wrote. Raises DataError if the file is not a codebook."""
    try:
        with path.open("rb") as file:
            arrays = dict(np.load(file, allow_pickle=False))
            content = None
            if "mean" in arrays:
                weight = float(arrays["weight"])
                content = ContentProjection(arrays["mean"], arrays["components"], weight)
            rest: Any = {"content": content, "collisions": str(arrays.get("collisions", "keep"))}
            kind = str(arrays.get("kind", "opq"))
            if kind == "random":
                return RandomCodebook(tuple(arrays["sizes"].tolist()), **rest)
            if kind == "residual":
                return ResidualCodebook(arrays["centroids"], arrays.get("weights"), **rest)
            if kind == "rqvae":
                layers: Any = [
                    tuple(arrays[f"{name}_{number}"] for number in (1, 2, 3))
                    for name in ("to_latent", "from_latent")
                ]
                return RQVAECodebook(arrays["centroids"], *layers, **rest)
            return ProductCodebook(arrays["rotation"], arrays["centroids"], **rest)
    except (OSError, EOFError, TypeError, ValueError, LookupError, BadZipFile) as error:
        raise DataError(f"{path} is not a codebook: {error}") from error


def _product(
    vectors: NDArray[np.float32], num_codes: int, config: CodebookConfig
) -> ProductCodebook:
    """OPQ learns the rotation in so many iterations; 0 = subspaces are slices of the vectors."""
    rotation = _rotation(vectors, num_codes, config)
    rotated = (vectors @ rotation).reshape(len(vectors), config.num_subspaces, -1)
    centroids = np.stack(
        [_centroids(rotated[:, s], num_codes, config) for s in range(config.num_subspaces)]
    )
    return ProductCodebook(rotation, centroids)


def _residual(
    vectors: NDArray[np.float32], num_codes: int, config: CodebookConfig
) -> ResidualCodebook:
    """A k-means for each level, of what the levels before leave of the vectors (GRID)."""
    weights = np.ones(config.num_subspaces, np.float32) if config.normalise_residuals else None
    left = vectors
    if weights is not None:
        left = directions_of(vectors.astype(np.float64)).astype(np.float32)
    centroids = np.empty((config.num_subspaces, num_codes, vectors.shape[1]), np.float32)
    for level in range(config.num_subspaces):
        centroids[level] = _centroids(left, num_codes, config)
        done = level + 1
        codebook = ResidualCodebook(centroids[:done], None if weights is None else weights[:done])
        left = codebook.residuals_of(vectors)
    if weights is None:
        return codebook
    return replace(codebook, weights=_weights(vectors, codebook))


def _weights(vectors: NDArray[np.float32], codebook: ResidualCodebook) -> NDArray[np.float32]:
    """What a vector is best made of: the weights of its levels' centroids, by least squares."""
    num_levels, levels = codebook.num_subspaces, np.arange(codebook.num_subspaces)
    products, targets = np.zeros((num_levels, num_levels)), np.zeros(num_levels)
    for rows, chunk in chunks_of(vectors):
        codes = codebook.codes_of(vectors[rows])
        parts = codebook.centroids[levels, codes].astype(np.float64)  # (rows, num_levels, d)
        products += np.einsum("ild,imd->lm", parts, parts)
        targets += np.einsum("ild,id->l", parts, chunk)
    return np.linalg.lstsq(products, targets)[0].astype(np.float32)


def _rotation(
    vectors: NDArray[np.float32], num_codes: int, config: CodebookConfig
) -> NDArray[np.float32]:
    """(d, padded) float32 with orthonormal rows; padded = d rounded up to num_subspaces."""
    d = vectors.shape[1]
    padded = -(-d // config.num_subspaces) * config.num_subspaces
    if config.opq_iterations == 0:
        return np.eye(d, padded, dtype=np.float32)
    # OPQ needs a quantizer with 2^n codes: take the largest one with no more codes than ours.
    bits = min(num_codes.bit_length() - 1, 8)
    quantizer = faiss.ProductQuantizer(padded, config.num_subspaces, bits)
    quantizer.cp.seed = config.seed
    quantizer.cp.min_points_per_centroid = 1
    opq = faiss.OPQMatrix(d, config.num_subspaces, padded)
    opq.niter = config.opq_iterations
    opq.pq = quantizer
    # faiss corrupts its heap if there are fewer vectors than dimensions. Repeated vectors give the
    # same answer.
    opq.train(np.tile(vectors, (-(-padded // len(vectors)), 1)))
    learned = faiss.vector_to_array(opq.A).reshape(padded, d)
    return np.ascontiguousarray(learned.T)


def _centroids(
    slices: NDArray[np.float32], num_codes: int, config: CodebookConfig
) -> NDArray[np.float32]:
    """K-means of one subspace: (num_vectors, d_sub) -> (num_codes, d_sub) float32."""
    kmeans = faiss.Kmeans(
        slices.shape[1],
        num_codes,
        niter=config.kmeans_iterations,
        seed=config.seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(slices),  # use every vector
    )
    kmeans.train(np.ascontiguousarray(slices))
    return np.asarray(kmeans.centroids, dtype=np.float32)
