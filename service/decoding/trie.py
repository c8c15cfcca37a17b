"""The any-order SID trie: a node is the set of catalogue rows that agree with a partial SID.

Masked diffusion fills positions in whatever order confidence suggests, so there is no prefix to
walk. Stored are only the root's postings, per (position, code) in CSR form; every deeper node is
found by filtering surviving rows, which shrink by two orders of magnitude with the first code.
Knows nothing of scores or beams.

indptr: (num_subspaces, num_codes + 1) int64    rows: (num_subspaces, num_items) int32
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.catalogue import Catalogue


class SidTrie:
    """Postings of the root: `rows[p, indptr[p, c]:indptr[p, c + 1]]` have code c at position p."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        codes = catalogue.codes
        counts = np.stack(
            [
                np.bincount(codes[:, position], minlength=catalogue.num_codes)
                for position in range(catalogue.num_subspaces)
            ]
        )
        self.counts: NDArray[np.int64] = counts.astype(np.int64)
        self.indptr = np.zeros((catalogue.num_subspaces, catalogue.num_codes + 1), dtype=np.int64)
        np.cumsum(self.counts, axis=1, out=self.indptr[:, 1:])
        self.rows = np.ascontiguousarray(
            np.argsort(codes, axis=0, kind="stable").T.astype(np.int32)
        )

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
