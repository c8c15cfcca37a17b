"""What goes into the search and what comes out: jobs, answers, timings. Data only.

Rows are int32 indices into the catalogue; histories run from oldest to newest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Floats, Rows
from service.decoding.schedule import Schedule

Ranking = Literal["rows", "best", "path"]
Confidence = Literal["legal", "raw", "random"]


def _never() -> bool:
    return False


@dataclass(frozen=True, eq=False)
class Job:
    """One request's decode work.

    history:  (n,) int32 rows, oldest to newest; the denoiser sees the newest `history_length`
    excluded: (m,) int32 rows that must not be returned; the search starts without them
    allowed:  (n,) int32 rows the answer may come from, ascending and distinct; None = all
    finish_rows: once the beams own at most this many rows, all are scored and the search ends; 0 =
        the schedule is followed to its end
    ranking: what a partial SID is worth, see `decode`
    is_cancelled: asked between steps; once true the job is dropped
    explain: whether the answer says how its rows were found
    """

    history: Rows
    k: int
    schedule: Schedule
    beam_width: int
    excluded: Rows = field(default_factory=lambda: np.empty(0, np.int32))
    finish_rows: int = 0
    ranking: Ranking = "rows"
    allowed: Rows | None = None
    is_cancelled: Callable[[], bool] = _never
    explain: bool = False


@dataclass(frozen=True, eq=False)
class Trajectory:
    """How the rows of an answer were found, call by call; n rows in the answer's order.

    Denoiser calls are counted from 1.

    filled: (n, num_subspaces) uint8, the call that filled the position: the one in which the item's
        beam chose it. What was not chosen was settled at once: by the call that left the beam
        decided, which is not asked again (`Beams.in_call`), for the rest follows from its rows;
        else by the last one, which scores whatever is masked for every survivor.
    log_probs: (n, num_subspaces) float32, the denoiser's log-prob of the item's code in that call;
        NaN where a decided beam left no choice
    survivors: (n, nfe) int32, catalogue rows that the item's beam owned after each call; after the
        last one no position is masked, so these are the allowed items that share its SID
    beam_scores: (n, nfe) float32, the beam's score after each call, as `Beams` has it (by the
        ranking "best" that of its path); after the last one the item's own
    """

    filled: NDArray[np.uint8]
    log_probs: NDArray[np.float32]
    survivors: NDArray[np.int32]
    beam_scores: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Decoded:
    """The answer to a job.

    rows:   (n,) int32, n <= k, best first; n = min(k, allowed items) when beam_width >= k
    scores: (n,) float32, log-probability of the item (see `decode`), never increasing
    nfe:    denoiser calls used; ranked by rows, the search ends when every beam is decided
    survivors: rows that the beams still owned when these were chosen among them; where the first
        call is the last, all that are allowed
    trajectory: how the rows were found, if the job asked for it; else None
    """

    rows: Rows
    scores: Floats
    nfe: int
    cancelled: bool = False
    trajectory: Trajectory | None = None
    survivors: int = 0


@dataclass(frozen=True)
class Timings:
    """Where a batch's time went, in seconds.

    cache_hits, cache_misses: histories that the encoder cache had, or had not; 0 without a cache
    """

    encode_s: float
    denoise_s: float
    search_s: float
    cache_hits: int = 0
    cache_misses: int = 0


OnAnswer = Callable[[int, Decoded, Timings], None]
