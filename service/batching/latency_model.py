"""How long a batch will take, learnt from the batches that ran.

A batch costs so much by itself, so much a job, a denoiser call and a row of these calls: four
coefficients, none negative, fitted by least squares on relative errors, older batches counting
less. So schedules and beam widths never seen are foretold from those that were. One model per
bundle. One thread teaches it and others may ask: what they read is replaced whole. Knows nothing of
queues, deadlines or clocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from service.decoding import Job, Schedule

MEMORY = 0.97  # weight of a batch, relative to the next one: about the last 30 count
SWEEPS = 8
MANY = 8  # batches: learnt from each of the first, then from so many at a time
ROW_SCALE = 0.01  # so that rows do not dwarf the rest
STAY = 1e-6
MIN_S = 1e-5


@dataclass(frozen=True)
class Work:
    """What decoding takes: jobs, denoiser calls, and rows of partial SIDs in these calls."""

    jobs: int
    calls: int
    rows: int

    @classmethod
    def of(cls, schedule: Schedule, beam_width: int) -> Self:
        """Of one job: a first call of one row, then at most `beam_width` rows a call."""
        return cls(1, schedule.nfe, 1 + (schedule.nfe - 1) * beam_width)

    @classmethod
    def of_job(cls, job: Job) -> Self:
        """Of one job."""
        return cls.of(job.schedule, job.beam_width)

    @classmethod
    def together(cls, works: Iterable[Work]) -> Self:
        """Of a batch: jobs share their calls."""
        jobs = calls = rows = 0
        for work in works:
            jobs, calls, rows = jobs + work.jobs, max(calls, work.calls), rows + work.rows
        return cls(jobs, calls, rows)

    def in_company(self, others: Sequence[Self]) -> Self:
        """Of a batch with these others, until this job has had its last call."""
        rows = sum(other.rows * min(1.0, self.calls / max(1, other.calls)) for other in others)
        return type(self)(1 + len(others), self.calls, self.rows + round(rows))


class LatencyModel:
    """Seconds of a batch of Work. Ignorant at first: it foretells nothing until told of a batch."""

    def __init__(self) -> None:
        self._coefficients = (0.0, 0.0, 0.0, 0.0)
        self._products = np.zeros((4, 4))  # of the features, over seconds, summed up
        self._sums = np.zeros(4)
        self._num_observed = 0
        self.error = 0.0  # relative, a running mean

    def seconds(self, work: Work) -> float:
        """Of a batch, foretold."""
        a_batch, a_job, a_call, a_row = self._coefficients
        return a_batch + a_job * work.jobs + a_call * work.calls + a_row * work.rows * ROW_SCALE

    def observe(self, work: Work, seconds: float) -> None:
        """Learn from a batch that ran."""
        seconds = max(seconds, MIN_S)
        if self._num_observed:
            off = abs(self.seconds(work) - seconds) / seconds
            self.error = MEMORY * self.error + (1 - MEMORY) * min(off, 1.0)
        features = np.array((1.0, work.jobs, work.calls, work.rows * ROW_SCALE)) / seconds
        self._products *= MEMORY
        self._products += features[:, None] * features
        self._sums *= MEMORY
        self._sums += features
        self._num_observed += 1
        if self._num_observed <= MANY or self._num_observed % MANY == 0:
            self._solve()

    def _solve(self) -> None:
        """Least squares; what the batches do not tell apart stays as it was."""
        products, sums = self._products, self._sums
        stay = np.eye(4) * (STAY * np.trace(products))
        weights = np.linalg.solve(products + stay, sums + stay @ self._coefficients)
        negative = bool((weights < 0).any())
        weights = np.maximum(weights, 0)
        for _ in range(SWEEPS * negative):  # coordinate descent, among those that are not negative
            for one in range(4):
                if products[one, one] > 0:
                    step = (sums[one] - products[one] @ weights) / products[one, one]
                    weights[one] = max(0.0, weights[one] + step)
        self._coefficients = tuple(weights.tolist())
