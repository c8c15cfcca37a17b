"""GET /items: items by words, id and filter, page by page."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from running_service import Service, service_process
from tiny_bundle import EMBEDDING_DIMS, write_tiny_bundle

from service.bundles.bundle import Bundle
from service.bundles.items import Item
from service.decoding.catalogue.growing_arrays import SharedList
from service.errors import InvalidRequest, Overloaded
from service.recommending import item_search
from service.recommending.item_search import MOST_PAGES, ItemPages, found_items
from service.schemas import ItemsQuery

ADMIN = {"Authorization": "Bearer an-admin-key"}
CLIENT = {"Authorization": "Bearer a-client-key"}


@pytest.fixture(scope="module")
def shop(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """listed@1: 200 items with a price. Two were added, one was hidden, one removed."""
    folder = tmp_path_factory.mktemp("listed")
    write_tiny_bundle(
        folder / "bundles" / "listed" / "1",
        name="listed",
        attributes=lambda row: {"price": row / 4},
    )
    with service_process(
        folder,
        bundles_dir=folder / "bundles",
        bundle="listed@1",
        redis_url=redis_url,
        api_keys="a-client-key",
        admin_keys="an-admin-key",
    ) as service:
        embedding = [0.5] * EMBEDDING_DIMS
        new = [
            {"item_id": name, "title": title, "embedding": embedding, "attributes": {"price": 1}}
            for name, title in (("new-1", "Blue Mug"), ("new-2", "Mug, BLUE and ßmall"))
        ]
        changes = {"add": new, "hide": [{"item_id": "item-3"}], "remove": ["item-0"]}
        changed = service.client.post("/admin/items", json=changes, headers=ADMIN)
        assert changed.status_code == 200, changed.text
        yield service


def asked(shop: Service, **params: Any) -> httpx.Response:
    return shop.client.get("/items", params=params, headers=CLIENT)


def page(shop: Service, **params: Any) -> list[str]:
    answer = asked(shop, **params)
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]


def test_all_items_come_page_by_page(shop: Service) -> None:
    listed: list[str] = []
    after: dict[str, str] = {}
    while True:
        answer = asked(shop, limit=70, **after).json()
        listed += [item["item_id"] for item in answer["items"]]
        if answer["next"] is None:
            break
        assert len(answer["items"]) == 70
        after = {"after": answer["next"]}
    assert listed == [*(f"item-{row}" for row in range(1, 200)), "new-1", "new-2"]


def test_an_item_is_shown_as_it_is_now(shop: Service) -> None:
    third = asked(shop, id_prefix="item-3", limit=1).json()["items"][0]
    assert third == {
        "item_id": "item-3",
        "title": third["title"],
        "categories": ["Shelves > 3"],
        "attributes": {"price": 0.75},
        "popularity_rank": 3,
        "hidden": True,
        "added": False,
    }
    assert third["title"]
    [new] = asked(shop, id_prefix="new-2").json()["items"]
    assert (new["title"], new["hidden"], new["added"]) == ("Mug, BLUE and ßmall", False, True)
    for item_id, is_hidden in (("item-3", True), ("new-2", False)):
        assert shop.client.get(f"/items/{item_id}", headers=CLIENT).json()["hidden"] is is_hidden


def test_words_ids_and_filters_all_hold(shop: Service) -> None:
    assert page(shop, q="MUG  blu") == ["new-1", "new-2"]
    assert page(shop, q="mug SSMALL") == ["new-2"]
    assert page(shop, id_prefix="item-19", limit=100) == [
        "item-19",
        *(f"item-{n}" for n in range(190, 200)),
    ]
    cheap = json.dumps({"price": {"lte": 1}, "category": {"not": ["Shelves > 2"]}})
    assert page(shop, filter=cheap) == ["item-1", "item-3", "item-4", "new-1", "new-2"]
    assert page(shop, filter=cheap, q="mug") == ["new-1", "new-2"]
    assert page(shop, filter=cheap, after="0:item-3", limit=2) == ["item-4", "new-1"]
    none = asked(shop, filter=json.dumps({"category": ["shelves > 2"]})).json()
    assert (none["items"], none["next"]) == ([], None)
    assert none["warnings"] == [
        "filter.category: no item has 'shelves > 2'; near it is 'Shelves > 2'"
    ]


def test_the_latest_items_are_those_that_were_added(shop: Service) -> None:
    assert page(shop, order="latest") == ["new-2", "new-1"]
    assert page(shop, order="latest", limit=1) == ["new-2"]
    assert page(shop, order="latest", after="2:new-2") == ["new-1"]
    assert page(shop, order="latest", filter=json.dumps({"price": [1]}), q="and") == ["new-2"]
    assert page(shop, order="latest", after="0:item-5") == []


@pytest.mark.parametrize(
    ("params", "param", "said"),
    [
        ({"limit": "0"}, "limit", "greater than or equal to 1"),
        ({"limit": "1_0"}, "limit", "written in digits"),
        ({"after": "0:item-0"}, "after", "begin again without `after`"),
        ({"after": "item-1"}, "after", "must be the `next` of a page, as it was"),
        ({"order": "newest"}, "order", "'popular' or 'latest'"),
        ({"title": "mug"}, "title", "there are q, id_prefix, filter, order, after, limit"),
        ({"filter": "Books"}, "filter", "must be JSON, percent-encoded"),
        ({"filter": "[" * 15_000}, "filter", "more than 200 brackets within one another"),
        ({"filter": "[1]"}, "filter", "must be an object of attributes"),
        ({"filter": '{"price": [1], "price": [2]}'}, "filter", "the same name twice"),
        ({"filter": '{"price": {"lt": true}}'}, "filter.price.lt", "a text or a number"),
        ({"filter": '{"colour": ["red"]}'}, "filter.colour", "filter by: category (text), price"),
        ({"filter": '{"price": ["1"]}'}, "filter.price", "ask for numbers"),
    ],
)
def test_what_cannot_be_listed_is_refused(
    shop: Service, params: dict[str, str], param: str, said: str
) -> None:
    answer = asked(shop, **params)
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert said in error["message"]


def test_it_needs_the_key_of_a_client(shop: Service) -> None:
    assert shop.client.get("/items").status_code == 401


def test_a_page_ends_after_so_many_titles_and_the_next_goes_on(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_search, "MOST_LOOKED_AT", 40)
    monkeypatch.setattr(item_search, "AT_ONCE", 10)
    titles = ["Mug" if row % 50 == 7 else "" for row in range(len(bundle.items))]
    named = SharedList(
        Item(item.item_id, title, ()) for item, title in zip(bundle.items, titles, strict=True)
    )
    renamed = replace(bundle, items=named)
    pages: list[list[str]] = []
    after = None
    for _ in range(20):
        answer = found_items(renamed, ItemsQuery(q="mug", after=after, limit=3), {})
        pages.append([item.item_id for item in answer.items])
        if answer.next is None:
            break
        after = answer.next
    assert pages == [["item-7"], ["item-57"], ["item-107"], ["item-157"], []]


def listed(bundle: Bundle, **asked: Any) -> tuple[list[str], str | None]:
    answer = found_items(bundle, ItemsQuery(**asked), {})
    return [item.item_id for item in answer.items], answer.next


def added(bundle: Bundle, *items: Item) -> Bundle:
    """The bundle with these items at its end, where they were replaced if it had them."""
    there = [item.item_id for item in items if len(bundle.catalogue.rows_of([item.item_id]))]
    without = bundle.without_items(there) if there else bundle
    return without.with_items(items, np.full((len(items), EMBEDDING_DIMS), 0.5, np.float32))


def test_what_was_removed_and_added_again_as_it_was_is_among_the_latest(bundle: Bundle) -> None:
    same = bundle.items[7]
    changed = added(bundle, Item("new-1", "One", ()), same, Item("new-2", "Two", ()))
    assert listed(changed, order="latest") == (["new-2", "item-7", "new-1"], None)
    changed = changed.without_items(["new-1", "item-3"])
    assert listed(changed, order="latest") == (["new-2", "item-7"], None)
    changed = changed.without_items(["new-2", "item-7"])
    assert listed(changed, order="latest") == ([], None)
    assert listed(bundle, order="latest") == ([], None)


@pytest.mark.parametrize("order", ["popular", "latest"])
def test_a_page_after_an_item_that_was_replaced_is_refused(bundle: Bundle, order: str) -> None:
    new = [Item(f"new-{n}", "New", ()) for n in range(4)]
    before = added(bundle, *new)
    shown, after = listed(before, order=order, limit=2, id_prefix="new")
    assert after is not None
    other = added(before, new[3 if shown[-1] == "new-0" else 0])
    listed(other, order=order, after=after)  # another one was replaced: that is no matter
    with pytest.raises(InvalidRequest, match="replaced or undone meanwhile; begin again without"):
        listed(added(before, Item(shown[-1], "Newer", ())), order=order, after=after)


def test_a_page_after_an_item_that_has_moved_to_the_end_or_back_is_refused(bundle: Bundle) -> None:
    _, after = listed(bundle, limit=5)
    changed = added(bundle, Item("item-4", "Newer", ()))
    with pytest.raises(InvalidRequest, match="begin again without `after`"):
        listed(changed, after=after)
    _, after = listed(changed, order="latest", limit=1, id_prefix="item")
    assert after is None
    with pytest.raises(InvalidRequest, match="begin again without `after`"):
        listed(bundle, after="1:item-4")
    shown, _ = listed(changed.without_items(["item-2"]), after="0:item-3", limit=2)
    assert shown == ["item-5", "item-6"], "rows may move"


def test_only_so_many_pages_are_made_or_wait(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(more_pages_than_fit(bundle, monkeypatch))


async def more_pages_than_fit(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, begun = threading.Event(), []

    def slow(*asked: Any) -> Any:
        begun.append(threading.current_thread().name)
        go_on.wait()
        return found_items(*asked)

    monkeypatch.setattr(item_search, "found_items", slow)
    pages, query = ItemPages(), ItemsQuery(limit=1)
    waiting = [asyncio.create_task(pages.found(bundle, query, {})) for _ in range(MOST_PAGES)]
    await asyncio.sleep(0)
    try:
        with pytest.raises(Overloaded, match="try again in a second"):
            await pages.found(bundle, query, {})
        assert await asyncio.to_thread(lambda: 7) == 7, "other threads are free"
        assert len(begun) <= 1
    finally:
        go_on.set()
    answers = await asyncio.gather(*waiting)
    assert [answer.items[0].item_id for answer in answers] == ["item-0"] * MOST_PAGES
    assert {name.partition("_")[0] for name in begun} == {"item-pages"}
    assert (await pages.found(bundle, query, {})).items, "and then there is room again"
