"""Any-order beam search over partial SIDs that only ever visits SIDs of the catalogue.

Per step: one denoiser call for all live beams of all jobs; each beam picks its most confident
positions; its surviving rows, grouped by their codes there, are its children; the best `beam_width`
of a job stay. The last step scores every surviving row and returns the `k` best, ties by row. Pure:
no logging, no metrics, no environment. Knows nothing of users, item ids or HTTP; the loops over
beams and rows are compiled, in root, scan and what narrowing drives.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Floats, Rows
from service.decoding.catalogue import NeighbourPrior, SidTrie
from service.decoding.job import Confidence, Decoded, Job, OnAnswer, Timings
from service.decoding.network import Denoiser, EncoderCache
from service.decoding.search.beams import Beams, CodeBeams
from service.decoding.search.codes.first_step import expand_root
from service.decoding.search.denoiser_calls import BatchDenoiser
from service.decoding.search.narrowing import after_root, best_rows, children
from service.decoding.search.row_biases import RowBiases
from service.decoding.search.rows import expansion
from service.decoding.search.rows.whole_catalogue import allowed_rows, best_of_all, rows_left
from service.decoding.search.trajectories import Trail

_RANKINGS = {"path": expansion.PATH, "best": expansion.BEST, "rows": expansion.ROWS}
_NOTHING = np.empty(0, np.int32), np.empty(0, np.float32)
_NONE_DRAWN = np.empty((0, 0), np.float32)
_CONFIDENCES = {"legal": expansion.LEGAL, "raw": expansion.RAW, "random": expansion.DRAWN}


def decode(
    jobs: Sequence[Job],
    trie: SidTrie,
    denoiser: Denoiser,
    *,
    prior: NeighbourPrior | None = None,
    confidence: Confidence = "legal",
    cache: EncoderCache | None = None,
    on_answer: OnAnswer | None = None,
) -> tuple[list[Decoded], Timings]:
    """Decode a batch of jobs; their schedules, widths, lengths and rankings may differ.

    ranking (of a job): what a partial SID is worth. "rows": a row's logit is the sum of its
        log-probs at masked positions and its bias; a softmax over the beam's rows shares out the
        beam's probability, and a child has that of its rows. By the chain rule the scores of items
        are log-probabilities over the allowed catalogue, whatever the schedule. A beam whose rows
        share one SID is decided: no call can change its score, and none is made for it. "path": the
        sum of the log-probs of the filled positions (MDGR Eq. 20-22); biases join at the last step.
        "best": those, and the best completion that one of its rows offers, biases included; scores
        of items are the same as by path.
    prior: what else is known of rows. Its scores and, for items the history holds, the denoiser's
        `repeat_bias` are the biases.
    confidence: how a beam ranks its masked positions. "legal": the highest probability of a code,
        over rows or over the codes of surviving rows, as the ranking says; positions with a single
        legal code last. "raw": over all codes (MDGR Eq. 18), not for "rows". "random": by chance,
        the same for a history whatever its batch.
    cache: histories in it are not encoded again.
    on_answer: called once for each job, in this thread, as soon as its answer is known, with its
        index in `jobs`, the answer and the timings so far. Its own time counts as the search's;
        what it raises ends the batch, as any other error does.
    Ties: the lower position; between children the better parent, then the lower first row; between
    items the lower row. Raises ValueError when a schedule does not fill num_subspaces positions,
    or for the confidence "raw" of a job ranked by "rows".
    """
    batch = _Batch(jobs, trie, denoiser, prior, confidence, cache, on_answer)
    batch.start()
    while batch.active:
        batch.step()
    return [search.answer for search in batch.searches], batch.timings()


def _nothing_left(job: Job, num_items: int) -> bool:
    """Whether no row is allowed and not excluded; next to no work unless that may be so."""
    num_allowed = num_items if job.allowed is None else len(job.allowed)
    if len(job.excluded) < num_allowed:
        return False
    allowed = np.arange(num_items) if job.allowed is None else job.allowed
    return bool(np.isin(allowed, job.excluded).all())


class _Search:
    """One job's way through its schedule; index: the job's, in the batch."""

    def __init__(self, index: int, job: Job, trie: SidTrie) -> None:
        self.index = index
        self.job = job
        self.ranking = _RANKINGS[job.ranking]
        # None until the first step is done: one beam then, of all allowed rows.
        self.beams: Beams | CodeBeams | None = None
        self.trail = Trail(job, trie) if job.explain else None
        self.finished = False
        self.answer = Decoded(*_NOTHING, 0)

    def go_on(self, beams: Beams | CodeBeams, log_probs: Floats) -> None:
        """Go on to these children. log_probs: what their parents were told"""
        self.beams = beams
        if self.trail is not None:
            self.trail.go_on(beams, log_probs)

    def finish(
        self,
        found: tuple[Rows, Floats],
        nfe: int,
        log_probs: Floats | None,
        cancelled: bool,
        survivors: int,
    ) -> None:
        trail = self.trail
        trajectory = None if trail is None else trail.of_rows(*found, log_probs)
        self.answer = Decoded(*found, nfe, cancelled, trajectory, survivors)
        self.finished = True

    def is_last_step(self, nfe: int, num_rows: int) -> bool:
        """Whether the nfe-th denoiser call is to be the last, with so many rows surviving."""
        return nfe == self.job.schedule.nfe or num_rows <= self.job.finish_rows


class _Batch:
    """State of one `decode` call: its searches, and which of them are still active."""

    def __init__(
        self,
        jobs: Sequence[Job],
        trie: SidTrie,
        denoiser: Denoiser,
        prior: NeighbourPrior | None,
        confidence: Confidence,
        cache: EncoderCache | None,
        on_answer: OnAnswer | None,
    ) -> None:
        self.started = perf_counter()
        self.trie = trie
        self.denoiser = BatchDenoiser(denoiser, trie.catalogue, cache)
        self.confidence = _CONFIDENCES[confidence]
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
            _check_rows(job, num_items)
            if search.ranking == expansion.ROWS and self.confidence == expansion.RAW:
                raise ValueError('confidence "raw" is of codes, ranking "rows" of legal ones')

    def start(self) -> None:
        """Answer the jobs that there is nothing to decode for; the others are active."""
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
        told = self.denoiser.denoise([search.beams for search in self.active])
        self.nfe += 1
        if self.nfe == 1:
            self._first_step([log_probs for log_probs, _ in told])
        else:
            self._later_step(told)
        for search in self.active:
            if search.beams is not None and not search.beams.num_in_call and not search.finished:
                self._finish_decided(search)
        self._keep_unfinished()

    def timings(self) -> Timings:
        """Of the batch so far."""
        asked = self.denoiser
        search_s = perf_counter() - self.started - asked.encode_s - asked.denoise_s
        hits, misses = asked.cache_hits, asked.cache_misses
        return Timings(asked.encode_s, asked.denoise_s, search_s, hits, misses)

    def _answer(
        self,
        search: _Search,
        found: tuple[Rows, Floats],
        log_probs: Floats | None = None,
        *,
        survivors: int = 0,
        cancelled: bool = False,
    ) -> None:
        """The job's answer is known. log_probs: what its beams were told, if anything"""
        search.finish(found, self.nfe, log_probs, cancelled, survivors)
        if self.on_answer is not None:
            self.on_answer(search.index, search.answer, self.timings())

    def _keep_unfinished(self) -> None:
        places = [place for place, search in enumerate(self.active) if not search.finished]
        if len(places) < len(self.active):
            self.active = [self.active[place] for place in places]
            if places:
                self.denoiser.keep(places)

    def _finish_decided(self, search: _Search) -> None:
        """Answer a job all of whose beams are decided, or whose rows are all impossible."""
        assert search.beams is not None
        no_log_probs = np.empty((0, 0, self.trie.catalogue.num_codes), np.float32)
        no_positions = np.empty((0, 0), np.int64)
        k, ranking = search.job.k, search.ranking
        best = best_rows(self.trie, search.beams, no_log_probs, no_positions, k, ranking)
        self._answer(search, best, survivors=search.beams.num_rows)

    def _first_step(self, log_probs: Sequence[Floats]) -> None:
        """One beam per job, which owns all allowed rows."""
        num_items, num_subspaces = self.codes.shape
        free = self.trie.scratch
        try:
            biases = free.pop()
        except IndexError:
            biases = RowBiases(num_items)
        positions = np.arange(num_subspaces)[None]
        for search, here in zip(self.active, log_probs, strict=True):
            job = search.job
            biases.fill(job, self.prior, self.denoiser.repeat_bias)
            width = job.schedule.steps[0]
            root = self._root_if_few(job, biases)
            num_rows = num_items - biases.num_excluded if root is None else len(root.rows)
            if search.is_last_step(1, num_rows):
                normalised = search.ranking == expansion.ROWS
                codes, of_rows = self.codes, biases.values
                if root is not None:
                    codes, of_rows = self.codes.take(root.rows, axis=0), root.biases
                rows, scores = best_of_all(codes, of_rows, here[0], job.k, normalised=normalised)
                found = rows if root is None else root.rows[rows], scores
                self._answer(search, found, here, survivors=num_rows)
            elif width == 1 and root is None:
                of_codes = expand_root(
                    self.codes,
                    self.trie.indptr,
                    self.trie.rows,
                    biases.values,
                    biases.touched,
                    biases.num_excluded,
                    here[0],
                    (0,) * num_subspaces,
                    job.beam_width,
                    search.ranking,
                    self.confidence,
                    self._drawn(search, 1),
                )
                is_last = search.is_last_step(2, of_codes.num_rows)
                beams = after_root(self.trie, of_codes, job, search.ranking, biases, is_last)
                search.go_on(beams, here)
            else:
                if root is None:
                    root = self._root(*allowed_rows(biases.values, biases.num_excluded))
                search.go_on(self._expand(search, root, here, positions, width), here)
        biases.clear()
        free.append(biases)

    def _root_if_few(self, job: Job, biases: RowBiases) -> Beams | None:
        """The allowed rows as a beam where a filter leaves few; else none, and biases know all."""
        if job.allowed is None:
            return None
        if 2 * len(job.allowed) <= len(self.codes):
            return self._root(*rows_left(job.allowed, biases.values))
        biases.restrict(job.allowed)  # passes over the whole catalogue are cheaper then
        return None

    def _root(self, rows: Rows, of_rows: Floats) -> Beams:
        """The fully masked beam with these rows."""
        sids = np.full((1, self.codes.shape[1]), self.trie.catalogue.num_codes, np.uint16)
        starts, in_call = np.array([0, len(rows)]), np.zeros(1, np.int32)
        return Beams(sids, np.zeros(1), starts, rows, of_rows, in_call, 1)

    def _later_step(self, told: Sequence[tuple[Floats, NDArray[np.int64]]]) -> None:
        for search, (log_probs, positions) in zip(self.active, told, strict=True):
            beams = search.beams
            assert beams is not None
            if search.is_last_step(self.nfe, beams.num_rows):
                k, ranking = search.job.k, search.ranking
                best = best_rows(self.trie, beams, log_probs, positions, k, ranking)
                self._answer(search, best, log_probs, survivors=beams.num_rows)
            else:
                width = search.job.schedule.steps[self.nfe - 1]
                search.go_on(self._expand(search, beams, log_probs, positions, width), log_probs)

    def _expand(
        self,
        search: _Search,
        beams: Beams | CodeBeams,
        log_probs: Floats,
        positions: NDArray[np.int64],
        width: int,
    ) -> Beams:
        return children(
            self.trie,
            beams,
            log_probs,
            positions,
            width,
            search.job.beam_width,
            search.ranking,
            self.confidence,
            self._drawn(search, len(beams.sids)),
        )

    def _drawn(self, search: _Search, num_beams: int) -> Floats:
        """Random confidences, (num_beams, num_subspaces), seeded by the history and the step."""
        if self.confidence != expansion.DRAWN:
            return _NONE_DRAWN
        shape = (num_beams, self.codes.shape[1])
        seed = self.nfe, zlib.crc32(search.job.history.tobytes())
        return np.random.default_rng(seed).random(shape, np.float32)


def _check_rows(job: Job, num_items: int) -> None:
    """Raise ValueError for what compiled code, which checks no bounds, would read or write at."""
    for rows in (job.history, job.excluded, job.allowed):
        if rows is not None and len(rows) and not 0 <= rows.min() <= rows.max() < num_items:
            raise ValueError(f"a job's rows must be at least 0 and below {num_items}")
    if job.allowed is not None and np.any(np.diff(job.allowed) <= 0):
        raise ValueError("a job's allowed rows must be ascending and distinct")
    if job.beam_width < 1:
        raise ValueError("a job's beam_width must be at least 1")
