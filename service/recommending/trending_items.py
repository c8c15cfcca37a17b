"""Lists what is trending: items that many users had lately, then popular ones of the bundle.

Hidden and removed items are never in it. Nothing of a user is known here, and nothing is decoded or
remembered. Knows nothing of HTTP or Redis commands.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from weakref import WeakKeyDictionary

import numpy as np

from service.bundles import Bundle
from service.errors import HistoryUnavailable
from service.histories import Counted, Trending
from service.recommending.assembly import Caps, chosen
from service.recommending.item_mapping import Rows, attributes_of, popular_rows
from service.recommending.planning import MOST_ROWS
from service.recommending.rules import Conditions, check_caps, conditions_of
from service.schemas import TrendingItem, TrendingRequest, TrendingResponse

HOUR_S = 3600


class TrendingItems:
    """Answers requests for what is trending.

    is_strict: whether a store that never answered is an error, and popular items no answer
    """

    def __init__(self, trending: Trending, *, is_strict: bool) -> None:
        self._trending = trending
        self._is_strict = is_strict
        # Of a bundle: what was counted, and the rows of these items.
        self._known: WeakKeyDictionary[Bundle, tuple[Mapping[str, float], Rows]] = (
            WeakKeyDictionary()
        )

    async def answer(self, bundle: Bundle, request: TrendingRequest) -> TrendingResponse:
        """The k items of a bundle that most users had lately.

        Raises InvalidRequest for what the bundle's attributes cannot do, and HistoryUnavailable.
        """
        conditions = conditions_of(request.filter, bundle)
        check_caps(request.max_per, bundle)
        counted = await self._trending.newest()
        if self._is_strict and not (counted.is_current or counted.recent_users):
            raise HistoryUnavailable("the history store did not answer; try again")
        return await asyncio.to_thread(self._listed, bundle, request, conditions, counted)

    def _listed(
        self, bundle: Bundle, request: TrendingRequest, conditions: Conditions, counted: Counted
    ) -> TrendingResponse:
        """In a thread: a filter may leave millions of rows."""
        allowed = bundle.attributes.allowed(conditions) if conditions else None
        warnings = bundle.attributes.hints(conditions, any_left=allowed is None or len(allowed) > 0)
        if not self._trending.event_types:
            warnings.append("UNMASK_TRENDING_EVENT_TYPES is empty, so no event counts")
        excluded = np.union1d(
            bundle.catalogue.rows_of(request.exclude_items), bundle.hidden.rows_at(time.time())
        )
        trending = self._rows(bundle, counted.recent_users)
        trending = trending[~np.isin(trending, excluded)]
        if allowed is not None:
            trending = trending[np.isin(trending, allowed)]
        most = MOST_ROWS if request.max_per else request.k
        trending = trending[:most]
        popular = popular_rows(bundle, most, np.union1d(excluded, trending), allowed)
        rows = [*trending.tolist(), *popular.tolist()]
        places, _ = chosen(request.k, rows, [], 0, (), Caps(bundle, request.max_per))
        if request.max_per and len(places) < min(request.k, len(rows)):
            fit = f"max_per: {len(places)} items, because no other of the {len(rows)} found fits"
            warnings.append(fit)
        items = []
        for rank, place in enumerate(places, start=1):
            item = bundle.items[rows[place]]
            is_trending = place < len(trending)
            items.append(
                TrendingItem(
                    item_id=item.item_id,
                    title=item.title,
                    rank=rank,
                    recent_users=round(counted.recent_users[item.item_id], 3)
                    if is_trending
                    else None,
                    categories=list(item.categories) if request.metadata else None,
                    attributes=attributes_of(item) if request.metadata else None,
                )
            )
        return TrendingResponse(
            items=items,
            half_life_hours=self._trending.half_life_s / HOUR_S,
            degraded=not counted.is_current,
            degraded_reasons=[] if counted.is_current else ["history_unavailable"],
            warnings=warnings,
            bundle=bundle.manifest.ref,
        )

    def _rows(self, bundle: Bundle, recent_users: Mapping[str, float]) -> Rows:
        """The rows of items, in their order; without those that the bundle does not have."""
        known = self._known.get(bundle)
        if known is None or known[0] is not recent_users:
            known = recent_users, bundle.catalogue.rows_of(recent_users)
            self._known[bundle] = known
        return known[1]
