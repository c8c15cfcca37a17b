"""Lists items of a bundle, page by page: by words of the title, by id, by a filter.

Rows are looked at in their order, which is that of popularity, and there is no index of words. So a
page ends at the latest when `MOST_LOOKED_AT` titles were read, and the next one goes on there.
Knows no users.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from service.bundles import Bundle
from service.decoding.catalogue import with_pauses
from service.errors import InvalidRequest
from service.recommending.item_mapping import attributes_of
from service.recommending.rules import Conditions
from service.schemas import FoundItem, FoundItemsResponse, ItemsQuery

MOST_LOOKED_AT = 100_000  # titles that are read for a page
AT_ONCE = 200  # titles between two pauses


def found_items(bundle: Bundle, query: ItemsQuery, conditions: Conditions) -> FoundItemsResponse:
    """A page of items. conditions: those of the query's filter. Takes milliseconds.

    Raises InvalidRequest if the bundle does not have the item that the page comes after.
    """
    rows, warnings = _in_order(bundle, query, conditions)
    words, looked_at = query.q.casefold().split(), rows
    if words or query.id_prefix:
        found: list[int] = []
        for place in with_pauses(range(0, min(len(rows), MOST_LOOKED_AT), AT_ONCE)):
            found += _matching(bundle, rows[place : place + AT_ONCE], words, query.id_prefix)
            looked_at = rows[: place + AT_ONCE]
            if len(found) > query.limit:
                break
    else:
        looked_at = rows[: query.limit + 1]
        found = list(looked_at)
    last = None
    if len(found) > query.limit:
        last = found[query.limit - 1]
    elif len(looked_at) < len(rows):
        last = looked_at[-1]
    return FoundItemsResponse(
        items=_shown(bundle, found[: query.limit]),
        next=None if last is None else bundle.items[last].item_id,
        warnings=warnings,
        bundle=bundle.manifest.ref,
    )


def _in_order(
    bundle: Bundle, query: ItemsQuery, conditions: Conditions
) -> tuple[Sequence[int], list[str]]:
    """The rows that a page may have, in its order; and what the filter asks for in vain."""
    num_items = bundle.catalogue.num_items
    is_latest = query.order == "latest"
    first = _first_added(bundle) if is_latest else 0
    stop = num_items
    if query.after is not None:
        [row] = bundle.catalogue.rows_of([query.after]).tolist() or [None]
        if row is None:
            message = "the active bundle has no such item any more; begin again without `after`"
            raise InvalidRequest(message, param="after")
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
            added=_is_added(bundle, row),
        )
        for row in rows
        for item in (bundle.items[row],)
    ]


def _first_added(bundle: Bundle) -> int:
    """The first row of those that were added; they are the last ones, oldest first."""
    rows = range(bundle.catalogue.num_items)
    return bisect_left(rows, True, key=lambda row: _is_added(bundle, row))


def _is_added(bundle: Bundle, row: int) -> bool:
    """Whether the item was added or replaced since the bundle was loaded."""
    loaded, item = bundle.as_loaded, bundle.items[row]
    own = loaded.catalogue.rows_of([item.item_id])
    return not len(own) or loaded.items[int(own[0])] != item
