"""Both searches again, as plainly as they can be written: one job, Python lists, no tricks.

What `service.decoding.beam` and `service.decoding.unconstrained` must equal. A beam is a partial
SID with the list of rows that agree with it; everything about it is recomputed from those rows.
Slow, and meant to be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from hashed_denoiser import HashedDenoiser

from service.decoding.catalogue import Catalogue
from service.decoding.job import Job


@dataclass
class Beam:
    """A partial SID, the rows that agree with it, and its summed log-probs."""

    sid: tuple[int, ...]
    rows: list[int]
    score: float


@dataclass
class Reference:
    """`closest_call` is the smallest gap between a confidence that was chosen and one that was not.

    A gap far below 1e-4 may be decided either way by rounding, so it cannot be compared.
    """

    rows: list[int]
    scores: list[float]
    closest_call: float


def reference_decode(
    job: Job, catalogue: Catalogue, denoiser: HashedDenoiser, confidence: str
) -> Reference:
    codes = catalogue.codes.tolist()
    allowed = [row for row in range(len(codes)) if row not in set(job.excluded.tolist())]
    beams = [Beam((denoiser.num_codes,) * catalogue.num_subspaces, allowed, 0.0)] if allowed else []
    closest_call = math.inf
    for number, step in enumerate(job.schedule.steps, start=1):
        children = []
        for beam in beams:
            log_probs = _denoise(job, catalogue, denoiser, beam.sid)
            masked = _masked(beam.sid, denoiser)
            if confidence == "raw":
                chosen = _most_confident(masked, log_probs, step)
            else:
                legal = {p: {codes[row][p] for row in beam.rows} for p in masked}
                chosen, gap = _most_confident_legally(legal, log_probs, step)
                closest_call = min(closest_call, gap)
            children += _children(beam, codes, log_probs, chosen)
        # Stable: children of equal score stay in the order of their parents, then of their codes.
        beams = sorted(children, key=lambda child: -child.score)
        if number < job.schedule.nfe:
            beams = beams[: job.beam_width]
    found = sorted((-beam.score, row) for beam in beams for row in beam.rows)[: job.k]
    return Reference([row for _, row in found], [-score for score, _ in found], closest_call)


def reference_unconstrained(
    job: Job, catalogue: Catalogue, denoiser: HashedDenoiser
) -> tuple[list[Beam], bool]:
    """MDGR sec. 4.4 with the whole product of codes written out, and whether children tied.

    The beams are finished SIDs, each with its rows; which of tied children live is not specified.
    """
    tied = False
    beams = [Beam((denoiser.num_codes,) * denoiser.num_subspaces, [], 0.0)]
    for step in job.schedule.steps:
        children = []
        for beam in beams:
            log_probs = _denoise(job, catalogue, denoiser, beam.sid)
            chosen = _most_confident(_masked(beam.sid, denoiser), log_probs, step)
            for codes in product(range(denoiser.num_codes), repeat=step):
                children.append(_child(beam, log_probs, chosen, codes, []))
        children.sort(key=lambda child: -child.score)
        best = children[: job.beam_width + 1]
        tied = tied or any(left.score == right.score for left, right in pairwise(best))
        beams = best[: job.beam_width]
    for beam in beams:
        beam.rows = [row for row, sid in enumerate(catalogue.codes.tolist()) if (*sid,) == beam.sid]
    return beams, tied


def exhaustive_scores(job: Job, catalogue: Catalogue, denoiser: HashedDenoiser) -> list[float]:
    """Every row's score after one call on the fully masked SID, all positions independent."""
    root = (denoiser.num_codes,) * catalogue.num_subspaces
    log_probs = _denoise(job, catalogue, denoiser, root)
    return [
        sum(log_probs[position][code] for position, code in enumerate(sid))
        for sid in catalogue.codes.tolist()
    ]


def best_rows(scores: list[float], job: Job) -> list[int]:
    """The k best rows of those a job allows, ties by row."""
    allowed = [row for row in range(len(scores)) if row not in set(job.excluded.tolist())]
    return sorted(allowed, key=lambda row: (-scores[row], row))[: job.k]


def _denoise(
    job: Job, catalogue: Catalogue, denoiser: HashedDenoiser, sid: tuple[int, ...]
) -> list[list[float]]:
    history = catalogue.codes[job.history][-denoiser.history_length :]
    memory = denoiser.encode(history[None], np.ones((1, len(history)), dtype=np.bool_))
    partial_sids = np.array([[sid]], dtype=np.uint16)
    difficulty = np.array([len(_masked(sid, denoiser))])
    log_probs: list[list[float]] = denoiser.denoise(memory, partial_sids, difficulty)[0, 0].tolist()
    return log_probs


def _masked(sid: tuple[int, ...], denoiser: HashedDenoiser) -> list[int]:
    return [position for position, code in enumerate(sid) if code == denoiser.num_codes]


def _most_confident(masked: list[int], log_probs: list[list[float]], step: int) -> list[int]:
    return sorted(sorted(masked, key=lambda position: (-max(log_probs[position]), position))[:step])


def _most_confident_legally(
    legal: dict[int, set[int]], log_probs: list[list[float]], step: int
) -> tuple[list[int], float]:
    """As above over the legal codes, forced positions last; and how close the choice was."""
    ranked = []
    for position, codes in legal.items():
        # Sorted, so that positions with the same log-probs get exactly the same confidence.
        candidates = sorted(log_probs[position][code] for code in codes)
        mass = math.fsum(math.exp(log_prob - candidates[-1]) for log_prob in candidates)
        ranked.append((len(codes) == 1, math.log(mass), position))
    ranked.sort()
    gap = math.inf
    if step < len(ranked) and not ranked[step][0]:
        gap = ranked[step][1] - ranked[step - 1][1]
    return sorted(position for _, _, position in ranked[:step]), gap


def _children(
    beam: Beam, codes: list[list[int]], log_probs: list[list[float]], chosen: list[int]
) -> list[Beam]:
    """One child per code tuple that the beam's rows have at the chosen positions."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row in beam.rows:
        groups.setdefault(tuple(codes[row][position] for position in chosen), []).append(row)
    return [_child(beam, log_probs, chosen, *group) for group in sorted(groups.items())]


def _child(
    beam: Beam,
    log_probs: list[list[float]],
    chosen: list[int],
    codes: tuple[int, ...],
    rows: list[int],
) -> Beam:
    sid, score = list(beam.sid), beam.score
    for position, code in zip(chosen, codes, strict=True):
        sid[position] = code
        score += log_probs[position][code]
    return Beam(tuple(sid), rows, score)
