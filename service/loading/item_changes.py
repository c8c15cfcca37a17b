"""Items that are added, with their embeddings, or removed while the service runs.

A change is written to the history store first. Then it is applied to every bundle in memory that
has the name, and applied again after every start and load. The other replicas follow within
seconds. Changes are numbered. A bundle knows the last change that it has, and only later ones are
read. Repeating a change does nothing: an item with the same title and categories stays as it is.
Knows nothing of HTTP routes or Redis commands.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import structlog
from numpy.typing import NDArray
from pydantic import SecretStr

from service.bundles import (
    CONTENT_TEXT,
    AttributeValue,
    Bundle,
    ContentPart,
    Item,
    seconds_of,
    text_of,
    type_of,
)
from service.decoding.catalogue import with_pauses
from service.errors import EmbedderUnfit, HistoryUnavailable, InvalidRequest, RequestError
from service.loading.embedder import LARGEST, Embedder, TextRefused
from service.loading.loaded_bundles import LoadedBundles
from service.schemas import ItemsRequest, ItemsResponse, NewItem

FOLLOW_EVERY_S = 5.0
MADE_AT_ONCE = 10_000  # changes at a time: more would take too much memory
REMOVED = ""

log = structlog.get_logger()


class ChangeStore(Protocol):
    """Keeps changes of items for all replicas. Every method may raise HistoryUnavailable."""

    async def write_items(self, name: str, entries: Mapping[str, str]) -> None:
        """Keep changes to the items of bundles of that name, permanently. entries: by item_id"""
        ...

    async def read_items(self, name: str, after: int) -> tuple[int, dict[str, str]]:
        """The next changes after a version, by item_id, and the version that they lead to.

        They are few enough for one call, and none when there are no more. Of each item only the
        last change is kept.
        """
        ...

    async def items_version(self, name: str) -> int:
        """The version that all changes lead to; 0 when nothing was ever changed."""
        ...


class ItemChanges:
    """The changes to the items of the bundles in memory, by the bundles' names.

    embedder_url: of a server that answers POST /embed as Text Embeddings Inference does; None = new
        items must come with embeddings
    """

    def __init__(
        self,
        loaded_bundles: LoadedBundles,
        store: ChangeStore,
        embedder_url: SecretStr | None = None,
    ) -> None:
        self._loaded_bundles = loaded_bundles
        self._store = store
        self._embedder = Embedder(embedder_url) if embedder_url else None
        self._replaying = asyncio.Lock()

    async def change(self, request: ItemsRequest) -> ItemsResponse:
        """Add and remove items permanently. An added item that exists already is replaced.

        Raises InvalidRequest, EmbedderUnfit, EmbedderUnavailable, or HistoryUnavailable. Repeat the
        call after the last two.
        """
        before = self._loaded_bundles.active.bundle
        _check_attributes(request.add, before)
        name, catalogue = before.manifest.name, before.catalogue
        embeddings = await self._embeddings(request.add, before)
        entries = dict.fromkeys(request.remove, REMOVED) | {
            item.item_id: _entry(item, embedding)
            for item, embedding in zip(request.add, embeddings, strict=True)
        }
        added = {item.item_id for item in request.add}
        removed = {item_id for item_id in request.remove if item_id not in added}
        num_removed = len(catalogue.rows_of(removed))
        if not added and num_removed == catalogue.num_items:
            raise InvalidRequest("no item would be left", param="remove")
        if entries:
            await self._store.write_items(name, entries)
        await self.replay()
        after = self._loaded_bundles.active.bundle
        return ItemsResponse(
            bundle=after.manifest.ref,
            added=len(added) - len(catalogue.rows_of(added)),
            removed=num_removed,
            num_items=after.catalogue.num_items,
        )

    async def replay(self) -> None:
        """Apply all written changes to the bundles that lack them.

        Raises HistoryUnavailable. `follow` tries again.
        """
        async with self._replaying:
            while portions := await self._portions():
                await self._loaded_bundles.change(partial(_with_portions, portions=portions))

    async def _portions(self) -> list[Portion]:
        """For each name, the next changes that some bundle lacks."""
        bundles = [loaded.bundle for loaded in self._loaded_bundles.all]
        names = sorted({bundle.manifest.name for bundle in bundles})
        portions = [
            await self._portion(name, [one for one in bundles if one.manifest.name == name])
            for name in names
        ]
        return [portion for portion in portions if any(map(portion.is_next_of, bundles))]

    async def _portion(self, name: str, bundles: Sequence[Bundle]) -> Portion:
        """The changes that follow those that all these bundles have."""
        newest = await self._store.items_version(name)
        after = version = min(_version_of(bundle, newest) for bundle in bundles)
        entries: dict[str, str] = {}
        more = after < newest
        while more and len(entries) < MADE_AT_ONCE:
            try:
                version, read = await self._store.read_items(name, version)
            except HistoryUnavailable:
                if not entries:
                    raise
                break  # first apply those that came
            entries |= read
            more = bool(read)
        return Portion(name, after, version, newest, entries)

    async def follow(self) -> None:
        """Until cancelled: apply what other replicas have written."""
        while True:
            try:
                await self.replay()
            except RequestError as error:
                log.warning("items_not_followed", reason=str(error))
            except Exception:  # this task must not end
                log.exception("items_not_followed")
            await asyncio.sleep(FOLLOW_EVERY_S)

    async def _embeddings(self, items: Sequence[NewItem], bundle: Bundle) -> list[list[float]]:
        """For each item: its own embedding, or what the embedder makes of its text."""
        if not items:
            return []
        content = bundle.manifest.content
        if content is None:
            is_random = bundle.manifest.codebook.kind == "random"
            why = (
                "its codes were drawn at random"
                if is_random
                else "it was trained without --embeddings"
            )
            message = f"this bundle takes no new items: {why}"
            raise InvalidRequest(message, param="add")
        missing = [place for place, item in enumerate(items) if item.embedding is None]
        found: list[list[float]] = [item.embedding or [] for item in items]
        if missing:
            embedded = await self._embedded(items, missing, content)
            for place, embedding in zip(missing, embedded, strict=True):
                found[place] = embedding
        for place, embedding in enumerate(found):
            if len(embedding) != content.embedding_dims:
                message = f"embeddings must have {content.embedding_dims} numbers"
                raise InvalidRequest(message, param=f"add.{place}.embedding")
            if max(map(abs, embedding)) > LARGEST:
                message = "embeddings must be of numbers that float32 can hold"
                raise InvalidRequest(message, param=f"add.{place}.embedding")
        return found

    async def _embedded(
        self, items: Sequence[NewItem], missing: Sequence[int], content: ContentPart
    ) -> list[list[float]]:
        """Embeddings of the items without one. missing: indices of these items"""
        if self._embedder is None:
            message = "an embedding is needed, as UNMASK_EMBEDDER_URL is not set"
            raise InvalidRequest(message, param=f"add.{missing[0]}.embedding")
        texts = [text_of(_item(items[place])) for place in missing]
        for place, text in zip(missing, texts, strict=True):
            if not text.strip():
                message = "an item without an embedding needs a title or categories to embed"
                raise InvalidRequest(message, param=f"add.{place}.title")
        try:
            embedded = await self._embedder.embed(texts)
        except TextRefused as error:
            message = "the embedder does not take this title with these categories"
            param = f"add.{missing[error.place]}.title"
            raise InvalidRequest(message, param=param) from error
        if (dims := len(embedded.embeddings[0])) != content.embedding_dims:
            raise EmbedderUnfit(
                f"the embedder cannot be used: its embeddings have {dims} numbers, this bundle's "
                f"{content.embedding_dims}; let it run the model the bundle was trained with"
                + (f", {content.model}" if content.model else "")
            )
        if content.text is None:
            log.warning("content_text_unknown", taken=CONTENT_TEXT)
        if content.model and embedded.model and _last(content.model) != _last(embedded.model):
            log.warning("embedder_of_another_model", bundle=content.model, embedder=embedded.model)
        return embedded.embeddings


def _last(model: str) -> str:
    """The last part of a model's name: `minilm` for `Some-Org/MiniLM` and for `/models/minilm`."""
    return model.rstrip("/").rpartition("/")[2].lower()


@dataclass(frozen=True)
class Portion:
    """Changes to the bundles of one name, those numbered from after + 1 to version.

    newest: number of the last change that the store had
    entries: by item_id, REMOVED or what `_entry` wrote; of each item only the last change
    """

    name: str
    after: int
    version: int
    newest: int
    entries: Mapping[str, str]

    def is_next_of(self, bundle: Bundle) -> bool:
        """Whether a bundle lacks these changes, and has all changes before them."""
        return (
            bundle.manifest.name == self.name
            and bundle.items_version != self.version
            and self.after <= _version_of(bundle, self.newest) <= self.version
        )


def _version_of(bundle: Bundle, newest: int) -> int:
    """How many changes of the store a bundle has. newest: how many the store has

    A bundle with more changes than the store gets all of them again, because the store has lost
    some.
    """
    return bundle.items_version if bundle.items_version <= newest else 0


def _with_portions(bundle: Bundle, portions: Iterable[Portion]) -> Bundle:
    for portion in portions:
        if portion.is_next_of(bundle):
            changed = with_changes(bundle, portion.entries)
            return replace(changed, items_version=portion.version)
    return bundle


def with_changes(bundle: Bundle, entries: Mapping[str, str]) -> Bundle:
    """A bundle with these changes applied; the same bundle if it has them all already.

    entries: by item_id, REMOVED or what `_entry` wrote
    A bundle with embeddings of another length gets no new items.
    """
    content = bundle.manifest.content
    gone: list[str] = []
    new: dict[str, tuple[Item, NDArray[np.float32]]] = {}
    for item_id, entry in with_pauses(entries.items()):
        [row] = bundle.catalogue.rows_of([item_id]).tolist() or [None]
        if entry == REMOVED:
            gone += [] if row is None else [item_id]
            continue
        item, embedding = _item_of(item_id, entry)
        item = _with_known_attributes(item, bundle)
        if row is not None and bundle.items[row] == item:
            continue
        if content is None or content.embedding_dims != len(embedding):
            log.warning("item_not_added", bundle=bundle.manifest.ref, reason="other embeddings")
            continue
        gone += [] if row is None else [item_id]
        new[item_id] = item, embedding
    return _replaced(bundle, gone, new)


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


def _item(new: NewItem) -> Item:
    return Item(new.item_id, new.title, tuple(new.categories), _attributes(new.attributes) or None)


def _attributes(values: Mapping[str, Any]) -> dict[str, AttributeValue]:
    """As an `Item` has them: lists are tuples."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }


def _check_attributes(items: Sequence[NewItem], bundle: Bundle) -> None:
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
            is_date = isinstance(value, str) and _is_date(value)
            if not {"text": isinstance(value, list), "date": is_date}.get(
                kind, isinstance(value, float)
            ):
                forms = {"text": 'a list, ["A", "B"]', "date": "2026-11-30", "number": "12.5"}
                raise InvalidRequest(f"is a {kind}; write {forms[kind]}", param=param)


def _is_date(value: str) -> bool:
    try:
        seconds_of(value)
    except (ValueError, OverflowError):
        return False
    return True


def _with_known_attributes(item: Item, bundle: Bundle) -> Item:
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


def _entry(item: NewItem, embedding: Sequence[float]) -> str:
    packed = base64.b64encode(np.asarray(embedding, np.float32).tobytes()).decode()
    fields: dict[str, Any] = {
        "title": item.title,
        "categories": item.categories,
        "embedding": packed,
    }
    if item.attributes:
        fields["attributes"] = item.attributes
    return json.dumps(fields, ensure_ascii=False)


def _item_of(item_id: str, entry: str) -> tuple[Item, NDArray[np.float32]]:
    fields = json.loads(entry)
    attributes = _attributes(fields.get("attributes", {}))
    item = Item(item_id, fields["title"], tuple(fields["categories"]), attributes or None)
    return item, np.frombuffer(base64.b64decode(fields["embedding"]), np.float32)
