"""The way of one row through a search: the codes it got, and what its beam was up against.

Nothing was computed for this while the search ran. Each step is made again, with more beams than
the search kept: so what died can be seen too, and the place of the row's beam among all. Knows no
batch, and no prior but what is in the biases of rows.

Calls are counted from 1. A step without a call settles nothing; it is none of these steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Codes, Doubles, Floats, Integers, Rows
from service.decoding.catalogue import SidTrie
from service.decoding.job import Job
from service.decoding.search.beams import Beams, PostingListBeams
from service.decoding.search.job_search import ORDERS, RANKINGS
from service.decoding.search.posting_lists.first_step import with_own_rows
from service.decoding.search.remasking import refilled
from service.decoding.search.rows import expansion, order
from service.decoding.search.steps import best_children, best_rows
from service.decoding.search.tracing.traced_call import TracedCall

MOST_CANDIDATES = 100_000  # of a step; the place of others is not known
_NONE = np.empty(0, np.int64)
_NONE_DRAWN = np.empty((0, 0), np.float32)


@dataclass(frozen=True, eq=False)
class Filled:
    """The positions that a call filled in the row's beam; n of them, ascending.

    positions: (n,) int64    settled: (n,) bool, all rows of the beam have the row's code there; all
        that are left once the others are filled, if the denoiser was not asked
    log_probs: (n,) float32, of the row's code as the denoiser gave it; NaN where it was not asked
    probabilities: (n,) float64, of that code among those that the beam's rows have: ranked by rows
        the share of its rows, else its share of the denoiser's probability of these codes
    ranks:     (n,) int64, of the code among them by that, from 1; num_codes: (n,) how many they are
    """

    positions: Integers
    settled: NDArray[np.bool_]
    log_probs: Floats
    probabilities: Doubles
    ranks: Integers
    num_codes: Integers


@dataclass(frozen=True, eq=False)
class Died:
    """The best candidates of a step that were not kept, best first; n of them.

    sids: (n, num_subspaces) uint16, MASK where not filled    places: (n,) int64, from 1
    scores: (n,) float64    survivors: (n,) int64, rows that agree    rows: (n,) int32, their first
    """

    sids: Codes
    places: Integers
    scores: Doubles
    survivors: Integers
    rows: Rows


@dataclass(frozen=True, eq=False)
class Step:
    """One call: what it filled in the row's beam, and whether that beam was kept.

    call: 0 if all beams were decided, so that rows were chosen without a call
    chose_rows: whether rows were chosen, not beams: the search ended, but for codes masked again
    survivors_before, survivors: rows of the row's beam, and of what it became
    num_beams: before the call; num_candidates: what they could become, MOST_CANDIDATES at most;
        num_kept: how many of these were kept. Where rows are chosen, candidates are rows
    place: of the row's candidate among them, from 1; None = it is none of MOST_CANDIDATES, or it is
        impossible
    score: of the row's candidate, by which candidates are compared; last_kept: that of the last one
        that was kept
    """

    call: int
    chose_rows: bool
    is_refill: bool
    filled: Filled
    survivors_before: int
    survivors: int
    num_beams: int
    num_candidates: int
    num_kept: int
    place: int | None
    score: float | None
    last_kept: float | None
    lived: bool
    died: Died


def followed(
    calls: Sequence[TracedCall], job: Job, trie: SidTrie, row: int, most: int
) -> list[Step]:
    """The steps of a row, until its beam died or the search ended.

    calls: of a job that is traced, see `Decoded.trace`    most: how many that died are told of
    There are none if the job does not allow the row. The score of the last step is the row's, if
    its beam lived that long.
    """
    steps: list[Step] = []
    if not calls:
        return steps
    first = calls[0].beams
    assert isinstance(first, Beams)
    if not _has(first.rows, row):
        return steps
    biases = np.full(len(trie.codes), -np.inf, np.float32)
    biases[first.rows] = first.biases
    is_allowed, number = biases > -np.inf, 0
    for call in calls:
        number += call.log_probs is not None
        if steps and not (steps[-1].lived or call.is_refill):
            continue
        beams = call.beams
        if isinstance(beams, PostingListBeams):
            beams = with_own_rows(beams, trie.codes, trie.rows, biases, False)
        seen = _Seen(job, trie, is_allowed, beams, call, number)
        owners = [int(beam) for beam in seen.owners_of(row) if _has(seen.rows_of(int(beam)), row)]
        if owners:
            steps.append(seen.step(row, owners, most))
    return steps


class _Seen:
    """One call, with explicit rows, and what follows from it."""

    def __init__(
        self,
        job: Job,
        trie: SidTrie,
        is_allowed: NDArray[np.bool_],
        beams: Beams,
        call: TracedCall,
        number: int,
    ) -> None:
        """is_allowed: (num_items,), whether the job allows each row    number: of the call"""
        self.is_allowed = is_allowed
        self.job, self.trie, self.beams, self.call, self.number = job, trie, beams, call, number
        self.ranking, self.order = RANKINGS[job.ranking], ORDERS[job.order]
        self.num_codes = trie.catalogue.num_codes
        self.masked = beams.sids == self.num_codes
        num_asked = beams.num_undecided
        if call.log_probs is None or not num_asked:
            self.log_probs = np.empty((0, 0, self.num_codes), np.float32)
            self.positions = np.empty((0, 0), np.int64)
            return
        self.positions = np.nonzero(self.masked[beams.call_index >= 0])[1].reshape(num_asked, -1)
        # Compiled code has one type for arrays without gaps, and another one for the rest.
        log_probs = call.log_probs[:num_asked, : self.positions.shape[1]]
        self.log_probs = np.ascontiguousarray(log_probs)

    def rows_of(self, beam: int) -> Rows:
        return self.beams.rows[self.beams.starts[beam] : self.beams.starts[beam + 1]]

    def num_alike(self, sid: Codes) -> int:
        """How many allowed rows have this whole SID."""
        return int(np.count_nonzero(self.is_allowed[self.trie.rows_with(sid)]))

    def owners_of(self, row: int) -> Integers:
        """The beams whose partial SID agrees with a row; one, but for codes masked again."""
        return np.flatnonzero(_agreeing(self.beams.sids, self.trie.codes[row], self.num_codes))

    def step(self, row: int, owners: Sequence[int], most: int) -> Step:
        if self.call.is_refill:
            return self._refill(row, most)
        [beam] = owners
        if self.call.children is None:
            return self._choice(row, beam, most)
        return self._expansion(row, beam, most)

    def _expansion(self, row: int, beam: int, most: int) -> Step:
        """A call after which beams are kept."""
        sid, children = self.trie.codes[row], self.call.children
        assert children is not None
        candidates = self._children(self.beams, self.log_probs, MOST_CANDIDATES)
        own = _agreeing(children.sids, sid, self.num_codes)
        among = np.flatnonzero(_agreeing(candidates.sids, sid, self.num_codes))
        lived = bool(own.any())
        chosen = self._chosen(beam)
        settled = _NONE
        was_open = self.beams.call_index[beam] >= 0
        if lived and was_open and children.call_index[own][0] < 0:  # now its rows share one SID
            settled = np.flatnonzero(self.masked[beam] & (children.sids[own][0] == self.num_codes))
        place = score = None
        if lived:
            place = int(np.flatnonzero(own)[0]) + 1
        elif len(among):
            place = int(among[0]) + 1
        if len(among):
            [score] = self._worths(candidates, among[:1]).tolist()
        last_kept = None
        if len(children.sids):
            last = _agreeing(candidates.sids, children.sids[-1], self.num_codes)
            at = np.flatnonzero(last)
            last_kept = float(self._worths(candidates, at)[0]) if len(at) else None
        first = candidates.sids[: len(children.sids) + most]
        is_kept = (first[:, None] == children.sids).all(axis=2).any(axis=1)
        dead = np.flatnonzero(~is_kept)[:most]
        agree = (self.trie.codes[self.rows_of(beam)][:, chosen] == sid[chosen]).all(axis=1)
        return Step(
            call=self.number,
            chose_rows=False,
            is_refill=False,
            filled=self._filled(row, beam, chosen, settled),
            survivors_before=len(agree),
            survivors=int(agree.sum()),
            num_beams=len(self.beams.sids),
            num_candidates=len(candidates.sids),
            num_kept=len(children.sids),
            place=place,
            score=score,
            last_kept=last_kept,
            lived=lived,
            died=Died(
                candidates.sids[dead],
                dead + 1,
                self._worths(candidates, dead),
                candidates.rows_each[dead],
                candidates.rows[candidates.starts[dead]],
            ),
        )

    def _choice(self, row: int, beam: int, most: int) -> Step:
        """The last call, after which rows are chosen."""
        found = self.call.found
        assert found is not None
        num_rows = min(MOST_CANDIDATES, len(self.beams.rows))
        step = self.log_probs, self.positions
        ranked = best_rows(self.trie, self.beams, *step, num_rows, self.ranking)
        filled, before = self._filled(row, beam, self._chosen(beam)), len(self.rows_of(beam))
        score = self._score_of(row, beam)
        return self._of_rows(row, ranked, found, filled, before, score, most)

    def _refill(self, row: int, most: int) -> Step:
        """The call that fills codes which were masked again; rows are chosen."""
        found, beams = self.call.found, self.beams
        assert found is not None
        step = self.log_probs, self.positions
        rows, scores, parents = refilled(
            self.trie.codes, beams, *step, len(beams.rows), self.ranking
        )
        at = np.flatnonzero(rows == row)
        beam = int(parents[at[0]]) if len(at) else int(self.owners_of(row)[0])
        score = float(scores[at[0]]) if len(at) else None
        filled, before = self._filled(row, beam, self._chosen(beam)), len(self.rows_of(beam))
        return self._of_rows(row, (rows, scores), found, filled, before, score, most)

    def _of_rows(
        self,
        row: int,
        ranked: tuple[Rows, Floats],
        found: tuple[Rows, Floats],
        filled: Filled,
        survivors_before: int,
        score: float | None,
        most: int,
    ) -> Step:
        """A step whose candidates are rows. ranked: all of them, best first"""
        rows, scores = ranked
        place, at = None, np.flatnonzero(found[0] == row)
        lived = bool(len(at))
        if lived:
            place, score = int(at[0]) + 1, float(found[1][at[0]])
        elif len(among := np.flatnonzero(rows == row)):
            place = max(int(among[0]), len(found[0])) + 1
        dead = np.flatnonzero(~np.isin(rows[: len(found[0]) + most], found[0]))[:most]
        sids = self.trie.codes[rows[dead]]
        alike = [self.num_alike(sid) for sid in sids]
        return Step(
            call=self.number if self.call.log_probs is not None else 0,
            chose_rows=True,
            is_refill=self.call.is_refill,
            filled=filled,
            survivors_before=survivors_before,
            survivors=self.num_alike(self.trie.codes[row]),
            num_beams=len(self.beams.sids),
            num_candidates=len(rows),
            num_kept=len(found[0]),
            place=place,
            score=score,
            last_kept=float(found[1][-1]) if len(found[1]) else None,
            lived=lived,
            died=Died(
                sids,
                dead + 1,
                scores[dead].astype(np.float64),
                np.array(alike, np.int64),
                rows[dead],
            ),
        )

    def _children(self, beams: Beams, log_probs: Floats, most: int) -> Beams:
        """The best children of some beams. log_probs: of those that are not decided"""
        asked = beams.call_index >= 0
        positions = np.nonzero((beams.sids == self.num_codes)[asked])[1]
        drawn = _NONE_DRAWN
        if self.order == order.DRAWN:
            drawn = self._drawn()
            if len(beams.sids) < len(drawn):  # one beam alone
                [beam] = self.owners_of_sid(beams.sids[0])
                drawn = drawn[beam : beam + 1]
        return best_children(
            self.trie,
            beams,
            log_probs,
            positions.reshape(len(log_probs), -1).astype(np.int64),
            self.job.schedule.steps[self.number - 1],
            most,
            self.ranking,
            self.order,
            drawn,
        )

    def owners_of_sid(self, sid: Codes) -> Integers:
        return np.flatnonzero((self.beams.sids == sid).all(axis=1))

    def _drawn(self) -> Floats:
        num_beams, num_subspaces = self.beams.sids.shape
        return order.drawn_certainties(self.job.history, self.number, num_beams, num_subspaces)

    def _chosen(self, beam: int) -> Integers:
        """(width,) the positions that a beam chose; none if it was decided."""
        beams, index = self.beams, int(self.beams.call_index[beam])
        if index < 0 or self.call.log_probs is None:
            return _NONE
        children, masked = self.call.children, self.masked[beam]
        if children is None:
            return np.flatnonzero(masked)
        own = np.flatnonzero((masked | (children.sids == beams.sids[beam])).all(axis=1))
        if len(own):  # as one of its children shows
            return np.flatnonzero(masked & (children.sids[own[0]] != self.num_codes))
        starts = np.array([0, len(self.rows_of(beam))])
        place = slice(beams.starts[beam], beams.starts[beam + 1])
        alone = Beams(
            beams.sids[beam : beam + 1],
            beams.scores[beam : beam + 1],
            starts,
            beams.rows[place],
            beams.biases[place],
            np.zeros(1, np.int32),
            1,
        )
        child = self._children(alone, self.log_probs[index : index + 1], 1)
        return np.flatnonzero(masked & (child.sids != self.num_codes).any(axis=0))

    def _logits(self, beam: int) -> Floats:
        """(rows of the beam,) float32: their biases and the log-probs that are to be filled in."""
        place = slice(self.beams.starts[beam], self.beams.starts[beam + 1])
        logits, index = self.beams.biases[place].copy(), int(self.beams.call_index[beam])
        if index >= 0 and len(self.log_probs):
            rows = self.beams.rows[place]
            for at, position in enumerate(self.positions[index]):
                logits += self.log_probs[index, at][self.trie.codes[rows, position]]
        return logits

    def _score_of(self, row: int, beam: int) -> float | None:
        """The score of a row when all masked positions are filled; None if it is impossible."""
        logits = self._logits(beam).astype(np.float64)
        own = logits[np.searchsorted(self.rows_of(beam), row)]
        score = float(self.beams.scores[beam] + own)
        if self.ranking == expansion.ROWS:
            score -= float(_log_sum(logits))
        return score if np.isfinite(score) else None

    def _worths(self, children: Beams, places: Integers) -> Doubles:
        """(n,) by what some children are compared."""
        if self.ranking != expansion.BEST:
            return children.scores[places]
        found = np.empty(len(places), np.float64)
        for n, place in enumerate(places.tolist()):  # a few
            rows = children.rows[children.starts[place] : children.starts[place + 1]]
            [beam] = self.owners_of(int(rows[0])).tolist()
            own = np.searchsorted(self.rows_of(beam), rows)
            found[n] = self.beams.scores[beam] + self._logits(beam)[own].max()
        return found

    def _filled(self, row: int, beam: int, chosen: Integers, settled: Integers = _NONE) -> Filled:
        """chosen, settled: positions; the denoiser was not asked for those that are settled"""
        positions = np.sort(np.concatenate((chosen, settled)))
        own, index = self.rows_of(beam), int(self.beams.call_index[beam])
        num = len(positions)
        log_probs = np.full(num, np.nan, np.float32)
        probabilities, ranks, num_codes = (
            np.ones(num),
            np.ones(num, np.int64),
            np.ones(num, np.int64),
        )
        weights = None
        if len(chosen) and self.ranking == expansion.ROWS:
            logits = self._logits(beam).astype(np.float64)
            weights = np.exp(logits - _log_sum(logits))
        for n, position in enumerate(positions.tolist()):  # num_subspaces at most
            if position not in chosen:
                continue
            codes, code = self.trie.codes[own, position], int(self.trie.codes[row, position])
            place = int(np.searchsorted(self.positions[index], position))
            of_codes = self.log_probs[index, place]
            log_probs[n] = of_codes[code]
            is_legal = np.bincount(codes, minlength=self.num_codes) > 0
            if weights is None:
                legal = np.where(is_legal, of_codes.astype(np.float64), -np.inf)
                shares = np.exp(legal - _log_sum(legal))
            else:
                shares = np.bincount(codes, weights, self.num_codes)
            num_codes[n] = np.count_nonzero(is_legal)
            probabilities[n] = shares[code]
            ranks[n] = 1 + np.count_nonzero(shares > shares[code])
        return Filled(positions, num_codes == 1, log_probs, probabilities, ranks, num_codes)


def log_probs_of(steps: Sequence[Step], num_subspaces: int) -> Floats:
    """(num_subspaces,) float32 of the row's codes, in the call that filled each last; NaN = none"""
    found = np.full(num_subspaces, np.nan, np.float32)
    for step in steps:
        found[step.filled.positions] = step.filled.log_probs
    return found


def _agreeing(sids: Codes, sid: Codes, mask: int) -> NDArray[np.bool_]:
    """Which partial SIDs agree with a whole one."""
    found: NDArray[np.bool_] = ((sids == mask) | (sids == sid)).all(axis=1)
    return found


def _has(ascending: Rows, row: int) -> bool:
    at = int(np.searchsorted(ascending, row))
    return at < len(ascending) and int(ascending[at]) == row


def _log_sum(logits: Doubles) -> np.float64:
    highest = logits.max()
    if not highest > -np.inf:
        return np.float64(highest)
    return np.float64(highest + np.log(np.exp(logits - highest).sum()))
