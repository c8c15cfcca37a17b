"""The any-order SID trie: a node is the set of catalogue rows that agree with a partial SID.

Masked diffusion fills positions in whatever order confidence suggests, so there is no prefix to
walk: every node is found by filtering the rows of the one above, which shrink by two orders of
magnitude with the first code. Its root's children are its postings, per (position, code) in CSR
form. Knows nothing of scores or beams.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from service.decoding.catalogue import Catalogue


class SidTrie:
    """The catalogue, and the root's postings: `rows[p, indptr[p, c]:indptr[p, c + 1]]` have code c
    at position p. Postings are made when first asked for; the search itself reads rows' codes.

    codes_by_position: (num_subspaces, num_items) uint16, contiguous
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.codes_by_position = np.ascontiguousarray(catalogue.codes.T)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """(num_subspaces, num_codes) int64: items that have each code."""
        num_codes = self.catalogue.num_codes
        counts = [np.bincount(codes, minlength=num_codes) for codes in self.codes_by_position]
        return np.stack(counts).astype(np.int64)

    @cached_property
    def indptr(self) -> NDArray[np.int64]:
        """(num_subspaces, num_codes + 1) int64: where each code's posting list begins."""
        before = np.zeros((self.catalogue.num_subspaces, 1), np.int64)
        return np.concatenate((before, self.counts.cumsum(axis=1)), axis=1)

    @cached_property
    def rows(self) -> NDArray[np.int32]:
        """(num_subspaces, num_items) int32: all posting lists, ascending within a code."""
        return np.argsort(self.codes_by_position, axis=1, kind="stable").astype(np.int32)

    def postings(
        self, position: int, codes: NDArray[np.integer]
    ) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
        """Rows that have one of `codes` at `position`, and for each the index of its code.

        codes: (n,) distinct. Rows of the first code come first, ascending within a code.
        """
        starts = self.indptr[position, codes]
        lengths = self.indptr[position, codes + 1] - starts
        group = np.repeat(np.arange(len(codes)), lengths)
        first = np.repeat(starts - np.concatenate(([0], np.cumsum(lengths)[:-1])), lengths)
        return self.rows[position, first + np.arange(len(group))], group
