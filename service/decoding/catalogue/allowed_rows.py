"""What searches need of the rows that a filter allows, made once for all requests with the filter.

A broad filter allows most of a catalogue. To look at each of its rows again for every request costs
more than the search. An array of rows that nobody can write to is taken for a filter that comes
again: `FilterCache` keeps what was made of it. Any other array is used once. Belongs to one trie:
the trie of other items begins with nothing. Knows no scores, jobs or attributes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np

from service.decoding.arrays import Codes, Integers, Rows
from service.decoding.loops import compiled

BYTES_PER_ITEM = 64  # how much a catalogue's FilterCache may hold; codes and postings cost 48
LEAST_BYTES = 2**20  # that it may hold, of any catalogue
# A filter that leaves at most such a share of the catalogue is searched for by its own rows; one
# that leaves more, by passes over all rows or posting lists, which are cheaper for it then.
FEW, FEW_OF_ONE_CALL, FEW_OF_LISTS = 1 / 2, 7 / 8, 1 / 16


class AllowedRows:
    """The rows that a job may return, and what searches have made of them.

    rows:    (n,) int32, ascending and distinct
    scratch: what a search keeps here for the next one, as in `SidTrie`; the newest only
    """

    def __init__(self, rows: Rows, codes: Codes, counts: Integers) -> None:
        """codes, counts: of the trie. Raises ValueError for rows that are out of range or order."""
        if np.any(rows[1:] <= rows[:-1]):
            raise ValueError("a job's allowed rows must be ascending and distinct")
        if len(rows) and not 0 <= rows[0] <= rows[-1] < len(codes):
            raise ValueError(f"a job's rows must be at least 0 and below {len(codes)}")
        self.rows = _writeable(rows)
        self.scratch: deque[Any] = deque(maxlen=1)
        self._all_codes = codes
        self._all_counts = counts

    def is_at_most(self, share: float) -> bool:
        """Whether these are at most that share of the catalogue's rows."""
        return len(self.rows) <= share * len(self._all_codes)

    @property
    def most_bytes(self) -> int:
        """Bytes of all arrays, if a search has asked for each; and of this object."""
        num_items, num_subspaces = self._all_codes.shape
        num_bytes = 1000 + self.rows.nbytes
        if self.is_at_most(FEW_OF_ONE_CALL):
            num_bytes += len(self.rows) * num_subspaces * self._all_codes.itemsize
        if not self.is_at_most(FEW_OF_LISTS):  # a float32 in `scratch`, and a bit
            num_bytes += 4 * num_items + num_items // 8 + self._all_counts.nbytes
        return num_bytes

    @cached_property
    def codes(self) -> Codes:
        """(n, num_subspaces) uint16, the codes of these rows."""
        return self._all_codes.take(self.rows, axis=0)

    @cached_property
    def counts(self) -> Integers:
        """(num_subspaces, num_codes) int64: rows with each code. Made of the others, if fewer."""
        if 2 * len(self.rows) <= len(self._all_codes):
            return _counts_of(self._all_codes, self.rows, self._all_counts.shape[1])
        others = np.ones(len(self._all_codes), np.bool_)
        others[self.rows] = False
        others_rows = np.flatnonzero(others).astype(np.int32)
        return self._all_counts - _counts_of(
            self._all_codes, others_rows, self._all_counts.shape[1]
        )

    @cached_property
    def bits(self) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """(num_items // 64 + 1,) uint64: row r is allowed if bit r % 64 of word r // 64 is set."""
        num_words = len(self._all_codes) // 64 + 1
        marked = np.zeros(64 * num_words, np.bool_)
        marked[self.rows] = True
        return np.packbits(marked, bitorder="little").view(np.dtype("<u8")).astype(np.uint64)

    def num_among(self, distinct: Rows) -> int:
        """How many of these distinct rows are allowed. Costs a search for each of them."""
        if not len(self.rows):
            return 0
        places = np.minimum(np.searchsorted(self.rows, distinct), len(self.rows) - 1)
        return int(np.count_nonzero(self.rows[places] == distinct))


class FilterCache:
    """The rows of filters that may come again. The one that was asked for longest ago goes first.

    Together they hold at most `most_bytes`; one that has more alone is not kept.
    """

    def __init__(self, codes: Codes, counts: Integers) -> None:
        """codes, counts: of the trie that it belongs to"""
        self.most_bytes = max(LEAST_BYTES, BYTES_PER_ITEM * len(codes))
        self._codes, self._counts = codes, counts
        self._kept: OrderedDict[int, AllowedRows] = OrderedDict()
        self._num_bytes = 0
        self._lock = Lock()  # several threads may search in one trie

    @property
    def num_bytes(self) -> int:
        """Bytes that the filters may take at most, see `AllowedRows.most_bytes`."""
        return self._num_bytes

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, rows: Rows) -> AllowedRows:
        """What is known of these rows. Raises ValueError, see `AllowedRows`.

        It is kept if the array owns its data and cannot be written to; then these may not change.
        """
        with self._lock:  # `_writeable` turns the flag for a moment, and only here
            if not rows.flags.writeable and rows.base is None:
                return self._kept_or_made(rows)
        return AllowedRows(rows, self._codes, self._counts)

    def _kept_or_made(self, rows: Rows) -> AllowedRows:
        if (kept := self._kept.get(id(rows))) is not None:
            self._kept.move_to_end(id(rows))
            return kept
        made = AllowedRows(rows, self._codes, self._counts)
        if made.most_bytes <= self.most_bytes:
            self._kept[id(rows)] = made  # it holds the array, so no other has this id
            self._num_bytes += made.most_bytes
        while self._num_bytes > self.most_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._num_bytes -= oldest.most_bytes
        return made


def _writeable(rows: Rows) -> Rows:
    """The same rows as an array that could be written to, though nobody does.

    To numba other arrays are another type, and all code would be compiled again for it.
    """
    if rows.flags.writeable:
        return rows
    if rows.base is not None:
        return rows.copy()
    rows.flags.writeable = True
    same = rows[:]
    rows.flags.writeable = False
    return same


@compiled
def _counts_of(codes: Codes, rows: Rows, num_codes: int) -> Integers:
    """(num_subspaces, num_codes) how many of the rows have each code."""
    counts = np.zeros((codes.shape[1], num_codes), np.int64)
    for row in rows:
        for position in range(codes.shape[1]):
            counts[position, codes[row, position]] += 1
    return counts
