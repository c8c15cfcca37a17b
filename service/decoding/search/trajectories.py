"""Where the live beams of one job came from, kept for jobs that ask for an explanation only.

Every beam has a trajectory so far, and its children go on from there. A child's parent is the one
beam whose partial SID agrees with its own: two beams differ at a position that both have filled.
The rows of the answer are the last children. Reads what the search made and leaves it alone.

log_probs: (num_in_call, n, num_codes) float32, of one call, see `Denoiser.denoise`
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Codes, Floats, Integers, Rows
from service.decoding.catalogue import SidTrie
from service.decoding.job import Job, Trajectory
from service.decoding.search.beams import Beams, CodeBeams


class Trail:
    """The trajectories of a job's live beams, of the fully masked one at first."""

    def __init__(self, job: Job, trie: SidTrie) -> None:
        self._job = job
        self._trie = trie
        self._mask = trie.catalogue.num_codes
        shape = 1, trie.catalogue.num_subspaces
        self._sids: Codes = np.full(shape, self._mask, np.uint16)
        self._in_call = np.zeros(1, np.int32)
        self._so_far = Trajectory(
            np.zeros(shape, np.uint8),  # 0 = not yet filled
            np.full(shape, np.nan, np.float32),
            np.empty((1, 0), np.int32),
            np.empty((1, 0), np.float32),
        )

    def go_on(self, beams: Beams | CodeBeams, log_probs: Floats) -> None:
        """Follow the beams to their children. log_probs: what the beams were told"""
        self._so_far = self._after_call(beams.sids, log_probs, beams.rows_each, beams.scores)
        self._sids, self._in_call = beams.sids, beams.in_call
        # What a decided beam has not chosen follows from its rows: no call will be asked about it.
        filled, call = self._so_far.filled, self._so_far.survivors.shape[1]
        filled[(filled == 0) & (self._in_call < 0)[:, None]] = call

    def of_rows(self, rows: Rows, scores: Floats, log_probs: Floats | None) -> Trajectory:
        """The trajectories of the answer's rows, which beams own.

        log_probs: what the beams were told in the last call; None if they were made after it, as
            they are where all are decided
        """
        sids = self._trie.codes[rows]
        if log_probs is not None:
            return self._after_call(sids, log_probs, self._num_alike(rows), scores)
        parents, so_far = self._parents_of(sids), self._so_far
        beam_scores = so_far.beam_scores[parents]
        beam_scores[:, -1:] = scores[:, None]
        return Trajectory(
            so_far.filled[parents],
            so_far.log_probs[parents],
            so_far.survivors[parents],
            beam_scores,
        )

    def _after_call(
        self,
        sids: Codes,
        log_probs: Floats,
        survivors: NDArray[np.integer],
        scores: NDArray[np.floating],
    ) -> Trajectory:
        """The trajectories of children, (n, num_subspaces) sids, with what the call adds to them.

        survivors, scores: (n,) of the children
        """
        so_far, parents = self._so_far, self._parents_of(sids)
        filled, filled_with = so_far.filled[parents], so_far.log_probs[parents]
        fresh = (filled == 0) & (sids != self._mask)
        filled[fresh] = so_far.survivors.shape[1] + 1
        children, positions = np.nonzero(fresh)
        asked = parents[children]
        places = np.cumsum(self._sids == self._mask, axis=1) - 1  # all masked ones, ascending
        filled_with[fresh] = log_probs[
            self._in_call[asked], places[asked, positions], sids[children, positions]
        ]
        return Trajectory(
            filled,
            filled_with,
            np.column_stack((so_far.survivors[parents], survivors)).astype(np.int32),
            np.column_stack((so_far.beam_scores[parents], scores)).astype(np.float32),
        )

    def _parents_of(self, sids: Codes) -> Integers:
        """(n,) the beam that each of these partial SIDs, (n, num_subspaces), comes from."""
        agree = np.ones((len(sids), len(self._sids)), np.bool_)
        for own, theirs in zip(sids.T, self._sids.T, strict=True):
            agree &= (theirs == self._mask) | (theirs == own[:, None])
        return np.nonzero(agree)[1]

    def _num_alike(self, rows: Rows) -> Integers:
        """(n,) how many rows that the job allows have the SID of each of these."""
        alike = [self._trie.rows_with(sid) for sid in self._trie.codes[rows]]
        every = np.concatenate([np.empty(0, np.int32), *alike])
        allowed = ~np.isin(every, self._job.excluded)
        if self._job.allowed is not None:
            allowed &= np.isin(every, self._job.allowed)
        of_row = np.repeat(np.arange(len(rows)), [len(own) for own in alike])
        return np.bincount(of_row[allowed], minlength=len(rows))
