"""How long a batch will take, learnt from the batches that ran.

The time of a batch is a fixed part, plus a part for each job, each denoiser call, each row of these
calls, and each scan of all items' content. That makes five coefficients, none negative. They are
fitted by least squares on relative errors, and older batches count less. So it can forecast
schedules and beam widths that it has never seen. There is one model per bundle. One thread teaches
it, and other threads may ask, because what they read is replaced as a whole. Knows nothing of
queues, deadlines or clocks.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from service.decoding import Job, Retrieval, Schedule

MEMORY = 0.97  # weight of a batch relative to the next one: about the last 30 count
SWEEPS = 8
SOLVE_EVERY = 8  # each of the first 8 batches is learnt from at once, later ones 8 at a time
ROW_SCALE = 0.01  # so that rows do not outweigh the rest
RIDGE = 1e-6
MIN_S = 1e-5
NUM_FEATURES = 5


@dataclass(frozen=True)
class Work:
    """What decoding takes: jobs, denoiser calls, and rows of partial SIDs in these calls.

    scans: jobs that the dense head compares with all items
    """

    jobs: int
    calls: int
    rows: int
    scans: int = 0

    @classmethod
    def of(
        cls,
        schedule: Schedule,
        beam_width: int,
        *,
        remask: int = 0,
        guidance: float = 0.0,
        retrieval: Retrieval = "generate",
        horizon: int = 1,
    ) -> Self:
        """The work of one job: a first call with one beam, then at most `beam_width` a call.

        A beam is a row for each item of the horizon. Codes that are masked again take a call more;
        guidance takes every call twice. Dense retrieval alone makes no call.
        """
        if retrieval == "dense":
            return cls(1, 0, 0, 1)
        calls = schedule.nfe + (remask > 0)
        times = 2 if guidance else 1
        rows = times * horizon * (1 + (calls - 1) * beam_width)
        return cls(1, times * calls, rows, int(retrieval == "fused"))

    @classmethod
    def of_job(cls, job: Job) -> Self:
        """The work of one job."""
        return cls.of(
            job.schedule,
            job.beam_width,
            remask=job.remask,
            guidance=job.guidance if job.is_guided else 0.0,
            retrieval=job.retrieval,
            horizon=job.horizon,
        )

    @classmethod
    def together(cls, works: Iterable[Work]) -> Self:
        """The work of a batch. Its jobs share their calls."""
        jobs = calls = rows = scans = 0
        for work in works:
            jobs, calls, rows = jobs + work.jobs, max(calls, work.calls), rows + work.rows
            scans += work.scans
        return cls(jobs, calls, rows, scans)

    def in_company(self, others: Sequence[Self]) -> Self:
        """The work of a batch with these other jobs, until this job has had its last call."""
        rows = sum(other.rows * min(1.0, self.calls / max(1, other.calls)) for other in others)
        scans = self.scans + sum(other.scans for other in others)  # all before the first call
        return type(self)(1 + len(others), self.calls, self.rows + round(rows), scans)


class LatencyModel:
    """Seconds that a batch of Work takes. Before the first batch, it forecasts 0 seconds."""

    def __init__(self) -> None:
        self._coefficients = (0.0,) * NUM_FEATURES
        # Sums of products of the features, divided by seconds.
        self._products = np.zeros((NUM_FEATURES, NUM_FEATURES))
        self._sums = np.zeros(NUM_FEATURES)
        self._num_observed = 0
        self.error = 0.0  # mean relative error of the forecasts, recent ones count more

    def seconds(self, work: Work) -> float:
        """The forecast for a batch."""
        return float(sum(map(operator.mul, self._coefficients, _features_of(work))))

    def observe(self, work: Work, seconds: float) -> None:
        """Learn from a batch that ran."""
        seconds = max(seconds, MIN_S)
        if self._num_observed:
            off = abs(self.seconds(work) - seconds) / seconds
            self.error = MEMORY * self.error + (1 - MEMORY) * min(off, 1.0)
        features = np.array(_features_of(work)) / seconds
        self._products *= MEMORY
        self._products += features[:, None] * features
        self._sums *= MEMORY
        self._sums += features
        self._num_observed += 1
        if self._num_observed <= SOLVE_EVERY or self._num_observed % SOLVE_EVERY == 0:
            self._solve()

    def _solve(self) -> None:
        """Least squares. Coefficients that the batches do not determine stay as they were."""
        products, sums = self._products, self._sums
        stay = np.eye(NUM_FEATURES) * (RIDGE * np.trace(products))
        weights = np.linalg.solve(products + stay, sums + stay @ self._coefficients)
        negative = bool((weights < 0).any())
        weights = np.maximum(weights, 0)
        for _ in range(SWEEPS * negative):  # coordinate descent, with no coefficient below 0
            for one in range(NUM_FEATURES):
                if products[one, one] > 0:
                    step = (sums[one] - products[one] @ weights) / products[one, one]
                    weights[one] = max(0.0, weights[one] + step)
        self._coefficients = tuple(weights.tolist())


def _features_of(work: Work) -> tuple[float, ...]:
    return 1.0, work.jobs, work.calls, work.rows * ROW_SCALE, work.scans
