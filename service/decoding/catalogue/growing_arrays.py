"""Memory that catalogues which grew one from another share, so that growing copies nothing.

What comes later is written behind what is there; each catalogue sees no further than its own end.
What somebody sees never changes: only the newest grows in place, who grows from an older one gets a
copy. Several threads may call. Knows nothing of what the rows mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from threading import Lock
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from service.decoding.catalogue.yielding import unhurried

T = TypeVar("T")

ROOM = 2  # an array has room for one row in so many more; memory is taken as it is written
_GROWING = Lock()  # one for all: who grows waits until another one has grown


class SharedRows:
    """An array with room behind the rows that are used.

    rows: (n, ...) those at first, copied
    """

    def __init__(self, rows: NDArray[Any], capacity: int | None = None) -> None:
        self._used = len(rows)
        capacity = self._used + self._used // ROOM if capacity is None else capacity
        self._array = np.empty((capacity, *rows.shape[1:]), rows.dtype)
        self._array[: self._used] = rows

    def first(self, length: int) -> NDArray[Any]:
        """(length, ...) a view, not to be written to."""
        return self._array[:length]

    def with_rows(self, seen: int, new: NDArray[Any]) -> SharedRows:
        """What begins with the first `seen` rows and goes on with new ones; itself if it can be."""
        stop = seen + len(new)
        with _GROWING:
            if seen == self._used and stop <= len(self._array):
                self._array[seen:stop] = new
                self._used = stop
                return self
        copy = SharedRows(self.first(seen), stop + stop // ROOM)
        copy._array[seen:stop] = new
        copy._used = stop
        return copy


class SharedList(Sequence[T]):
    """The beginning of a list that others go on with."""

    def __init__(self, items: Iterable[T]) -> None:
        self._list = list(items)
        self._length = len(self._list)

    def with_items(self, new: Iterable[T]) -> SharedList[T]:
        """This and new items behind it; this one stays as it is."""
        with _GROWING:
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
    """Rows of the items that were added, by item_id: each catalogue heeds those below its own end.

    row_of: not to be written to
    """

    def __init__(self, row_of: dict[str, int], end: int) -> None:
        """end: the row behind all of them."""
        self.row_of = row_of
        self._end = end

    def with_items(self, seen: int, item_ids: Sequence[str]) -> SharedIndex:
        """The rows below `seen`, and those of new items from there on; itself if it can be."""
        rows = range(seen, seen + len(item_ids))
        with _GROWING:
            grown = self
            if seen != self._end:
                below = {item_id: row for item_id, row in self.row_of.items() if row < seen}
                grown = SharedIndex(below, seen)
            for item_id, row in unhurried(zip(item_ids, rows, strict=True)):
                grown.row_of[item_id] = row
            grown._end = rows.stop
        return grown
