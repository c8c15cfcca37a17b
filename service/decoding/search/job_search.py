"""One job's way through its schedule: what it starts from, its live beams, and its answer.

A search starts from the rows that its job may return, and their biases. Without a filter these are
all rows but the excluded ones. A filter that allows few rows has a list of them; one that allows
many makes the biases of the others -inf, in an array that it keeps for its next request. Knows
neither the denoiser nor the other jobs of the batch.
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
from service.decoding.job import Decoded, Job
from service.decoding.search.beams import Beams, PostingListBeams
from service.decoding.search.row_biases import RowBiases
from service.decoding.search.rows import expansion
from service.decoding.search.rows import order as orders
from service.decoding.search.rows.whole_catalogue import (
    allowed_rows,
    best_of_allowed,
    best_of_catalogue,
    rows_not_excluded,
)
from service.decoding.search.steps import keeps_lists
from service.decoding.search.tracing.traced_call import TracedCall
from service.decoding.search.trajectories import TrajectoryRecorder

MANY_EXCLUDED = 16  # more than a sixteenth of the allowed rows: then these are looked at, not those
NOTHING = np.empty(0, np.int32), np.empty(0, np.float32)
RANKINGS = {"path": expansion.PATH, "best": expansion.BEST, "rows": expansion.ROWS}
ORDERS = {
    "confidence": orders.CONFIDENCE,
    "entropy": orders.ENTROPY,
    "margin": orders.MARGIN,
    "left_to_right": orders.LEFT_TO_RIGHT,
    "random": orders.DRAWN,
    "raw_confidence": orders.RAW,
}


class JobSearch:
    """One job's way through its schedule. index: the job's place in the batch

    wanted: how many rows the schedule is to find
    refilling: whether its beams are finished rows with codes masked again
    """

    def __init__(self, index: int, job: Job, trie: SidTrie) -> None:
        self.index = index
        self.job = job
        self.ranking = RANKINGS[job.ranking]
        self.order = ORDERS[job.order]
        self.allowed: AllowedRows | None = None  # what is known of its filter's rows
        # None before the first step: one fully masked beam, which owns all allowed rows.
        self.beams: Beams | PostingListBeams | None = None
        # What the dense head found for a job that fuses it with the beams' items.
        self.dense: tuple[Rows, Floats] | None = None
        self.recorder = TrajectoryRecorder(job, trie) if job.explain or job.remask else None
        # With `fused` the beams and the dense head find as many; then k changes no score.
        self.wanted = job.beam_width if job.retrieval == "fused" else job.k
        if job.remask:
            self.wanted = max(job.k, job.beam_width)
        self.refilling = False
        self.finished = False
        # The fully masked beam and the calls so far, of a job that is traced.
        self.first_beam: Beams | None = None
        self.trace: list[TracedCall] = []
        self.answer = Decoded(*NOTHING, 0)

    def continue_with(self, children: Beams | PostingListBeams, log_probs: Floats) -> None:
        """Make these children the live beams. log_probs: the denoiser's output for their parents"""
        if self.job.trace:
            self.note(log_probs, children)
        self.beams = children
        if self.recorder is not None:
            self.recorder.record(children, log_probs)

    def note(
        self,
        log_probs: Floats | None,
        children: Beams | PostingListBeams | None,
        found: tuple[Rows, Floats] | None = None,
    ) -> None:
        """Note a call of a job that is traced: what it gave for the live beams, and what is kept"""
        beams = self.beams or self.first_beam
        assert beams is not None
        self.trace.append(TracedCall(beams, log_probs, children, found, self.refilling))

    def finish(
        self,
        found: tuple[Rows, Floats],
        nfe: int,
        log_probs: Floats | None,
        cancelled: bool,
        survivors: int,
        parents: Integers | None,
    ) -> None:
        trajectory = None
        if self.job.explain and self.recorder is not None:
            trajectory = self.recorder.of_answer(*found, log_probs, parents)
        self.answer = Decoded(*found, nfe, cancelled, trajectory, survivors, tuple(self.trace))
        self.finished = True

    def is_last_step(self, nfe: int, num_rows: int) -> bool:
        """Whether the schedule ends with its nfe-th step, with `num_rows` rows surviving."""
        return nfe == self.job.schedule.nfe or num_rows <= self.job.finish_rows


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
        """Let the next job with this filter have its biases. A filter keeps those of one job.

        Not called after an error: then nobody gets them, and the next job makes its own.
        """
        if self.allowed is not None and not self.is_few:
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


def check_rows(job: Job, trie: SidTrie) -> AllowedRows | None:
    """Raise ValueError for rows and widths that would lead compiled code out of its arrays.

    Returns what is known of the rows that the job's filter allows.
    """
    num_items = len(trie.codes)
    allowed = None if job.allowed is None else trie.filters.of(job.allowed)
    for rows in (job.history, job.excluded, job.boosted):
        if len(rows) and not 0 <= rows.min() <= rows.max() < num_items:
            raise ValueError(f"a job's rows must be at least 0 and below {num_items}")
    if np.any(np.diff(job.boosted) <= 0) or len(job.boosts) != len(job.boosted):
        raise ValueError("a job's boosted rows must be ascending and distinct, with a boost each")
    if not np.isfinite(job.boosts).all():
        raise ValueError("a job's boosts must be finite")
    if job.beam_width < 1:
        raise ValueError("a job's beam_width must be at least 1")
    return allowed
