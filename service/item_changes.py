"""Items that come and go while the service runs: added by their embeddings, or removed.

A change is written to the history store first, then made in every bundle in memory that has the
name, and made again after every start and load; the other replicas follow within seconds. Repeating
one changes nothing: an item that is there with the same title and categories stays as it is. Knows
nothing of HTTP routes or Redis commands.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping, Sequence

import httpx
import numpy as np
import structlog
from numpy.typing import NDArray

from service.bundle import Bundle
from service.errors import EmbedderUnavailable, InvalidRequest, RequestError
from service.history import HistoryStore
from service.item_schemas import ItemsRequest, ItemsResponse, NewItem
from service.items import Item
from service.residents import Residents

FOLLOW_EVERY_S = 5.0
EMBED_TIMEOUT_S = 10.0
REMOVED = ""
LARGEST = float(np.finfo(np.float32).max)

log = structlog.get_logger()


class ItemChanges:
    """The changes to the items of the bundles in memory, by the bundles' names.

    embedder_url: of a server that answers POST /embed as Text Embeddings Inference does; None = new
        items must bring their embeddings
    """

    def __init__(
        self, residents: Residents, store: HistoryStore, embedder_url: str | None = None
    ) -> None:
        self._residents = residents
        self._store = store
        self._embedder_url = embedder_url
        self._made: dict[str, int] = {}  # the version of each name that was made last

    async def change(self, request: ItemsRequest) -> ItemsResponse:
        """Add and remove items, for good. An item that is there already is replaced.

        Raises InvalidRequest, BundleConflict, EmbedderUnavailable, or HistoryUnavailable; then
        repeat it.
        """
        before = self._residents.active.bundle
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
        await self._store.write_items(name, entries)
        await self.replay()
        after = self._residents.active.bundle
        return ItemsResponse(
            bundle=after.manifest.ref,
            added=len(added) - len(catalogue.rows_of(added)),
            removed=num_removed,
            num_items=after.catalogue.num_items,
        )

    async def replay(self) -> None:
        """Make all changes that are written, where they are not made yet.

        Raises HistoryUnavailable, or BundleConflict while a bundle is loaded; `follow` tries again.
        """
        self._made = {}
        found = {name: await self._store.read_items(name) for name in self._names}
        entries = {name: of_name for name, (_, of_name) in found.items() if of_name}
        if entries:
            await self._residents.change(
                lambda bundle: with_changes(bundle, entries.get(bundle.manifest.name, {}))
            )
        self._made = {name: version for name, (version, _) in found.items()}

    async def follow(self) -> None:
        """Until it is cancelled: make what other replicas have written."""
        while True:
            try:
                if self._made != {n: await self._store.items_version(n) for n in self._names}:
                    await self.replay()
            except RequestError as error:
                log.warning("items_not_followed", reason=str(error))
            except Exception:  # this task must not end
                log.exception("items_not_followed")
            await asyncio.sleep(FOLLOW_EVERY_S)

    @property
    def _names(self) -> list[str]:
        return sorted({resident.bundle.manifest.name for resident in self._residents.all})

    async def _embeddings(self, items: Sequence[NewItem], bundle: Bundle) -> list[list[float]]:
        if not items:
            return []
        content = bundle.manifest.content
        if content is None:
            raise InvalidRequest("this bundle takes no new items: it has no content", param="add")
        missing = [place for place, item in enumerate(items) if item.embedding is None]
        found: list[list[float]] = [item.embedding or [] for item in items]
        if missing and self._embedder_url is None:
            message = "an embedding is needed, as UNMASK_EMBEDDER_URL is not set"
            raise InvalidRequest(message, param=f"add.{missing[0]}.embedding")
        if missing:
            embedded = await self._embedded([items[place].title for place in missing])
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

    async def _embedded(self, titles: Sequence[str]) -> list[list[float]]:
        try:
            async with httpx.AsyncClient(timeout=EMBED_TIMEOUT_S) as client:
                answer = await client.post(f"{self._embedder_url}/embed", json={"inputs": titles})
            embeddings = np.array(answer.raise_for_status().json(), np.float32)
            if embeddings.shape[:1] != (len(titles),) or embeddings.ndim != 2:
                raise ValueError("not one embedding a title")
            if not np.isfinite(embeddings).all():
                raise ValueError("numbers that are not finite")
        except (httpx.HTTPError, ValueError) as error:
            log.error("embedder_failed", reason=str(error))
            raise EmbedderUnavailable("the embedder did not answer with embeddings") from error
        found: list[list[float]] = embeddings.tolist()
        return found


def with_changes(bundle: Bundle, entries: Mapping[str, str]) -> Bundle:
    """A bundle with the changes made that it does not have; itself when it has them all.

    entries: by item_id, REMOVED or what `_entry` wrote. A bundle of other embeddings gets no items.
    """
    content = bundle.manifest.content
    gone, new, embeddings = [], [], []
    for item_id, entry in entries.items():
        [row] = bundle.catalogue.rows_of([item_id]).tolist() or [None]
        if entry == REMOVED:
            gone += [] if row is None else [item_id]
            continue
        item, embedding = _item_of(item_id, entry)
        if row is not None and bundle.items[row] == item:
            continue
        if content is None or content.embedding_dims != len(embedding):
            log.warning("item_not_added", bundle=bundle.manifest.ref, reason="other embeddings")
            continue
        gone += [] if row is None else [item_id]
        new.append(item)
        embeddings.append(embedding)
    if len(gone) < bundle.catalogue.num_items:  # one at least must be left before others come
        bundle = bundle.without_items(gone) if gone else bundle
    return bundle.with_items(new, np.stack(embeddings)) if new else bundle


def _entry(item: NewItem, embedding: Sequence[float]) -> str:
    packed = base64.b64encode(np.asarray(embedding, np.float32).tobytes()).decode()
    fields = {"title": item.title, "categories": item.categories, "embedding": packed}
    return json.dumps(fields, ensure_ascii=False)


def _item_of(item_id: str, entry: str) -> tuple[Item, NDArray[np.float32]]:
    fields = json.loads(entry)
    item = Item(item_id, fields["title"], tuple(fields["categories"]))
    return item, np.frombuffer(base64.b64decode(fields["embedding"]), np.float32)
