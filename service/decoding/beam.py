"""Any-order beam search over partial SIDs that only ever visits SIDs of the catalogue.

Per step: one denoiser call for all live beams of all jobs; each beam picks its most confident
positions; its surviving rows, grouped by their codes there, are its children; the best `beam_width`
of a job stay. The last step scores every surviving row and returns the `k` best, ties by row. Pure:
no logging, no metrics, no environment. Knows nothing of users, item ids or HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.decoding.denoiser import Denoiser
from service.decoding.job import Decoded, Floats, Job, Rows, Timings, history_arrays
from service.decoding.live_beams import LiveBeams
from service.decoding.trie import SidTrie

Confidence = Literal["legal", "raw"]


def decode(
    jobs: Sequence[Job],
    trie: SidTrie,
    denoiser: Denoiser,
    *,
    confidence: Confidence = "legal",
) -> tuple[list[Decoded], Timings]:
    """Decode a batch of jobs; their schedules, widths and lengths may differ.

    confidence: how a beam ranks its masked positions. "raw" takes the highest probability over all
    codes (MDGR Eq. 18); "legal" over the codes its surviving rows have, renormalised, positions
    with a single legal code last. Ties: the lower position; between children the better parent,
    then the lower codes; between items the lower row.
    Raises ValueError when a schedule does not fill num_subspaces positions.
    """
    search = _Search(jobs, trie, denoiser, confidence)
    started = perf_counter()
    while search.active:
        search.step()
    total = perf_counter() - started
    timings = Timings(search.encode_s, search.denoise_s, total - search.encode_s - search.denoise_s)
    return [answer for answer in search.answers if answer is not None], timings


class _Search:
    """State of one `decode` call: which jobs are active, and their beams after the first step."""

    def __init__(
        self, jobs: Sequence[Job], trie: SidTrie, denoiser: Denoiser, confidence: Confidence
    ) -> None:
        self.jobs = jobs
        self.trie = trie
        self.denoiser = denoiser
        self.confidence = confidence
        self.codes = trie.catalogue.codes
        self.num_codes = trie.catalogue.num_codes
        self.answers: list[Decoded | None] = [None] * len(jobs)
        self.encode_s = self.denoise_s = 0.0
        self.nfe = 0
        self.beams: LiveBeams | None = None
        self.memory: Any = None
        self.excluded = [np.unique(job.excluded) for job in jobs]
        self.active: list[int] = []
        for index, job in enumerate(jobs):
            if job.schedule.num_subspaces != trie.catalogue.num_subspaces:
                raise ValueError("a job's schedule must fill exactly num_subspaces positions")
            if len(self.excluded[index]) < len(self.codes) and job.k > 0:
                self.active.append(index)
            else:
                self._answer(index, np.empty(0, np.int32), np.empty(0, np.float32))

    def step(self) -> None:
        """Fill the next positions of every active job; answer the jobs that are complete."""
        self._drop_cancelled()
        if not self.active:
            return
        if self.memory is None:
            self._encode()
        log_probs, place = self._denoise()
        widths = [self.jobs[index].schedule.steps[self.nfe] for index in self.active]
        self.nfe += 1
        last = np.array([len(self.jobs[i].schedule.steps) == self.nfe for i in self.active])
        if self.beams is None:
            self._root_step(log_probs, np.array(widths), last)
        else:
            self._step(self.beams, log_probs, place, np.array(widths), last)
        if last.any():
            self._keep_jobs(np.flatnonzero(~last))

    def _answer(self, index: int, rows: Rows, scores: Floats, cancelled: bool = False) -> None:
        self.answers[index] = Decoded(rows, scores, self.nfe, cancelled)

    def _drop_cancelled(self) -> None:
        cancelled = np.array([self.jobs[index].is_cancelled() for index in self.active])
        if not cancelled.any():
            return
        for position in np.flatnonzero(cancelled):
            empty = np.empty(0, np.int32)
            self._answer(self.active[position], empty, empty.astype(np.float32), cancelled=True)
        self._keep_jobs(np.flatnonzero(~cancelled))

    def _keep_jobs(self, kept: NDArray[np.intp]) -> None:
        self.active = [self.active[position] for position in kept]
        if not self.active:
            return
        if self.memory is not None:
            self.memory = self.denoiser.select(self.memory, kept)
        if self.beams is not None:
            self.beams = self.beams.of_jobs(kept)

    def _encode(self) -> None:
        started = perf_counter()
        history_codes, mask = history_arrays(
            [self.jobs[index].history for index in self.active],
            self.codes,
            num_codes=self.num_codes,
            history_length=self.denoiser.history_length,
        )
        self.memory = self.denoiser.encode(history_codes, mask)
        self.encode_s += perf_counter() - started

    def _denoise(self) -> tuple[Floats, NDArray[np.intp]]:
        """Log-probs, (places, num_subspaces, num_codes), and the place of each live beam."""
        num_jobs, num_subspaces = len(self.active), self.codes.shape[1]
        difficulty = np.array(
            [sum(self.jobs[index].schedule.steps[self.nfe :]) for index in self.active]
        )
        if self.beams is None:
            place = np.arange(num_jobs)
            partial_sids = np.full((num_jobs, 1, num_subspaces), self.num_codes, np.uint16)
        else:
            partial_sids, place = self.beams.padded(num_jobs, self.num_codes)
        started = perf_counter()
        log_probs = self.denoiser.denoise(self.memory, partial_sids, difficulty)
        self.denoise_s += perf_counter() - started
        return log_probs.reshape(-1, num_subspaces, self.num_codes), place

    def _root_step(
        self, log_probs: Floats, widths: NDArray[np.int64], last: NDArray[np.bool_]
    ) -> None:
        """The first step. One beam per job; its rows are all allowed rows, read from postings."""
        parts: list[LiveBeams] = []
        masked = np.ones((1, self.codes.shape[1]), bool)
        for active, index in enumerate(self.active):
            excluded, here = self.excluded[index], log_probs[active]
            if last[active]:
                self._answer(
                    index, *_best_rows(*self._score_all(here, excluded), self.jobs[index].k)
                )
                continue
            legal = self.trie.allowed_counts(excluded) > 0
            chosen = self._choose(here[None], legal[None], masked, widths[[active]])
            if widths[active] == 1:
                parts.append(self._open_postings(active, here, legal, int(chosen[0].argmax())))
                continue
            root = self._root(active)
            scores = self._row_scores(root, log_probs, np.array([active]), chosen)
            parts.append(self._expand(root, chosen, scores))
        self.beams = LiveBeams.concatenate(parts) if parts else None

    def _root(self, active: int) -> LiveBeams:
        rows = np.arange(len(self.codes), dtype=np.int32)
        rows = np.delete(rows, self.excluded[self.active[active]])
        mask = np.full((1, self.codes.shape[1]), self.num_codes, np.uint16)
        one = np.zeros(1, np.float32)
        return LiveBeams(np.array([active]), mask, one, rows, np.zeros(len(rows), np.intp))

    def _score_all(self, log_probs: Floats, excluded: Rows) -> tuple[Rows, Floats]:
        scores = log_probs[0, self.codes[:, 0]]
        for position in range(1, self.codes.shape[1]):
            scores = scores + log_probs[position, self.codes[:, position]]
        rows = np.arange(len(scores), dtype=np.int32)
        if len(excluded):
            rows = np.delete(rows, excluded)
            scores = scores[rows]
        return rows, scores

    def _open_postings(
        self, active: int, log_probs: Floats, legal: NDArray[np.bool_], position: int
    ) -> LiveBeams:
        """Children of a root that fills one position: the posting lists of its best legal codes."""
        job = self.jobs[self.active[active]]
        excluded = self.excluded[self.active[active]]
        codes = np.flatnonzero(legal[position])
        scores = log_probs[position, codes]
        codes = codes[np.argsort(-scores, kind="stable")[: job.beam_width]]
        rows, beam = self.trie.postings(position, codes)
        if len(excluded):
            allowed = ~np.isin(rows, excluded)
            rows, beam = rows[allowed], beam[allowed]
        partial_sids = np.full((len(codes), self.codes.shape[1]), self.num_codes, np.uint16)
        partial_sids[:, position] = codes
        return LiveBeams(
            np.full(len(codes), active),
            partial_sids,
            log_probs[position, codes],
            rows,
            beam,
        )

    def _step(
        self,
        beams: LiveBeams,
        log_probs: Floats,
        place: NDArray[np.intp],
        widths: NDArray[np.int64],
        last: NDArray[np.bool_],
    ) -> None:
        """A later step: choose positions, score survivors, answer complete jobs, expand others."""
        masked = beams.partial_sids == self.num_codes
        if last.all():
            chosen = masked
        else:
            legal = np.zeros((len(place), *log_probs.shape[1:]), bool)
            for position in range(self.codes.shape[1]):
                legal[beams.row_beam, position, self.codes[beams.rows, position]] = True
            chosen = self._choose(log_probs[place], legal, masked, widths[beams.job])
        scores = self._row_scores(beams, log_probs, place, chosen)
        row_job = beams.job[beams.row_beam]
        for active in np.flatnonzero(last):
            start, stop = np.searchsorted(row_job, [active, active + 1])
            index = self.active[active]
            best = _best_rows(beams.rows[start:stop], scores[start:stop], self.jobs[index].k)
            self._answer(index, *best)
        if not last.all():
            going_on = ~last[row_job]
            left = replace(beams, rows=beams.rows[going_on], row_beam=beams.row_beam[going_on])
            self.beams = self._expand(left, chosen, scores[going_on])

    def _choose(
        self,
        log_probs: Floats,
        legal: NDArray[np.bool_],
        masked: NDArray[np.bool_],
        widths: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Each beam's `widths` most confident masked positions: (beams, num_subspaces) bool."""
        if self.confidence == "raw":
            confidence = log_probs.max(axis=-1)
        else:
            legal_log_probs = np.where(legal, log_probs, -np.inf)
            best = legal_log_probs.max(axis=-1)
            with np.errstate(invalid="ignore"):
                mass = np.exp(legal_log_probs - best[..., None]).sum(axis=-1)
            confidence = np.where(legal.sum(axis=-1) == 1, -np.finfo(np.float32).max, -np.log(mass))
        confidence = np.where(masked, confidence, -np.inf)
        rank = np.argsort(np.argsort(-confidence, axis=-1, kind="stable"), axis=-1)
        return masked & (rank < widths[:, None])

    def _row_scores(
        self,
        beams: LiveBeams,
        log_probs: Floats,
        place: NDArray[np.intp],
        chosen: NDArray[np.bool_],
    ) -> Floats:
        """Score of each surviving row's child: its beam's score + log-probs at chosen positions."""
        gained = np.zeros(len(beams.rows), np.float32)
        row_place = place[beams.row_beam]
        for position in range(self.codes.shape[1]):
            here = log_probs[row_place, position, self.codes[beams.rows, position]]
            gained += np.where(chosen[beams.row_beam, position], here, np.float32(0))
        return beams.scores[beams.row_beam] + gained

    def _expand(self, beams: LiveBeams, chosen: NDArray[np.bool_], scores: Floats) -> LiveBeams:
        """Group survivors by (beam, codes at its chosen positions); keep each job's best groups."""
        key = beams.row_beam.astype(np.int64)
        bound = len(beams.job)
        for position in np.flatnonzero(chosen.any(axis=0)):
            if bound > (2**62) // self.num_codes:
                distinct, key = np.unique(key, return_inverse=True)
                bound = len(distinct)
            code = np.where(chosen[beams.row_beam, position], self.codes[beams.rows, position], 0)
            key = key * self.num_codes + code
            bound *= self.num_codes
        _, first, group = np.unique(key, return_index=True, return_inverse=True)
        parent = beams.row_beam[first]
        job = beams.job[parent]
        order = np.lexsort((-scores[first], job))  # stable: groups come by parent, then codes
        per_job = np.bincount(job)
        rank = np.arange(len(order)) - (np.cumsum(per_job) - per_job)[job[order]]
        width = np.array([self.jobs[index].beam_width for index in self.active])
        kept = order[rank < width[job[order]]]

        child_of_group = np.full(len(first), -1, np.intp)
        child_of_group[kept] = np.arange(len(kept))
        child = child_of_group[group]
        survivors = np.flatnonzero(child >= 0)
        survivors = survivors[np.argsort(child[survivors], kind="stable")]
        partial_sids = np.where(
            chosen[parent[kept]],
            self.codes[beams.rows[first[kept]]],
            beams.partial_sids[parent[kept]],
        )
        return LiveBeams(
            job[kept], partial_sids, scores[first[kept]], beams.rows[survivors], child[survivors]
        )


def _best_rows(rows: Rows, scores: Floats, k: int) -> tuple[Rows, Floats]:
    """The k rows of highest score, best first, ties by row."""
    if len(rows) > k:
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        candidates = np.flatnonzero(scores >= threshold)
        rows, scores = rows[candidates], scores[candidates]
    order = np.lexsort((rows, -scores))[:k]
    return rows[order], scores[order]
