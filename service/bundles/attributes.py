"""Which items have which attributes, so that a request can filter by them.

`category` is there in every bundle. The others are a shop's own, each of one type: text (several
values an item, if there are), number, or date. An `AttributeIndex` keeps texts as ascending posting
lists in CSR form, four bytes for each value of an item, and numbers and dates as columns of eight
bytes for each item. Knows nothing of SIDs, scores or requests.
"""

from __future__ import annotations

from array import array
from collections.abc import (
    Callable,
    Collection,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from typing import Self

import numpy as np
from numpy.typing import NDArray

from service.bundles.items import CATEGORY, AttributeType, AttributeValue, Item, with_ancestors
from service.bundles.remembered_rows import RememberedRows
from service.decoding.catalogue import with_pauses

Rows = NDArray[np.int32]
COMPARISONS = {
    "gt": np.greater,
    "gte": np.greater_equal,
    "lt": np.less,
    "lte": np.less_equal,
}
MOST_SPELLINGS = 20_000  # values of an attribute among which one that is spelt alike is named
MAX_HINTS = 10
MOST_GROUPS = 12  # of the values of an attribute of texts
NUM_RANGES = 8  # of numbers and dates
NEARLY_ALL = 0.6  # a value that more rows than this have says little
IN_NONE = 65_535  # no number of a group
REMEMBERED_BYTES_PER_ITEM = 32  # of the rows of filters: eight that allow nearly all items
LEAST_REMEMBERED = 2**20  # in bytes, of any catalogue


@dataclass(frozen=True)
class Condition:
    """What an item must have of an attribute. All that is given must hold.

    any_of: one of these values; None = whatever it has
    none_of: none of these values. An item that has no value at all passes
    bounds: of a number, or of a date in seconds since 1970, by the names of COMPARISONS. An item
        without one does not pass
    """

    any_of: Sequence[str | float] | None = None
    none_of: Sequence[str | float] = ()
    bounds: Mapping[str, float] = field(default_factory=dict)


class AttributeIndex:
    """Which rows have which values. Immutable: added or removed items make a new index.

    It remembers the rows of filters that were asked for lately; a new index remembers none.
    """

    def __init__(self, num_items: int, parts: Mapping[str, _Postings | _Column]) -> None:
        """parts: by attribute"""
        self._num_items = num_items
        self._parts = parts
        most_bytes = max(LEAST_REMEMBERED, REMEMBERED_BYTES_PER_ITEM * num_items)
        self._remembered = RememberedRows(most_bytes)

    @classmethod
    def of(cls, items: Sequence[Item], types: Mapping[str, AttributeType] | None = None) -> Self:
        """The index of these items, one per row. types: of the attributes beside `category`"""
        parts: dict[str, _Postings | _Column] = {}
        for name, kind in {CATEGORY: "text", **(types or {})}.items():
            parts[name] = _Postings.empty() if kind == "text" else _Column.empty(kind == "date")
        return cls(0, parts)._with(items, iter)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(part.nbytes for part in self._parts.values())

    def allowed(self, wanted: Mapping[str, Condition]) -> Rows:
        """The rows that fulfil every condition, by attribute: (n,) int32, ascending.

        Unknown values match nothing. Raises KeyError for an unknown attribute. The rows of filters
        that were asked for lately are remembered, so the array cannot be written to.
        """
        asked = _key_of(wanted)
        if (remembered := self._remembered.get(asked)) is not None:
            return remembered
        allowed: Rows | None = None
        for name in sorted(wanted, key=lambda name: isinstance(self._parts[name], _Column)):
            allowed = self._parts[name].matching(wanted[name], allowed, self._num_items)
        if allowed is None:
            allowed = np.arange(self._num_items, dtype=np.int32)
        return self._remembered.put(asked, _key_bytes(wanted), allowed)

    def remembers(self, wanted: Mapping[str, Condition]) -> bool:
        """Whether `allowed` answers at once, because this filter was asked for lately."""
        return self._remembered.get(_key_of(wanted)) is not None

    def hints(self, wanted: Mapping[str, Condition], *, any_left: bool) -> list[str]:
        """A sentence for every text that no item has, and for every range without an item.

        At most MAX_HINTS of them.
        any_left: whether some item fulfils all conditions; then no range is without
        """
        found = (
            f"filter.{name}: {hint}"
            for name, condition in wanted.items()
            if not (any_left and isinstance(self._parts[name], _Column))
            for hint in self._parts[name].hints(condition)
        )
        return list(islice(found, MAX_HINTS))

    def groups(self, name: str, num_rows: int) -> tuple[NDArray[np.uint16], list[str], bool]:
        """Groups of the first rows by an attribute, at most MOST_GROUPS.

        Returns the number of each row's group, (num_rows,) uint16, IN_NONE if it is in none; the
        names of the groups; and whether these are ranges, the lowest first. Of texts, the groups
        are the values that most rows have, without those that nearly all have, unless there are no
        others; a row with several is in the rarest. Raises KeyError for an unknown attribute.
        """
        return self._parts[name].groups(num_rows)

    def num_with(self, name: str, values: Iterable[str]) -> list[int]:
        """How many items have each of these texts. Raises KeyError for an unknown attribute."""
        part = self._parts[name]
        return [len(part.matching(Condition([value]), None, 0)) for value in values]

    def with_items(self, items: Sequence[Item]) -> Self:
        """The index with these items after its own. Made slowly, like `Catalogue.with_items`."""
        return self._with(items, with_pauses)

    def _with(
        self, items: Sequence[Item], pace: Callable[[Sequence[Item]], Iterator[Item]]
    ) -> Self:
        parts = {
            name: part.with_values((values_of(item, name) for item in pace(items)), self._num_items)
            for name, part in self._parts.items()
        }
        return type(self)(self._num_items + len(items), parts)

    def forgetting(self) -> Self:
        """The same index, which remembers no filter."""
        return type(self)(self._num_items, self._parts)

    def without_rows(self, removed: Rows) -> Self:
        """The index without these rows. Later rows move up. See `Catalogue.without_items`."""
        kept = np.ones(self._num_items, np.bool_)
        kept[removed] = False
        parts = {name: part.of_kept(kept) for name, part in self._parts.items()}
        return type(self)(int(np.count_nonzero(kept)), parts)


def _key_of(wanted: Mapping[str, Condition]) -> Hashable:
    """Equal for filters that ask for the same, in whatever order."""
    return frozenset(
        (
            name,
            None if one.any_of is None else frozenset(one.any_of),
            frozenset(one.none_of),
            frozenset(one.bounds.items()),
        )
        for name, one in wanted.items()
    )


def _key_bytes(wanted: Mapping[str, Condition]) -> int:
    """About the memory of what a filter asks for."""
    values = [value for one in wanted.values() for value in (*(one.any_of or ()), *one.none_of)]
    return 1000 * (1 + len(wanted)) + sum(100 + 4 * len(str(value)) for value in values)


def values_of(item: Item, name: str) -> Iterable[str] | float | None:
    """What an item has of an attribute: texts, or a number, or None. Empty texts are no values."""
    if name == CATEGORY:
        return with_ancestors(item.categories)
    value = (item.attributes or {}).get(name)
    return seconds_of(value) if isinstance(value, str) else value


def types_of(items: Iterable[Item]) -> dict[str, AttributeType]:
    """The type of each attribute of these items, `category` left out, sorted by name.

    Raises ValueError if two items have values of different types.
    """
    types: dict[str, AttributeType] = {}
    for item in items:
        for name, value in (item.attributes or {}).items():
            kind = type_of(value)
            if types.setdefault(name, kind) != kind:
                raise ValueError(
                    f"item {item.item_id!r} has a {kind} as its {name}, others a {types[name]}"
                )
    return dict(sorted(types.items()))


def check_types(items: Iterable[Item], types: Mapping[str, AttributeType]) -> None:
    """Raise ValueError for the first item with an attribute that is unknown or of another type."""
    for item in items:
        for name, value in (item.attributes or {}).items():
            if types.get(name) != type_of(value):
                known = f"a {types[name]}" if name in types else "unknown"
                raise ValueError(
                    f"item {item.item_id!r}: the attribute {name} is {known}, not a "
                    f"{type_of(value)}"
                )


def type_of(value: AttributeValue) -> AttributeType:
    """Texts are lists, dates are texts in ISO 8601."""
    if isinstance(value, str):
        return "date"
    return "number" if isinstance(value, float | int) else "text"


def seconds_of(date: str) -> float:
    """Seconds since 1970 of a date in ISO 8601. Without a zone it is UTC. Raises ValueError."""
    moment = datetime.fromisoformat(date)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@dataclass(frozen=True, eq=False)
class _Postings:
    """The rows that have each value of a text attribute.

    number_of: the number of each value, from 0
    indptr: (values + 1,) int64: rows[indptr[n]:indptr[n + 1]] have value n
    rows:   (n,) int32, ascending within a value
    """

    number_of: Mapping[str, int]
    indptr: NDArray[np.int64]
    rows: Rows

    @classmethod
    def empty(cls) -> _Postings:
        return cls({}, np.zeros(1, np.int64), np.empty(0, np.int32))

    @property
    def nbytes(self) -> int:
        return self.indptr.nbytes + self.rows.nbytes

    def matching(self, condition: Condition, among: Rows | None, num_items: int) -> Rows:
        """The rows of `among`, None = all, that fulfil a condition; ascending."""
        if condition.any_of is not None:
            lists = self._lists_of(condition.any_of)
            if among is None and len(lists) == 1:
                among = lists[0]
            else:
                among = _among(among, _marked(lists, num_items))
        if condition.none_of:
            among = _among(among, ~_marked(self._lists_of(condition.none_of), num_items))
        return np.arange(num_items, dtype=np.int32) if among is None else among

    def groups(self, num_rows: int) -> tuple[NDArray[np.uint16], list[str], bool]:
        values = np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))
        shown = self.rows < num_rows
        rows, values = self.rows[shown], values[shown]
        counts = np.bincount(values, minlength=len(self.number_of))
        order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        telling = order[counts[order] <= NEARLY_ALL * num_rows]
        order = (telling if len(telling) else order)[:MOST_GROUPS]
        groups = np.full(num_rows, IN_NONE, np.uint16)
        for group, number in enumerate(order.tolist()):  # a rarer one is written over the others
            groups[rows[values == number]] = group
        names = list(self.number_of)
        return groups, [names[number] for number in order.tolist()], False

    def hints(self, condition: Condition) -> Iterator[str]:
        values = (*(condition.any_of or ()), *condition.none_of)
        for value in map(str, values):
            if not self._is_there(value):
                near = self._by_letters.get(_letters_of(value))
                yield f"no item has {value!r}" + (f"; near it is {near!r}" if near else "")

    def _is_there(self, value: str) -> bool:
        """Whether an item has it; items that had it may be gone."""
        number = self.number_of.get(value, -1)
        return number >= 0 and bool(self.indptr[number] < self.indptr[number + 1])

    @cached_property
    def _by_letters(self) -> dict[str, str]:
        """Values by their letters and digits, if there are not too many."""
        if len(self.number_of) > MOST_SPELLINGS:
            return {}
        return {_letters_of(value): value for value in self.number_of if self._is_there(value)}

    def _lists_of(self, values: Collection[object]) -> list[Rows]:
        """The posting list of each known value."""
        numbers = {self.number_of[str(value)] for value in values if value in self.number_of}
        return [self.rows[self.indptr[n] : self.indptr[n + 1]] for n in numbers]

    def with_values(
        self, values_of_items: Iterable[Iterable[str] | float | None], first_row: int
    ) -> _Postings:
        """These postings and those of more items, whose rows begin at first_row."""
        number_of = dict(self.number_of)
        numbers, rows = array("i"), array("i")  # lists would take ten times the memory
        for row, values in enumerate(values_of_items, start=first_row):
            if not isinstance(values, Iterable):
                continue
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


@dataclass(frozen=True, eq=False)
class _Column:
    """The number of every row, or its date in seconds since 1970; NaN = none.

    values: (num_items,) float64
    """

    values: NDArray[np.float64]
    is_date: bool

    @classmethod
    def empty(cls, is_date: bool) -> _Column:
        return cls(np.empty(0, np.float64), is_date)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    def matching(self, condition: Condition, among: Rows | None, num_items: int) -> Rows:
        """As `_Postings.matching`. A comparison with NaN is false, so rows without one are out."""
        values = self.values if among is None else self.values[among]
        passes = np.ones(len(values), np.bool_)
        if condition.any_of is not None:
            passes &= np.isin(values, np.array(condition.any_of, np.float64))
        if condition.none_of:
            passes &= ~np.isin(values, np.array(condition.none_of, np.float64))
        for name, bound in condition.bounds.items():
            passes &= COMPARISONS[name](values, bound)
        return np.flatnonzero(passes).astype(np.int32) if among is None else among[passes]

    def groups(self, num_rows: int) -> tuple[NDArray[np.uint16], list[str], bool]:
        values = self.values[:num_rows]
        known = np.sort(values[~np.isnan(values)])
        groups = np.full(num_rows, IN_NONE, np.uint16)
        if not len(known):
            return groups, [], True
        places = np.arange(NUM_RANGES) * len(known) // NUM_RANGES
        starts = np.unique(known[places])  # of ranges with about as many rows each
        found = np.searchsorted(starts, values, side="right") - 1
        groups[~np.isnan(values)] = found[~np.isnan(values)]
        ends = known[np.append(np.searchsorted(known, starts[1:]) - 1, -1)]
        names = [
            self._shown(least) if least == most else f"{self._shown(least)} to {self._shown(most)}"
            for least, most in zip(starts.tolist(), ends.tolist(), strict=True)
        ]
        return groups, names, True

    def hints(self, condition: Condition) -> Iterator[str]:
        if len(self.matching(condition, None, len(self.values))):
            return
        known = self.values[~np.isnan(self.values)]
        if not len(known):
            yield "no item has one"
        else:
            least, most = map(self._shown, (known.min(), known.max()))
            yield f"no item matches; they have {least} to {most}"

    def _shown(self, value: float) -> str:
        if not self.is_date:
            return f"{value:g}"
        try:
            moment = datetime.fromtimestamp(value, UTC)
        except (ValueError, OverflowError):  # beyond the years 1 to 9999 in UTC
            return f"{value:g} seconds since 1970"
        return moment.isoformat().removesuffix("+00:00") + "Z"

    def with_values(
        self, values_of_items: Iterable[Iterable[str] | float | None], first_row: int
    ) -> _Column:
        more = [
            value if isinstance(value, float | int) else np.nan  # a text would be refused before
            for value in values_of_items
        ]
        values = np.concatenate((self.values, np.array(more, np.float64)))
        return _Column(values, self.is_date)

    def of_kept(self, kept: NDArray[np.bool_]) -> _Column:
        return _Column(self.values[kept], self.is_date)


def _letters_of(text: str) -> str:
    """What is left of a text without capitals, spaces and signs."""
    return "".join(filter(str.isalnum, text.casefold()))


def _marked(lists: Sequence[Rows], num_items: int) -> NDArray[np.bool_]:
    """The rows that are in one of the lists: (num_items,) bool."""
    marked = np.zeros(num_items, np.bool_)
    for rows in lists:
        marked[rows] = True
    return marked


def _among(among: Rows | None, marked: NDArray[np.bool_]) -> Rows:
    """The rows of `among`, None = all, that are marked."""
    return np.flatnonzero(marked).astype(np.int32) if among is None else among[marked[among]]
