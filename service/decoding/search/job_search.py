"""One job's way through its schedule: its live beams, what it is to find, and its answer.

Knows neither the denoiser nor the other jobs of the batch.
"""

from __future__ import annotations

import numpy as np

from service.decoding.arrays import Floats, Integers, Rows
from service.decoding.catalogue import AllowedRows, SidTrie
from service.decoding.job import Decoded, Job
from service.decoding.search.beams import Beams, PostingListBeams
from service.decoding.search.rows import expansion
from service.decoding.search.rows import order as orders
from service.decoding.search.tracing.traced_call import TracedCall
from service.decoding.search.trajectories import TrajectoryRecorder

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
