"""The rows of the filters that were asked for lately, within a number of bytes.

Knows no attributes: what a filter asks for is a key.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int32]


class RememberedRows:
    """The rows of the filters that were asked for lately, with what they asked for.

    Together they have at most `most_bytes`. The filter that was asked for longest ago goes first.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.num_bytes = most_bytes, 0
        self._found: OrderedDict[Hashable, tuple[Rows, int]] = OrderedDict()  # and their bytes
        self._lock = Lock()  # filters are looked up in several threads

    def __len__(self) -> int:
        return len(self._found)

    def get(self, asked: Hashable) -> Rows | None:
        with self._lock:
            if asked not in self._found:
                return None
            self._found.move_to_end(asked)
            return self._found[asked][0]

    def put(self, asked: Hashable, key_bytes: int, rows: Rows) -> Rows:
        """Remember rows, if there are any; returns them as an array that cannot be written to."""
        if rows.base is not None:  # a part of a posting list: the search keeps no parts of arrays
            rows = rows.copy()
        rows.flags.writeable = False
        num_bytes = key_bytes + rows.nbytes
        with self._lock:
            if len(rows) and num_bytes <= self.most_bytes and asked not in self._found:
                self._found[asked] = rows, num_bytes
                self.num_bytes += num_bytes
            while self.num_bytes > self.most_bytes:
                _, (_, gone) = self._found.popitem(last=False)
                self.num_bytes -= gone
            return self._found[asked][0] if asked in self._found else rows
