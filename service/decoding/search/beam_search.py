"""Any-order beam search over partial SIDs that only ever visits SIDs of the catalogue.

Per step: one denoiser call for all live beams of all jobs. Each beam picks the positions that its
job's order puts first. Its surviving rows, grouped by their codes there, are its children. The best
`beam_width` of a job stay. The last step scores every surviving row and returns the `k` best; ties
go to the lower row. A job may then have codes masked again, for one more step. Pure: no logging, no
metrics, no environment. Knows nothing of users, item ids or HTTP. The loops over beams and rows are
compiled; they are in `posting_lists` and `rows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Floats, Integers, Rows
from service.decoding.catalogue import NeighbourPrior, SidTrie
from service.decoding.job import Decoded, Job, OnAnswer, Timings
from service.decoding.network import Denoiser, DenseHead, EncoderCache
from service.decoding.search.beams import Beams, PostingListBeams
from service.decoding.search.denoiser_calls import BatchDenoiser
from service.decoding.search.dense import best_by_content, fused
from service.decoding.search.job_search import NOTHING, JobSearch, Start, check_rows
from service.decoding.search.posting_lists.first_step import expand_fully_masked
from service.decoding.search.remasking import refilled, remasked_beams
from service.decoding.search.row_biases import RowBiases
from service.decoding.search.rows import expansion
from service.decoding.search.rows import order as orders
from service.decoding.search.steps import after_first_step, best_children, best_rows

_NONE_DRAWN = np.empty((0, 0), np.float32)


def decode(
    jobs: Sequence[Job],
    trie: SidTrie,
    denoiser: Denoiser,
    *,
    prior: NeighbourPrior | None = None,
    dense: DenseHead | None = None,
    cache: EncoderCache | None = None,
    on_answer: OnAnswer | None = None,
) -> tuple[list[Decoded], Timings]:
    """Decode a batch of jobs; their settings may differ.

    ranking (of a job): the score by which beams are compared. A row's bias is what its score gains
        besides its codes: from the prior, the repeat bias and the job's boosts.
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
    remask (of a job): once the search has found its best `beam_width` rows (or k), that many codes
        of each are masked again, those whose log-prob was lowest when they were filled, and
        refilled by one more call, for rows that agree with the codes that are kept. A refilled beam
        divides its row's probability among its rows, and a row has the sum of what it is given
    guidance (of a job): w of classifier-free guidance. Each step has a second call, which sees no
        history: log p = (1 + w) log p(code | history) - w log p(code), normalised again. Nothing is
        guided where there is no history
    retrieval (of a job): what finds items.
        "generate": the beams.
        "dense": the dense head. Its query is compared with the content of every allowed row; no
        call of the denoiser is made. The head alone decides: only boosts are added.
        "fused": both. The beams' items, and as many of the best rows of the dense head as there
        are beams, by a mixture of the two probabilities (`dense.fused`). Rows have their biases in
        both.
    prior: the neighbour prior, or None. Its scores are part of the biases. So is the denoiser's
        `repeat_bias`, for items that the history holds.
    dense: the dense head, or None
    cache: histories that it holds are not encoded again.
    on_answer: called once for each job, in this thread, as soon as its answer is known: with the
        job's index in `jobs`, the answer and the timings so far. Its own time counts as search
        time. If it raises, the batch ends, as with any other error.
    Ties: of positions, the lower; of children, the one with the better parent, then with the lower
    first row; of items, the lower row. Raises ValueError when a schedule does not fill
    num_subspaces positions, when a job's rows, beam_width, remask or guidance are out of range, for
    the order "raw_confidence" of a job that is ranked by "rows", and for dense retrieval without a
    dense head or of a job that is to be explained.
    """
    batch = _Batch(jobs, trie, denoiser, prior, dense, cache, on_answer)
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


class _Batch:
    """State of one `decode` call: its searches, and which of them are still active."""

    def __init__(
        self,
        jobs: Sequence[Job],
        trie: SidTrie,
        denoiser: Denoiser,
        prior: NeighbourPrior | None,
        dense: DenseHead | None,
        cache: EncoderCache | None,
        on_answer: OnAnswer | None,
    ) -> None:
        self.started = perf_counter()
        self.dense = dense
        self.trie = trie
        self.denoiser = BatchDenoiser(denoiser, trie.catalogue, cache)
        self.prior = prior
        self.codes = trie.catalogue.codes
        self.on_answer = on_answer
        self.num_steps = 0
        self.searches = [JobSearch(index, job, trie) for index, job in enumerate(jobs)]
        self.active: list[JobSearch] = []
        num_subspaces = self.codes.shape[1]
        for search in self.searches:
            job = search.job
            if job.schedule.num_subspaces != num_subspaces:
                raise ValueError("a job's schedule must fill exactly num_subspaces positions")
            search.allowed = check_rows(job, trie)
            if search.ranking == expansion.ROWS and search.order == orders.RAW:
                raise ValueError('order "raw_confidence" is of all codes, ranking "rows" of rows')
            if not 0 <= job.remask < max(1, num_subspaces) or not 0 <= job.guidance < np.inf:
                raise ValueError("remask must be below num_subspaces, guidance a finite number")
            if job.retrieval != "generate":
                _check_dense(job, dense, trie)

    def start(self) -> None:
        """Answer the jobs that allow no row or want no item; the others become active."""
        for search in self.searches:
            job = search.job
            if job.k > 0 and not _nothing_left(job, len(self.codes)):
                self.active.append(search)
            else:
                self._answer(search, NOTHING)

    def step(self) -> None:
        """Fill the next positions of every active job; answer the jobs that are complete."""
        for search in self.active:
            if search.job.is_cancelled():
                self._answer(search, NOTHING, cancelled=True)
        self._keep_unfinished()
        if not self.active:
            return
        if self.num_steps == 0:
            jobs = [search.job for search in self.active]
            self.denoiser.encode(
                [job.history for job in jobs], guided=any(job.is_guided for job in jobs)
            )
            self._retrieve()
            if not self.active:
                return
        outputs = self.denoiser.denoise(
            [search.beams for search in self.active],
            [search.job.guidance * search.job.is_guided for search in self.active],
        )
        self.num_steps += 1
        if self.num_steps == 1:
            self._first_step([log_probs for log_probs, _ in outputs])
        else:
            self._later_step(outputs)
        for search in self.active:
            if search.refilling or search.finished or search.beams is None:
                continue
            if not search.beams.num_undecided:
                self._finish_decided(search)
        self._keep_unfinished()

    def timings(self) -> Timings:
        """The timings of the batch so far."""
        return self.denoiser.timings(self.started)

    def _answer(
        self,
        search: JobSearch,
        found: tuple[Rows, Floats],
        log_probs: Floats | None = None,
        *,
        survivors: int = 0,
        cancelled: bool = False,
        parents: Integers | None = None,
    ) -> None:
        """Note the job's answer, and report it. log_probs: the last output for its beams, if any"""
        if search.dense is not None and self.dense is not None and not cancelled:
            found = fused(found, search.dense, self.dense.weight, search.job.k)
        nfe = self.num_steps * (2 if search.job.is_guided else 1)
        search.finish(found, nfe, log_probs, cancelled, survivors, parents)
        if self.on_answer is not None:
            self.on_answer(search.index, search.answer, self.timings())

    def _found(
        self,
        search: JobSearch,
        found: tuple[Rows, Floats],
        log_probs: Floats | None = None,
        *,
        survivors: int = 0,
    ) -> None:
        """The schedule has ended: answer, or mask the least certain codes of these rows again."""
        job, recorder = search.job, search.recorder
        if job.trace:
            search.note(log_probs, None, found)
        if not job.remask or recorder is None or not len(found[0]):
            self._answer(search, found, log_probs, survivors=survivors)
            return
        finished = recorder.of_answer(*found, log_probs)
        biases = self._scratch()
        biases.fill(job, self.prior, self.denoiser.repeat_bias)
        if search.allowed is not None:
            biases.exclude_all_but(search.allowed.rows)
        beams, made_of = remasked_beams(
            self.trie, *found, finished.log_probs, job.remask, biases.values, search.ranking
        )
        self._give_back(biases)
        recorder.remask(finished.chosen(made_of), beams)
        search.beams, search.refilling = beams, True
        if not beams.num_undecided:
            self._answer_refilled(search, beams, *self._nothing_asked())

    def _answer_refilled(
        self, search: JobSearch, beams: Beams, log_probs: Floats, positions: NDArray[np.int64]
    ) -> None:
        """Answer a job whose masked codes are filled again. log_probs: none if no beam is asked"""
        k, ranking = search.job.k if search.dense is None else search.wanted, search.ranking
        rows, scores, parents = refilled(self.codes, beams, log_probs, positions, k, ranking)
        called = log_probs if beams.num_undecided else None
        found = rows, scores
        if search.job.trace:
            search.note(called, None, found)
        self._answer(search, found, called, survivors=beams.num_rows, parents=parents)

    def _scratch(self) -> RowBiases:
        try:
            free: RowBiases = self.trie.scratch.pop()
        except IndexError:
            return RowBiases(len(self.codes))
        return free

    def _give_back(self, biases: RowBiases) -> None:
        biases.clear()
        self.trie.scratch.append(biases)

    def _nothing_asked(self) -> tuple[Floats, NDArray[np.int64]]:
        """What a call without beams would give."""
        no_log_probs = np.empty((0, 0, self.trie.catalogue.num_codes), np.float32)
        return no_log_probs, np.empty((0, 0), np.int64)

    def _keep_unfinished(self) -> None:
        places = [place for place, search in enumerate(self.active) if not search.finished]
        if len(places) < len(self.active):
            self.active = [self.active[place] for place in places]
            if places:
                self.denoiser.keep_jobs(places)

    def _finish_decided(self, search: JobSearch) -> None:
        """Answer a job whose beams are all decided, or that has no possible row left."""
        assert search.beams is not None
        wanted, ranking = search.wanted, search.ranking
        best = best_rows(self.trie, search.beams, *self._nothing_asked(), wanted, ranking)
        self._found(search, best, survivors=search.beams.num_rows)

    def _retrieve(self) -> None:
        """Ask the dense head for the jobs that want it; answer those that want nothing else."""
        if self.dense is None or all(one.job.retrieval == "generate" for one in self.active):
            return
        biases = self._scratch()
        for search, query in zip(self.active, self.denoiser.queries(self.dense), strict=True):
            job, vectors = search.job, self.trie.catalogue.vectors
            if job.retrieval == "dense":
                biases.fill(job, None, 0.0)
                found, num_rows = best_by_content(vectors, query, search.allowed, biases, job.k)
                self._answer(search, found, survivors=num_rows)
            elif job.retrieval == "fused":
                biases.fill(job, self.prior, self.denoiser.repeat_bias)
                search.dense, _ = best_by_content(
                    vectors, query, search.allowed, biases, search.wanted
                )
        self._give_back(biases)
        self._keep_unfinished()

    def _first_step(self, log_probs: Sequence[Floats]) -> None:
        """The step from the fully masked SID: one beam per job, which owns all allowed rows."""
        num_subspaces = self.codes.shape[1]
        biases = self._scratch()
        positions = np.arange(num_subspaces)[None]
        for search, own_log_probs in zip(self.active, log_probs, strict=True):
            job = search.job
            biases.fill(job, self.prior, self.denoiser.repeat_bias)
            width = job.schedule.steps[0]
            start = Start(self.trie, job, search.allowed, biases)
            if job.trace:
                search.first_beam = start.beam()
            num_rows = start.num_rows
            if search.is_last_step(1, num_rows):
                normalised = search.ranking == expansion.ROWS
                found = start.best(own_log_probs[0], search.wanted, normalised=normalised)
                self._found(search, found, own_log_probs, survivors=num_rows)
            elif width == 1 and not start.is_few:
                within = start.biases
                new_beams = expand_fully_masked(
                    self.codes,
                    self.trie.indptr,
                    self.trie.rows,
                    start.counts,
                    within.values,
                    within.biased_rows,
                    within.num_excluded,
                    own_log_probs[0],
                    (0,) * num_subspaces,
                    job.beam_width,
                    search.ranking,
                    search.order,
                    self._drawn(search, 1),
                )
                is_last = search.is_last_step(2, new_beams.num_rows)
                beams = after_first_step(
                    self.trie, new_beams, job, search.ranking, within, search.allowed, is_last
                )
                search.continue_with(beams, own_log_probs)
            else:
                search.continue_with(
                    self._expand(search, start.beam(), own_log_probs, positions, width),
                    own_log_probs,
                )
            start.give_back()
        self._give_back(biases)

    def _later_step(self, outputs: Sequence[tuple[Floats, NDArray[np.int64]]]) -> None:
        for search, (log_probs, positions) in zip(self.active, outputs, strict=True):
            beams = search.beams
            assert beams is not None
            if search.refilling:
                assert isinstance(beams, Beams)
                self._answer_refilled(search, beams, log_probs, positions)
            elif search.is_last_step(self.num_steps, beams.num_rows):
                wanted, ranking = search.wanted, search.ranking
                best = best_rows(self.trie, beams, log_probs, positions, wanted, ranking)
                self._found(search, best, log_probs, survivors=beams.num_rows)
            else:
                width = search.job.schedule.steps[self.num_steps - 1]
                search.continue_with(
                    self._expand(search, beams, log_probs, positions, width), log_probs
                )

    def _expand(
        self,
        search: JobSearch,
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

    def _drawn(self, search: JobSearch, num_beams: int) -> Floats:
        """Random certainties, (num_beams, num_subspaces), seeded by the history and the step."""
        if search.order != orders.DRAWN:
            return _NONE_DRAWN
        history, num_subspaces = search.job.history, self.codes.shape[1]
        return orders.drawn_certainties(history, self.num_steps, num_beams, num_subspaces)


def _check_dense(job: Job, dense: DenseHead | None, trie: SidTrie) -> None:
    """Raise ValueError if the job's retrieval cannot be done."""
    if dense is None:
        raise ValueError(f'retrieval "{job.retrieval}" needs a dense head')
    if dense.dims > trie.catalogue.vectors.shape[1]:  # compiled code checks no bounds
        raise ValueError("the dense head has more dimensions than the items' vectors")
    if job.explain:
        raise ValueError(f'retrieval "{job.retrieval}" has nothing to explain')
