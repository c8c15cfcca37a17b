"""Arrays, lists and an index that grow at their end, and that old and new catalogues share.

A catalogue never changes. One with more items is a new value. Nothing is copied for it: its items
are written behind those of the old one, in the same memory, and each catalogue reads up to its own
end only. Only the newest grows in place; one that grows from an older one gets a copy. Several
threads may call. Knows nothing of what the rows mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from threading import Lock
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from service.decoding.catalogue.pauses import with_pauses

T = TypeVar("T")

SPARE = 2  # spare room: one row for every two. The system gives memory only when it is written
_GROW_LOCK = Lock()  # one for all objects: one grows at a time


class SharedRows:
    """An array with spare room behind the rows that are used.

    rows: (n, ...) the first rows, which are copied
    """

    def __init__(self, rows: NDArray[Any], capacity: int | None = None) -> None:
        self._used = len(rows)
        capacity = self._used + self._used // SPARE if capacity is None else capacity
        self._array = np.empty((capacity, *rows.shape[1:]), rows.dtype)
        self._array[: self._used] = rows

    @classmethod
    def over(cls, array: NDArray[Any], used: int) -> SharedRows:
        """An array with room behind its first `used` rows: it is not copied."""
        rows = object.__new__(cls)
        rows._array, rows._used = array, used
        return rows

    def first(self, length: int) -> NDArray[Any]:
        """(length, ...) a view of the first rows; do not write to it."""
        return self._array[:length]

    def with_rows(self, seen: int, new: NDArray[Any]) -> SharedRows:
        """The first `seen` rows, then the new ones.

        This object itself, if `seen` is its end and there is room; else a copy with more room.
        """
        stop = seen + len(new)
        with _GROW_LOCK:
            if seen == self._used and stop <= len(self._array):
                self._array[seen:stop] = new
                self._used = stop
                return self
        copy = SharedRows(self.first(seen), stop + stop // SPARE)
        copy._array[seen:stop] = new
        copy._used = stop
        return copy


class SharedList(Sequence[T]):
    """A list that grows at its end; each object sees its own beginning of it."""

    def __init__(self, items: Iterable[T]) -> None:
        self._list = list(items)
        self._length = len(self._list)

    @classmethod
    def over(cls, growing: Any) -> SharedList[T]:
        """Of a sequence that has `extend`, and that nobody else extends: it is not copied."""
        shared = object.__new__(cls)
        shared._list, shared._length = growing, len(growing)
        return shared

    def with_items(self, new: Iterable[T]) -> SharedList[T]:
        """This list and new items behind it. This one does not change."""
        with _GROW_LOCK:
            base = self if self._length == len(self._list) else SharedList(self)
            base._list.extend(new)
            grown = object.__new__(SharedList)
            grown._list, grown._length = base._list, len(base._list)
            return grown

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        within = range(self._length)[index]
        return self._list[within] if isinstance(within, int) else [self._list[i] for i in within]

    def __iter__(self) -> Iterator[T]:
        return islice(self._list, self._length)


class SharedIndex:
    """Rows of items that were added, by item_id; a catalogue ignores rows behind its own end.

    row_of: do not write to it
    """

    def __init__(self, row_of: dict[str, int], end: int) -> None:
        """end: the row after the last one."""
        self.row_of = row_of
        self._end = end

    def with_items(self, seen: int, item_ids: Sequence[str]) -> SharedIndex:
        """The rows below `seen`, and the new items from there on.

        This object itself, if `seen` is its end; else a copy.
        """
        rows = range(seen, seen + len(item_ids))
        with _GROW_LOCK:
            grown = self
            if seen != self._end:
                below = {item_id: row for item_id, row in self.row_of.items() if row < seen}
                grown = SharedIndex(below, seen)
            for item_id, row in with_pauses(zip(item_ids, rows, strict=True)):
                grown.row_of[item_id] = row
            grown._end = rows.stop
        return grown
