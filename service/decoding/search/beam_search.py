"""Any-order beam search over partial SIDs that only ever visits SIDs of the catalogue.

Per step: one denoiser call for all live beams of all jobs. Each beam picks the positions that its
job's order puts first. Its surviving rows, grouped by their codes there, are its children. The best
`beam_width` of a job stay. The last step scores every surviving row and returns the `k` best; ties
go to the lower row. Pure: no logging, no metrics, no environment. Knows nothing of users, item ids
or HTTP. The loops over beams and rows are compiled; they are in `posting_lists` and `rows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Floats, Rows
from service.decoding.catalogue import NeighbourPrior, SidTrie
from service.decoding.job import Decoded, Job, OnAnswer, Timings
from service.decoding.network import Denoiser, EncoderCache
from service.decoding.search.beams import Beams, PostingListBeams
from service.decoding.search.denoiser_calls import BatchDenoiser
from service.decoding.search.posting_lists.first_step import expand_fully_masked
from service.decoding.search.row_biases import RowBiases
from service.decoding.search.rows import expansion
from service.decoding.search.rows import order as orders
from service.decoding.search.rows.whole_catalogue import (
    allowed_rows,
    best_of_catalogue,
    rows_not_excluded,
)
from service.decoding.search.steps import after_first_step, best_children, best_rows
from service.decoding.search.trajectories import TrajectoryRecorder

_RANKINGS = {"path": expansion.PATH, "best": expansion.BEST, "rows": expansion.ROWS}
_NOTHING = np.empty(0, np.int32), np.empty(0, np.float32)
_NONE_DRAWN = np.empty((0, 0), np.float32)
ORDERS = {
    "confidence": orders.CONFIDENCE,
    "entropy": orders.ENTROPY,
    "margin": orders.MARGIN,
    "left_to_right": orders.LEFT_TO_RIGHT,
    "random": orders.DRAWN,
    "raw_confidence": orders.RAW,
}


def decode(
    jobs: Sequence[Job],
    trie: SidTrie,
    denoiser: Denoiser,
    *,
    prior: NeighbourPrior | None = None,
    cache: EncoderCache | None = None,
    on_answer: OnAnswer | None = None,
) -> tuple[list[Decoded], Timings]:
    """Decode a batch of jobs; their settings may differ.

    ranking (of a job): the score by which beams are compared. A row's bias is what its score gains
        besides its codes: from the prior and the repeat bias.
        "rows": a row's logit is the sum of its log-probs at masked positions and its bias. A
        softmax over the beam's rows divides the beam's probability among them. A child has the
        probability of its rows. By the chain rule the scores of items are log-probabilities over
        the allowed catalogue, whatever the schedule. A beam whose rows share one SID is decided: no
        call can change its score, so none is made for it.
        "path": the sum of the log-probs of the filled positions (MDGR Eq. 20-22). Biases are added
        in the last step.
        "best": as "path", plus the best completion that one of the beam's rows offers, with its
        bias. Scores of items are the same as by path.
    order (of a job): which masked positions a beam fills first. Three orders compare legal codes,
        those of the beam's rows: each has the probability of its rows (ranking "rows"), or its
        share of the denoiser's probability of all legal codes (other rankings). Positions with a
        single legal code come last.
        "confidence": the highest probability of a code first. MaskGR calls it greedy.
        "entropy": the lowest entropy of the codes first.
        "margin": the largest difference between the two highest probabilities first.
        The others do not ask which codes are legal:
        "left_to_right": the lowest position first, as autoregressive networks do.
        "random": by chance; the same for a history in every batch.
        "raw_confidence": the highest probability of any code first (MDGR Eq. 18). Not for "rows".
    prior: the neighbour prior, or None. Its scores are part of the biases. So is the denoiser's
        `repeat_bias`, for items that the history holds.
    cache: histories that it holds are not encoded again.
    on_answer: called once for each job, in this thread, as soon as its answer is known: with the
        job's index in `jobs`, the answer and the timings so far. Its own time counts as search
        time. If it raises, the batch ends, as with any other error.
    Ties: of positions, the lower; of children, the one with the better parent, then with the lower
    first row; of items, the lower row. Raises ValueError when a schedule does not fill
    num_subspaces positions, when a job's rows or beam_width are out of range, or for the order
    "raw_confidence" of a job that is ranked by "rows".
    """
    batch = _Batch(jobs, trie, denoiser, prior, cache, on_answer)
    batch.start()
    while batch.active:
        batch.step()
    return [search.answer for search in batch.searches], batch.timings()


def _nothing_left(job: Job, num_items: int) -> bool:
    """Whether the job allows no row. Cheap, unless it excludes as many rows as it allows."""
    num_allowed = num_items if job.allowed is None else len(job.allowed)
    if len(job.excluded) < num_allowed:
        return False
    allowed = np.arange(num_items) if job.allowed is None else job.allowed
    return bool(np.isin(allowed, job.excluded).all())


class _Search:
    """One job's way through its schedule. index: the job's place in the batch"""

    def __init__(self, index: int, job: Job, trie: SidTrie) -> None:
        self.index = index
        self.job = job
        self.ranking = _RANKINGS[job.ranking]
        self.order = ORDERS[job.order]
        # None before the first step: one fully masked beam, which owns all allowed rows.
        self.beams: Beams | PostingListBeams | None = None
        self.recorder = TrajectoryRecorder(job, trie) if job.explain else None
        self.finished = False
        self.answer = Decoded(*_NOTHING, 0)

    def continue_with(self, children: Beams | PostingListBeams, log_probs: Floats) -> None:
        """Make these children the live beams. log_probs: the denoiser's output for their parents"""
        self.beams = children
        if self.recorder is not None:
            self.recorder.record(children, log_probs)

    def finish(
        self,
        found: tuple[Rows, Floats],
        nfe: int,
        log_probs: Floats | None,
        cancelled: bool,
        survivors: int,
    ) -> None:
        recorder = self.recorder
        trajectory = None if recorder is None else recorder.of_answer(*found, log_probs)
        self.answer = Decoded(*found, nfe, cancelled, trajectory, survivors)
        self.finished = True

    def is_last_step(self, nfe: int, num_rows: int) -> bool:
        """Whether the nfe-th denoiser call is the last one, with `num_rows` rows surviving."""
        return nfe == self.job.schedule.nfe or num_rows <= self.job.finish_rows


class _Batch:
    """State of one `decode` call: its searches, and which of them are still active."""

    def __init__(
        self,
        jobs: Sequence[Job],
        trie: SidTrie,
        denoiser: Denoiser,
        prior: NeighbourPrior | None,
        cache: EncoderCache | None,
        on_answer: OnAnswer | None,
    ) -> None:
        self.started = perf_counter()
        self.trie = trie
        self.denoiser = BatchDenoiser(denoiser, trie.catalogue, cache)
        self.prior = prior
        self.codes = trie.catalogue.codes
        self.on_answer = on_answer
        self.nfe = 0
        self.searches = [_Search(index, job, trie) for index, job in enumerate(jobs)]
        self.active: list[_Search] = []
        num_items, num_subspaces = self.codes.shape
        for search in self.searches:
            job = search.job
            if job.schedule.num_subspaces != num_subspaces:
                raise ValueError("a job's schedule must fill exactly num_subspaces positions")
            check_rows(job, num_items)
            if search.ranking == expansion.ROWS and search.order == orders.RAW:
                raise ValueError('order "raw_confidence" is of all codes, ranking "rows" of rows')

    def start(self) -> None:
        """Answer the jobs that allow no row or want no item; the others become active."""
        for search in self.searches:
            job = search.job
            if job.k > 0 and not _nothing_left(job, len(self.codes)):
                self.active.append(search)
            else:
                self._answer(search, _NOTHING)

    def step(self) -> None:
        """Fill the next positions of every active job; answer the jobs that are complete."""
        for search in self.active:
            if search.job.is_cancelled():
                self._answer(search, _NOTHING, cancelled=True)
        self._keep_unfinished()
        if not self.active:
            return
        if self.nfe == 0:
            self.denoiser.encode([search.job.history for search in self.active])
        outputs = self.denoiser.denoise([search.beams for search in self.active])
        self.nfe += 1
        if self.nfe == 1:
            self._first_step([log_probs for log_probs, _ in outputs])
        else:
            self._later_step(outputs)
        for search in self.active:
            if search.beams is not None and not search.beams.num_undecided and not search.finished:
                self._finish_decided(search)
        self._keep_unfinished()

    def timings(self) -> Timings:
        """The timings of the batch so far."""
        calls = self.denoiser
        search_s = perf_counter() - self.started - calls.encode_s - calls.denoise_s
        hits, misses = calls.cache_hits, calls.cache_misses
        return Timings(calls.encode_s, calls.denoise_s, search_s, hits, misses)

    def _answer(
        self,
        search: _Search,
        found: tuple[Rows, Floats],
        log_probs: Floats | None = None,
        *,
        survivors: int = 0,
        cancelled: bool = False,
    ) -> None:
        """Note the job's answer, and report it. log_probs: the last output for its beams, if any"""
        search.finish(found, self.nfe, log_probs, cancelled, survivors)
        if self.on_answer is not None:
            self.on_answer(search.index, search.answer, self.timings())

    def _keep_unfinished(self) -> None:
        places = [place for place, search in enumerate(self.active) if not search.finished]
        if len(places) < len(self.active):
            self.active = [self.active[place] for place in places]
            if places:
                self.denoiser.keep_jobs(places)

    def _finish_decided(self, search: _Search) -> None:
        """Answer a job whose beams are all decided, or that has no possible row left."""
        assert search.beams is not None
        no_log_probs = np.empty((0, 0, self.trie.catalogue.num_codes), np.float32)
        no_positions = np.empty((0, 0), np.int64)
        k, ranking = search.job.k, search.ranking
        best = best_rows(self.trie, search.beams, no_log_probs, no_positions, k, ranking)
        self._answer(search, best, survivors=search.beams.num_rows)

    def _first_step(self, log_probs: Sequence[Floats]) -> None:
        """The step from the fully masked SID: one beam per job, which owns all allowed rows."""
        num_items, num_subspaces = self.codes.shape
        free = self.trie.scratch
        try:
            biases = free.pop()
        except IndexError:
            biases = RowBiases(num_items)
        positions = np.arange(num_subspaces)[None]
        for search, own_log_probs in zip(self.active, log_probs, strict=True):
            job = search.job
            biases.fill(job, self.prior, self.denoiser.repeat_bias)
            width = job.schedule.steps[0]
            beam = self._filtered_beam(job, biases)
            num_rows = num_items - biases.num_excluded if beam is None else len(beam.rows)
            if search.is_last_step(1, num_rows):
                normalised = search.ranking == expansion.ROWS
                codes, row_biases = self.codes, biases.values
                if beam is not None:
                    codes, row_biases = self.codes.take(beam.rows, axis=0), beam.biases
                rows, scores = best_of_catalogue(
                    codes, row_biases, own_log_probs[0], job.k, normalised=normalised
                )
                found = rows if beam is None else beam.rows[rows], scores
                self._answer(search, found, own_log_probs, survivors=num_rows)
            elif width == 1 and beam is None:
                new_beams = expand_fully_masked(
                    self.codes,
                    self.trie.indptr,
                    self.trie.rows,
                    biases.values,
                    biases.biased_rows,
                    biases.num_excluded,
                    own_log_probs[0],
                    (0,) * num_subspaces,
                    job.beam_width,
                    search.ranking,
                    search.order,
                    self._drawn(search, 1),
                )
                is_last = search.is_last_step(2, new_beams.num_rows)
                beams = after_first_step(self.trie, new_beams, job, search.ranking, biases, is_last)
                search.continue_with(beams, own_log_probs)
            else:
                if beam is None:
                    beam = self._fully_masked_beam(
                        *allowed_rows(biases.values, biases.num_excluded)
                    )
                search.continue_with(
                    self._expand(search, beam, own_log_probs, positions, width), own_log_probs
                )
        biases.clear()
        free.append(biases)

    def _filtered_beam(self, job: Job, biases: RowBiases) -> Beams | None:
        """The fully masked beam of a job whose filter allows at most half of the catalogue.

        None for other jobs: they make passes over the whole catalogue, which are cheaper for them.
        If such a job has a filter, `biases` then exclude all other rows.
        """
        if job.allowed is None:
            return None
        if 2 * len(job.allowed) <= len(self.codes):
            return self._fully_masked_beam(*rows_not_excluded(job.allowed, biases.values))
        biases.exclude_all_but(job.allowed)
        return None

    def _fully_masked_beam(self, rows: Rows, row_biases: Floats) -> Beams:
        """The beam that the search starts from, with these rows and their biases."""
        sids = np.full((1, self.codes.shape[1]), self.trie.catalogue.num_codes, np.uint16)
        starts, call_index = np.array([0, len(rows)]), np.zeros(1, np.int32)
        return Beams(sids, np.zeros(1), starts, rows, row_biases, call_index, 1)

    def _later_step(self, outputs: Sequence[tuple[Floats, NDArray[np.int64]]]) -> None:
        for search, (log_probs, positions) in zip(self.active, outputs, strict=True):
            beams = search.beams
            assert beams is not None
            if search.is_last_step(self.nfe, beams.num_rows):
                k, ranking = search.job.k, search.ranking
                best = best_rows(self.trie, beams, log_probs, positions, k, ranking)
                self._answer(search, best, log_probs, survivors=beams.num_rows)
            else:
                width = search.job.schedule.steps[self.nfe - 1]
                search.continue_with(
                    self._expand(search, beams, log_probs, positions, width), log_probs
                )

    def _expand(
        self,
        search: _Search,
        beams: Beams | PostingListBeams,
        log_probs: Floats,
        positions: NDArray[np.int64],
        width: int,
    ) -> Beams:
        return best_children(
            self.trie,
            beams,
            log_probs,
            positions,
            width,
            search.job.beam_width,
            search.ranking,
            search.order,
            self._drawn(search, len(beams.sids)),
        )

    def _drawn(self, search: _Search, num_beams: int) -> Floats:
        """Random certainties, (num_beams, num_subspaces), seeded by the history and the step."""
        if search.order != orders.DRAWN:
            return _NONE_DRAWN
        history, num_subspaces = search.job.history, self.codes.shape[1]
        return orders.drawn_certainties(history, self.nfe, num_beams, num_subspaces)


def check_rows(job: Job, num_items: int) -> None:
    """Raise ValueError for rows and widths that would lead compiled code out of its arrays."""
    for rows in (job.history, job.excluded, job.allowed):
        if rows is not None and len(rows) and not 0 <= rows.min() <= rows.max() < num_items:
            raise ValueError(f"a job's rows must be at least 0 and below {num_items}")
    if job.allowed is not None and np.any(np.diff(job.allowed) <= 0):
        raise ValueError("a job's allowed rows must be ascending and distinct")
    if job.beam_width < 1:
        raise ValueError("a job's beam_width must be at least 1")
