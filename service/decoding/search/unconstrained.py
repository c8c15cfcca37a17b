"""MDGR's own search, without a catalogue (sec. 4.4), to compare the constrained search with.

Every beam fills its first m positions, in the order of its job, with the jointly best code tuples.
Every code counts as legal, so the orders "confidence" and "raw_confidence" are the same. Finished
SIDs are looked up afterwards; those that no item has are counted and dropped. Evaluation uses it to
report the invalid rate; the service never calls it. Knows no trie. Jobs of equal schedule, beam
width and order have equally many beams at every step. So each such group is one rectangle `(jobs,
beams, ...)`, and nothing is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Floats, Rows
from service.decoding.catalogue import Catalogue
from service.decoding.job import Job, Order
from service.decoding.network import Denoiser, Histories, masked_positions
from service.decoding.schedule import Schedule
from service.decoding.search.rows.order import drawn_certainties


@dataclass(frozen=True, eq=False)
class UnconstrainedDecoded:
    """The items of one job's finished SIDs.

    rows:        (n <= k,) int32, best SID first, items of one SID by row
    scores:      (n,) float32, sum of log-probs
    nfe:         denoiser calls
    num_sids:    finished SIDs: the beams of the last step
    num_invalid: how many of them no item has
    """

    rows: Rows
    scores: Floats
    nfe: int
    num_sids: int
    num_invalid: int


class SidIndex:
    """Rows of a SID. The key is the SID's bytes: num_codes ** num_subspaces overflows 64 bits."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        sids, sid_of_row = np.unique(catalogue.codes, axis=0, return_inverse=True)
        rows = np.argsort(sid_of_row, kind="stable").astype(np.int32)
        ends = np.cumsum(np.bincount(sid_of_row))[:-1]
        self._rows_of = {
            sid.tobytes(): group for sid, group in zip(sids, np.split(rows, ends), strict=True)
        }

    def rows_of(self, sid: NDArray[np.uint16]) -> Rows:
        """Rows of the items with this SID, ascending; none when the SID is invalid.

        sid: (num_subspaces,) uint16
        """
        return self._rows_of.get(sid.tobytes(), np.empty(0, dtype=np.int32))


def decode_unconstrained(
    jobs: Sequence[Job], index: SidIndex, denoiser: Denoiser
) -> list[UnconstrainedDecoded]:
    """Decode every job without a catalogue, then look up its SIDs.

    Rows that a job excludes are dropped after the look-up; `is_cancelled` is not called. Fewer than
    `k` items come back when SIDs are invalid or excluded.
    """
    groups: dict[tuple[Schedule, int, Order], list[int]] = {}
    for number, job in enumerate(jobs):
        groups.setdefault((job.schedule, job.beam_width, job.order), []).append(number)
    decoded: dict[int, UnconstrainedDecoded] = {}
    for numbers in groups.values():
        group = [jobs[number] for number in numbers]
        histories = Histories.of(
            [job.history for job in group], index.catalogue, denoiser.history_length
        )
        memory = denoiser.encode(histories)
        sids, scores = _search(memory, group, denoiser)
        for number, job, job_sids, job_scores in zip(numbers, group, sids, scores, strict=True):
            decoded[number] = _look_up(job, job_sids, job_scores, index)
    return [decoded[number] for number in range(len(jobs))]


def _search(
    memory: object, jobs: Sequence[Job], denoiser: Denoiser
) -> tuple[NDArray[np.uint16], Floats]:
    """MDGR Eq. 16-23 for jobs that are alike: (jobs, beams, num_subspaces) SIDs, best first."""
    mask, num_jobs = denoiser.num_codes, len(jobs)
    schedule, beam_width = jobs[0].schedule, jobs[0].beam_width
    sids = np.full((num_jobs, 1, denoiser.num_subspaces), mask, dtype=np.uint16)
    scores = np.zeros((num_jobs, 1), dtype=np.float32)
    for call, step in enumerate(schedule.steps, start=1):
        positions = masked_positions(sids, mask)
        log_probs = denoiser.denoise(memory, sids, positions)
        certainties = _certainties(jobs, log_probs, positions, call)
        places = np.sort(np.argsort(-certainties, axis=-1, kind="stable")[..., :step], axis=-1)
        chosen = np.take_along_axis(positions, places, axis=-1)
        at_chosen = np.take_along_axis(log_probs, places[..., None], axis=2)
        tuples, tuple_scores = best_tuples(at_chosen, beam_width)

        # The beam_width best children over all beams of each job (Eq. 23).
        child_scores = (scores[:, :, None] + tuple_scores).reshape(num_jobs, -1)
        best = np.argsort(-child_scores, axis=-1, kind="stable")[:, :beam_width]
        parent, rank = np.divmod(best, tuples.shape[2])
        job = np.arange(num_jobs)[:, None]
        sids = sids[job, parent]
        np.put_along_axis(sids, chosen[job, parent], tuples[job, parent, rank], axis=-1)
        scores = np.take_along_axis(child_scores, best, axis=-1)
    return sids, scores


def _certainties(
    jobs: Sequence[Job], log_probs: Floats, positions: NDArray[np.int64], call: int
) -> Floats:
    """(jobs, beams, n) what the jobs' order ranks their masked positions by, see `rows.order`."""
    match jobs[0].order:
        case "left_to_right":
            return -positions.astype(np.float32)
        case "random":
            num_beams, num_subspaces = positions.shape[1], jobs[0].schedule.num_subspaces
            drawn = [drawn_certainties(job.history, call, num_beams, num_subspaces) for job in jobs]
            return np.take_along_axis(np.stack(drawn), positions, axis=-1)
        case "entropy":
            probabilities = np.exp(log_probs)
            minus_entropy: Floats = np.where(
                probabilities > 0, probabilities * log_probs, np.float32(0)
            ).sum(axis=-1)
            return minus_entropy
        case "margin" if log_probs.shape[-1] > 1:
            best: Floats = np.exp(np.partition(log_probs, -2, axis=-1)[..., -2:])
            return best[..., 1] - best[..., 0]
        case "confidence" | "raw_confidence" | "margin":
            highest: Floats = log_probs.max(axis=-1)
            return highest


def best_tuples(log_probs: Floats, num_best: int) -> tuple[NDArray[np.uint16], Floats]:
    """The exact `num_best` best code tuples over several positions, without listing the product.

    Lists are merged position by position. The pair of the a-th best tuple so far and the b-th best
    code can be among the best B only if a * b <= B, because a * b pairs are at least as good.

    log_probs: (..., positions, num_codes)
    Returns codes (..., n, positions) uint16 and their summed log-probs (..., n), best first, with
    n = min(num_best, num_codes ** positions). Of equal single codes the lower comes first.
    """
    order = np.argsort(-log_probs, axis=-1, kind="stable")[..., :num_best]
    codes = order.astype(np.uint16)
    sorted_log_probs = np.take_along_axis(log_probs, order, axis=-1)
    tuples, scores = codes[..., 0, :, None], sorted_log_probs[..., 0, :]
    for position in range(1, log_probs.shape[-2]):
        ranks = np.arange(1, num_best + 1)
        first, second = np.nonzero(
            np.outer(ranks[: scores.shape[-1]], ranks[: codes.shape[-1]]) <= num_best
        )
        sums = scores[..., first] + sorted_log_probs[..., position, second]
        kept = np.argsort(-sums, axis=-1, kind="stable")[..., :num_best]
        scores = np.take_along_axis(sums, kept, axis=-1)
        before = np.take_along_axis(tuples, first[kept][..., None], axis=-2)
        code = np.take_along_axis(codes[..., position, :], second[kept], axis=-1)
        tuples = np.concatenate([before, code[..., None]], axis=-1)
    return tuples, scores


def _look_up(
    job: Job, sids: NDArray[np.uint16], scores: Floats, index: SidIndex
) -> UnconstrainedDecoded:
    groups = [index.rows_of(sid) for sid in sids]
    sizes = np.array([len(group) for group in groups])
    rows = np.concatenate(groups)
    allowed = np.isin(rows, job.excluded, invert=True)
    return UnconstrainedDecoded(
        rows=rows[allowed][: job.k],
        scores=np.repeat(scores, sizes)[allowed][: job.k],
        nfe=job.schedule.nfe,
        num_sids=len(sids),
        num_invalid=int(np.count_nonzero(sizes == 0)),
    )
