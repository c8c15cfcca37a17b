"""The catalogue: every item with its SID, as arrays indexed by row.

Rows are ordered by popularity (training interactions, most first), then `item_id`. So items of
equal score come out more popular first when ties go to the lower row, and the first rows are the
popular items. Knows nothing of titles, users or networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Items and their SIDs.

    item_ids:   num_items distinct strings, by row
    codes:      (num_items, num_subspaces) uint16, each below num_codes
    popularity: (num_items,) int64, training interactions of each row, never increasing
    vectors:    (num_items, d) float16, what the encoder sees beside codes; none given = d is 0
    row_of:     row of each item_id; none given = made of item_ids, which must then be distinct
    Raises ValueError when the arrays do not fit together.
    """

    item_ids: Sequence[str]
    codes: NDArray[np.uint16]
    num_codes: int
    popularity: NDArray[np.int64]
    vectors: NDArray[np.float16] = field(default_factory=lambda: np.empty((0, 0), np.float16))
    row_of: Mapping[str, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or self.codes.dtype != np.uint16:
            raise ValueError("codes must be a (num_items, num_subspaces) uint16 array")
        if len(self.item_ids) != len(self.codes) or len(self.popularity) != len(self.codes):
            raise ValueError("item_ids, codes and popularity must have one entry per item")
        if self.popularity.ndim != 1 or not np.issubdtype(self.popularity.dtype, np.integer):
            raise ValueError("popularity must be a (num_items,) array of integers")
        if not self.item_ids:
            raise ValueError("the catalogue has no items")
        if not self.vectors.size:
            object.__setattr__(self, "vectors", np.empty((len(self.codes), 0), np.float16))
        if self.vectors.ndim != 2 or self.vectors.dtype != np.float16:
            raise ValueError("vectors must be a (num_items, d) float16 array")
        if len(self.vectors) != len(self.codes):
            raise ValueError("vectors must have one row per item")
        if not np.isfinite(self.vectors).all():
            raise ValueError("vectors must be finite")
        if int(self.codes.max()) >= self.num_codes:
            raise ValueError(f"codes must be below num_codes = {self.num_codes}")
        if np.any(np.diff(self.popularity) > 0):
            raise ValueError("rows must be ordered by popularity, most popular first")
        if not self.row_of:
            row_of = {item_id: row for row, item_id in enumerate(self.item_ids)}
            object.__setattr__(self, "row_of", row_of)
        if len(self.row_of) != len(self.item_ids):
            raise ValueError("item_ids must be distinct")

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    @property
    def num_subspaces(self) -> int:
        return int(self.codes.shape[1])

    def rows_of(self, item_ids: Iterable[str]) -> NDArray[np.int32]:
        """Rows of the item_ids in the catalogue, in the order given; unknown ones are dropped."""
        found = (self.row_of.get(item_id) for item_id in item_ids)
        return np.fromiter((row for row in found if row is not None), dtype=np.int32)
