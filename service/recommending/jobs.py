"""From a request and a history to the decode work of one bundle: item ids become rows.

Knows nothing of where histories come from, of queues or of answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.bundles import Bundle
from service.decoding import Job
from service.histories import RememberedAnswer
from service.recommending.planning import Plan, rows_needed
from service.recommending.rules import Rules
from service.schemas import MAX_BOOST, HistorySource, RecommendRequest

Rows = NDArray[np.int32]
Floats = NDArray[np.float32]
LeftOut = Literal["filtered", "excluded", "refused", "seen", "hidden"]
WHY_LEFT_OUT: Mapping[str, str] = {
    "filtered": "the filter or the candidates leave it out",
    "excluded": "exclude_items has it, or a page before",
    "refused": "the user is not interested in it",
    "seen": "the history has it; exclude_seen: false would allow it",
    "hidden": "it is hidden",
}
MOST_NAMED = 5  # of the unknown candidates


@dataclass(frozen=True)
class UserHistory:
    """A user's items, and for a next page the answer before it.

    item_ids: oldest to newest; shown: the answer whose next page is asked for, else None
    refused: items that are not recommended to the user; none if the store was not read
    """

    source: HistorySource
    item_ids: Sequence[str]
    shown: RememberedAnswer | None = None
    refused: Sequence[str] = ()

    @property
    def before(self) -> tuple[str, ...]:
        """All items of earlier pages."""
        return (*self.shown.before, *self.shown.item_ids) if self.shown else ()


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a request means for one bundle.

    history:  (n,) int32, oldest to newest, the items that the bundle knows
    excluded: (m,) int32, distinct rows that must not be returned
    allowed:  (l,) int32, ascending rows that pass the filter and are candidates; None = all
    new:      (m,) int32, ascending rows of new items that pass it; none unless the request explores
    hints:    what filter, boosts, candidates and pins ask for in vain
    boosted, boosts: (b,) int32 ascending rows and (b,) float32, what the score of each gains
    pinned:   the rows that have their rank from the request, by rank
    """

    history: Rows
    excluded: Rows
    allowed: Rows | None
    new: Rows = field(default_factory=lambda: np.empty(0, np.int32))
    hints: Sequence[str] = ()
    boosted: Rows = field(default_factory=lambda: np.empty(0, np.int32))
    boosts: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    pinned: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    async def look_up(
        cls,
        request: RecommendRequest,
        history: UserHistory,
        bundle: Bundle,
        rules: Rules,
    ) -> Inputs:
        """Turn item ids into rows. A filter may leave millions of rows, so it runs in a thread.

        But not if its rows are remembered; then a thread would cost more than the rest.
        """
        is_known = not rules.filter or bundle.attributes.remembers(rules.filter)
        if rules.boosts or not is_known:
            return await asyncio.to_thread(cls._of, request, history, bundle, rules)
        return cls._of(request, history, bundle, rules)

    @classmethod
    def _of(
        cls,
        request: RecommendRequest,
        history: UserHistory,
        bundle: Bundle,
        rules: Rules,
    ) -> Inputs:
        rows_of = bundle.catalogue.rows_of
        rows = rows_of(history.item_ids)
        excluded = set(rows_of([*request.exclude_items, *history.before]).tolist())
        excluded.update(rows_of(history.refused).tolist())
        if request.exclude_seen:
            excluded.update(rows.tolist())
        allowed = bundle.attributes.allowed(rules.filter) if rules.filter else None
        any_left = allowed is None or len(allowed) > 0
        hints = bundle.attributes.hints(rules.filter, any_left=any_left)
        if request.candidates is not None:
            candidates = np.unique(rows_of(request.candidates))
            hints += _unknown(request.candidates, bundle)
            allowed = candidates if allowed is None else candidates[_are_in(candidates, allowed)]
        out = np.fromiter(excluded, np.int32, len(excluded))
        if len(hidden := bundle.hidden.rows_at(time.time())):
            out = np.concatenate((out[~_are_in(out, hidden)], hidden))
        found = cls(rows, out, allowed)
        if rules.boosts:
            found = found._with_boosts(rules, bundle, hints)
        if request.pin:
            found = found._with_pins(request, history, bundle, hints)
        new = _new_rows(bundle, allowed) if request.explore else found.new
        return replace(found, new=new, hints=hints)

    def _with_boosts(self, rules: Rules, bundle: Bundle, hints: list[str]) -> Inputs:
        """Boosts of the same row add up, to at most MAX_BOOST either way.

        hints: gets what no item has
        """
        boosts = np.zeros(bundle.catalogue.num_items, np.float32)
        for place, (conditions, weight) in enumerate(rules.boosts):
            rows = bundle.attributes.allowed(conditions)
            boosts[rows] += np.float32(weight)  # no row is there twice
            found = bundle.attributes.hints(conditions, any_left=len(rows) > 0)
            hints += [f"boost.{place}.{hint}" for hint in found]
        np.clip(boosts, -MAX_BOOST, MAX_BOOST, out=boosts)
        boosted = np.flatnonzero(boosts).astype(np.int32)
        if self.allowed is not None:
            boosted = boosted[_are_in(boosted, self.allowed)]
        return replace(self, boosted=boosted, boosts=boosts[boosted])

    def _with_pins(
        self, request: RecommendRequest, history: UserHistory, bundle: Bundle, hints: list[str]
    ) -> Inputs:
        """hints: gets why an item is not pinned"""
        rows_of, pinned = bundle.catalogue.rows_of, {}
        for item_id, rank in request.pin.items():
            row = rows_of([item_id]).tolist()
            reason = self.left_out(row[0], item_id, request, history) if row else None
            if row and reason is None:
                pinned[rank] = row[0]
                continue
            why = WHY_LEFT_OUT[reason] if reason else "this bundle has no such item"
            hints.append(f"pin: {item_id!r} is not in the answer: {why}")
        return replace(self, pinned=pinned)

    def left_out(
        self, row: int, item_id: str, request: RecommendRequest, history: UserHistory
    ) -> LeftOut | None:
        """Why the answer may not have an item of the bundle; None if it may."""
        one = np.array([row], np.int32)
        if self.allowed is not None and not _are_in(one, self.allowed).any():
            return "filtered"
        if not (self.excluded == row).any():
            return None
        if item_id in request.exclude_items or item_id in history.before:
            return "excluded"
        if item_id in history.refused:
            return "refused"
        return "seen" if item_id in history.item_ids and request.exclude_seen else "hidden"

    def num_left(self, num_items: int) -> int:
        """How many rows an answer may have."""
        if self.allowed is None:
            return num_items - len(self.excluded)
        return len(self.allowed) - int(np.count_nonzero(_are_in(self.excluded, self.allowed)))

    def short_because(self, k: int, num_items: int, *, is_capped: bool = False) -> str:
        """Why an answer has fewer than k items, as a label of the metric.

        is_capped: whether it has the most of each value of an attribute
        """
        left = num_items if self.allowed is None else len(self.allowed)
        if left < k:
            return "catalogue" if self.allowed is None else "filter"
        if self.num_left(num_items) < k:
            return "exclusions"
        return "caps" if is_capped else "beam"

    def jobs(self, request: RecommendRequest, plan: Plan, *, trace: bool = False) -> list[Job]:
        """The work for the decoder: a job, and one among the new items if they have places.

        The second asks for as many, because the first may have found some of them.
        """
        job = self._job(request, plan, trace)
        return [job, replace(job, allowed=self.new)] if len(self.new) else [job]

    def _job(self, request: RecommendRequest, plan: Plan, trace: bool) -> Job:
        return plan.decoding.job(
            self.history,
            rows_needed(request, plan),
            plan.schedule,
            excluded=self.excluded,
            allowed=self.allowed,
            explain=request.explain,
            trace=trace,
            horizon=plan.horizon,
            boosted=self.boosted,
            boosts=self.boosts,
        )


def _are_in(rows: Rows, ascending: Rows) -> NDArray[np.bool_]:
    """Which of the rows are among others. Costs a search for each, however many the others are."""
    if not len(ascending):
        return np.zeros(len(rows), np.bool_)
    places = np.minimum(np.searchsorted(ascending, rows), len(ascending) - 1)
    found: NDArray[np.bool_] = ascending[places] == rows
    return found


def _unknown(candidates: Sequence[str], bundle: Bundle) -> list[str]:
    """A sentence if the bundle does not have some of the candidates."""
    rows_of, distinct = bundle.catalogue.rows_of, dict.fromkeys(candidates)
    if len(rows_of(distinct)) == len(distinct):
        return []
    unknown = [one for one in distinct if not len(rows_of([one]))]
    named = ", ".join(map(repr, unknown[:MOST_NAMED])) + ", ..." * (len(unknown) > MOST_NAMED)
    return [f"candidates: {len(unknown)} are no items of this bundle: {named}"]


def _new_rows(bundle: Bundle, allowed: Rows | None) -> Rows:
    """Ascending rows of the items without interactions in training."""
    num_known, num_items = bundle.catalogue.num_known, bundle.catalogue.num_items
    if allowed is None:
        return np.arange(num_known, num_items, dtype=np.int32)
    return allowed[np.searchsorted(allowed, num_known) :]
