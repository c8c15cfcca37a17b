"""Items that are added, with their embeddings, removed or hidden while the service runs.

A change is written to the history store first. Then it is applied to every bundle in memory that
has the name, and applied again after every start and load. The other replicas follow within
seconds. Changes are numbered. A bundle knows the last change that it has, and only later ones are
read. Repeating a change does nothing: an item with the same title and categories stays as it is.
Undoing one brings back what the files of the bundle say. An item that was added is not added to a
bundle that was made later and knows it from training. Knows nothing of HTTP routes or Redis.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import structlog
from pydantic import SecretStr

from service.bundles import CONTENT_TEXT, Bundle, ContentPart, joined_text, text_of
from service.errors import EmbedderUnfit, HistoryUnavailable, InvalidRequest, RequestError
from service.loading.changed_bundles import (
    REMOVED,
    UNDONE,
    Portion,
    check_attributes,
    entry_of,
    item_of_request,
    listed_change,
    listed_hide,
    must_restore,
    version_of,
    with_portions,
)
from service.loading.embedder import LARGEST, Embedder, TextRefused
from service.loading.hiding import (
    SHOWN,
    Hides,
    followed,
    hide_entry,
    name_of_hides,
    until_of,
    with_hidden,
)
from service.loading.loaded_bundles import LoadedBundles
from service.schemas import (
    ItemChangesResponse,
    ItemsRequest,
    ItemsResponse,
    NewItem,
)

FOLLOW_EVERY_S = 5.0
MADE_AT_ONCE = 10_000  # changes at a time: more would take too much memory

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

    async def list_items(self, name: str, after: int) -> list[tuple[int, str, str]]:
        """Like `read_items`: number, item_id and entry of each change, by their numbers."""
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
        self._hides: dict[str, Hides] = {}  # by the bundles' names
        self._replaying = asyncio.Lock()

    async def change(self, request: ItemsRequest) -> ItemsResponse:
        """Undo, remove, add, show again and hide items, in this order, until the next change.

        An added item that exists already is replaced.
        Raises InvalidRequest, EmbedderUnfit, EmbedderUnavailable, or HistoryUnavailable. Repeat the
        call after the last two.
        """
        before = self._loaded_bundles.active.bundle
        check_attributes(request.add, before)
        name, catalogue = before.manifest.name, before.catalogue
        embeddings = await self._embeddings(request.add, before)
        entries = dict.fromkeys(request.undo, UNDONE) | dict.fromkeys(request.remove, REMOVED)
        entries |= {
            item.item_id: entry_of(item, embedding)
            for item, embedding in zip(request.add, embeddings, strict=True)
        }
        hides = dict.fromkeys(request.unhide, SHOWN)
        for place, one in enumerate(request.hide):
            if one.until is not None and one.until <= time.time():
                raise InvalidRequest("it must be in the future", param=f"hide.{place}.until")
            hides[one.item_id] = hide_entry(one.until)
        added = {item.item_id for item in request.add}
        removed = {item_id for item_id in request.remove if item_id not in added}
        num_removed = len(catalogue.rows_of(removed))
        if not added and not request.undo and num_removed == catalogue.num_items:
            raise InvalidRequest("no item would be left", param="remove")
        if entries:
            await self._store.write_items(name, entries)
        if hides:
            await self._store.write_items(name_of_hides(name), hides)
        await self.replay()
        after = self._loaded_bundles.active.bundle
        return ItemsResponse(
            bundle=after.manifest.ref,
            added=len(added) - len(catalogue.rows_of(added)),
            removed=num_removed,
            num_items=after.catalogue.num_items,
            hidden=len(after.hidden.rows_at(time.time())),
        )

    async def listed(self, after: int) -> ItemChangesResponse:
        """The changes of the active bundle's name that are in the store, oldest first, in pages.

        after: the number of the last change of the page before. Raises HistoryUnavailable.
        """
        bundle, now_s = self._loaded_bundles.active.bundle, time.time()
        name = bundle.manifest.name
        changes = await self._store.list_items(name, after)
        hides = await self._store.list_items(name_of_hides(name), after)
        pages = [page for page in (changes, hides) if page]
        last = min((page[-1][0] for page in pages), default=after)  # both are known up to here
        found = [
            (number, listed)
            for number, item_id, entry in changes
            if number <= last and (listed := listed_change(bundle, number, item_id, entry))
        ]
        for number, item_id, entry in hides:
            until = until_of(entry)
            if number <= last and until is not None and until > now_s:
                found.append((number, listed_hide(bundle, number, item_id, until)))
        return ItemChangesResponse(
            bundle=bundle.manifest.ref,
            changes=[listed for _, listed in sorted(found, key=lambda one: one[0])],
            next=last if pages else None,
        )

    async def replay(self) -> None:
        """Apply all written changes to the bundles that lack them.

        Raises HistoryUnavailable. `follow` tries again.
        """
        async with self._replaying:
            while True:
                portions, hides = await self._portions(), await self._hidden()
                if not portions and not any(
                    loaded.bundle.hidden.version != hides[loaded.bundle.manifest.name].version
                    for loaded in self._loaded_bundles.all
                    if loaded.bundle.manifest.name in hides
                ):
                    break
                self._hides = hides

                def changed(
                    bundle: Bundle,
                    portions: Sequence[Portion] = portions,
                    hides: Mapping[str, Hides] = hides,
                ) -> Bundle:
                    changed = with_portions(bundle, portions)
                    return with_hidden(changed, hides.get(bundle.manifest.name, Hides()))

                await self._loaded_bundles.change(changed)

    async def _hidden(self) -> dict[str, Hides]:
        """What is hidden now, by the names of the bundles in memory."""
        names = sorted({one.bundle.manifest.name for one in self._loaded_bundles.all})
        return {
            name: await followed(self._store, name, self._hides.get(name, Hides()))
            for name in names
        }

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
        after = version = min(version_of(bundle, newest) for bundle in bundles)
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
        if any(must_restore(bundle, entries) for bundle in bundles):
            return await self._from_the_start(name, newest)
        return Portion(name, after, version, newest, entries)

    async def _from_the_start(self, name: str, newest: int) -> Portion:
        """All changes, for bundles as they were loaded: items of their files come back."""
        entries: dict[str, str] = {}
        version = 0
        while version < newest:
            version, read = await self._store.read_items(name, version)
            if not read:
                break
            entries |= read
        return Portion(name, 0, version, newest, entries, anew=True)

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
        _check_texts(items, content)
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
        texts = [
            text_of(item_of_request(items[place]), _further_text(items[place], content))
            for place in missing
        ]
        for place, text in zip(missing, texts, strict=True):
            if not text.strip():
                message = "an item without an embedding needs a title, categories or texts to embed"
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


def _check_texts(items: Sequence[NewItem], content: ContentPart) -> None:
    """Raise InvalidRequest for texts of columns that the bundle does not embed."""
    for place, item in enumerate(items):
        for name in item.texts:
            if name not in content.text_columns:
                embedded = ", ".join(("title", "categories", *content.text_columns))
                message = f"the bundle does not embed such a column; it embeds {embedded}"
                raise InvalidRequest(message, param=f"add.{place}.texts.{name}")


def _further_text(item: NewItem, content: ContentPart) -> str:
    """What the bundle's text columns say of a new item."""
    said = []
    for name in content.text_columns:
        value = item.texts.get(name, item.attributes.get(name, ""))
        said.append(", ".join(value) if isinstance(value, list) else str(value).strip())
    return joined_text(said)


def _last(model: str) -> str:
    """The last part of a model's name: `minilm` for `Some-Org/MiniLM` and for `/models/minilm`."""
    return model.rstrip("/").rpartition("/")[2].lower()
