"""The large parts of a bundle as several processes have them in memory once.

`SharedParts` writes an array into a file of a private folder, unless another process has, and maps
it: readers share the memory, and what one process writes to it is its own. `MappedItems`, `ItemIds`
and `HashedRows` stand for a list of items, a tuple of item_ids and a dict of rows, which would be
millions of Python objects in every process. They take microseconds where those take nanoseconds.
Knows nothing of who shares.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from abc import abstractmethod
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import numpy as np
import structlog
from numpy.typing import NDArray
from pydantic_core import from_json

from service.bundles.items import ITEM, Item
from service.bundles.lines import ITEMS
from service.bundles.manifest import Manifest
from service.decoding import Catalogue
from service.decoding.catalogue import SharedList

Arrays = dict[str, NDArray[Any]]
SPARE = 2  # room for one more row for every two; it is memory only when it is written
GROWING = ("codes", "popularity", "vectors")  # items may be added to the catalogue

log = structlog.get_logger()


class OwnParts:
    """A bundle in the memory of one process."""

    def arrays(self, arrays: Arrays) -> Arrays:
        """The arrays of a bundle, by file name without suffix."""
        return arrays

    def item_ids(self, items: Iterable[Item]) -> tuple[Sequence[str], Mapping[str, int]]:
        """The item_ids by row, and the rows by item_id; empty = the catalogue makes it."""
        return tuple(item.item_id for item in items), {}

    def with_room(self, catalogue: Catalogue) -> Catalogue:
        """The catalogue, to which items can be added."""
        return catalogue.with_room()

    def items(
        self, items: SharedList[Item], data: bytes, *, while_alive: object
    ) -> SharedList[Item]:
        """The items. data: of their file; while_alive: goes with the bundle"""
        return items


class SharedParts(OwnParts):
    """A bundle of which several processes have arrays and items in memory once.

    folder: only these processes may enter it
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder = folder
        self._manifest = manifest
        self._paths: list[Path] = []
        self._with_room: dict[str, NDArray[Any]] = {}

    def arrays(self, arrays: Arrays) -> Arrays:
        num = self._manifest.num_items
        return {
            name: self._array(name, array)[:num] if len(array) == num else array
            for name, array in arrays.items()
        }

    def item_ids(self, items: Iterable[Item]) -> tuple[Sequence[str], Mapping[str, int]]:
        item_ids: SharedList[str] = SharedList.over(ItemIds([item.item_id for item in items]))
        return item_ids, HashedRows(item_ids)

    def with_room(self, catalogue: Catalogue) -> Catalogue:
        arrays = (self._with_room[name] for name in ("codes", "popularity", "vectors"))
        return catalogue.over(*arrays)

    def items(
        self, items: SharedList[Item], data: bytes, *, while_alive: object
    ) -> SharedList[Item]:
        # A process that ends leaves them to those that start later.
        weakref.finalize(while_alive, _delete, self._paths).atexit = False
        lines = data.splitlines(keepends=True)
        mapped = self._mapped(self._manifest.files[ITEMS].sha256, data, len(data))
        return SharedList.over(MappedItems(mapped or data, lines))

    def _array(self, name: str, given: NDArray[Any]) -> NDArray[Any]:
        """The array in shared memory, with room for more rows behind it if items may be added."""
        self._with_room[name] = given
        if not given.nbytes:
            return given
        num = len(given) + (len(given) // SPARE if name in GROWING else 0)
        num_bytes = given.nbytes // len(given) * num
        data = given.reshape(-1).view(np.uint8)
        mapped = self._mapped(self._manifest.files[f"{name}.npy"].sha256, data, num_bytes)
        if mapped is not None:
            array = np.frombuffer(mapped, given.dtype).reshape(num, *given.shape[1:])
            self._with_room[name] = array
        return self._with_room[name]

    def _mapped(self, name: str, given: Any, num_bytes: int) -> mmap.mmap | None:
        """A part of so many bytes, of which the first are given."""
        path = self._folder / f"{name}.part"
        try:
            if not path.exists():
                self._write(path, given, num_bytes)
            self._paths.append(path)
            with path.open("rb") as file:
                return mmap.mmap(file.fileno(), num_bytes, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:  # no space, or another process has just deleted it
            log.warning("memory_not_shared", part=name, reason=str(error))
            return None

    def _write(self, path: Path, given: Any, num_bytes: int) -> None:
        number, fresh = tempfile.mkstemp(dir=self._folder)
        try:
            with open(number, "wb") as file:
                file.write(given)
                file.truncate(num_bytes)
            os.replace(fresh, path)
        except BaseException:
            Path(fresh).unlink(missing_ok=True)
            raise


def _delete(paths: Iterable[Path]) -> None:
    """Delete files that are mapped. Whoever has mapped them keeps them."""
    for path in paths:
        path.unlink(missing_ok=True)


class _Growing(Sequence[Any]):
    """A sequence of `_num` entries that are made when they are read, and of others behind them."""

    def __init__(self, num: int) -> None:
        self._num = num
        self._more: list[Any] = []

    @abstractmethod
    def _made(self, row: int) -> Any:
        """The entry of a row below `_num`."""

    def extend(self, new: Iterable[Any]) -> None:
        self._more.extend(new)

    def __len__(self) -> int:
        return self._num + len(self._more)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        rows = range(len(self))[index]
        return self._at(rows) if isinstance(rows, int) else [self._at(row) for row in rows]

    def __iter__(self) -> Iterator[Any]:
        return (self._at(row) for row in range(len(self)))

    def _at(self, row: int) -> Any:
        return self._made(row) if row < self._num else self._more[row - self._num]


class MappedItems(_Growing):
    """The items of `items.jsonl`, which has been checked. Each read makes the Item anew.

    data: of the file
    lines: its lines, with their ends
    """

    def __init__(self, data: mmap.mmap | bytes, lines: Sequence[bytes]) -> None:
        super().__init__(len(lines))
        self._data = data
        self._ends = array("q", accumulate(map(len, lines), initial=0))

    def _made(self, row: int) -> Item:
        return ITEM.validate_python(from_json(self._data[self._ends[row] : self._ends[row + 1]]))


class ItemIds(_Growing):
    """Texts, by row, as bytes one behind the other."""

    def __init__(self, item_ids: Sequence[str]) -> None:
        super().__init__(len(item_ids))
        encoded = [item_id.encode() for item_id in item_ids]
        self._ends = array("q", accumulate(map(len, encoded), initial=0))
        self._data = b"".join(encoded)

    def _made(self, row: int) -> str:
        return self._data[self._ends[row] : self._ends[row + 1]].decode()


class HashedRows(Mapping[str, int]):
    """The row of each of these distinct texts."""

    def __init__(self, item_ids: Sequence[str]) -> None:
        self._ids = item_ids
        self._num = len(item_ids)
        hashes = np.fromiter(map(hash, item_ids), np.int64, self._num)
        order = np.argsort(hashes, kind="stable").astype(np.int32)
        self._hashes = array("q", hashes[order].tobytes())
        self._rows = array("i", order.tobytes())

    def __getitem__(self, item_id: str) -> int:
        hashed = hash(item_id)
        place = bisect_left(self._hashes, hashed)
        while place < self._num and self._hashes[place] == hashed:
            row = self._rows[place]
            if self._ids[row] == item_id:
                return row
            place += 1
        raise KeyError(item_id)

    def __len__(self) -> int:
        return self._num

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids[: self._num])
