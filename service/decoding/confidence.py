"""How sure a beam is of each position: what decides which positions it fills next.

Higher is surer. Among legal codes, a position that has only one comes after all others: filling it
tells the denoiser nothing it could not know. Pure functions; they know no jobs.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.decoding.job import Floats, Rows
from service.decoding.live_beams import LiveBeams

Confidence = Literal["legal", "raw", "random"]
FORCED = np.finfo(np.float32).min


def path_confidence(log_probs: Floats, legal: NDArray[np.bool_], *, raw: bool) -> Floats:
    """(beams, num_subspaces): log-probability of the most probable code of each position.

    log_probs, legal: (beams, num_subspaces, num_codes). raw: over all codes, as they are (MDGR
    Eq. 18); else over legal ones, renormalised.
    """
    if raw:
        highest: Floats = log_probs.max(axis=-1)
        return highest
    legal_log_probs = np.where(legal, log_probs, -np.inf)
    best = legal_log_probs.max(axis=-1)
    with np.errstate(invalid="ignore"):
        mass = np.exp(legal_log_probs - best[..., None]).sum(axis=-1)
    return np.where(legal.sum(axis=-1) == 1, FORCED, -np.log(mass)).astype(np.float32)


def row_confidence(
    beams: LiveBeams, scores: Floats, codes: NDArray[np.uint16], num_codes: int
) -> Floats:
    """(beams, num_subspaces): share of a beam's probability that rows of one code have at most.

    scores: (survivors,) log-probabilities of the rows that `beams` own; codes: the catalogue's
    """
    num_beams, num_subspaces = len(beams.job), codes.shape[1]
    share = np.exp(scores - beams.scores[beams.row_beam], dtype=np.float64)
    confidence = np.empty((num_beams, num_subspaces), np.float32)
    for position in range(num_subspaces):
        key = beams.row_beam * num_codes + codes[beams.rows, position]
        mass = np.bincount(key, share, minlength=num_beams * num_codes)
        legal = np.bincount(key, minlength=num_beams * num_codes) > 0
        of_beam = mass.reshape(num_beams, num_codes).max(axis=1)
        forced = np.count_nonzero(legal.reshape(num_beams, num_codes), axis=1) == 1
        confidence[:, position] = np.where(forced, FORCED, of_beam)
    return confidence


def random_confidence(
    beams: LiveBeams, histories: Sequence[Rows], step: int, num_subspaces: int
) -> Floats:
    """(beams, num_subspaces): by chance, for MDGR's ablation; seeded by a job's history and step.

    histories: of the active jobs
    """
    per_job = np.bincount(beams.job, minlength=len(histories))
    drawn = [
        np.random.default_rng((step, zlib.crc32(history.tobytes()))).random((n, num_subspaces))
        for history, n in zip(histories, per_job, strict=True)
    ]
    return np.concatenate(drawn).astype(np.float32)
