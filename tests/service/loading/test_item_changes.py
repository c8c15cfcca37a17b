"""Changes of items in a real Valkey, and the bundles in memory that follow them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import redis
from running_valkey import Server, running
from stores import with_store
from tiny_bundle import (
    EMBEDDING_DIMS,
    NUM_CODES,
    NUM_SUBSPACES,
    tiny_codebook,
    write_tiny_bundle,
)

from service.batching.lanes import Engine
from service.bundles.bundle import Bundle
from service.decoding import RandomCodebook, ResidualCodebook
from service.errors import HistoryUnavailable, InvalidRequest
from service.histories import redis_store as redis_history
from service.histories.redis_store import ITEMS_AT_ONCE, RedisHistoryStore
from service.loading import item_changes
from service.loading.changed_bundles import REMOVED, Portion, entry_of, with_changes
from service.loading.item_changes import ItemChanges
from service.loading.loaded_bundles import LoadedBundle, LoadedBundles
from service.schemas.items import ItemsRequest, NewItem
from service.telemetry.metrics import Metrics


def test_changes_are_read_in_order_and_in_portions(url: str) -> None:
    async def use(store: RedisHistoryStore) -> None:
        assert await store.items_version("x") == 0
        assert await store.read_items("x", 0) == (0, {})
        many = {f"item-{n}": f"first {n}" for n in range(2 * ITEMS_AT_ONCE + 10)}
        await store.write_items("x", many)
        await store.write_items("x", {"item-3": "second", "ünïcode": ""})
        await store.write_items("other", {"elsewhere": ""})
        newest = await store.items_version("x")
        assert abs(newest / 10**6 - time.time()) < 60  # microseconds of the clock
        found, version, portions = {}, 0, 0
        while True:
            before = version
            version, more = await store.read_items("x", before)
            if not more:
                break
            assert before < version <= newest
            assert len(more) <= ITEMS_AT_ONCE
            found |= more
            portions += 1
        assert portions == 3
        assert found == many | {"item-3": "second", "ünïcode": ""}
        assert version == newest
        assert list(found)[-2:] == ["item-3", "ünïcode"]  # of each item only the last change
        assert await store.read_items("x", newest - 1) == (newest, {"ünïcode": ""})

    with_store(url, use)


def item(name: str, seed: int = 0) -> NewItem:
    embedding = np.random.default_rng(seed).normal(size=EMBEDDING_DIMS).tolist()
    return NewItem(item_id=name, title=name, embedding=embedding)


def has(bundle: Bundle, *item_ids: str) -> list[bool]:
    return [len(bundle.catalogue.rows_of([item_id])) == 1 for item_id in item_ids]


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """An empty store, because other tests change the items of bundles of this name."""
    valkey = Server(tmp_path / "valkey", {"save": '""'})
    with running(valkey):
        yield valkey.url


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for version in ("1", "2"):
        write_tiny_bundle(tmp_path / "shop" / version, name="shop", version=version)
    return tmp_path / "shop"


async def started(path: Path) -> LoadedBundles:
    """The bundles in the memory of one process."""

    def load(path: Path) -> LoadedBundle:
        bundle = Bundle.load(path)
        return LoadedBundle(bundle, Engine(bundle.decoder.decode), path)

    loaded_bundles = LoadedBundles(load, Metrics())
    await loaded_bundles.start(path)
    return loaded_bundles


def test_every_bundle_catches_up_from_where_it_is(
    folder: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_changes, "MADE_AT_ONCE", 150)

    async def use(store: RedisHistoryStore) -> None:
        loaded_bundles = await started(folder / "1")
        changes = ItemChanges(loaded_bundles, store)
        for start in range(0, 400, 100):
            added = [item(f"new-{n}", n) for n in range(start, start + 100)]
            answer = await changes.change(ItemsRequest(add=added, remove=["item-3"]))
            assert answer.added == 100
        await changes.change(ItemsRequest(remove=["new-399"]))
        expected = [True, True, False, False]
        names = ("new-0", "new-398", "new-399", "item-3")
        assert has(loaded_bundles.active.bundle, *names) == expected

        # A bundle that is loaded later, and another process, need more than one portion.
        await loaded_bundles.load(folder / "2", "shop@2")
        others = await started(folder / "1")
        follower = ItemChanges(others, store)
        for one in (changes, follower):
            await one.replay()
        bundles = [loaded.bundle for loaded in (*loaded_bundles.all, *others.all)]
        assert len(bundles) == 3
        for bundle in bundles:
            assert has(bundle, *names) == expected
            assert bundle.catalogue.num_items == bundles[0].catalogue.num_items
            assert bundle.items_version == await store.items_version("shop")

        # Nothing is applied or read twice.
        before = others.active
        await follower.replay()
        assert others.active is before
        await changes.change(ItemsRequest(remove=["item-4"]))
        await follower.replay()
        assert has(others.active.bundle, "item-4", "item-5") == [False, True]

        # The store loses everything. Later changes have numbers that were never used.
        redis.Redis.from_url(url).flushall()
        await follower.replay()
        assert others.active.bundle.items_version == 0
        await changes.change(ItemsRequest(add=[item("late")]))
        await follower.replay()
        for one in (loaded_bundles, others):
            assert has(one.active.bundle, "late", "new-0", "item-4") == [True, True, False]
            assert one.active.bundle.items_version == await store.items_version("shop")

    with_store(url, use)


def test_a_bundle_that_comes_between_reading_and_making_misses_nothing(
    folder: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(store: RedisHistoryStore) -> None:
        loaded_bundles = await started(folder / "1")
        changes = ItemChanges(loaded_bundles, store)
        await changes.change(ItemsRequest(remove=["item-1"]))
        await store.write_items("shop", {"item-2": REMOVED})
        read = store.read_items

        async def read_and_load(name: str, after: int) -> tuple[int, dict[str, str]]:
            found = await read(name, after)
            await loaded_bundles.load(folder / "2", "shop@2")
            return found

        monkeypatch.setattr(store, "read_items", read_and_load)
        await changes.replay()
        assert len(loaded_bundles.all) == 2
        for loaded in loaded_bundles.all:
            assert has(loaded.bundle, "item-1", "item-2", "item-3") == [False, False, True]

    with_store(url, use)


def test_changes_read_before_the_store_fell_silent_are_applied(
    folder: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(store: RedisHistoryStore) -> None:
        loaded_bundles = await started(folder / "1")
        await store.write_items("shop", dict.fromkeys(("item-1", "item-2"), REMOVED))
        monkeypatch.setattr(redis_history, "ITEMS_AT_ONCE", 1)
        changes, read, calls = ItemChanges(loaded_bundles, store), store.read_items, 0

        async def read_once(name: str, after: int) -> tuple[int, dict[str, str]]:
            nonlocal calls
            calls += 1
            if calls > 1:
                raise HistoryUnavailable("silent")
            return await read(name, after)

        monkeypatch.setattr(store, "read_items", read_once)
        with pytest.raises(HistoryUnavailable):
            await changes.replay()
        assert has(loaded_bundles.active.bundle, "item-1", "item-2") == [False, True]
        monkeypatch.setattr(store, "read_items", read)
        await changes.replay()
        assert has(loaded_bundles.active.bundle, "item-1", "item-2") == [False, False]

    with_store(url, use)


def entries_of(*items: NewItem) -> dict[str, str]:
    return {one.item_id: entry_of(one, one.embedding or []) for one in items}


def test_all_items_may_be_replaced_in_one_portion(folder: Path) -> None:
    bundle = Bundle.load(folder / "1")
    old = [one.item_id for one in bundle.items]
    removed = dict.fromkeys(old, REMOVED)
    for entries, expected in (
        (entries_of(item("new")) | removed, ["new"]),
        (removed | entries_of(item(old[-1], 5), item("new")), ["new", old[-1]]),
        (removed, old[-1:]),  # there is no catalogue without items
        (entries_of(*map(item, old)), old),
    ):
        changed = with_changes(bundle, entries)
        assert sorted(one.item_id for one in changed.items) == sorted(expected)
        assert [one.item_id for one in changed.items] == list(changed.catalogue.item_ids)


@pytest.mark.parametrize(
    ("portion", "versions"),
    [
        (Portion("shop", 3, 7, 9, {}), {3, 4, 5, 6}),  # a bundle with fewer changes would miss some
        (Portion("shop", 0, 2, 2, {}), {0, 1, 3, 4, 5, 6, 7, 8}),  # more than the store has now
        (Portion("shop", 0, 0, 0, {}), {1, 2, 3, 4, 5, 6, 7, 8}),
        (Portion("shelf", 0, 8, 8, {}), set()),
    ],
)
def test_which_bundles_a_portion_is_for(folder: Path, portion: Portion, versions: set[int]) -> None:
    bundle = Bundle.load(folder / "1")
    at = {version: replace(bundle, items_version=version) for version in range(9)}
    assert {version for version in at if portion.is_next_of(at[version])} == versions


def levels_with_a_digit() -> ResidualCodebook:
    random = np.random.default_rng(9)
    shape = NUM_SUBSPACES - 1, NUM_CODES, NUM_SUBSPACES * NUM_CODES
    centroids = random.normal(0, 0.2, shape).astype(np.float32)
    return ResidualCodebook(centroids, content=tiny_codebook().content, collisions="digit")


def test_replicas_give_new_items_the_same_digits(tmp_path: Path, url: str) -> None:
    """Whether they were there for every change or start later; and nobody shares a SID.

    After a trained item is removed that is no longer promised (docs/decisions/042).
    """
    path = write_tiny_bundle(tmp_path / "1", name="shop", codebook=levels_with_a_digit())
    same = [item(f"same-{n}") for n in range(4)]  # of one embedding

    async def use(store: RedisHistoryStore) -> None:
        first = await started(path)
        changes = ItemChanges(first, store)
        for request in (
            ItemsRequest(add=same[:2]),
            ItemsRequest(add=[item("other", 1), same[2]], remove=["item-3"]),
            ItemsRequest(remove=["same-2"]),
            ItemsRequest(add=[same[3]]),  # gets the digit that same-2 had
            ItemsRequest(add=[same[2]]),
        ):
            await changes.change(request)
        later = await started(path)
        await ItemChanges(later, store).replay()
        names = ["same-0", "same-1", "same-3", "same-2", "other"]
        found = []
        for one in (first, later):
            catalogue = one.active.bundle.catalogue
            assert len(np.unique(catalogue.codes[200 - 1 :], axis=0)) == 5
            found.append(catalogue.codes[catalogue.rows_of(names)].tolist())
        assert found[0] == found[1]
        assert [sid[-1] for sid in found[0][:4]] == [0, 1, 2, 3]

    with_store(url, use)


def test_a_bundle_of_random_codes_says_why_it_takes_no_items(tmp_path: Path, url: str) -> None:
    codebook = RandomCodebook((NUM_SUBSPACES, NUM_CODES, NUM_SUBSPACES * NUM_CODES))
    path = write_tiny_bundle(tmp_path / "1", name="shop", codebook=codebook)

    async def use(store: RedisHistoryStore) -> None:
        loaded_bundles = await started(path)
        changes = ItemChanges(loaded_bundles, store)
        with pytest.raises(InvalidRequest, match="no new items: its codes were drawn at random"):
            await changes.change(ItemsRequest(add=[item("new")]))
        assert await store.items_version("shop") == 0
        assert (await changes.change(ItemsRequest(remove=["item-3"]))).removed == 1

    with_store(url, use)


# --- undoing, and bundles that were made later ----------------------------------------------------


async def listed(changes: ItemChanges) -> dict[tuple[str, str], bool]:
    """All changes that are listed: whether each is in effect."""
    found, after = {}, 0
    while True:
        page = await changes.listed(after)
        assert sorted(page.changes, key=lambda one: one.at) == page.changes
        found |= {(one.item_id, one.change): one.in_effect for one in page.changes}
        if page.next is None:
            return found
        after = page.next


def test_what_was_changed_can_be_undone(folder: Path, url: str) -> None:
    """The bundle is then like one that was loaded now, in every process."""

    async def use(store: RedisHistoryStore) -> None:
        first, second = await started(folder / "1"), await started(folder / "1")
        changes, follower = ItemChanges(first, store), ItemChanges(second, store)
        fresh = first.active.bundle
        await changes.change(
            ItemsRequest(
                add=[item("new-1"), item("new-2"), item("item-7", 7)], remove=["item-3", "item-4"]
            )
        )
        await follower.replay()
        assert await listed(changes) == {
            ("item-3", "removed"): True,
            ("item-4", "removed"): True,
            **{(name, "added"): True for name in ("new-1", "new-2", "item-7")},
        }
        await changes.change(ItemsRequest(undo=["item-3", "item-7", "new-1", "unknown"]))
        await follower.replay()
        late = await started(folder / "1")
        await ItemChanges(late, store).replay()
        for one in (first, second, late):
            bundle = one.active.bundle
            assert has(bundle, "item-3", "item-4", "new-1", "new-2") == [True, False, False, True]
            assert bundle.items_version == await store.items_version("shop")
            rows, own = (each.catalogue.rows_of(["item-3", "item-7"]) for each in (bundle, fresh))
            for array in ("codes", "popularity", "vectors"):
                now, then = (getattr(each.catalogue, array) for each in (bundle, fresh))
                assert np.array_equal(now[rows], then[own])
        assert await listed(follower) == {("item-4", "removed"): True, ("new-2", "added"): True}

        await changes.change(ItemsRequest(undo=["item-4", "new-2"]))
        assert await listed(changes) == {}
        bundle = first.active.bundle
        assert [one.item_id for one in bundle.items] == [one.item_id for one in fresh.items]
        assert np.array_equal(bundle.catalogue.codes, fresh.catalogue.codes)
        await changes.change(ItemsRequest(remove=["item-3"]))
        assert has(first.active.bundle, "item-3") == [False]

    with_store(url, use)


def test_an_added_item_gives_way_to_a_newer_bundle_that_knows_it(folder: Path, url: str) -> None:
    """And is there again when the older bundle answers. What was removed stays removed."""
    later = write_tiny_bundle(
        folder / "3", name="shop", version="3", created_at="2999-01-01T00:00:00Z"
    )

    async def use(store: RedisHistoryStore) -> None:
        loaded_bundles = await started(folder / "1")
        changes = ItemChanges(loaded_bundles, store)
        request = ItemsRequest(add=[item("item-7", 7), item("new")], remove=["item-3"])
        await changes.change(request)
        assert title_of(loaded_bundles.active.bundle, "item-7") == "item-7"
        await loaded_bundles.load(later, "shop@3")
        await changes.replay()
        await loaded_bundles.activate("shop@3")
        newer = loaded_bundles.active.bundle
        assert title_of(newer, "item-7") == title_of(Bundle.load(later), "item-7") != "item-7"
        assert has(newer, "new", "item-3") == [True, False]
        assert await listed(changes) == {
            ("item-7", "added"): False,
            ("new", "added"): True,
            ("item-3", "removed"): True,
        }
        await loaded_bundles.rollback()
        assert (await listed(changes))["item-7", "added"]

    with_store(url, use)


def title_of(bundle: Bundle, item_id: str) -> str:
    [row] = bundle.catalogue.rows_of([item_id])
    return bundle.items[int(row)].title


def test_an_entry_of_an_older_release_is_applied(folder: Path) -> None:
    bundle = Bundle.load(folder / "1")
    [entry] = entries_of(item("item-7", 7)).values()
    fields = json.loads(entry)
    del fields["at"]
    changed = with_changes(bundle, {"item-7": json.dumps(fields)})
    assert title_of(changed, "item-7") == "item-7"
    unsaid = replace(bundle, manifest=bundle.manifest.model_copy(update={"created_at": "today"}))
    assert title_of(with_changes(unsaid, {"item-7": entry}), "item-7") == "item-7"
