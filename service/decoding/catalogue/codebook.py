"""The frozen codebook: content embeddings become item vectors, and item vectors become SIDs.

Training fits it and encodes with it, and the bundle keeps it. So a new item gets the vector and the
SID that a cold item of training got: both are like the same items with interactions (`alike`). The
last bits of a matrix product depend on its shape, threads and machine. So products here are of
float64: such differences are too small to change a float32 number or a code. Knows nothing of items
or files.

embeddings: (n, embedding_dims)    vectors: (n, d) float32    codes: (n, num_subspaces) uint16
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from service.decoding.catalogue.alike import Alike, most_alike, vectors_like
from service.decoding.catalogue.collisions import Collisions, by_number, free_sids, with_digit

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
        check_floats("content mean", self.mean)
        check_floats("content components", self.components)
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
            for rows, chunk in chunks_of(embeddings):
                projected = (chunk - mean) @ axes
                projected[~chunk.any(axis=1)] = 0
                norms = np.linalg.norm(projected, axis=1, keepdims=True)
                norms[norms == 0] = 1
                vectors[rows] = projected / norms * np.sqrt(self.weight)
        if not np.isfinite(vectors).all():
            raise ValueError("embeddings must be finite numbers, not too large for float32")
        return vectors


CodebookKind = Literal["opq", "residual", "rqvae", "random"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Codebook(ABC):
    """What all kinds of codebooks answer: see `service.decoding.catalogue.codebook_kinds`.

    content:    makes the first dimensions of a vector; None when no embedding can be projected
    collisions: what becomes of items whose codes are the same. "keep" = they share a SID; "digit" =
        SIDs have one more position, a number that tells them apart; "reassign" = the last code is
        the nearest that is free
    """

    kind: ClassVar[CodebookKind]
    content: ContentProjection | None = None
    collisions: Collisions = "keep"

    @property
    @abstractmethod
    def num_subspaces(self) -> int:
        """How many codes a vector has."""

    @property
    @abstractmethod
    def num_codes(self) -> int:
        """How many different codes there are at each position."""

    @property
    @abstractmethod
    def vector_dims(self) -> int: ...

    @property
    @abstractmethod
    def arrays(self) -> dict[str, Floats]:
        """What a file of it holds, by name."""

    @abstractmethod
    def codes_of(self, vectors: NDArray[np.floating]) -> NDArray[np.uint16]:
        """Codes of vectors, each by itself: (n, d) -> (n, num_subspaces) uint16.

        Raises ValueError when d is not that of the fitted vectors.
        """

    @abstractmethod
    def nearness_of_last(self, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
        """(n, num_codes): how near each code of the last subspace is; the largest is the code."""

    @abstractmethod
    def vectors_with(self, codes: NDArray[np.uint16]) -> Floats:
        """About the vectors that have these SIDs: (n, num_positions) -> (n, d) float32."""

    @property
    def num_positions(self) -> int:
        """How many codes a SID has: one more than a vector if there is a digit."""
        return self.num_subspaces + (self.collisions == "digit")

    @property
    def refusal(self) -> str:
        """Why a codebook without `content` takes no embeddings, for the end of a sentence."""
        return "its item vectors hold no content, or content that was made from titles by TF-IDF"

    def content_of(self, embeddings: NDArray[np.floating]) -> Floats:
        """Content parts of vectors, (n, content_dims) float32.

        embeddings: (n, embedding_dims), made as in training.
        Raises ValueError as `ContentProjection.vectors_of` does, or when there is no projection.
        """
        if self.content is None:
            raise ValueError(f"this codebook takes no embeddings: {self.refusal}")
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

    def sids_of(
        self, vectors: NDArray[np.floating], taken: NDArray[np.uint16]
    ) -> NDArray[np.uint16]:
        """SIDs of items that join others: (n, d) -> (n, num_positions) uint16.

        taken: (m, num_positions), the SIDs that are there
        If SIDs are not shared, each item gets one that is free: the lowest digit, or the nearest
        last code. They get theirs one after the other, so it is the same in one call or many. An
        item for which nothing is free shares the SID that it would have got first.
        Raises ValueError as `codes_of` does.
        """
        return self.free_sids_of(self.codes_of(vectors), vectors, taken)

    def free_sids_of(
        self,
        codes: NDArray[np.uint16],
        vectors: NDArray[np.floating],
        taken: NDArray[np.uint16],
    ) -> NDArray[np.uint16]:
        """The same for items whose codes are known: (n, num_subspaces)."""
        wanted = with_digit(codes, self.collisions)
        if self.collisions == "keep":
            return wanted

        def nearness_of(part: slice) -> NDArray[np.float64]:
            if self.collisions == "digit":
                return by_number(len(vectors[part]), self.num_codes)
            return self.nearness_of_last(vectors[part])

        return free_sids(wanted, taken, nearness_of)

    def _check_content(self) -> None:
        if self.content is not None and len(self.content.components) > self.vector_dims:
            raise ValueError("the content part cannot have more dimensions than the vectors")

    def _check_dims(self, vectors: NDArray[np.floating]) -> None:
        if vectors.ndim != 2 or vectors.shape[1] != self.vector_dims:
            raise ValueError(
                f"the codebook encodes (n, {self.vector_dims}) vectors, not {vectors.shape}"
            )


def chunks_of(rows: NDArray[np.floating]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """CHUNK_ROWS rows at a time, rounded to float32 and given as float64, with their slice."""
    for start in range(0, len(rows), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        yield part, rows[part].astype(np.float32).astype(np.float64)


def check_floats(name: str, array: Floats) -> None:
    if array.dtype != np.float32 or not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite float32 numbers")
