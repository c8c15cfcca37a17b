"""From a request and a history to the decode work of one bundle: item ids become rows.

Knows nothing of where histories come from, of queues or of answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from service.bundles import AttributeType, Bundle, Condition, seconds_of
from service.decoding import Job
from service.errors import InvalidRequest
from service.histories import RememberedAnswer
from service.recommending.planning import Plan
from service.schemas import FilterCondition, HistorySource, RecommendRequest

Rows = NDArray[np.int32]
Conditions = Mapping[str, Condition]
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
    hints:    what the filter and the candidates ask for and no item has
    """

    history: Rows
    excluded: Rows
    allowed: Rows | None
    new: Rows = field(default_factory=lambda: np.empty(0, np.int32))
    hints: Sequence[str] = ()

    @classmethod
    async def look_up(
        cls,
        request: RecommendRequest,
        history: UserHistory,
        bundle: Bundle,
        conditions: Conditions,
    ) -> Inputs:
        """Turn item ids into rows. A filter may leave millions of rows, so it runs in a thread."""
        if conditions:
            return await asyncio.to_thread(cls._of, request, history, bundle, conditions)
        return cls._of(request, history, bundle, conditions)

    @classmethod
    def _of(
        cls,
        request: RecommendRequest,
        history: UserHistory,
        bundle: Bundle,
        conditions: Conditions,
    ) -> Inputs:
        rows_of = bundle.catalogue.rows_of
        rows = rows_of(history.item_ids)
        excluded = set(rows_of([*request.exclude_items, *history.before]).tolist())
        excluded.update(rows_of(history.refused).tolist())
        if request.exclude_seen:
            excluded.update(rows.tolist())
        allowed = bundle.attributes.allowed(conditions) if conditions else None
        any_left = allowed is None or len(allowed) > 0
        hints = bundle.attributes.hints(conditions, any_left=any_left)
        if request.candidates is not None:
            candidates = np.unique(rows_of(request.candidates))
            hints += _unknown(request.candidates, bundle)
            allowed = candidates if allowed is None else candidates[_are_in(candidates, allowed)]
        out = np.fromiter(excluded, np.int32, len(excluded))
        if len(hidden := bundle.hidden.rows_at(time.time())):
            out = np.concatenate((out[~_are_in(out, hidden)], hidden))
        found = cls(rows, out, allowed, hints=hints)
        return replace(found, new=_new_rows(bundle, allowed)) if request.explore else found

    def short_because(self, k: int, num_items: int) -> str:
        """Why an answer has fewer than k items, as a label of the metric."""
        left = num_items if self.allowed is None else len(self.allowed)
        if left < k:
            return "catalogue" if self.allowed is None else "filter"
        num_taken = len(self.excluded)
        if self.allowed is not None:
            num_taken = int(np.count_nonzero(_are_in(self.excluded, self.allowed)))
        return "exclusions" if left - num_taken < k else "beam"

    def jobs(self, request: RecommendRequest, plan: Plan) -> list[Job]:
        """The work for the decoder: a job, and one among the new items if they have places.

        The second asks for k items too, because the first may have found some of them.
        """
        job = self._job(request, plan)
        return [job, replace(job, allowed=self.new)] if len(self.new) else [job]

    def _job(self, request: RecommendRequest, plan: Plan) -> Job:
        return plan.decoding.job(
            self.history,
            request.k,
            plan.schedule,
            excluded=self.excluded,
            allowed=self.allowed,
            explain=request.explain,
            horizon=plan.horizon,
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
    rows_of = bundle.catalogue.rows_of
    unknown = [one for one in dict.fromkeys(candidates) if not len(rows_of([one]))]
    if not unknown:
        return []
    named = ", ".join(map(repr, unknown[:MOST_NAMED])) + ", ..." * (len(unknown) > MOST_NAMED)
    return [f"candidates: {len(unknown)} are no items of this bundle: {named}"]


def _new_rows(bundle: Bundle, allowed: Rows | None) -> Rows:
    """Ascending rows of the items without interactions in training."""
    num_known, num_items = bundle.catalogue.num_known, bundle.catalogue.num_items
    if allowed is None:
        return np.arange(num_known, num_items, dtype=np.int32)
    return allowed[np.searchsorted(allowed, num_known) :]


def conditions_of(
    wanted: Mapping[str, FilterCondition], bundle: Bundle, param: str = "filter"
) -> Conditions:
    """What a filter asks of each attribute of a bundle.

    param: where the request has the filter
    Raises InvalidRequest for an attribute that the bundle does not have, and for a condition that
    does not go with its type.
    """
    types = bundle.manifest.filters
    for name in wanted:
        if name not in types:
            known = ", ".join(f"{known} ({kind})" for known, kind in types.items())
            message = f"items have no such attribute; filter by: {known}"
            raise InvalidRequest(message, param=f"{param}.{name}")
    return {
        name: _condition(f"{param}.{name}", types[name], asked) for name, asked in wanted.items()
    }


def _condition(param: str, kind: AttributeType, asked: FilterCondition) -> Condition:
    any_of, none_of = asked.any_of, asked.none_of
    values, bounds = (*(any_of or ()), *(none_of or ())), asked.bounds
    text, number, date = kind == "text", kind == "number", kind == "date"
    if text and (bounds or not all(isinstance(value, str) for value in values)):
        message = 'is text: ask for texts, as in ["A", "B"] or {"not": ["C"]}'
    elif number and any(isinstance(value, str) for value in (*values, *bounds.values())):
        message = 'is a number: ask for numbers, as in {"gte": 5, "lt": 10} or [5, 10]'
    elif date and values:
        message = 'is a date: ask for a range, as in {"gte": "2026-11-01", "lt": "2026-12-01"}'
    else:
        seconds = {which: _bound(f"{param}.{which}", each) for which, each in bounds.items()}
        return Condition(any_of, none_of or (), seconds)
    raise InvalidRequest(message, param=param)


def _bound(param: str, value: float | str) -> float:
    """A number, or the seconds since 1970 of a date."""
    try:
        return seconds_of(value) if isinstance(value, str) else value
    except (ValueError, OverflowError):
        message = "is no date; write 2026-11-30 or 2026-11-30T08:00:00Z"
        raise InvalidRequest(message, param=param) from None
