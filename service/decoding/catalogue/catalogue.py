"""The catalogue: every item with its SID, as arrays indexed by row.

Rows are ordered by popularity (training interactions, most first), then by `item_id`. So the first
rows are the popular items, and ties that go to the lower row go to the more popular item. Items
that are added later have no popularity and get the last rows. Knows nothing of titles, users or
networks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.decoding.catalogue.growing_arrays import SharedIndex, SharedList, SharedRows
from service.decoding.catalogue.pauses import with_pauses

Codes = NDArray[np.uint16]
Vectors = NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Items and their SIDs.

    item_ids:   num_items distinct strings, by row
    codes:      (num_items, num_subspaces) uint16, each below num_codes
    popularity: (num_items,) int64, training interactions of each row, never increasing
    vectors:    (num_items, d) float16, what the encoder sees beside codes; none given = d is 0
    row_of:     row of each item_id. None given = made of item_ids, which must then be distinct.
        Catalogues that grew from this one share it; it does not hold the items that were added to
        them
    content_dims: how many of the first numbers of a vector are its content; 0 = not known
    Raises ValueError when the arrays do not fit together.
    """

    item_ids: Sequence[str]
    codes: NDArray[np.uint16]
    num_codes: int
    popularity: NDArray[np.int64]
    vectors: NDArray[np.float16] = field(default_factory=lambda: np.empty((0, 0), np.float16))
    row_of: Mapping[str, int] = field(default_factory=dict, repr=False)
    content_dims: int = 0
    _shared: _SharedArrays | None = field(init=False, repr=False, default=None)

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
        if not 0 <= self.content_dims <= self.vectors.shape[1]:
            raise ValueError("the content must be a part of the vectors")
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
    def num_known(self) -> int:
        """How many items had interactions in training. They have the first rows."""
        rows = range(self.num_items)
        return bisect_left(rows, True, key=lambda row: self.popularity[row] == 0)

    @property
    def num_subspaces(self) -> int:
        return int(self.codes.shape[1])

    def rows_of(self, item_ids: Iterable[str]) -> NDArray[np.int32]:
        """Rows of the item_ids in the catalogue, in the order given; unknown ones are dropped."""
        return np.fromiter(self._known_rows(item_ids), np.int32)

    def _known_rows(self, item_ids: Iterable[str]) -> Iterator[int]:
        end, row_of = self.num_items, self.row_of.get
        added = self._shared.added.row_of.get if self._shared else _NOTHING_ADDED.get
        for item_id in item_ids:
            row = row_of(item_id, added(item_id, end))
            if row < end:
                yield row

    def over(self, codes: Codes, popularity: NDArray[np.int64], vectors: Vectors) -> Catalogue:
        """The same items in other memory, with room: these arrays begin with its own ones.

        item_ids must be a SharedList. Nothing is copied.
        """
        assert isinstance(self.item_ids, SharedList)
        num = self.num_items
        shared = _SharedArrays(
            self.item_ids,
            SharedRows.over(codes, num),
            SharedRows.over(popularity, num),
            SharedRows.over(vectors, num),
            SharedIndex({}, num),
        )
        return self._over(shared)

    def with_room(self) -> Catalogue:
        """The same items, copied once into arrays with room: `with_items` then copies nothing."""
        return self if self._shared else self._over(_SharedArrays.of(self))

    def with_items(
        self,
        item_ids: Sequence[str],
        codes: NDArray[np.uint16],
        vectors: NDArray[np.float16] | None = None,
    ) -> Catalogue:
        """A catalogue with these items behind its own rows. Its own rows keep their numbers.

        Arguments are as the fields of the class. Only the new items are checked. Raises ValueError
        when they do not fit, or when an item is there already.
        """
        if not item_ids:
            return self
        none = np.zeros(len(item_ids), np.int64)
        if vectors is None:
            vectors = np.empty((0, 0), np.float16)
        new = Catalogue(tuple(item_ids), codes, self.num_codes, none, vectors)
        if new.num_subspaces != self.num_subspaces:
            raise ValueError(f"codes must be of {self.num_subspaces} subspaces")
        if new.vectors.shape[1] != self.vectors.shape[1]:
            raise ValueError(f"vectors must have {self.vectors.shape[1]} dimensions")
        if len(known := self.rows_of(with_pauses(item_ids))):
            raise ValueError(f"item {self.item_ids[known[0]]!r} is in the catalogue already")
        shared = self._shared or _SharedArrays.of(self)
        return self._over(shared.with_items(self.num_items, new))

    def _over(self, shared: _SharedArrays) -> Catalogue:
        length = len(shared.item_ids)
        return _assembled(
            item_ids=shared.item_ids,
            codes=shared.codes.first(length),
            num_codes=self.num_codes,
            popularity=shared.popularity.first(length),
            vectors=shared.vectors.first(length),
            row_of=self.row_of,
            content_dims=self.content_dims,
            _shared=shared,
        )

    def without_items(self, item_ids: Collection[str]) -> Catalogue:
        """A catalogue without these items; later rows move up. Unknown item_ids are ignored.

        Raises ValueError when no item is left.
        """
        removed = self.rows_of(item_ids)
        if not len(removed):
            return self
        kept = np.delete(np.arange(self.num_items), removed)
        if not len(kept):
            raise ValueError("the catalogue has no items")
        left = tuple([self.item_ids[row] for row in kept.tolist()])
        return _assembled(
            item_ids=left,
            codes=self.codes.take(kept, axis=0),
            num_codes=self.num_codes,
            popularity=self.popularity.take(kept, axis=0),
            vectors=self.vectors.take(kept, axis=0),
            row_of={item_id: row for row, item_id in enumerate(left)},
            content_dims=self.content_dims,
            _shared=None,
        )


@dataclass(frozen=True)
class _SharedArrays:
    """The arrays that a catalogue shares with those that grow from it.

    added: rows of the items that `row_of` does not hold
    """

    item_ids: SharedList[str]
    codes: SharedRows
    popularity: SharedRows
    vectors: SharedRows
    added: SharedIndex

    @classmethod
    def of(cls, catalogue: Catalogue) -> _SharedArrays:
        return cls(
            SharedList(catalogue.item_ids),
            SharedRows(catalogue.codes),
            SharedRows(catalogue.popularity),
            SharedRows(catalogue.vectors),
            SharedIndex({}, catalogue.num_items),
        )

    def with_items(self, seen: int, new: Catalogue) -> _SharedArrays:
        return _SharedArrays(
            self.item_ids.with_items(new.item_ids),
            self.codes.with_rows(seen, new.codes),
            self.popularity.with_rows(seen, new.popularity),
            self.vectors.with_rows(seen, new.vectors),
            self.added.with_items(seen, new.item_ids),
        )


_NOTHING_ADDED: Mapping[str, int] = {}


def _assembled(**fields: object) -> Catalogue:
    """A catalogue of parts that were checked before: checking a million rows again takes long."""
    catalogue = object.__new__(Catalogue)
    for name, value in fields.items():
        object.__setattr__(catalogue, name, value)
    return catalogue
