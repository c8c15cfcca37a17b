"""The any-order SID trie: a node is the set of catalogue rows that agree with a partial SID.

Masked diffusion may fill positions in any order, so there is no prefix to follow. A node
is found by filtering the rows of its parent; the first code alone makes them about a hundred times
fewer. The rows with one code are stored: they are its posting list. Where the catalogue is large
enough for a table of pairs, the number of rows with two codes is stored too. Knows nothing of
scores or beams.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.decoding.catalogue.allowed_rows import FilterCache
from service.decoding.catalogue.catalogue import Catalogue
from service.decoding.catalogue.code_pairs import (
    BYTES_PER_ITEM,
    Pairs,
    count_pairs,
    is_affordable,
    with_more_items,
)
from service.decoding.loops import compiled


class SidTrie:
    """The catalogue's codes and posting lists.

    `rows[p, indptr[p, c]:indptr[p, c + 1]]` are the rows with code c at position p (CSR form).

    codes:  (num_items, num_subspaces) uint16, those of the catalogue
    indptr: (num_subspaces, num_codes + 1) int64, where each code's posting list begins
    rows:   (num_subspaces, num_items) int32, all posting lists, ascending within a code
    num_legal: (num_subspaces,) int64, how many codes any item has at each position
    pairs:  the table of `service.decoding.catalogue.code_pairs`; None where it is too large
    scratch: arrays that searches keep here for the next ones; the trie does not read them
    filters: what searches have made of the rows that filters allow
    """

    def __init__(
        self,
        catalogue: Catalogue,
        postings: tuple[NDArray[np.int64], NDArray[np.int32]] | None = None,
        pairs: Pairs | None = None,
        *,
        pair_bytes_per_item: float = BYTES_PER_ITEM,
    ) -> None:
        """postings: the catalogue's indptr and rows if they are known; else they are made.
        pairs: its table of pairs if that is known; else it is made if it is affordable
        pair_bytes_per_item: the most that the table may cost
        """
        self.catalogue = catalogue
        self.codes = catalogue.codes
        self.pair_bytes_per_item = pair_bytes_per_item
        if pairs is None and is_affordable(catalogue, pair_bytes_per_item):
            pairs = count_pairs(self.codes, catalogue.num_codes)
        self.pairs = pairs
        if postings is None:
            none = np.zeros((catalogue.num_subspaces, catalogue.num_codes + 1), np.int64)
            nowhere = np.empty((catalogue.num_subspaces, 0), np.int32)
            postings = _postings_with(none, nowhere, self.codes)
        self.indptr, self.rows = postings
        self.num_legal = np.count_nonzero(self.counts, axis=1)
        self.scratch: list[Any] = []
        self.filters = FilterCache(self.codes, self.counts)

    @property
    def counts(self) -> NDArray[np.int64]:
        """(num_subspaces, num_codes) int64: items that have each code."""
        return np.diff(self.indptr, axis=1)

    def with_items(self, catalogue: Catalogue) -> SidTrie:
        """The trie of a catalogue that grew from this one's: `Catalogue.with_items`.

        New rows have the highest numbers, so each goes to the end of its code's posting list.
        """
        new = catalogue.codes[len(self.codes) :]
        postings = _postings_with(self.indptr, self.rows, new)
        pairs = self.pairs if self.pairs is None else with_more_items(self.pairs, new)
        return SidTrie(catalogue, postings, pairs, pair_bytes_per_item=self.pair_bytes_per_item)

    def without_items(self, catalogue: Catalogue) -> SidTrie:
        """The trie of a catalogue that has fewer items: `Catalogue.without_items`."""
        return SidTrie(catalogue, pair_bytes_per_item=self.pair_bytes_per_item)

    def rows_with(self, sid: NDArray[np.uint16]) -> NDArray[np.int32]:
        """(n,) rows, ascending, that have this whole SID, (num_subspaces,).

        Reads the shortest posting list of its codes.
        """
        positions = np.arange(len(sid))
        starts, stops = self.indptr[positions, sid], self.indptr[positions, sid + 1]
        shortest = int(np.argmin(stops - starts))
        rows: NDArray[np.int32] = self.rows[shortest, starts[shortest] : stops[shortest]]
        return rows[np.all(self.codes[rows] == sid, axis=1)]


@compiled
def _postings_with(
    indptr: NDArray[np.int64], rows: NDArray[np.int32], new_codes: NDArray[np.uint16]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The postings with the rows of (n, num_subspaces) new codes at the ends of their lists.

    A counting sort of the new rows, once per position. New rows have higher numbers than old ones.
    """
    num_subspaces, num_items = rows.shape
    num_new = len(new_codes)
    grown_indptr = indptr.copy()
    grown = np.empty((num_subspaces, num_items + num_new), np.int32)
    for position in range(num_subspaces):
        counts = np.zeros(indptr.shape[1], np.int64)
        for new in range(num_new):
            counts[new_codes[new, position] + 1] += 1
        grown_indptr[position] += counts.cumsum()
        for code in range(len(counts) - 1):
            start, stop = indptr[position, code], indptr[position, code + 1]
            at = grown_indptr[position, code]
            grown[position, at : at + stop - start] = rows[position, start:stop]
        free = grown_indptr[position, 1:] - counts[1:]
        for new in range(num_new):
            code = new_codes[new, position]
            grown[position, free[code]] = num_items + new
            free[code] += 1
    return grown_indptr, grown
