"""Filters on text, numbers and dates, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from running_service import UNHURRIED, Service, service_process, wait_until
from tiny_bundle import EMBEDDING_DIMS, NUM_ITEMS, write_tiny_bundle

ADMIN = {"Authorization": "Bearer an-admin-key"}
BRANDS = ("Acme", "Best", "Cosy")


def attributes(row: int) -> dict[str, Any] | None:
    """Every tenth item has none."""
    if row % 10 == 0:
        return None
    day = f"2026-{row % 12 + 1:02}-01"
    return {"brand": (BRANDS[row % 3],), "price": row / 4, "released": day}


@pytest.fixture(scope="module")
def shop(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("shop")
    write_tiny_bundle(folder / "bundles" / "shop" / "1", name="shop", attributes=attributes)
    with service_process(
        folder,
        bundles_dir=folder / "bundles",
        bundle="shop@1",
        redis_url=redis_url,
        admin_keys="an-admin-key",
        **UNHURRIED,
    ) as service:
        yield service


def answered(shop: Service, **wanted: Any) -> dict[str, Any]:
    answer = shop.recommend(
        user_id="u", history=["item-1"], k=100, exclude_seen=False, filter=wanted, metadata=True
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def rows(shop: Service, **wanted: Any) -> set[int]:
    return {
        int(item["item_id"].removeprefix("item-")) for item in answered(shop, **wanted)["items"]
    }


@pytest.mark.parametrize(
    ("wanted", "passes"),
    [
        ({"brand": ["Acme"]}, lambda a: a.get("brand") == ("Acme",)),
        (
            {"brand": {"any": ["Acme", "Best"], "not": ["Best"]}},
            lambda a: a.get("brand") == ("Acme",),
        ),
        ({"price": {"gte": 10, "lt": 20.5}}, lambda a: 10 <= a.get("price", 0) < 20.5),
        ({"price": [2.5, 2.75]}, lambda a: a.get("price") in (2.5, 2.75)),
        (
            {"price": {"lte": 15}, "brand": {"not": ["Cosy"]}},
            lambda a: a.get("price", 99) <= 15 and a.get("brand") != ("Cosy",),
        ),
        (
            {"released": {"gt": "2026-03-01", "lte": "2026-05-01T00:00:00Z"}, "price": {"gt": 1}},
            lambda a: a.get("released") in ("2026-04-01", "2026-05-01") and a["price"] > 1,
        ),
    ],
)  # fmt: skip
def test_all_types_of_attributes_can_be_filtered(shop: Service, wanted: Any, passes: Any) -> None:
    expected = {row for row in range(NUM_ITEMS) if passes(attributes(row) or {})}
    assert 0 < len(expected) <= 100
    assert rows(shop, **wanted) == expected
    assert answered(shop, **wanted)["warnings"] == []


def test_items_without_a_value_pass_only_a_negation(shop: Service) -> None:
    cheap = [row / 4 for row in range(1, 50)]
    assert rows(shop, price={"not": cheap}, brand={"not": ["Acme"]}) >= {0, 10, 190}
    assert 0 not in rows(shop, price={"lte": 1e9})


def test_what_no_item_has_is_said(shop: Service) -> None:
    found = answered(shop, brand=["acme", "Best"])
    assert found["items"]
    assert found["warnings"] == ["filter.brand: no item has 'acme'; near it is 'Acme'"]
    found = answered(shop, price={"gt": 1000}, released={"lt": "2020-01-01"})
    assert (found["items"], found["served_by"]) == ([], "model")
    assert found["warnings"] == [
        "filter.price: no item matches; they have 0.25 to 49.75",
        "filter.released: no item matches; they have 2026-01-01T00:00:00Z to 2026-12-01T00:00:00Z",
    ]
    popular = shop.recommend(user_id="nobody", filter={"brand": ["Nobody's"]}).json()
    assert popular["warnings"] == ['filter.brand: no item has "Nobody\'s"']
    assert len(answered(shop, brand=[f"x{n}" for n in range(50)])["warnings"]) == 10


@pytest.mark.parametrize(
    ("wanted", "param", "said"),
    [
        (
            {"colour": ["red"]},
            "filter.colour",
            "filter by: category (text), brand (text), price (n",
        ),
        ({"price": ["5"]}, "filter.price", "is a number: ask for numbers"),
        ({"price": {"lt": "2026-01-01"}}, "filter.price", "is a number: ask for numbers"),
        ({"brand": {"lt": 3}}, "filter.brand", "is text: ask for texts"),
        ({"released": ["2026-01-01"]}, "filter.released", "is a date: ask for a range"),
        ({"released": {"gt": "tomorrow"}}, "filter.released.gt", "is no date; write 2026-11-30"),
    ],
)
def test_a_condition_must_go_with_the_type(
    shop: Service, wanted: Any, param: str, said: str
) -> None:
    answer = shop.recommend(user_id="u", history=["item-1"], filter=wanted)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == param
    assert said in answer.json()["error"]["message"]


def test_attributes_are_told(shop: Service) -> None:
    types = {"category": "text", "brand": "text", "price": "number", "released": "date"}
    assert shop.client.get("/info").json()["bundle"]["attributes"] == types
    item = shop.client.get("/items/item-7").json()
    assert item["attributes"] == {"brand": ["Best"], "price": 1.75, "released": "2026-08-01"}
    assert shop.client.get("/items/item-10").json()["attributes"] == {}
    [found] = [one for one in answered(shop, price=[1.75])["items"] if one["item_id"] == "item-7"]
    assert found["attributes"] == item["attributes"]
    bare = shop.recommend(user_id="u", history=["item-1"], k=1).json()["items"][0]
    assert "attributes" not in bare
    assert "categories" not in bare


def test_an_added_item_has_attributes(shop: Service) -> None:
    new = {"item_id": "new", "title": "New", "embedding": [0.5] * EMBEDDING_DIMS}
    for given, param in (
        ({"size": 3}, "add.0.attributes.size"),
        ({"price": "cheap"}, "add.0.attributes.price"),
        ({"brand": "Acme"}, "add.0.attributes.brand"),
        ({"released": "soon"}, "add.0.attributes.released"),
    ):
        refused = shop.client.post(
            "/admin/items", json={"add": [{**new, "attributes": given}]}, headers=ADMIN
        )
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, param)
    given = {"brand": ["Delight"], "price": 999, "released": "2027-01-01"}
    added = shop.client.post(
        "/admin/items", json={"add": [{**new, "attributes": given}]}, headers=ADMIN
    )
    assert added.json()["added"] == 1, added.text
    for wanted in (
        {"brand": ["Delight"]},
        {"price": {"gt": 900}},
        {"released": {"gte": "2027-01-01"}},
    ):
        assert [item["item_id"] for item in answered(shop, **wanted)["items"]] == ["new"]
    changed = {**given, "price": 998}
    again = {"add": [{**new, "attributes": changed}]}
    assert shop.client.post("/admin/items", json=again, headers=ADMIN).status_code == 200
    wait_until(lambda: answered(shop, price={"lt": 998.5, "gt": 900})["items"] != [])
    assert (
        shop.client.post("/admin/items", json={"remove": ["new"]}, headers=ADMIN).status_code == 200
    )
