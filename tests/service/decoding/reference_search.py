"""Both searches again, written as plainly as possible: one job, Python lists, no tricks.

`service.decoding.search.beam_search` and `service.decoding.search.unconstrained` must give the same
answers. A beam is a partial SID with the list of rows that agree with it. Everything about it is
computed again from those rows. Slow on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import pairwise, product

import numpy as np
import pytest
from hashed_denoiser import HashedDenoiser

from service.decoding.catalogue.catalogue import Catalogue
from service.decoding.catalogue.neighbour_prior import NeighbourPrior
from service.decoding.job import Decoded, Job
from service.decoding.network.denoiser import Histories

FAR_APART = 1e-4  # of scores: rounding cannot change which is the higher


@dataclass
class Beam:
    """A partial SID, the rows that agree with it, its score, and how it came about.

    filled: by position, the call that filled it and the log-prob of its code there
    survivors, scores: after each call
    """

    sid: tuple[int, ...]
    rows: list[int]
    score: float
    filled: dict[int, tuple[int, float]] = field(default_factory=dict)
    survivors: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


@dataclass
class Reference:
    """The answer of the reference search, and how close its choices were.

    closest_call: the smallest gap between what was chosen and what was not. A gap far below 1e-4
        may be decided either way by rounding, so such an answer cannot be compared. Scores that are
        equal for a reason, not by chance, do not count: rounding treats them alike.
    nfe: steps that could change an answer; ranked by rows, none can once every beam is one SID.
    found: each of the rows as a beam of its SID's rows, with its own score as the last one.
    survivors: rows of the beams among which the answer was chosen.
    """

    rows: list[int]
    scores: list[float]
    closest_call: float
    nfe: int
    found: list[Beam]
    survivors: int


def reference_decode(
    job: Job,
    catalogue: Catalogue,
    denoiser: HashedDenoiser,
    *,
    ranking: str,
    order: str = "confidence",
    prior: NeighbourPrior | None = None,
) -> Reference:
    codes = catalogue.codes.tolist()
    biases = reference_biases(job, catalogue, denoiser, prior)
    if ranking == "rows":
        return _decode_by_rows(job, codes, biases, catalogue, denoiser, order)
    return _decode_by_path(job, codes, biases, catalogue, denoiser, order, ranking)


def num_compared(answers: Sequence[Decoded], expected: Sequence[Reference]) -> int:
    """Compare those answers with the reference that rounding does not decide: how many they are."""
    compared = 0
    for answer, reference in zip(answers, expected, strict=True):
        if reference.closest_call > FAR_APART:
            compared += 1
            assert answer.rows.tolist() == reference.rows
            assert answer.survivors == reference.survivors
            assert answer.scores.tolist() == pytest.approx(reference.scores, abs=1e-5)
    return compared


def assert_same_trajectories(answer: Decoded, reference: Reference) -> None:
    """The answer equals the reference's; so must its trajectories."""
    found, trajectory = reference.found, answer.trajectory
    assert trajectory is not None
    positions = range(trajectory.filled.shape[1])
    filled = [[beam.filled[position] for position in positions] for beam in found]
    assert trajectory.filled.tolist() == [[call for call, _ in own] for own in filled]
    log_probs = [[log_prob for _, log_prob in own] for own in filled]
    assert trajectory.survivors.tolist() == [beam.survivors for beam in found]
    for ours, theirs in zip(trajectory.log_probs.tolist(), log_probs, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5, nan_ok=True)
    for ours, beam in zip(trajectory.beam_scores.tolist(), found, strict=True):
        assert ours == pytest.approx(beam.scores, abs=1e-5)


def reference_biases(
    job: Job, catalogue: Catalogue, denoiser: HashedDenoiser, prior: NeighbourPrior | None
) -> list[float]:
    """What every row's score gains besides its codes."""
    history = job.history.tolist()
    biases = [0.0] * catalogue.num_items
    if prior is not None:
        memory = _reference_memory(history, catalogue.num_items, prior)
        biases = [prior.weight * math.log(1 + strength / prior.scale) for strength in memory]
    for row in set(history):
        biases[row] += denoiser.repeat_bias
    for row, boost in zip(job.boosted.tolist(), job.boosts.tolist(), strict=True):
        biases[row] += boost
    return biases


def _reference_memory(history: list[int], num_items: int, prior: NeighbourPrior) -> list[float]:
    """A new item of the history is replaced by its shares; then new rows get theirs."""
    num_counted, new = len(prior.neighbours), prior.new
    mixtures = [[(row, 1.0)] for row in range(num_counted)]
    if new is not None:
        mixtures += [
            [(int(row), float(share)) for row, share in zip(rows, shares, strict=True) if share]
            for rows, shares in zip(new.rows, new.shares, strict=True)
        ]
    memory, had = [0.0] * num_items, [0.0] * num_counted
    for age, item in enumerate(history[::-1][: prior.history_length]):
        for part, share in mixtures[item]:
            strength = prior.decay**age * share
            had[part] += strength
            if new is not None and item >= num_counted:
                memory[part] += strength * new.strength
            for row, affinity in zip(prior.neighbours[part], prior.affinities[part], strict=True):
                memory[row] += strength * float(affinity)
    for item in range(num_counted, len(mixtures)):
        assert new is not None
        memory[item] = sum(
            share * (memory[part] + new.strength * had[part]) for part, share in mixtures[item]
        )
    return memory


def _decode_by_path(
    job: Job,
    codes: list[list[int]],
    biases: list[float],
    catalogue: Catalogue,
    denoiser: HashedDenoiser,
    order: str,
    ranking: str,
) -> Reference:
    """Beams are compared by the log-probs of their filled positions.

    By the ranking "best", the log-probs of the best completion and its bias are added; else biases
    are added at the end.
    """
    beams = _root(job, codes, denoiser)
    closest_call = math.inf
    scores: dict[int, float] = {}
    ends: dict[int, Beam] = {}
    for number, step in enumerate(job.schedule.steps, start=1):
        is_last = _is_last(number, job, beams)
        children = []
        for beam in beams:
            log_probs = log_probs_of(job, catalogue, denoiser, beam.sid)
            masked = _masked(beam.sid, denoiser)
            completions = _completions(beam.rows, codes, biases, masked, log_probs)
            if is_last:
                scores |= {row: beam.score + completions[row] for row in beam.rows}
                ends |= _ends(beam, codes, log_probs, masked, number)
                continue
            if order == "raw_confidence":
                chosen = _most_confident(masked, log_probs, step)
            elif order == "left_to_right":
                chosen = masked[:step]
            else:
                legal = {p: {codes[row][p] for row in beam.rows} for p in masked}
                chosen, gap = _most_certain_legally(legal, log_probs, step, order)
                closest_call = min(closest_call, gap)
            for child in _children(beam, codes, log_probs, chosen, number):
                best = beam.score + max(completions[row] for row in child.rows)
                children.append((best if ranking == "best" else child.score, child))
        if is_last:
            break
        # Stable: equal children stay in the order of their parents, then of their first rows.
        children.sort(key=lambda child: -child[0])
        if len(children) > job.beam_width:
            (last, _), (first_out, _) = children[job.beam_width - 1 : job.beam_width + 1]
            if ranking == "best":
                closest_call = min(closest_call, last - first_out)
        beams = [child for _, child in children[: job.beam_width]]
    rows, best, closest = _best(scores, codes, biases, job.k)
    # Without biases every sum is exact, and a tie is a tie.
    closest = min(closest_call, closest) if any(biases) else closest_call
    found = _found(rows, best, ends)
    return Reference(rows, best, closest, number if beams else 0, found, _num_rows(beams))


def _decode_by_rows(
    job: Job,
    codes: list[list[int]],
    biases: list[float],
    catalogue: Catalogue,
    denoiser: HashedDenoiser,
    order: str,
) -> Reference:
    """Beams are compared by the log of the probability that one of their rows is the next item."""
    beams = _root(job, codes, denoiser)
    closest_call = math.inf
    scores: dict[int, float] = {}
    ends: dict[int, Beam] = {}
    nfe = 0
    for number, step in enumerate(job.schedule.steps, start=1):
        decided = all(len({tuple(codes[row]) for row in beam.rows}) == 1 for beam in beams)
        if beams and (number == 1 or not decided):
            nfe = number
        is_last = _is_last(number, job, beams)
        children, scores, ends = [], {}, {}
        for beam in beams:
            log_probs = log_probs_of(job, catalogue, denoiser, beam.sid)
            masked = _masked(beam.sid, denoiser)
            logits = _completions(beam.rows, codes, biases, masked, log_probs)
            mass = log_sum_exp(list(logits.values()))
            of_rows = {row: beam.score + logit - mass for row, logit in logits.items()}
            scores |= of_rows
            if is_last:
                ends |= _ends(beam, codes, log_probs, masked, number)
                continue
            shares = {row: math.exp(logit - mass) for row, logit in logits.items()}
            if order == "left_to_right":
                chosen = masked[:step]
            else:
                chosen, gap = _most_certain_by_rows(masked, codes, shares, step, order)
                closest_call = min(closest_call, gap)
            for sid, rows in _groups(beam.rows, codes, chosen):
                child = _child(beam, log_probs, chosen, sid, rows, number)
                child.score = child.scores[-1] = log_sum_exp([of_rows[row] for row in rows])
                if len({tuple(codes[row]) for row in rows}) == 1:
                    _decide(child, number)
                children.append(child)
        if is_last:
            break
        beams = sorted(children, key=lambda child: -child.score)
        if len(beams) > job.beam_width:
            last, first_out = beams[job.beam_width - 1 : job.beam_width + 1]
            closest_call = min(closest_call, last.score - first_out.score)
            beams = beams[: job.beam_width]
    rows, best, closest = _best(scores, codes, biases, job.k)
    found = _found(rows, best, ends)
    for end in found:
        del end.survivors[nfe:], end.scores[nfe:]
    for end, score in zip(found, best, strict=True):
        end.scores[-1] = score
    return Reference(rows, best, min(closest_call, closest), nfe, found, _num_rows(beams))


def _ends(
    beam: Beam,
    codes: list[list[int]],
    log_probs: list[list[float]],
    masked: list[int],
    number: int,
) -> dict[int, Beam]:
    """The final beam of each of a beam's rows, if all its masked positions are filled now."""
    groups = _children(beam, codes, log_probs, masked, number)
    return {row: end for end in groups for row in end.rows}


def _decide(beam: Beam, number: int) -> None:
    """Settle the masked positions of a beam whose rows share one SID, without log-probs."""
    for position in range(len(beam.sid)):
        beam.filled.setdefault(position, (number, math.nan))


def _found(rows: list[int], scores: list[float], ends: dict[int, Beam]) -> list[Beam]:
    """The final beams of these rows, each a copy with the row's score as its last one."""
    found = [deepcopy(ends[row]) for row in rows]
    for end, score in zip(found, scores, strict=True):
        end.score = end.scores[-1] = score
    return found


def _best(
    scores: dict[int, float], codes: list[list[int]], biases: list[float], k: int
) -> tuple[list[int], list[float], float]:
    """The k best rows, ties by row, their scores and the closest call.

    Rows of one SID and one bias tie for a reason.
    """
    found = sorted((-score, row) for row, score in scores.items())
    closest_call = math.inf
    for (better, row), (worse, other) in pairwise(found[: k + 1]):
        if codes[row] != codes[other] or biases[row] != biases[other]:
            closest_call = min(closest_call, worse - better)
    found = found[:k]
    return [row for _, row in found], [-score for score, _ in found], closest_call


def reference_unconstrained(
    job: Job, catalogue: Catalogue, denoiser: HashedDenoiser
) -> tuple[list[Beam], bool]:
    """MDGR sec. 4.4 with the whole product of codes written out; also whether anything tied.

    The beams are finished SIDs, each with its rows. Which of tied children stay is not specified.
    """
    tied = False
    beams = [Beam((denoiser.num_codes,) * denoiser.num_subspaces, [], 0.0)]
    for number, step in enumerate(job.schedule.steps, start=1):
        children = []
        for beam in beams:
            log_probs = log_probs_of(job, catalogue, denoiser, beam.sid)
            masked, legal = _masked(beam.sid, denoiser), set(range(denoiser.num_codes))
            if job.order == "left_to_right":
                chosen, gap = masked[:step], math.inf
            elif job.order in ("entropy", "margin"):
                of_all = dict.fromkeys(masked, legal)
                chosen, gap = _most_certain_legally(of_all, log_probs, step, job.order)
            else:
                chosen, gap = _most_confident(masked, log_probs, step), math.inf
            tied = tied or gap < FAR_APART
            for codes in product(range(denoiser.num_codes), repeat=step):
                children.append(_child(beam, log_probs, chosen, codes, [], number))
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
    log_probs = log_probs_of(job, catalogue, denoiser, root)
    return [
        sum(log_probs[position][code] for position, code in enumerate(sid))
        for sid in catalogue.codes.tolist()
    ]


def best_rows(scores: list[float], job: Job) -> list[int]:
    """The k best rows of those a job allows, ties by row."""
    return sorted(allowed_rows(job, len(scores)), key=lambda row: (-scores[row], row))[: job.k]


def allowed_rows(job: Job, num_items: int) -> list[int]:
    """Rows that a job's filter and exclusions leave, ascending."""
    rows = range(num_items) if job.allowed is None else job.allowed.tolist()
    excluded = set(job.excluded.tolist())
    return [row for row in rows if row not in excluded]


def log_sum_exp(values: list[float]) -> float:
    highest = max(values)
    return math.log(math.fsum(math.exp(value - highest) for value in values)) + highest


def _is_last(number: int, job: Job, beams: list[Beam]) -> bool:
    return number == job.schedule.nfe or _num_rows(beams) <= job.finish_rows


def _num_rows(beams: list[Beam]) -> int:
    return sum(len(beam.rows) for beam in beams)


def _completions(
    rows: list[int],
    codes: list[list[int]],
    biases: list[float],
    masked: list[int],
    log_probs: list[list[float]],
) -> dict[int, float]:
    """What each row's score gains if all masked positions are filled with its codes."""
    return {
        row: sum(log_probs[position][codes[row][position]] for position in masked) + biases[row]
        for row in rows
    }


def _root(job: Job, codes: list[list[int]], denoiser: HashedDenoiser) -> list[Beam]:
    allowed = allowed_rows(job, len(codes))
    return [Beam((denoiser.num_codes,) * denoiser.num_subspaces, allowed, 0.0)] if allowed else []


def log_probs_of(
    job: Job, catalogue: Catalogue, denoiser: HashedDenoiser, sid: tuple[int, ...]
) -> list[list[float]]:
    newest = job.history[-denoiser.history_length :]
    codes, vectors = catalogue.codes[newest][None], catalogue.vectors[newest][None]
    mask = np.ones((1, len(newest)), dtype=np.bool_)
    if not len(newest):
        codes = np.full((1, 1, catalogue.num_subspaces), denoiser.num_codes, np.uint16)
        vectors = np.zeros((1, 1, catalogue.vectors.shape[1]), np.float16)
        mask = np.zeros((1, 1), dtype=np.bool_)
    memory = denoiser.encode(Histories(codes, vectors, mask))
    partial_sids = np.array([[sid]], dtype=np.uint16)
    masked = _masked(sid, denoiser)
    answer = denoiser.denoise(memory, partial_sids, np.array([[masked]]))[0, 0]
    log_probs: list[list[float]] = [[] for _ in sid]  # none at filled positions
    for position, of_codes in zip(masked, answer.tolist(), strict=True):
        log_probs[position] = of_codes
    return log_probs


def _masked(sid: tuple[int, ...], denoiser: HashedDenoiser) -> list[int]:
    return [position for position, code in enumerate(sid) if code == denoiser.num_codes]


def _most_confident(masked: list[int], log_probs: list[list[float]], step: int) -> list[int]:
    return sorted(sorted(masked, key=lambda position: (-max(log_probs[position]), position))[:step])


def _most_certain_legally(
    legal: dict[int, set[int]], log_probs: list[list[float]], step: int, order: str
) -> tuple[list[int], float]:
    """As above over the legal codes, forced positions last; and how close the choice was."""
    ranked = []
    for position, codes in legal.items():
        # Sorted, so that positions with the same log-probs get exactly the same certainty.
        candidates = sorted(log_probs[position][code] for code in codes)
        mass = math.fsum(math.exp(log_prob - candidates[-1]) for log_prob in candidates)
        shares = [math.exp(log_prob - candidates[-1]) / mass for log_prob in candidates]
        ranked.append((len(codes) == 1, -_certainty(shares, order), position))
    ranked.sort()
    gap = math.inf
    if step < len(ranked) and not ranked[step][0]:
        gap = ranked[step][1] - ranked[step - 1][1]
    return sorted(position for _, _, position in ranked[:step]), gap


def _certainty(shares: list[float], order: str) -> float:
    """Of a position whose legal codes have these probabilities, ascending."""
    if order == "entropy":
        return math.fsum(share * math.log(share) for share in shares if share)
    if order == "margin":
        return shares[-1] - (shares[-2] if len(shares) > 1 else 0)
    return math.log(shares[-1])


def _most_certain_by_rows(
    masked: list[int], codes: list[list[int]], shares: dict[int, float], step: int, order: str
) -> tuple[list[int], float]:
    """Positions by the probabilities of their codes, which are those of rows; forced ones last.

    Positions whose most probable codes have the same rows are equal for a reason, if only those
    codes count. Entropy is a sum over all codes, so rounding may tell such positions apart.
    """
    ranked = []
    for position in masked:
        groups = [rows for _, rows in _groups(list(shares), codes, [position])]
        by_share = sorted((math.fsum(shares[row] for row in rows), rows) for rows in groups)
        certainty = _certainty([share for share, _ in by_share], order)
        that_count = by_share[{"confidence": -1, "margin": -2, "entropy": 0}[order] :]
        ranked.append((len(groups) == 1, -certainty, position, that_count))
    ranked.sort(key=lambda one: one[:3])
    gap = math.inf
    for _, certainty, _, rows in ranked[:step]:
        for forced, other, _, other_rows in ranked[step:]:
            if not forced and (order == "entropy" or rows != other_rows):
                gap = min(gap, other - certainty)
    return sorted(position for _, _, position, _ in ranked[:step]), gap


def _groups(
    rows: list[int], codes: list[list[int]], chosen: list[int]
) -> list[tuple[tuple[int, ...], list[int]]]:
    """Rows by their codes at the chosen positions, lower codes first."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row in rows:
        groups.setdefault(tuple(codes[row][position] for position in chosen), []).append(row)
    return list(groups.items())  # the lower first row first


def _children(
    beam: Beam,
    codes: list[list[int]],
    log_probs: list[list[float]],
    chosen: list[int],
    number: int,
) -> list[Beam]:
    """One child per code tuple that the beam's rows have at the chosen positions."""
    groups = _groups(beam.rows, codes, chosen)
    return [_child(beam, log_probs, chosen, *group, number) for group in groups]


def _child(
    beam: Beam,
    log_probs: list[list[float]],
    chosen: list[int],
    codes: tuple[int, ...],
    rows: list[int],
    number: int,
) -> Beam:
    """number: that of the call. Positions filled before, as in a decided beam, do not change."""
    sid, score, filled = list(beam.sid), beam.score, dict(beam.filled)
    for position, code in zip(chosen, codes, strict=True):
        sid[position] = code
        score += log_probs[position][code]
        filled.setdefault(position, (number, log_probs[position][code]))
    survivors, scores = [*beam.survivors, len(rows)], [*beam.scores, score]
    return Beam(tuple(sid), rows, score, filled, survivors, scores)
