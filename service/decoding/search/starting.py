"""What a job's search starts from: the rows that it may return, and their biases.

Without a filter these are all rows but the excluded ones. A filter that allows few rows has a list
of them; one that allows many makes the biases of the others -inf, in an array that it keeps for its
next request. Either way a pass looks at no more rows than without the filter. Knows no denoiser.
"""

from __future__ import annotations

import numpy as np

from service.decoding.arrays import Floats, Integers, Rows
from service.decoding.catalogue import (
    FEW,
    FEW_OF_LISTS,
    FEW_OF_ONE_CALL,
    AllowedRows,
    SidTrie,
)
from service.decoding.job import Job
from service.decoding.search.beams import Beams
from service.decoding.search.row_biases import RowBiases
from service.decoding.search.rows.whole_catalogue import (
    allowed_rows,
    best_of_allowed,
    best_of_catalogue,
    rows_not_excluded,
)
from service.decoding.search.steps import keeps_lists

MANY_EXCLUDED = 16  # more than a sixteenth of the allowed rows: then these are looked at, not those


class Start:
    """The rows that one job starts from.

    biases: of all rows; within the filter unless that allows few rows
    is_few: whether the filter allows few rows; then its own rows are searched
    """

    def __init__(
        self, trie: SidTrie, job: Job, allowed: AllowedRows | None, biases: RowBiases
    ) -> None:
        """biases: of this job, without its filter. They must stay until `give_back`."""
        self.trie, self.allowed, self.biases = trie, allowed, biases
        few = FEW
        if job.schedule.nfe == 1:
            few = FEW_OF_ONE_CALL
        elif keeps_lists(trie, job, biases) and job.schedule.steps[0] == 1:
            few = FEW_OF_LISTS
        self.is_few = allowed is not None and allowed.is_at_most(few)
        if allowed is not None and not self.is_few:
            try:
                self.biases = allowed.scratch.pop()
            except IndexError:
                self.biases = RowBiases(len(trie.codes), allowed.rows)
            self.biases.put_over(biases)

    def give_back(self) -> None:
        """Let the next job with this filter have its biases. A filter keeps those of one job."""
        if self.allowed is not None and not self.is_few and not self.allowed.scratch:
            self.biases.clear()
            self.allowed.scratch.append(self.biases)

    @property
    def num_rows(self) -> int:
        """Rows that the job may return."""
        num_excluded = self.biases.num_excluded
        if self.allowed is None:
            return len(self.trie.codes) - num_excluded
        rows = self.allowed.rows
        if not self.is_few:
            return len(rows) - num_excluded
        if MANY_EXCLUDED * num_excluded > len(rows):
            return int(np.count_nonzero(self.biases.values[rows] > -np.inf))
        excluded = self.biases.biased_rows[len(self.biases.biased_rows) - num_excluded :]
        return len(rows) - self.allowed.num_among(excluded)

    @property
    def counts(self) -> Integers:
        """(num_subspaces, num_codes) rows with each code, of those that the filter allows."""
        return self.trie.counts if self.allowed is None else self.allowed.counts

    def best(self, log_probs: Floats, k: int, *, normalised: bool) -> tuple[Rows, Floats]:
        """The k best rows if every position is filled now, see `best_of_catalogue`."""
        values = self.biases.values
        if self.allowed is not None and self.is_few:
            return best_of_allowed(self.allowed, values, log_probs, k, normalised=normalised)
        return best_of_catalogue(self.trie.codes, values, log_probs, k, normalised=normalised)

    def beam(self) -> Beams:
        """The fully masked beam, which owns the rows."""
        if self.allowed is not None:
            rows, biases = rows_not_excluded(self.allowed.rows, self.biases.values)
        else:
            rows, biases = allowed_rows(self.biases.values, self.biases.num_excluded)
        num_subspaces, mask = self.trie.codes.shape[1], self.trie.catalogue.num_codes
        sids = np.full((1, num_subspaces), mask, np.uint16)
        starts, call_index = np.array([0, len(rows)]), np.zeros(1, np.int32)
        return Beams(sids, np.zeros(1), starts, rows, biases, call_index, 1)
