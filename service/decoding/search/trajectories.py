"""How the live beams of one job came about, recorded for jobs that ask for an explanation.

Every beam has a trajectory, and its children continue it. A child's parent is the one beam whose
partial SID agrees with the child's: any two beams differ at a position that both have filled. The
rows of the answer are the last children. Reads the arrays of the search and changes nothing.

log_probs: (num_undecided, n, num_codes) float32, of one call, see `Denoiser.denoise`
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Codes, Floats, Integers, Rows
from service.decoding.catalogue import SidTrie
from service.decoding.job import Job, Trajectory
from service.decoding.search.beams import Beams, PostingListBeams


class TrajectoryRecorder:
    """The trajectories of a job's live beams; at first that is the fully masked beam alone."""

    def __init__(self, job: Job, trie: SidTrie) -> None:
        self._job = job
        self._trie = trie
        self._mask = trie.catalogue.num_codes
        shape = 1, trie.catalogue.num_subspaces
        self._sids: Codes = np.full(shape, self._mask, np.uint16)
        self._call_index = np.zeros(1, np.int32)
        self._so_far = Trajectory(
            np.zeros(shape, np.uint8),  # 0 = not yet filled
            np.full(shape, np.nan, np.float32),
            np.empty((1, 0), np.int32),
            np.empty((1, 0), np.float32),
        )

    def remask(self, finished: Trajectory, beams: Beams) -> None:
        """Continue from finished SIDs of which some codes are masked again.

        finished: of one row of each beam, beam by beam. The codes of decided beams stay as they are
        """
        self._so_far = finished
        self._sids, self._call_index = beams.sids, beams.call_index
        again = (beams.sids == self._mask) & (beams.call_index >= 0)[:, None]
        finished.filled[again], finished.log_probs[again] = 0, np.nan

    def record(self, children: Beams | PostingListBeams, log_probs: Floats) -> None:
        """Continue from the beams to their children. log_probs: the call's output for the beams"""
        beams = children
        parents = self._parents_of(beams.sids)
        self._so_far = self._after_call(
            beams.sids, parents, log_probs, beams.rows_each, beams.scores
        )
        self._sids, self._call_index = beams.sids, beams.call_index
        # Masked positions of a decided beam follow from its rows: this call has settled them.
        filled, call = self._so_far.filled, self._so_far.survivors.shape[1]
        filled[(filled == 0) & (self._call_index < 0)[:, None]] = call

    def of_answer(
        self,
        rows: Rows,
        scores: Floats,
        log_probs: Floats | None,
        parents: Integers | None = None,
    ) -> Trajectory:
        """The trajectories of the answer's rows, which the beams own.

        log_probs: the last call's output for the beams; None if no call was made after they were
            (all of them are decided)
        parents: (n,) the beam of each row; None = the one beam that owns it
        """
        sids = self._trie.codes[rows]
        if parents is None:
            parents = self._parents_of(sids)
        if log_probs is not None:
            return self._after_call(sids, parents, log_probs, self._num_alike(rows), scores)
        so_far = self._so_far
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
        parents: Integers,
        log_probs: Floats,
        survivors: NDArray[np.integer],
        scores: NDArray[np.floating],
    ) -> Trajectory:
        """The trajectories of children with (n, num_subspaces) sids: their parents' and this call.

        parents: (n,) their beams; survivors, scores: (n,) of the children
        """
        so_far = self._so_far
        filled, filled_with = so_far.filled[parents], so_far.log_probs[parents]
        fresh = (filled == 0) & (sids != self._mask)
        filled[fresh] = so_far.survivors.shape[1] + 1
        children, positions = np.nonzero(fresh)
        asked = parents[children]
        places = np.cumsum(self._sids == self._mask, axis=1) - 1  # all masked ones, ascending
        filled_with[fresh] = log_probs[
            self._call_index[asked], places[asked, positions], sids[children, positions]
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
        """(n,) for each row, how many rows that the job allows have the same SID.

        0 if nobody asks: the codes of the answer are to be masked again.
        """
        if not self._job.explain:
            return np.zeros(len(rows), np.int64)
        alike = [self._trie.rows_with(sid) for sid in self._trie.codes[rows]]
        every = np.concatenate([np.empty(0, np.int32), *alike])
        allowed = ~np.isin(every, self._job.excluded)
        if self._job.allowed is not None:
            allowed &= np.isin(every, self._job.allowed)
        of_row = np.repeat(np.arange(len(rows)), [len(own) for own in alike])
        return np.bincount(of_row[allowed], minlength=len(rows))
