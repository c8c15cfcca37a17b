"""What goes into the search and what comes out: jobs, answers, timings. Data only.

Rows are int32 indices into the catalogue; histories run from oldest to newest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.decoding.catalogue import Catalogue
from service.decoding.schedule import Schedule
from service.decoding.trajectory import Trajectory

Floats = NDArray[np.float32]
Rows = NDArray[np.int32]
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


class Histories(NamedTuple):
    """Histories of a batch as the denoiser reads them, oldest item first, padded at the end.

    codes:   (jobs, length, num_subspaces) uint16, MASK where padded; length >= 1
    vectors: (jobs, length, d) float16, zeros where padded
    mask:    (jobs, length) bool, true where there is an item
    """

    codes: NDArray[np.uint16]
    vectors: NDArray[np.float16]
    mask: NDArray[np.bool_]

    @classmethod
    def of(cls, histories: Sequence[Rows], catalogue: Catalogue, history_length: int) -> Histories:
        """The newest `history_length` items of each history."""
        newest = [history[-history_length:] for history in histories]
        lengths = np.array([len(history) for history in newest])
        length = max(1, int(lengths.max()))
        mask = np.arange(length) < lengths[:, None]
        shape, rows = (len(newest), length), np.concatenate(newest)
        codes = np.full((*shape, catalogue.num_subspaces), catalogue.num_codes, np.uint16)
        vectors = np.zeros((*shape, catalogue.vectors.shape[1]), np.float16)
        codes[mask], vectors[mask] = catalogue.codes[rows], catalogue.vectors[rows]
        return cls(codes, vectors, mask)
