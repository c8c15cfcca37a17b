"""Items that are hidden for a while: in all bundles and processes, with no catalogue made anew."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from running_valkey import Server, running
from stores import with_store
from test_item_changes import item, started
from tiny_bundle import write_tiny_bundle

from service.bundles import Bundle, Condition
from service.errors import InvalidRequest
from service.histories import RedisHistoryStore
from service.loading import ItemChanges
from service.loading.hiding import Hides, hide_entry, until_of, with_hidden
from service.recommending.item_mapping import popular_rows, similar_items
from service.recommending.jobs import Inputs, UserHistory
from service.recommending.rules import Rules
from service.schemas import HiddenItem, ItemsRequest, RecommendRequest

FAR_S = 4e9  # a time in the year 2096


def hidden(bundle: Bundle, now_s: float | None = None) -> set[str]:
    rows = bundle.hidden.rows_at(time.time() if now_s is None else now_s)
    assert rows.tolist() == sorted(rows.tolist())
    return {bundle.items[row].item_id for row in rows.tolist()}


def test_hidden_items_are_the_same_everywhere_and_nothing_is_made_anew(tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path / "shop" / "1", name="shop").parent
    write_tiny_bundle(folder / "2", name="shop", version="2")

    async def use(store: RedisHistoryStore) -> None:
        first, second = await started(folder / "1"), await started(folder / "1")
        changes, follower = ItemChanges(first, store), ItemChanges(second, store)
        before = first.active
        hide = [HiddenItem(item_id="item-9", until=FAR_S), HiddenItem(item_id="item-3")]
        answer = await changes.change(ItemsRequest(hide=[*hide, HiddenItem(item_id="later")]))
        assert (answer.hidden, answer.num_items) == (2, 200)
        after = first.active
        assert after.engine is before.engine
        assert after.bundle.decoder is before.bundle.decoder
        await follower.replay()
        await first.load(folder / "2", "shop@2")
        await changes.replay()
        for one in (*first.all, *second.all):
            assert hidden(one.bundle) == {"item-3", "item-9"}
            assert hidden(one.bundle, FAR_S) == {"item-3"}  # nobody did anything

        # Rows move, and an item comes that was hidden before.
        await changes.change(ItemsRequest(remove=["item-1"], add=[item("later")]))
        await follower.replay()
        late = await started(folder / "1")
        await ItemChanges(late, store).replay()
        for one in (*first.all, *second.all, *late.all):
            assert hidden(one.bundle) == {"item-3", "item-9", "later"}

        page = await changes.listed(0)
        assert {(one.item_id, one.change, one.until, one.in_effect) for one in page.changes} == {
            ("item-9", "hidden", FAR_S, True),
            ("item-3", "hidden", None, True),
            ("later", "hidden", None, True),
        }
        page = await changes.listed(page.next or 0)
        assert {(one.item_id, one.change) for one in page.changes} == {
            ("item-1", "removed"),
            ("later", "added"),
        }
        await changes.change(ItemsRequest(unhide=["item-3", "item-9", "none"], undo=["item-1"]))
        await follower.replay()
        for one in (first.active, second.active):
            assert hidden(one.bundle) == {"later"}
        unchanged = second.active
        await follower.replay()
        assert second.active is unchanged

        await asyncio.to_thread(redis.Redis.from_url(server.url).flushall)
        await follower.replay()
        assert hidden(second.active.bundle) == set()

    server = Server(tmp_path / "valkey", {"save": '""'})
    with running(server):
        with_store(server.url, use)


def test_the_past_hides_nothing(tmp_path: Path, redis_url: str) -> None:
    path = write_tiny_bundle(tmp_path / "1", name="past")

    async def use(store: RedisHistoryStore) -> None:
        changes = ItemChanges(await started(path), store)
        request = ItemsRequest(hide=[HiddenItem(item_id="item-1", until=1e9)])
        with pytest.raises(InvalidRequest, match="in the future"):
            await changes.change(request)
        assert await store.items_version("past/hidden") == 0

    with_store(redis_url, use)


def test_entries_say_until_when() -> None:
    for until in (None, 1e9 + 1 / 3, FAR_S):
        assert until_of(hide_entry(until)) == (float("inf") if until is None else until)
    assert until_of("") is None


def test_hidden_rows_are_left_out_of_everything(bundle: Bundle) -> None:
    names = [one.item_id for one in bundle.items]
    until = {names[3]: np.inf, names[0]: FAR_S, names[7]: 1.0, "unknown": np.inf}
    shut = with_hidden(bundle, Hides(1, until))
    assert hidden(shut) == {names[0], names[3]}
    history = UserHistory("request", names[3:5])

    def inputs(of: Bundle, **fields: object) -> Inputs:
        request = RecommendRequest.model_validate({"user_id": "u", **fields})
        return asyncio.run(Inputs.look_up(request, history, of, Rules({}, [])))

    found = inputs(shut, exclude_items=[names[9], names[0]])
    assert sorted(found.excluded.tolist()) == [0, 3, 4, 9]
    assert found.excluded.dtype == np.int32
    assert found.history.tolist() == [3, 4]  # what is out of stock still says what a user likes
    assert inputs(bundle).excluded.tolist() == [3, 4]
    popular = popular_rows(shut, 3, found.excluded, None)
    assert [names[row] for row in popular] == [names[1], names[2], names[5]]
    gone = {names[0], names[3]}
    like = {row: similar_items(bundle, row, 199) for row in range(50)}
    assert any(gone & {one.item_id for one in found} for found in like.values())
    for row, similar in like.items():
        left = [one for one in similar if one.item_id not in gone]
        assert similar_items(shut, row, 199) == left


def test_hiding_leaves_what_is_remembered_of_a_filter_as_it_is(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter that comes again needs no thread, and hidden items are excluded by each job."""
    threads = []
    in_thread = asyncio.to_thread

    async def counting(function: Any, *arguments: Any) -> Any:
        threads.append(function)
        return await in_thread(function, *arguments)

    monkeypatch.setattr(asyncio, "to_thread", counting)
    bundle = replace(bundle, attributes=bundle.attributes.forgetting())
    category = bundle.items[0].categories[0]
    rules = Rules({"category": Condition([category])}, [])
    request = RecommendRequest(user_id="u")
    history = UserHistory("request", [])
    shut = with_hidden(bundle, Hides(1, {bundle.items[0].item_id: np.inf}))

    def inputs(of: Bundle) -> Inputs:
        return asyncio.run(Inputs.look_up(request, history, of, rules))

    first, again, hiding = inputs(bundle), inputs(bundle), inputs(shut)
    assert len(threads) == 1
    assert first.allowed is again.allowed is hiding.allowed
    assert first.allowed is not None
    assert 0 in first.allowed
    assert (first.excluded.tolist(), hiding.excluded.tolist()) == ([], [0])
