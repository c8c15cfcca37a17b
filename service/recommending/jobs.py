"""From a request and a history to the decode work of one bundle: item ids become rows.

Knows nothing of where histories come from, of queues or of answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from service.bundles import ATTRIBUTES, Bundle
from service.decoding import Job
from service.errors import InvalidRequest
from service.histories import RememberedAnswer
from service.recommending.planning import Plan
from service.schemas import HistorySource, RecommendRequest

Rows = NDArray[np.int32]


@dataclass(frozen=True)
class UserHistory:
    """A user's items, and for a next page the answer before it.

    item_ids: oldest to newest; shown: the answer whose next page is asked for, else None
    """

    source: HistorySource
    item_ids: Sequence[str]
    shown: RememberedAnswer | None = None

    @property
    def before(self) -> tuple[str, ...]:
        """All items of earlier pages."""
        return (*self.shown.before, *self.shown.item_ids) if self.shown else ()


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a request means for one bundle.

    history:  (n,) int32, oldest to newest, the items that the bundle knows
    excluded: (m,) int32, distinct rows that must not be returned
    allowed:  (l,) int32, ascending rows that pass the filter; None = all
    new:      (m,) int32, ascending rows of new items that pass it; none unless the request explores
    """

    history: Rows
    excluded: Rows
    allowed: Rows | None
    new: Rows = field(default_factory=lambda: np.empty(0, np.int32))

    @classmethod
    async def look_up(
        cls, request: RecommendRequest, history: UserHistory, bundle: Bundle
    ) -> Inputs:
        """Turn item ids into rows. A filter may leave millions of rows, so it runs in a thread."""
        if request.filter:
            return await asyncio.to_thread(cls._of, request, history, bundle)
        return cls._of(request, history, bundle)

    @classmethod
    def _of(cls, request: RecommendRequest, history: UserHistory, bundle: Bundle) -> Inputs:
        rows_of = bundle.catalogue.rows_of
        rows = rows_of(history.item_ids)
        excluded = set(rows_of([*request.exclude_items, *history.before]).tolist())
        if request.exclude_seen:
            excluded.update(rows.tolist())
        allowed = bundle.attributes.allowed(request.filter) if request.filter else None
        out = np.fromiter(excluded, np.int32, len(excluded))
        if len(hidden := bundle.hidden.rows_at(time.time())):
            out = np.union1d(out, hidden)
        found = cls(rows, out, allowed)
        return replace(found, new=_new_rows(bundle, allowed)) if request.explore else found

    def short_because(self, k: int, num_items: int) -> str:
        """Why an answer has fewer than k items, as a label of the metric."""
        left = num_items if self.allowed is None else len(self.allowed)
        if left < k:
            return "catalogue" if self.allowed is None else "filter"
        num_taken = len(self.excluded)
        if self.allowed is not None:
            places = np.searchsorted(self.allowed, self.excluded)
            found = self.allowed[np.minimum(places, left - 1)] == self.excluded
            num_taken = int(np.count_nonzero(found))
        return "exclusions" if left - num_taken < k else "beam"

    def jobs(self, request: RecommendRequest, plan: Plan) -> list[Job]:
        """The work for the decoder: a job, and one among the new items if they have places.

        The second asks for k items too, because the first may have found some of them.
        """
        job = self._job(request, plan)
        return [job, replace(job, allowed=self.new)] if len(self.new) else [job]

    def _job(self, request: RecommendRequest, plan: Plan) -> Job:
        return Job(
            self.history,
            request.k,
            plan.schedule,
            plan.decoding.beam_width,
            self.excluded,
            finish_rows=plan.decoding.finish_rows,
            ranking=plan.decoding.ranking,
            order=plan.decoding.order,
            allowed=self.allowed,
            explain=request.explain,
        )


def _new_rows(bundle: Bundle, allowed: Rows | None) -> Rows:
    """Ascending rows of the items without interactions in training."""
    num_known, num_items = bundle.catalogue.num_known, bundle.catalogue.num_items
    if allowed is None:
        return np.arange(num_known, num_items, dtype=np.int32)
    return allowed[np.searchsorted(allowed, num_known) :]


def check_filter(request: RecommendRequest) -> None:
    """Raise InvalidRequest for an attribute that items do not have."""
    if unknown := request.filter.keys() - ATTRIBUTES.keys():
        known = ", ".join(ATTRIBUTES)
        message = f"items have no such attribute; filter by: {known}"
        raise InvalidRequest(message, param=f"filter.{min(unknown)}")
