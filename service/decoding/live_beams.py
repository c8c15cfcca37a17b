"""The live beams of all jobs of a batch, as flat arrays.

Beams are sorted by job, best first. Each beam owns its surviving rows; those of a job's beams are
disjoint, so two beams never become the same partial SID. Jobs are counted among the active ones.
Data only: the search decides what happens to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.decoding.job import Floats, Rows


@dataclass(frozen=True, eq=False)
class LiveBeams:
    """Beams and their survivors.

    job:          (beams,) ascending
    partial_sids: (beams, num_subspaces) uint16, MASK = num_codes where not yet filled
    scores:       (beams,) float32, log-probability of the partial SID, as the ranking has it
    rows:         (survivors,) int32, sorted by beam, then row
    row_beam:     (survivors,) the beam that owns each of them
    """

    job: NDArray[np.intp]
    partial_sids: NDArray[np.uint16]
    scores: Floats
    rows: Rows
    row_beam: NDArray[np.intp]

    @classmethod
    def concatenate(cls, parts: Sequence[LiveBeams]) -> LiveBeams:
        """The beams of several jobs, given in the order of the jobs."""
        offsets = np.cumsum([0, *(len(part.job) for part in parts[:-1])])
        row_beam = [part.row_beam + at for part, at in zip(parts, offsets, strict=True)]
        return cls(
            np.concatenate([part.job for part in parts]),
            np.concatenate([part.partial_sids for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.rows for part in parts]),
            np.concatenate(row_beam),
        )

    def of_jobs(self, kept: NDArray[np.intp]) -> LiveBeams:
        """Only the beams of the jobs `kept` (ascending), which are counted anew."""
        live = np.isin(self.job, kept)
        beam = np.cumsum(live) - 1
        rows_live = live[self.row_beam]
        return LiveBeams(
            np.searchsorted(kept, self.job[live]),
            self.partial_sids[live],
            self.scores[live],
            self.rows[rows_live],
            beam[self.row_beam[rows_live]],
        )

    def padded(self, num_jobs: int, mask: int) -> tuple[NDArray[np.uint16], NDArray[np.intp]]:
        """Partial SIDs as (jobs, widest, num_subspaces), and each beam's place of jobs x widest.

        Places without a beam hold `mask` everywhere.
        """
        per_job = np.bincount(self.job, minlength=num_jobs)
        widest = int(per_job.max())
        within = np.arange(len(self.job)) - (np.cumsum(per_job) - per_job)[self.job]
        place = self.job * widest + within
        num_subspaces = self.partial_sids.shape[1]
        partial_sids = np.full((num_jobs * widest, num_subspaces), mask, np.uint16)
        partial_sids[place] = self.partial_sids
        return partial_sids.reshape(num_jobs, widest, num_subspaces), place
