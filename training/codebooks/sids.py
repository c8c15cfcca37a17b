"""From a codebook and vectors to the SIDs of a catalogue, and how many items share one.

Here alone is an order among items: rows are ordered by popularity, and of items with the same codes
the most popular keeps what it has. Later items get theirs in the service (`Codebook.sids_of`).
Knows no interactions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from service.decoding import Codebook
from service.decoding.catalogue import with_digit
from training.errors import DataError


def sids_of(codebook: Codebook, vectors: NDArray[np.float32], seed: int) -> NDArray[np.uint16]:
    """SIDs of all items: (num_items, d) -> (num_items, codebook.num_positions) uint16.

    vectors: most popular item first
    seed: of codes that are drawn at random
    If items shall not share a SID, the first item of each gets the one of its codes. Then the
    others choose, in the order of their rows, among those that are left.
    Raises DataError when there are more items with the same codes than a position can tell apart.
    """
    if codebook.kind == "random":
        shape = len(vectors), codebook.num_subspaces
        drawn = np.random.default_rng(seed).integers(0, codebook.num_codes, shape)
        codes = drawn.astype(np.uint16)
    else:
        codes = codebook.codes_of(vectors)
    sids = with_digit(codes, codebook.collisions)
    if codebook.collisions == "keep":
        return sids
    _check_room(sids, codebook)
    _, first = np.unique(sids, axis=0, return_index=True)
    others = np.setdiff1d(np.arange(len(sids)), first)
    sids[others] = codebook.free_sids_of(codes[others], vectors[others], sids[first])
    return sids


def _check_room(sids: NDArray[np.uint16], codebook: Codebook) -> None:
    """Raise DataError when a last position has fewer codes than items that must differ there."""
    if sids.shape[1] == 1:
        most = len(sids)
    else:
        most = int(np.unique(sids[:, :-1], axis=0, return_counts=True)[1].max())
    if most > codebook.num_codes:
        which = "all codes" if codebook.collisions == "digit" else "all codes but the last"
        raise DataError(
            f"codebook.collisions={codebook.collisions} cannot tell all items apart, because "
            f"{most} have the same in {which} and a position has {codebook.num_codes} codes; raise "
            "codebook.num_codes or codebook.num_subspaces, or set codebook.collisions=keep"
        )


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
