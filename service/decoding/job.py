"""What goes into the search and what comes out: jobs, answers, timings. Data only.

Rows are int32 indices into the catalogue; histories run from oldest to newest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.decoding.schedule import Schedule

Floats = NDArray[np.float32]
Rows = NDArray[np.int32]


def _never() -> bool:
    return False


@dataclass(frozen=True, eq=False)
class Job:
    """One request's decode work.

    history:  (n,) int32 rows, oldest to newest; the denoiser sees the newest `history_length`
    excluded: (m,) int32 rows that must not be returned; the search starts without them
    is_cancelled: asked between steps; once true the job is dropped
    """

    history: Rows
    k: int
    schedule: Schedule
    beam_width: int
    excluded: Rows = field(default_factory=lambda: np.empty(0, np.int32))
    is_cancelled: Callable[[], bool] = _never


@dataclass(frozen=True, eq=False)
class Decoded:
    """The answer to a job.

    rows:   (n,) int32, n <= k, best first; n = min(k, allowed items) when beam_width >= k
    scores: (n,) float32, sum of the log-probs of the item's codes, never increasing
    nfe:    denoiser calls used
    """

    rows: Rows
    scores: Floats
    nfe: int
    cancelled: bool = False


@dataclass(frozen=True)
class Timings:
    """Where a batch's time went, in seconds."""

    encode_s: float
    denoise_s: float
    search_s: float


def history_arrays(
    histories: Sequence[Rows], codes: NDArray[np.uint16], *, num_codes: int, history_length: int
) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """Codes of the newest `history_length` items of each history, padded at the end with MASK.

    Returns (jobs, length, num_subspaces) uint16 and its (jobs, length) bool mask; length >= 1.
    """
    newest = [history[-history_length:] for history in histories]
    lengths = np.array([len(history) for history in newest])
    length = max(1, int(lengths.max()))
    mask = np.arange(length) < lengths[:, None]
    history_codes = np.full((len(newest), length, codes.shape[1]), num_codes, np.uint16)
    history_codes[mask] = codes[np.concatenate(newest)]
    return history_codes, mask
