"""Items that are hidden for a while, for instance because they are out of stock.

A hidden item keeps its row, so nothing is made anew: requests leave its row out, as they do with
`exclude_items`. It still counts in the histories that have it. What is hidden is kept by item_id in
the change store, under a name of its own beside that of the bundle, with the time at which the item
comes back. Nobody has to do anything then. Knows nothing of HTTP routes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Protocol

import numpy as np

from service.bundles import Bundle, HiddenItems

SHOWN = ""
FOREVER = "forever"


class ReadableChanges(Protocol):
    """The calls of a change store that read, see `service.loading.item_changes`."""

    async def read_items(self, name: str, after: int) -> tuple[int, dict[str, str]]: ...

    async def items_version(self, name: str) -> int: ...


@dataclass(frozen=True)
class Hides:
    """What is hidden in all bundles of a name. version: of the changes that lead to it

    until_s: by item_id, when it comes back in Unix seconds; inf = when somebody says so
    """

    version: int = 0
    until_s: Mapping[str, float] = field(default_factory=dict)


def name_of_hides(name: str) -> str:
    """The name under which the change store has what is hidden; no bundle is called so."""
    return f"{name}/hidden"


def hide_entry(until_s: float | None) -> str:
    """What the change store keeps of a hidden item."""
    return FOREVER if until_s is None else repr(until_s)


def until_of(entry: str) -> float | None:
    """When an item comes back by its entry; None = it is shown."""
    if entry == SHOWN:
        return None
    return inf if entry == FOREVER else float(entry)


async def followed(store: ReadableChanges, name: str, before: Hides) -> Hides:
    """What is hidden now; the same object if nothing has changed. Raises HistoryUnavailable."""
    name = name_of_hides(name)
    newest = await store.items_version(name)
    if newest == before.version:
        return before
    version, until_s = before.version, dict(before.until_s)
    if newest < version:  # the store has lost some changes
        version, until_s = 0, {}
    while version < newest:
        version, entries = await store.read_items(name, version)
        if not entries:
            break
        for item_id, entry in entries.items():
            until = until_of(entry)
            if until is None:
                until_s.pop(item_id, None)
            else:
                until_s[item_id] = until
    now_s = time.time()
    return Hides(version, {one: until for one, until in until_s.items() if until > now_s})


def with_hidden(bundle: Bundle, hides: Hides) -> Bundle:
    """A bundle in which these items are hidden, as far as it has them; the decoder is the same."""
    rows_of, now_s = bundle.catalogue.rows_of, time.time()
    found = sorted(
        (row, until)
        for item_id, until in hides.until_s.items()
        if until > now_s
        for row in rows_of([item_id])
    )
    if not found and not len(bundle.hidden.rows) and bundle.hidden.version == hides.version:
        return bundle
    hidden = HiddenItems(
        np.array([row for row, _ in found], np.int32),
        np.array([until for _, until in found], np.float64),
        hides.version,
    )
    return replace(bundle, hidden=hidden)
