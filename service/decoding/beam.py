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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.decoding.confidence import (
    Confidence,
    path_confidence,
    random_confidence,
    row_confidence,
)
from service.decoding.denoiser import Denoiser, masked_positions
from service.decoding.job import Decoded, Floats, Histories, Job, Ranking, Rows, Timings
from service.decoding.live_beams import LiveBeams
from service.decoding.neighbours import NeighbourPrior
from service.decoding.reductions import best_rows, group_rows, log_sums
from service.decoding.row_biases import RowBiases
from service.decoding.trie import SidTrie


def decode(
    jobs: Sequence[Job],
    trie: SidTrie,
    denoiser: Denoiser,
    *,
    ranking: Ranking = "rows",
    prior: NeighbourPrior | None = None,
    confidence: Confidence = "legal",
) -> tuple[list[Decoded], Timings]:
    """Decode a batch of jobs; their schedules, widths and lengths may differ.

    ranking: what a partial SID is worth. "rows": a row's logit is the sum of its log-probs at
        masked positions and its bias; a softmax over the beam's rows shares out the beam's
        probability, and a child has that of its rows. By the chain rule the scores of items are
        log-probabilities over the allowed catalogue, whatever the schedule. "path": the sum of the
        log-probs of the filled positions (MDGR Eq. 20-22); biases join at the last step.
    prior: what else is known of rows. Its scores and, for items the history holds, the denoiser's
        `repeat_bias` are the biases.
    confidence: how a beam ranks its masked positions. "legal": the highest probability of a code,
        over rows or over the codes of surviving rows, as the ranking says; positions with a single
        legal code last. "raw": over all codes (MDGR Eq. 18), for "path" only. "random": by
        chance, the same for a history whatever its batch.
    Ties: the lower position; between children the better parent, then the lower codes; between
    items the lower row. Raises ValueError when a schedule does not fill num_subspaces positions,
    or for the confidence "raw" with the ranking "rows".
    """
    if ranking == "rows" and confidence == "raw":
        raise ValueError('confidence "raw" is of codes; ranking "rows" knows none but legal ones')
    search = _Search(jobs, trie, denoiser, ranking, prior, confidence)
    started = perf_counter()
    while search.active:
        search.step()
    total = perf_counter() - started
    timings = Timings(search.encode_s, search.denoise_s, total - search.encode_s - search.denoise_s)
    return [answer for answer in search.answers if answer is not None], timings


class _Search:
    """State of one `decode` call: which jobs are active, and their beams after the first step."""

    def __init__(
        self,
        jobs: Sequence[Job],
        trie: SidTrie,
        denoiser: Denoiser,
        ranking: Ranking,
        prior: NeighbourPrior | None,
        confidence: Confidence,
    ) -> None:
        self.jobs = jobs
        self.trie = trie
        self.denoiser = denoiser
        self.ranking = ranking
        self.confidence: Confidence = confidence
        self.codes = trie.catalogue.codes
        self.num_codes = trie.catalogue.num_codes
        self.answers: list[Decoded | None] = [None] * len(jobs)
        self.encode_s = self.denoise_s = 0.0
        self.nfe = 0
        self.beams: LiveBeams | None = None
        self.memory: Any = None
        self.excluded = [np.unique(job.excluded) for job in jobs]
        self.biases = RowBiases(jobs, prior, denoiser.repeat_bias, len(self.codes))
        self.active: list[int] = []
        for index, job in enumerate(jobs):
            if job.schedule.num_subspaces != trie.catalogue.num_subspaces:
                raise ValueError("a job's schedule must fill exactly num_subspaces positions")
            if len(self.excluded[index]) < len(self.codes) and job.k > 0:
                self.active.append(index)
            else:
                self._answer(index, *_NOTHING)

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
            self._answer(self.active[position], *_NOTHING, cancelled=True)
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
        histories = Histories.of(
            [self.jobs[index].history for index in self.active],
            self.trie.catalogue,
            self.denoiser.history_length,
        )
        self.memory = self.denoiser.encode(histories)
        self.encode_s += perf_counter() - started

    def _denoise(self) -> tuple[Floats, NDArray[np.intp]]:
        """Log-probs, (places, num_subspaces, num_codes), and the place of each live beam."""
        num_jobs, num_subspaces = len(self.active), self.codes.shape[1]
        if self.beams is None:
            place = np.arange(num_jobs)
            partial_sids = np.full((num_jobs, 1, num_subspaces), self.num_codes, np.uint16)
        else:
            partial_sids, place = self.beams.padded(num_jobs, self.num_codes)
        is_beam = np.isin(np.arange(partial_sids[..., 0].size), place)
        asked = (partial_sids == self.num_codes) & is_beam.reshape(num_jobs, -1, 1)
        started = perf_counter()
        answers = self.denoiser.denoise(self.memory, partial_sids, masked_positions(asked))
        self.denoise_s += perf_counter() - started
        log_probs = np.zeros((*asked.shape, self.num_codes), np.float32)
        log_probs[asked] = answers[np.arange(answers.shape[2]) < asked.sum(axis=-1, keepdims=True)]
        return log_probs.reshape(-1, num_subspaces, self.num_codes), place

    def _root_step(
        self, log_probs: Floats, widths: NDArray[np.int64], last: NDArray[np.bool_]
    ) -> None:
        """The first step: one beam per job, which owns all allowed rows."""
        parts: list[LiveBeams] = []
        masked = np.ones((1, self.codes.shape[1]), bool)
        for active, index in enumerate(self.active):
            root, here, width = self._root(active), log_probs[active], widths[[active]]
            if last[active] or self.ranking == "rows":
                scores = self._root_scores(root, here, index)
            if last[active]:
                self._answer(index, *best_rows(root.rows, scores, self.jobs[index].k))
                continue
            if self.ranking == "rows":
                confidence = row_confidence(root, scores, self.codes, self.num_codes)
                chosen = self._choose(root, confidence, masked, width)
            else:
                place = np.zeros(1, np.intp)
                chosen, scores = self._score(root, here[None], place, masked, width)
            parts.append(self._expand(root, chosen, scores))
        self.beams = LiveBeams.concatenate(parts) if parts else None

    def _root_scores(self, root: LiveBeams, log_probs: Floats, index: int) -> Floats:
        """`_final_scores` of a root, whose rows are nearly all; log_probs: (subspaces, codes)."""
        by_position = self.trie.codes_by_position
        scores: Floats = log_probs[0].take(by_position[0])
        for position in range(1, len(by_position)):
            scores += log_probs[position].take(by_position[position])
        rows, biases = self.biases.of_job(index)
        scores[rows] += biases
        if len(root.rows) < len(scores):
            scores = scores[root.rows]
        if self.ranking == "rows":
            highest = scores.max()
            scores -= highest + np.float32(np.log(np.exp(scores - highest).sum(dtype=np.float64)))
        return scores

    def _root(self, active: int) -> LiveBeams:
        rows = np.arange(len(self.codes), dtype=np.int32)
        excluded = self.excluded[self.active[active]]
        if len(excluded):
            rows = np.delete(rows, excluded)
        mask = np.full((1, self.codes.shape[1]), self.num_codes, np.uint16)
        one = np.zeros(1, np.float32)
        return LiveBeams(np.array([active]), mask, one, rows, np.zeros(len(rows), np.intp))

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
        row_job = beams.job[beams.row_beam]
        if last.any():
            scores = self._final_scores(beams, log_probs, place, masked)
            for active in np.flatnonzero(last):
                start, stop = np.searchsorted(row_job, [active, active + 1])
                index = self.active[active]
                best = best_rows(beams.rows[start:stop], scores[start:stop], self.jobs[index].k)
                self._answer(index, *best)
        if last.all():
            return
        chosen, scores = self._score(beams, log_probs, place, masked, widths[beams.job])
        going_on = ~last[row_job]
        left = replace(beams, rows=beams.rows[going_on], row_beam=beams.row_beam[going_on])
        self.beams = self._expand(left, chosen, scores[going_on])

    def _score(
        self,
        beams: LiveBeams,
        log_probs: Floats,
        place: NDArray[np.intp],
        masked: NDArray[np.bool_],
        widths: NDArray[np.int64],
    ) -> tuple[NDArray[np.bool_], Floats]:
        """The positions each beam fills, (beams, num_subspaces), and survivors' scores if so."""
        if self.ranking == "rows":
            scores = self._row_scores(beams, log_probs, place, masked)
            confidence = row_confidence(beams, scores, self.codes, self.num_codes)
            return self._choose(beams, confidence, masked, widths), scores
        legal = np.zeros((len(place), *log_probs.shape[1:]), bool)
        for position in range(self.codes.shape[1]):
            legal[beams.row_beam, position, self.codes[beams.rows, position]] = True
        confidence = path_confidence(log_probs[place], legal, raw=self.confidence == "raw")
        chosen = self._choose(beams, confidence, masked, widths)
        return chosen, self._path_scores(beams, log_probs, place, chosen)

    def _choose(
        self,
        beams: LiveBeams,
        confidence: Floats,
        masked: NDArray[np.bool_],
        widths: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Each beam's `widths` most confident masked positions: (beams, num_subspaces) bool."""
        if self.confidence == "random":
            histories = [self.jobs[index].history for index in self.active]
            confidence = random_confidence(beams, histories, self.nfe, masked.shape[1])
        confidence = np.where(masked, confidence, -np.inf)
        rank = np.argsort(np.argsort(-confidence, axis=-1, kind="stable"), axis=-1)
        return masked & (rank < widths[:, None])

    def _path_scores(
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

    def _row_scores(
        self,
        beams: LiveBeams,
        log_probs: Floats,
        place: NDArray[np.intp],
        masked: NDArray[np.bool_],
    ) -> Floats:
        """Log-probability of each surviving row: its share of its beam's, in proportion."""
        logits = self._path_scores(beams, log_probs, place, masked) + self._bias_of(beams)
        starts = np.searchsorted(beams.row_beam, np.arange(len(beams.job)))
        logits -= np.maximum.reduceat(logits, starts)[beams.row_beam]
        mass = np.add.reduceat(np.exp(logits, dtype=np.float64), starts)
        of_beam = (beams.scores - np.log(mass)).astype(np.float32)
        return logits + of_beam[beams.row_beam]

    def _final_scores(
        self,
        beams: LiveBeams,
        log_probs: Floats,
        place: NDArray[np.intp],
        masked: NDArray[np.bool_],
    ) -> Floats:
        """Scores of surviving rows once every position is filled."""
        if self.ranking == "rows":
            return self._row_scores(beams, log_probs, place, masked)
        return self._path_scores(beams, log_probs, place, masked) + self._bias_of(beams)

    def _bias_of(self, beams: LiveBeams) -> Floats:
        """(survivors,) float32: bias of each surviving row for its job."""
        return self.biases.of(np.array(self.active)[beams.job[beams.row_beam]], beams.rows)

    def _expand(self, beams: LiveBeams, chosen: NDArray[np.bool_], scores: Floats) -> LiveBeams:
        """Keep each job's best groups of survivors; a group's score is its rows', or their sum."""
        first, group = group_rows(beams, chosen, self.codes, self.num_codes)
        parent = beams.row_beam[first]
        job = beams.job[parent]
        scores = scores[first] if self.ranking == "path" else log_sums(scores, group, len(first))
        order = np.lexsort((-scores, job))  # stable: groups come by parent, then codes
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
            job[kept], partial_sids, scores[kept], beams.rows[survivors], child[survivors]
        )


_NOTHING = (np.empty(0, np.int32), np.empty(0, np.float32))
