"""Items as people know them: titles, and attributes that a request can filter by.

`ATTRIBUTES` is the list of attributes. An `AttributeIndex` knows which rows have each value of each
attribute. It keeps them as ascending posting lists in CSR form: four bytes for each value of an
item, however many values there are. This module also decides which text of an item is embedded, for
training and for items that are added later. Knows nothing of SIDs, scores or HTTP.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, TypeAdapter

from service.decoding.catalogue import with_pauses

Rows = NDArray[np.int32]

PATH_SEPARATOR = " > "
MAX_ITEM_ID_CHARS = 256
MAX_DEPTH = 50  # of a path of categories; each step is a value of its own


def _check_depth(path: str) -> str:
    if path.count(PATH_SEPARATOR) >= MAX_DEPTH:
        raise ValueError(f"a path of categories may have {MAX_DEPTH} steps")
    return path


# A client could not ask for other ids: see `ItemId` in service/schemas/fields.py.
StoredItemId = Annotated[
    str,
    StringConstraints(
        strict=True, min_length=1, max_length=MAX_ITEM_ID_CHARS, pattern=r"^[^\x00-\x1f\x7f]+$"
    ),
]


@dataclass(frozen=True, slots=True)
class Item:
    """What is shown of an item. The rest of the system knows only its row.

    `ITEM` checks the bounds of an item that is read. A program that makes an Item need not check
    them.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    item_id: StoredItemId
    title: Annotated[str, StringConstraints(strict=True, max_length=10_000)]
    categories: Annotated[
        tuple[
            Annotated[
                str, StringConstraints(strict=True, max_length=10_000), AfterValidator(_check_depth)
            ],
            ...,
        ],
        Field(max_length=1000),  # in JSON it is a list
    ]


ITEM = TypeAdapter(Item)


@dataclass(frozen=True, eq=False)
class HiddenItems:
    """Items of a catalogue that are not recommended for a while. They keep their rows.

    rows:    (n,) int32, ascending
    until_s: (n,) float64, Unix seconds at which each comes back; inf = when somebody says so
    version: which changes of hidden items this has, see `service.loading.hiding`
    """

    rows: Rows = field(default_factory=lambda: np.empty(0, np.int32))
    until_s: NDArray[np.float64] = field(default_factory=lambda: np.empty(0, np.float64))
    version: int = 0

    def rows_at(self, now_s: float) -> Rows:
        """Ascending rows of the items that are hidden at that time."""
        return self.rows[self.until_s > now_s] if len(self.rows) else self.rows


def text_of(item: Item) -> str:
    """The text of an item that is embedded: "title. categories"; "" when it has neither.

    The manifest calls it CONTENT_TEXT. Another text would need another name.
    """
    return ". ".join(filter(None, (item.title, ", ".join(item.categories))))


def with_ancestors(paths: Iterable[str]) -> Iterator[str]:
    """`Books` and `Books > Poetry` for `Books > Poetry`. Some may occur twice."""
    for path in paths:
        parts = path.split(PATH_SEPARATOR)
        for depth in range(1, len(parts) + 1):
            yield PATH_SEPARATOR.join(parts[:depth])


# The values that an item has of each attribute. Empty texts are no values.
ATTRIBUTES: Mapping[str, Callable[[Item], Iterable[str]]] = {
    "category": lambda item: with_ancestors(item.categories),
}


class AttributeIndex:
    """Which rows have which values. Immutable: added or removed items make a new index."""

    def __init__(self, num_items: int, postings: Mapping[str, _Postings]) -> None:
        """postings: by attribute, for those of ATTRIBUTES"""
        self._num_items = num_items
        self._postings = postings

    @classmethod
    def of(cls, items: Sequence[Item]) -> Self:
        """The index of these items, one per row."""
        nothing = _Postings({}, np.zeros(1, np.int64), np.empty(0, np.int32))
        return cls(0, dict.fromkeys(ATTRIBUTES, nothing))._with(items, iter)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(own.indptr.nbytes + own.rows.nbytes for own in self._postings.values())

    def allowed(self, wanted: Mapping[str, Collection[str]]) -> Rows:
        """The rows that have, of every attribute in `wanted`, one of its values: (n,) int32,
        ascending.

        Unknown values match nothing. Raises KeyError for an unknown attribute.
        """
        allowed: Rows | None = None
        for attribute, values in wanted.items():
            lists = self._postings[attribute].lists_of(values)
            if allowed is None and len(lists) == 1:
                allowed = lists[0]
                continue
            has_value = np.zeros(self._num_items, np.bool_)
            for rows in lists:
                has_value[rows] = True
            if allowed is None:
                allowed = np.flatnonzero(has_value).astype(np.int32)
            else:
                allowed = allowed[has_value[allowed]]
        return np.arange(self._num_items, dtype=np.int32) if allowed is None else allowed

    def with_items(self, items: Sequence[Item]) -> Self:
        """The index with these items after its own. Made slowly, like `Catalogue.with_items`."""
        return self._with(items, with_pauses)

    def _with(
        self, items: Sequence[Item], pace: Callable[[Sequence[Item]], Iterator[Item]]
    ) -> Self:
        postings = {
            attribute: own.with_values(map(ATTRIBUTES[attribute], pace(items)), self._num_items)
            for attribute, own in self._postings.items()
        }
        return type(self)(self._num_items + len(items), postings)

    def without_rows(self, removed: Rows) -> Self:
        """The index without these rows. Later rows move up. See `Catalogue.without_items`."""
        kept = np.ones(self._num_items, np.bool_)
        kept[removed] = False
        postings = {name: own.of_kept(kept) for name, own in self._postings.items()}
        return type(self)(int(np.count_nonzero(kept)), postings)


@dataclass(frozen=True, eq=False)
class _Postings:
    """The rows that have each value of one attribute.

    number_of: the number of each value, from 0
    indptr: (values + 1,) int64: rows[indptr[n]:indptr[n + 1]] have value n
    rows:   (n,) int32, ascending within a value
    """

    number_of: Mapping[str, int]
    indptr: NDArray[np.int64]
    rows: Rows

    def lists_of(self, values: Collection[str]) -> list[Rows]:
        """The posting list of each known value."""
        numbers = {self.number_of[value] for value in values if value in self.number_of}
        return [self.rows[self.indptr[n] : self.indptr[n + 1]] for n in numbers]

    def with_values(self, values_of_items: Iterable[Iterable[str]], first_row: int) -> _Postings:
        """These postings and those of more items, whose rows begin at first_row."""
        number_of = dict(self.number_of)
        numbers, rows = array("i"), array("i")  # lists would take ten times the memory
        for row, values in enumerate(values_of_items, start=first_row):
            for value in dict.fromkeys(values):
                if value:
                    numbers.append(number_of.setdefault(value, len(number_of)))
                    rows.append(row)
        new, new_rows = np.array(numbers, np.int32), np.array(rows, np.int32)
        order = np.argsort(new, kind="stable")
        num_more = len(number_of) - len(self.number_of)
        indptr = np.pad(self.indptr, (0, num_more), mode="edge")
        all_rows = np.insert(self.rows, indptr[1:][new[order]], new_rows[order])
        indptr[1:] += np.bincount(new, minlength=len(number_of)).cumsum()
        return _Postings(number_of, indptr, all_rows)

    def of_kept(self, kept: NDArray[np.bool_]) -> _Postings:
        """The postings of the rows that are kept, which get new numbers. kept: (num_items,) bool"""
        stay = kept[self.rows]
        before = np.concatenate(([0], stay.cumsum()))
        new_row_of = np.cumsum(kept, dtype=np.int32) - np.int32(1)
        return _Postings(self.number_of, before[self.indptr], new_row_of[self.rows[stay]])
