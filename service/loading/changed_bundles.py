"""From a bundle and changes of its items to another bundle, and what a list of changes says.

An entry is what the change store keeps of a change: REMOVED, UNDONE, or an added item as JSON.
Applying a change twice does nothing. Knows nothing of stores, other processes or HTTP.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import inf, isfinite
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from service.bundles import AttributeValue, Bundle, Item, seconds_of, type_of
from service.decoding.catalogue import with_pauses
from service.errors import InvalidRequest
from service.schemas import ItemChange, NewItem

REMOVED = ""
UNDONE = "undone"  # as in the bundle's files

log = structlog.get_logger()


@dataclass(frozen=True)
class Portion:
    """Changes to the bundles of one name, those numbered from after + 1 to version.

    newest: number of the last change that the store had
    entries: by item_id, REMOVED, UNDONE or what `entry_of` wrote; of each item only the last change
    anew: the changes are made to the bundle as it was loaded
    """

    name: str
    after: int
    version: int
    newest: int
    entries: Mapping[str, str]
    anew: bool = False

    def is_next_of(self, bundle: Bundle) -> bool:
        """Whether a bundle lacks these changes, and has all changes before them."""
        return (
            bundle.manifest.name == self.name
            and bundle.items_version != self.version
            and self.after <= version_of(bundle, self.newest) <= self.version
        )


def version_of(bundle: Bundle, newest: int) -> int:
    """How many changes of the store a bundle has. newest: how many the store has

    A bundle with more changes than the store gets all of them again, because the store has lost
    some.
    """
    return bundle.items_version if bundle.items_version <= newest else 0


def with_portions(bundle: Bundle, portions: Iterable[Portion]) -> Bundle:
    """A bundle with the portion that is next for it; the same bundle if none is."""
    for portion in portions:
        if portion.is_next_of(bundle):
            base = bundle.as_loaded if portion.anew else bundle
            changed = with_changes(base, portion.entries)
            return replace(changed, items_version=portion.version)
    return bundle


def with_changes(bundle: Bundle, entries: Mapping[str, str]) -> Bundle:
    """A bundle with these changes applied; the same bundle if it has them all already.

    entries: by item_id, REMOVED, UNDONE or what `entry_of` wrote
    An item of the bundle's files that was removed or replaced does not come back here: see
    `must_restore`. A bundle with embeddings of another length gets no new items.
    """
    content = bundle.manifest.content
    made_s, own = _made_s(bundle), bundle.as_loaded.catalogue
    gone: list[str] = []
    new: dict[str, tuple[Item, NDArray[np.float32]]] = {}
    for item_id, entry in with_pauses(entries.items()):
        [row] = bundle.catalogue.rows_of([item_id]).tolist() or [None]
        is_own = len(own.rows_of([item_id])) == 1
        if entry == REMOVED or (entry == UNDONE and not is_own):
            gone += [] if row is None else [item_id]
            continue
        if entry == UNDONE or (is_own and _at_s(entry) < made_s):
            continue
        item, embedding = _item_of(item_id, entry)
        item = _known_to(bundle, item)
        if row is not None and bundle.items[row] == item:
            continue
        if content is None or content.embedding_dims != len(embedding):
            log.warning("item_not_added", bundle=bundle.manifest.ref, reason="other embeddings")
            continue
        gone += [] if row is None else [item_id]
        new[item_id] = item, embedding
    return _replaced(bundle, gone, new)


def must_restore(bundle: Bundle, entries: Mapping[str, str]) -> bool:
    """Whether an item must be as in the bundle's files, which have it, and now is not."""
    if bundle.origin is None:
        return False
    made_s = _made_s(bundle)
    return any(
        entry != REMOVED
        and (own := _found(bundle.origin, item_id)) is not None
        and own != _found(bundle, item_id)
        and (entry == UNDONE or _at_s(entry) < made_s)
        for item_id, entry in entries.items()
    )


def _found(bundle: Bundle, item_id: str) -> Item | None:
    rows = bundle.catalogue.rows_of([item_id])
    return bundle.items[int(rows[0])] if len(rows) else None


def _made_s(bundle: Bundle) -> float:
    """When the bundle was made, in Unix seconds; -inf where its manifest does not say."""
    try:
        made = datetime.fromisoformat(bundle.manifest.created_at)
    except ValueError:
        return -inf
    return (made if made.tzinfo else made.replace(tzinfo=UTC)).timestamp()


def _at_s(entry: str) -> float:
    """When an item was added, in Unix seconds; inf for entries of older releases."""
    at: float = json.loads(entry).get("at", inf)
    return at


def listed_change(bundle: Bundle, number: int, item_id: str, entry: str) -> ItemChange | None:
    """A change as it is listed; None if it was undone."""
    if entry == UNDONE:
        return None
    if entry == REMOVED:
        in_effect = _found(bundle, item_id) is None
    else:
        is_own = _found(bundle.as_loaded, item_id) is not None
        added = _known_to(bundle, _item_of(item_id, entry)[0])
        ended = is_own and _at_s(entry) < _made_s(bundle)
        in_effect = not ended and _found(bundle, item_id) == added
    return ItemChange(
        item_id=item_id,
        change="removed" if entry == REMOVED else "added",
        at=number / 10**6,
        until=None,
        in_effect=in_effect,
    )


def listed_hide(bundle: Bundle, number: int, item_id: str, until: float) -> ItemChange:
    """A hidden item as it is listed. until: Unix seconds, or inf"""
    return ItemChange(
        item_id=item_id,
        change="hidden",
        at=number / 10**6,
        until=until if isfinite(until) else None,
        in_effect=_found(bundle, item_id) is not None,
    )


def _replaced(
    bundle: Bundle, gone: Sequence[str], new: Mapping[str, tuple[Item, NDArray[np.float32]]]
) -> Bundle:
    """A bundle without some of its items, and with new ones. It is never without any item."""
    if len(gone) == bundle.catalogue.num_items:
        *gone, last = gone
        others = {item_id: item for item_id, item in new.items() if item_id != last}
        bundle = _replaced(bundle, gone, others)
        if bundle.catalogue.num_items == 1:
            log.error("item_not_removed", bundle=bundle.manifest.ref, reason="it is the only one")
            return bundle
        gone, new = [last], {last: new[last]} if last in new else {}
    if gone:
        bundle = bundle.without_items(gone)
    if new:
        items, embeddings = zip(*new.values(), strict=True)
        bundle = bundle.with_items(items, np.stack(embeddings))
    return bundle


def item_of_request(new: NewItem) -> Item:
    return Item(new.item_id, new.title, tuple(new.categories), _attributes(new.attributes) or None)


def _attributes(values: Mapping[str, Any]) -> dict[str, AttributeValue]:
    """As an `Item` has them: lists are tuples."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }


def check_attributes(items: Sequence[NewItem], bundle: Bundle) -> None:
    """Raise InvalidRequest for attributes that the bundle does not have, or has of another type."""
    types = bundle.manifest.attributes
    for place, item in enumerate(items):
        for name, value in item.attributes.items():
            param = f"add.{place}.attributes.{name}"
            if name not in types:
                known = ", ".join(types) or "none beside its categories"
                message = f"the bundle's items have no such attribute; they have: {known}"
                raise InvalidRequest(message, param=param)
            kind = types[name]
            fits = {
                "text": isinstance(value, list),
                "number": isinstance(value, float),
                "date": isinstance(value, str) and _is_date(value),
            }
            if not fits[kind]:
                forms = {"text": 'a list, ["A", "B"]', "date": "2026-11-30", "number": "12.5"}
                raise InvalidRequest(f"is a {kind}; write {forms[kind]}", param=param)


def _is_date(value: str) -> bool:
    try:
        seconds_of(value)
    except (ValueError, OverflowError):
        return False
    return True


def _known_to(bundle: Bundle, item: Item) -> Item:
    """The item with those attributes that a bundle has, of the bundle's types.

    A change may be older or newer than the bundle.
    """
    types = bundle.manifest.attributes
    known = {
        name: value
        for name, value in (item.attributes or {}).items()
        if types.get(name) == type_of(value)
    }
    return replace(item, attributes=known or None)


def entry_of(item: NewItem, embedding: Sequence[float]) -> str:
    packed = base64.b64encode(np.asarray(embedding, np.float32).tobytes()).decode()
    fields: dict[str, Any] = {
        "title": item.title,
        "categories": item.categories,
        "embedding": packed,
        "at": time.time(),
    }
    if item.attributes:
        fields["attributes"] = item.attributes
    return json.dumps(fields, ensure_ascii=False)


def _item_of(item_id: str, entry: str) -> tuple[Item, NDArray[np.float32]]:
    fields = json.loads(entry)
    attributes = _attributes(fields.get("attributes", {}))
    item = Item(item_id, fields["title"], tuple(fields["categories"]), attributes or None)
    return item, np.frombuffer(base64.b64decode(fields["embedding"]), np.float32)
