"""What goes into the search and what comes out: jobs, answers, timings. Data only.

Rows are int32 indices into the catalogue. Histories run from oldest to newest. Knows nothing of
item ids, users or how the search works.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Floats, Rows
from service.decoding.schedule import Schedule

MAX_HORIZON = 5  # how many items may be predicted together
Ranking = Literal["rows", "best", "path"]
Order = Literal["confidence", "entropy", "margin", "left_to_right", "random", "raw_confidence"]
Retrieval = Literal["generate", "dense", "fused"]


def _never() -> bool:
    return False


@dataclass(frozen=True, eq=False)
class Job:
    """One request's decode work.

    history:  (n,) int32 rows, oldest to newest; the denoiser sees the newest `history_length`
    k:        how many items are wanted; if `horizon` is above 1, how many sequences of items
    schedule: of all positions: those of one SID, or of `horizon` SIDs side by side
    excluded: (m,) int32 rows that must not be returned; the search starts without them
    allowed:  (n,) int32 rows that the answer may contain, ascending and distinct; None = all
        What is made of an array that owns its data and cannot be written to is kept: `FilterCache`
    finish_rows: once the beams own at most this many rows, all of them are scored and the search
        ends; 0 = the schedule is followed to its end
    ranking:  how beams are compared, see `decode`
    order:    which masked positions a beam fills first, see `decode`
    remask:   how many codes of each finished beam, its least certain ones, are masked again and
        refilled by one more call, see `decode`; 0 = none, fewer than num_subspaces
    guidance: w of classifier-free guidance, see `decode`; 0 = off
    retrieval: whether items are found by beams, by the dense head, or by both, see `decode`
    is_cancelled: called between steps; once it returns true the job is dropped
    explain:  whether the answer says how its rows were found (`Trajectory`); only of beams
    trace:    whether the answer keeps what each call saw, so that any row can be followed; only of
        beams, with a horizon of 1
    boosted:  (b,) int32 rows whose scores gain something, ascending and distinct
    boosts:   (b,) float32, what each gains
    horizon:  how many next items are predicted together, 1 to MAX_HORIZON. Above 1, jobs are ranked
        by "path", finish_rows is 0, and nothing is explained; see `decode_several`
    """

    history: Rows
    k: int
    schedule: Schedule
    beam_width: int
    excluded: Rows = field(default_factory=lambda: np.empty(0, np.int32))
    finish_rows: int = 0
    ranking: Ranking = "rows"
    order: Order = "confidence"
    remask: int = 0
    guidance: float = 0.0
    retrieval: Retrieval = "generate"
    allowed: Rows | None = None
    is_cancelled: Callable[[], bool] = _never
    explain: bool = False
    trace: bool = False
    horizon: int = 1
    boosted: Rows = field(default_factory=lambda: np.empty(0, np.int32))
    boosts: Floats = field(default_factory=lambda: np.empty(0, np.float32))

    @property
    def call_rows(self) -> int:
        """Partial SIDs of a denoiser call, at most: `horizon` for each beam."""
        return self.beam_width * self.horizon

    @property
    def is_guided(self) -> bool:
        """Whether its steps need a second call: without a history, there is nothing to guide."""
        return self.guidance > 0 and len(self.history) > 0


@dataclass(frozen=True, eq=False)
class Trajectory:
    """How the rows of an answer were found, call by call; n rows in the answer's order.

    Denoiser calls are counted from 1. With guidance, the two calls of a step count as one here.
    After codes were masked again, they are those of the last call; if a row was reached from
    several beams, its trajectory is that of the beam which gave it most.

    filled: (n, num_subspaces) uint8, the call that filled each position. If the item's beam chose
        the position, it is the call in which it did. Positions that were not chosen are settled
        together. If a call left the beam decided (`Beams.call_index`), that call settles them: the
        beam's rows share one SID, and no later call includes the beam. Else the last call settles
        them: it scores all masked positions of every surviving row.
    log_probs: (n, num_subspaces) float32, the denoiser's log-prob of the item's code in that call;
        NaN where a decided beam left no choice
    survivors: (n, nfe) int32, catalogue rows that the item's beam owned after each call. After the
        last call no position is masked, so these are the allowed items that share its SID
    beam_scores: (n, nfe) float32, the beam's score after each call, as in `Beams` (by the ranking
        "best", the score of its path); after the last call the item's own score
    """

    filled: NDArray[np.uint8]
    log_probs: NDArray[np.float32]
    survivors: NDArray[np.int32]
    beam_scores: NDArray[np.float32]

    def chosen(self, places: NDArray[np.integer]) -> Trajectory:
        """The trajectories of some of the rows, in this order."""
        return Trajectory(
            self.filled[places],
            self.log_probs[places],
            self.survivors[places],
            self.beam_scores[places],
        )


@dataclass(frozen=True, eq=False)
class Decoded:
    """The answer to a job.

    rows:   (n,) int32, n <= k, best first; n = min(k, allowed items) when beam_width >= k. If the
        horizon is above 1, (n, horizon) int32: sequences, the next item first
    scores: (n,) float32, log-probability of each item (see `decode`), never increasing; or of each
        sequence
    nfe:    denoiser calls used, with guidance two a step; ranked by rows, the search ends when
        every beam is decided. 0 of dense retrieval alone, which runs the encoder and the dense head
        only
    cancelled: whether the job was dropped; it has no rows then
    survivors: rows that the beams still owned when the answer was chosen among them. If the first
        call is the last, these are all allowed rows
    trajectory: how the rows were found, if the job asked for it; else None
    trace: a `service.decoding.search.TracedCall` for each call, if the job asked for it; else empty
    """

    rows: Rows
    scores: Floats
    nfe: int
    cancelled: bool = False
    trajectory: Trajectory | None = None
    survivors: int = 0
    trace: Sequence[Any] = ()


@dataclass(frozen=True)
class Timings:
    """Where a batch's time went, in seconds.

    encode_s, denoise_s: inside the network; the dense head counts as encoding
    search_s: all the rest of `decode`
    calls: denoiser calls of the batch so far
    cache_hits, cache_misses: histories that the encoder cache had, or did not have; 0 without a
        cache
    """

    encode_s: float
    denoise_s: float
    search_s: float
    cache_hits: int = 0
    cache_misses: int = 0
    calls: int = 0


OnAnswer = Callable[[int, Decoded, Timings], None]
