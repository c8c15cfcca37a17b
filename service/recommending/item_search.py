"""Lists items of a bundle: page by page, or those that are trending.

Pages are by words of the title, by id, by a filter. Rows are looked at in the order of popularity,
without an index of words. So a page ends at the latest when `MOST_LOOKED_AT` titles were read. Rows
move when items are removed or replaced, so a page begins after an item: its cursor is `PLACE:ID`,
with the item's place among those that were added, from 1, or 0. A larger place now, or one instead
of 0, says that the item has moved to the end meanwhile. Knows no users.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from service.bundles import Bundle
from service.decoding.catalogue import with_pauses
from service.errors import HistoryUnavailable, InvalidRequest, Overloaded
from service.histories import Counted, Trending
from service.recommending.assembly import Caps, chosen
from service.recommending.item_mapping import Rows, attributes_of, popular_rows
from service.recommending.planning import MOST_ROWS
from service.recommending.rules import Conditions, check_caps, conditions_of
from service.schemas import (
    FoundItem,
    FoundItemsResponse,
    ItemsQuery,
    TrendingItem,
    TrendingRequest,
    TrendingResponse,
)

MOST_LOOKED_AT = 100_000  # titles that are read for a page
AT_ONCE = 200  # titles between two pauses
HOUR_S = 3600
MOST_PAGES = 8  # that are made or wait
T = TypeVar("T")
CURSOR = re.compile(r"([0-9]{1,9}):(.+)", re.ASCII | re.DOTALL)


class ItemPages:
    """Makes pages, maps and explanations in a thread of its own, one at a time.

    A page may take .2 s. In the threads that filters of recommendations use, pages would be before
    these.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="item-pages")
        self._here: list[Future[Any]] = []

    async def found(
        self, bundle: Bundle, query: ItemsQuery, conditions: Conditions
    ) -> FoundItemsResponse:
        """See `found_items`. Raises Overloaded, too."""
        return await self.made(lambda: found_items(bundle, query, conditions))

    async def made(self, make: Callable[[], T]) -> T:
        """What `make` returns, which takes milliseconds. Raises Overloaded, too."""
        self._here = [page for page in self._here if not page.done()]
        if len(self._here) >= MOST_PAGES:
            message = f"{MOST_PAGES} lists or explanations are being made; try again in a second"
            raise Overloaded(message, reason="item_pages")
        page = self._thread.submit(make)
        self._here.append(page)
        return await asyncio.wrap_future(page)


def found_items(bundle: Bundle, query: ItemsQuery, conditions: Conditions) -> FoundItemsResponse:
    """A page of items. conditions: those of the query's filter. Takes milliseconds.

    Raises InvalidRequest if the bundle does not have the item that the page comes after.
    """
    rows, warnings = _in_order(bundle, query, conditions)
    words, num_looked = query.q.casefold().split(), len(rows)
    if words or query.id_prefix:
        found: list[int] = []
        for place in with_pauses(range(0, min(len(rows), MOST_LOOKED_AT), AT_ONCE)):
            found += _matching(bundle, rows[place : place + AT_ONCE], words, query.id_prefix)
            num_looked = min(place + AT_ONCE, len(rows))
            if len(found) > query.limit:
                break
    else:
        found = list(rows[: query.limit + 1])
        num_looked = len(found)
    last = None
    if len(found) > query.limit:
        last = found[query.limit - 1]
    elif num_looked < len(rows):
        last = rows[num_looked - 1]
    return FoundItemsResponse(
        items=_shown(bundle, found[: query.limit]),
        next=None if last is None else _cursor(bundle, last),
        warnings=warnings,
        bundle=bundle.manifest.ref,
    )


def _in_order(
    bundle: Bundle, query: ItemsQuery, conditions: Conditions
) -> tuple[Sequence[int], list[str]]:
    """The rows that a page may have, in its order; and what the filter asks for in vain."""
    num_items = bundle.catalogue.num_items
    is_latest = query.order == "latest"
    first = num_items - bundle.num_added if is_latest else 0
    stop = num_items
    if query.after is not None:
        row = _row_after(bundle, query.after)
        first, stop = (first, max(first, row)) if is_latest else (row + 1, stop)
    rows: Sequence[int] = range(first, stop)
    warnings: list[str] = []
    if conditions:
        allowed = bundle.attributes.allowed(conditions)
        warnings = bundle.attributes.hints(conditions, any_left=len(allowed) > 0)
        start, end = np.searchsorted(allowed, (first, stop)).tolist()
        most = allowed[start:end]
        rows = (most[::-1] if is_latest else most)[: MOST_LOOKED_AT + 1].tolist()
    elif is_latest:
        rows = rows[::-1]
    return rows, warnings


def _matching(
    bundle: Bundle, rows: Sequence[int], words: Sequence[str], id_prefix: str
) -> list[int]:
    """Those of the rows whose title has all words, and whose id begins so."""
    is_run = isinstance(rows, range) and rows.step == 1  # then a slice is several times faster
    items = bundle.items[rows[0] : rows[-1] + 1] if is_run else [bundle.items[row] for row in rows]
    found = list(zip(rows, items, strict=True))
    if id_prefix:
        found = [(row, item) for row, item in found if item.item_id.startswith(id_prefix)]
    for word in words:
        found = [(row, item) for row, item in found if word in item.title.casefold()]
    return [row for row, _ in found]


def _shown(bundle: Bundle, rows: Sequence[int]) -> list[FoundItem]:
    hidden = set(bundle.hidden.rows_at(time.time()).tolist())
    return [
        FoundItem(
            item_id=item.item_id,
            title=item.title,
            categories=list(item.categories),
            attributes=attributes_of(item),
            popularity_rank=row + 1,
            hidden=row in hidden,
            added=_place_added(bundle, row) > 0,
        )
        for row in rows
        for item in (bundle.items[row],)
    ]


def _place_added(bundle: Bundle, row: int) -> int:
    """Which one it is of the items that were added or replaced, from 1, the oldest; 0 = none."""
    return max(0, row + 1 - (bundle.catalogue.num_items - bundle.num_added))


def _cursor(bundle: Bundle, row: int) -> str:
    """What the page after that row is asked for with."""
    return f"{_place_added(bundle, row)}:{bundle.items[row].item_id}"


def _row_after(bundle: Bundle, after: str) -> int:
    """The row of a cursor. Raises InvalidRequest if its item is gone, or has moved to the end."""
    read = CURSOR.fullmatch(after)
    if not read:
        raise InvalidRequest("must be the `next` of a page, as it was", param="after")
    before, item_id = int(read[1]), read[2]
    [row] = bundle.catalogue.rows_of([item_id]).tolist() or [None]
    if row is None:
        message = "the active bundle has no such item any more; begin again without `after`"
        raise InvalidRequest(message, param="after")
    now = _place_added(bundle, row)
    if now > before or (before and not now):
        message = "its item was replaced or undone meanwhile; begin again without `after`"
        raise InvalidRequest(message, param="after")
    return int(row)


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
