"""Fits the codebook: a rotation and, for each subspace, k-means centroids (MDGR sec. 4.2).

It is fitted on the vectors of items with training interactions: (num_vectors, d) float32. The
resulting `Codebook` encodes any item, here and in the service. faiss.ProductQuantizer allows only
2^n codes; so OPQ gives the rotation, and k-means in each subspace allows any `num_codes`. Knows
nothing of items or models.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self
from zipfile import BadZipFile

import faiss
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from service.decoding import Codebook, ContentProjection
from training.config import CodebookConfig
from training.errors import DataError

MOST_CODES, ITEMS_PER_CODE = 300, 10  # used when the configuration gives no num_codes


def fit_codebook(
    vectors: NDArray[np.float32], config: CodebookConfig, content: ContentProjection | None = None
) -> Codebook:
    """Learn the codebook from vectors: (num_vectors, d) float32.

    content: the projection that made the first dimensions of the vectors; it is stored with the
    codebook.
    OPQ learns the rotation in `config.opq_iterations` iterations. 0 means no rotation: subspaces
    are plain slices of the vector. Runs on one thread, because the last bits of a sum depend on
    the number of threads, and so would the codes.
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
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    with threadpool_limits(1):
        rotation = _rotation(vectors, num_codes, config)
        rotated = (vectors @ rotation).reshape(num_vectors, config.num_subspaces, -1)
        centroids = np.stack(
            [_centroids(rotated[:, s], num_codes, config) for s in range(config.num_subspaces)]
        )
    return Codebook(rotation, centroids, content)


def save_codebook(codebook: Codebook, path: Path) -> None:
    """Write an .npz file (no pickle)."""
    arrays = {"rotation": codebook.rotation, "centroids": codebook.centroids}
    if content := codebook.content:
        arrays |= {"mean": content.mean, "components": content.components}
        arrays["weight"] = np.array(content.weight)
    with path.open("wb") as file:
        np.savez(file, **arrays)


def load_codebook(path: Path) -> Codebook:
    """Read what `save_codebook` wrote. Raises DataError if the file is not a codebook."""
    try:
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            content = None
            if "mean" in arrays:
                weight = float(arrays["weight"])
                content = ContentProjection(arrays["mean"], arrays["components"], weight)
            return Codebook(arrays["rotation"], arrays["centroids"], content)
    except (OSError, EOFError, ValueError, LookupError, BadZipFile) as error:
        raise DataError(f"{path} is not a codebook: {error}") from error


@dataclass(frozen=True)
class CollisionReport:
    """How well the SIDs tell the items apart.

    collided_items: number of items that share their SID with another item
    largest_group:  number of items of the most frequent SID
    codes_used:     for each position, number of codes that at least one item has
    entropy_bits:   for each position, entropy of the codes over items; at most log2(num_codes)
    """

    num_items: int
    num_codes: int
    unique_sids: int
    collided_items: int
    largest_group: int
    codes_used: tuple[int, ...]
    entropy_bits: tuple[float, ...]

    @classmethod
    def of(cls, codes: NDArray[np.uint16], num_codes: int) -> Self:
        """Count over codes: (num_items, num_subspaces) uint16."""
        _, groups = np.unique(codes, axis=0, return_counts=True)
        shares = [np.bincount(position, minlength=num_codes) / len(codes) for position in codes.T]
        return cls(
            num_items=len(codes),
            num_codes=num_codes,
            unique_sids=len(groups),
            collided_items=int(groups[groups > 1].sum()),
            largest_group=int(groups.max()),
            codes_used=tuple(int(np.count_nonzero(share)) for share in shares),
            entropy_bits=tuple(
                round(float(-(share[share > 0] * np.log2(share[share > 0])).sum()), 3)
                for share in shares
            ),
        )

    def __str__(self) -> str:
        return (
            f"{self.unique_sids:,} SIDs for {self.num_items:,} items; "
            f"{self.collided_items:,} items share theirs, at most {self.largest_group} the same; "
            f"{min(self.codes_used)} to {max(self.codes_used)} of {self.num_codes} codes used"
        )


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
