"""The parallel codebook: a rotation and, per subspace, one set of k-means centroids.

Fitted on vectors of items with training interactions, then encodes any item. `faiss` trains; the
encoding is plain NumPy. faiss.ProductQuantizer wants 2^n codes, hence OPQ for the rotation and a
k-means per subspace for any `num_codes` (MDGR sec. 4.2). Knows nothing of items or models.
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

from training.config import CodebookConfig
from training.errors import DataError

MOST_CODES, ITEMS_PER_CODE = 300, 10  # where the configuration does not say
ENCODE_ROWS = 4096  # vectors encoded at a time: bounds memory, not results


@dataclass(frozen=True, eq=False)
class Codebook:
    """Rotation and centroids of all subspaces.

    rotation:  (d, num_subspaces * d_sub) float32 with orthonormal rows; wider than high when d is
               not divisible by num_subspaces (the vectors are then padded with zeros)
    centroids: (num_subspaces, num_codes, d_sub) float32
    """

    rotation: NDArray[np.float32]
    centroids: NDArray[np.float32]

    def __post_init__(self) -> None:
        num_subspaces, _, d_sub = self.centroids.shape
        if self.rotation.ndim != 2 or self.rotation.shape[1] != num_subspaces * d_sub:
            raise DataError("rotation must be (d, num_subspaces * d_sub), as the centroids say")

    @property
    def num_subspaces(self) -> int:
        return int(self.centroids.shape[0])

    @property
    def num_codes(self) -> int:
        return int(self.centroids.shape[1])

    @classmethod
    def fit(cls, vectors: NDArray[np.float32], config: CodebookConfig) -> Self:
        """Learn the codebook from vectors: (num_vectors, d) float32.

        `config.opq_iterations` of OPQ learn the rotation; 0 means the identity, so that subspaces
        are plain slices of the vector. Runs on one thread: a sum's last bits, and with them the
        codes, depend on the number of threads.
        Raises DataError when there are fewer vectors than codes.
        """
        num_vectors = len(vectors)
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
        return cls(rotation, centroids)

    def encode(self, vectors: NDArray[np.float32]) -> NDArray[np.uint16]:
        """SIDs of vectors: (num_vectors, d) float32 -> codes: (num_vectors, num_subspaces) uint16.

        The code of a subspace is its nearest centroid (Euclidean; ties to the lower code).
        Raises DataError when d is not that of the fitted vectors.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.rotation.shape[0]:
            raise DataError(
                f"the codebook encodes (n, {self.rotation.shape[0]}) vectors, not {vectors.shape}"
            )
        codes = np.empty((len(vectors), self.num_subspaces), dtype=np.uint16)
        half_norms = np.square(self.centroids).sum(axis=2) / 2  # (num_subspaces, num_codes)
        for start in range(0, len(vectors), ENCODE_ROWS):
            rows = slice(start, start + ENCODE_ROWS)
            rotated = vectors[rows] @ self.rotation
            rotated = rotated.reshape(len(rotated), self.num_subspaces, -1)
            similarity = np.einsum("nsd,scd->nsc", rotated, self.centroids, optimize=True)
            codes[rows] = (similarity - half_norms).argmax(axis=2)
        return codes

    def save(self, path: Path) -> None:
        """Write an .npz file (no pickle)."""
        with path.open("wb") as file:
            np.savez(file, rotation=self.rotation, centroids=self.centroids)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote. Raises DataError when the file is not a codebook."""
        try:
            with path.open("rb") as file:
                arrays = np.load(file, allow_pickle=False)
                return cls(arrays["rotation"], arrays["centroids"])
        except (OSError, EOFError, ValueError, LookupError, BadZipFile) as error:
            raise DataError(f"{path} is not a codebook: {error}") from error


@dataclass(frozen=True)
class CollisionReport:
    """How well the SIDs tell the items apart.

    collided_items: items that share their SID with another one
    largest_group:  items of the most crowded SID
    codes_used:     per position, codes that at least one item has
    entropy_bits:   per position, entropy of the codes over items; at most log2(num_codes)
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
    # OPQ needs a 2^n quantizer to learn against: the largest that is not finer than ours.
    bits = min(num_codes.bit_length() - 1, 8)
    quantizer = faiss.ProductQuantizer(padded, config.num_subspaces, bits)
    quantizer.cp.seed = config.seed
    quantizer.cp.min_points_per_centroid = 1
    opq = faiss.OPQMatrix(d, config.num_subspaces, padded)
    opq.niter = config.opq_iterations
    opq.pq = quantizer
    # faiss corrupts its heap with fewer vectors than dimensions; repeats ask the same question.
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
