"""Beam search for several items at once: one search over the positions of all of them.

MaskGR masks the codes of the next items together (arXiv 2511.23021). A beam is a sequence of
partial SIDs, one for each slot, the next item first. Each step makes one denoiser call for all
beams of all jobs; each beam fills the positions that its order puts first, in whichever slots these
are, and the rows of each slot are narrowed as for one item. The loops are compiled; they are in
`sequences`. As pure as `beam_search`, and knows as little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter

import numpy as np

from service.decoding.arrays import Floats, Rows
from service.decoding.catalogue import NeighbourPrior, SidTrie
from service.decoding.job import MAX_HORIZON, Decoded, Job, OnAnswer, Timings
from service.decoding.network import Denoiser, EncoderCache
from service.decoding.search.beams import SequenceBeams
from service.decoding.search.denoiser_calls import BatchDenoiser
from service.decoding.search.job_search import ORDERS, check_rows
from service.decoding.search.row_biases import RowBiases
from service.decoding.search.rows import order as orders
from service.decoding.search.sequences.expansion import best_sequences, expand_sequences
from service.decoding.search.sequences.slots import SlotBiases, allowed_rows_of

_NONE_DRAWN = np.empty((0, 0), np.float32)
_NO_ROWS = np.empty(0, np.int32)


def decode_several(
    jobs: Sequence[Job],
    trie: SidTrie,
    denoiser: Denoiser,
    *,
    prior: NeighbourPrior | None = None,
    cache: EncoderCache | None = None,
    on_answer: OnAnswer | None = None,
) -> tuple[list[Decoded], Timings]:
    """Decode a batch of jobs of one horizon; all else is as in `beam_search.decode`.

    Every answer is a list of sequences of `horizon` different rows, all of them allowed. The score
    of a sequence is the sum of the log-probs of its codes and of the biases of its rows, as in the
    ranking "path". Two steps may compare other beams than with one item: a step fills positions of
    several slots at once, and the best combinations of what these slots offer stay.

    prior: a row's bias in slot g, from 0, is what the prior says of it with all ages g higher. The
        items before slot g are newer than the history, and call for nothing: they are not known
        yet. The repeat bias is the same in all slots.
    Ties: of positions, the lower; of children, the one with the better parent, then with the lower
    first rows; of sequences, the one of the better beam, then with the lower rows. Raises
    ValueError when the jobs differ in their horizon, when a schedule does not fill
    horizon * num_subspaces positions, when rows or beam_width are out of range, and for a job that
    is not ranked by path, has finish_rows or is to be explained.
    """
    batch = _Batch(jobs, trie, denoiser, prior, cache, on_answer)
    batch.start()
    while batch.active:
        batch.step()
    return [search.answer for search in batch.searches], batch.timings()


class _Search:
    """One job's way through its schedule. index: the job's place in the batch"""

    def __init__(self, index: int, job: Job) -> None:
        self.index = index
        self.job = job
        self.order = ORDERS[job.order]
        self.answer = self.nothing(0)
        self.finished = False

    def nothing(self, nfe: int, *, cancelled: bool = False) -> Decoded:
        """An answer without a sequence."""
        rows = np.empty((0, self.job.horizon), np.int32)
        return Decoded(rows, np.empty(0, np.float32), nfe, cancelled)

    def begin(self, trie: SidTrie, prior: NeighbourPrior | None, repeat_bias: float) -> None:
        """Make the first beam, which is all masked, and what all steps need."""
        job, catalogue = self.job, trie.catalogue
        is_allowed = np.full(catalogue.num_items, job.allowed is None)
        if job.allowed is not None:
            is_allowed[job.allowed] = True
        is_allowed[job.excluded] = False
        self.allowed = allowed_rows_of(trie.codes, catalogue.num_codes, is_allowed)
        self.biases = _biases_of(job, trie, prior, repeat_bias)
        shape = 1, job.horizon
        sids = np.full((1, job.horizon * catalogue.num_subspaces), catalogue.num_codes, np.uint16)
        nowhere = np.zeros(shape, np.int64)
        self.beams = SequenceBeams(sids, np.zeros(1), nowhere, nowhere, _NO_ROWS)


class _Batch:
    """State of one `decode_several` call: its searches, and which of them are still active."""

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
        self.prior = prior
        self.on_answer = on_answer
        horizon = jobs[0].horizon if jobs else 1
        self.denoiser = BatchDenoiser(denoiser, trie.catalogue, cache, horizon)
        self.nfe = 0
        self.searches = [_Search(index, job) for index, job in enumerate(jobs)]
        self.active: list[_Search] = []
        for job in jobs:
            _check(job, horizon, trie)

    def start(self) -> None:
        """Answer the jobs that want nothing or have too few rows; the others become active."""
        for search in self.searches:
            job = search.job
            if job.k > 0:
                search.begin(self.trie, self.prior, self.denoiser.repeat_bias)
                if len(search.allowed.rows) >= job.horizon:
                    self.active.append(search)
                    continue
            self._answer(search, search.nothing(0))

    def step(self) -> None:
        """Fill the next positions of every active job; answer the jobs that are complete."""
        for search in self.active:
            if search.job.is_cancelled():
                self._answer(search, search.nothing(self.nfe, cancelled=True))
        self._keep_unfinished()
        if not self.active:
            return
        if self.nfe == 0:
            self.denoiser.encode([search.job.history for search in self.active])
        outputs = self.denoiser.denoise([search.beams for search in self.active])
        self.nfe += 1
        trie = self.trie
        for search, (log_probs, positions) in zip(self.active, outputs, strict=True):
            job, beams = search.job, search.beams
            if self.nfe == job.schedule.nfe:
                rows, scores = best_sequences(
                    trie.codes, search.allowed, search.biases, beams, log_probs, positions, job.k
                )
                survivors = self._num_rows(search)
                self._answer(search, Decoded(rows, scores, self.nfe, survivors=survivors))
                continue
            search.beams = expand_sequences(
                trie.codes,
                trie.indptr,
                trie.rows,
                search.allowed,
                beams,
                log_probs,
                positions,
                job.schedule.steps[self.nfe - 1],
                job.beam_width,
                search.order,
                self._drawn(search),
            )
            if not len(search.beams.sids):  # everything that is left is impossible
                self._answer(search, search.nothing(self.nfe))
        self._keep_unfinished()

    def timings(self) -> Timings:
        """The timings of the batch so far."""
        return self.denoiser.timings(self.started)

    def _answer(self, search: _Search, answer: Decoded) -> None:
        search.answer, search.finished = answer, True
        if self.on_answer is not None:
            self.on_answer(search.index, answer, self.timings())

    def _keep_unfinished(self) -> None:
        places = [place for place, search in enumerate(self.active) if not search.finished]
        if len(places) < len(self.active):
            self.active = [self.active[place] for place in places]
            if places:
                self.denoiser.keep_jobs(places)

    def _num_rows(self, search: _Search) -> int:
        """Rows that survive, over all slots of all beams."""
        starts, stops = search.beams.starts, search.beams.stops
        num_all_masked = np.count_nonzero(starts == stops)
        return int((stops - starts).sum()) + int(num_all_masked) * len(search.allowed.rows)

    def _drawn(self, search: _Search) -> Floats:
        """Random certainties of all positions, if the order is random."""
        if search.order != orders.DRAWN:
            return _NONE_DRAWN
        num_beams, num_positions = search.beams.sids.shape
        return orders.drawn_certainties(search.job.history, self.nfe, num_beams, num_positions)


def _biases_of(
    job: Job, trie: SidTrie, prior: NeighbourPrior | None, repeat_bias: float
) -> SlotBiases:
    """The biases of each slot's rows, without exclusions."""
    try:
        biases = trie.scratch.pop()
    except IndexError:
        biases = RowBiases(trie.catalogue.num_items)
    job = replace(job, excluded=_NO_ROWS)
    rows: Rows = _NO_ROWS
    values = []
    for slot in range(job.horizon):
        biases.fill(job, prior and prior.aged(slot), repeat_bias)
        if slot == 0:
            rows = np.unique(biases.biased_rows)
        values.append(biases.values[rows])
    biases.clear()
    trie.scratch.append(biases)
    return SlotBiases(rows, np.stack(values))


def _check(job: Job, horizon: int, trie: SidTrie) -> None:
    """Raise ValueError for a job that this search cannot follow."""
    if job.horizon != horizon:
        raise ValueError("the jobs of a batch must have one horizon")
    if not 1 <= horizon <= MAX_HORIZON:
        raise ValueError(f"a job's horizon must be between 1 and {MAX_HORIZON}")
    if job.schedule.num_subspaces != horizon * trie.catalogue.num_subspaces:
        raise ValueError("a job's schedule must fill exactly horizon * num_subspaces positions")
    if job.ranking != "path" or job.finish_rows or job.explain:
        raise ValueError("several items are ranked by path, to the last step, and unexplained")
    if job.remask or job.guidance or job.retrieval != "generate":
        raise ValueError("several items are generated, without codes masked again and unguided")
    check_rows(job, trie)
