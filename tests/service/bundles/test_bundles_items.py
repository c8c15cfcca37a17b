"""Items and the index of their attributes, compared with looking at every item."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import edit_manifest, write_tiny_bundle

from service.bundles import Bundle, Condition, Item, seconds_of
from service.bundles.attributes import COMPARISONS, AttributeIndex, values_of
from service.bundles.items import AttributeType, with_ancestors
from service.errors import BundleInvalid

TYPES: dict[str, AttributeType] = {"brand": "text", "price": "number", "released": "date"}
VALUES = ["a", "b", "c", "a > b", "a > c", "a > b > c", ""]
PRICES = [0.0, 1.0, 2.5, 3.0]
DAYS = ["2026-01-01", "2026-06-30T12:00:00", "2026-06-30T12:00:00+02:00"]
categories = st.lists(st.sampled_from(VALUES), max_size=4).map(tuple)
attributes = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "brand": st.lists(st.sampled_from(["x", "y", "z"]), max_size=2).map(tuple),
        "price": st.sampled_from(PRICES),
        "released": st.sampled_from(DAYS),
    },
)
many_items = st.lists(
    st.builds(Item, st.just("id"), st.just("title"), categories, attributes), max_size=12
)
BOUNDS = st.dictionaries(st.sampled_from(sorted(COMPARISONS)), st.sampled_from(PRICES), max_size=2)
DATES = BOUNDS.map(
    lambda bounds: {name: seconds_of(DAYS[int(at) % 3]) for name, at in bounds.items()}
)


def of_values(values: list[Any]) -> st.SearchStrategy[dict[str, Any]]:
    some = st.lists(st.sampled_from(values), max_size=3).map(tuple)
    return st.fixed_dictionaries({}, optional={"any_of": some, "none_of": some})


texts = of_values([*VALUES, "x", "y", "unheard of"]).map(lambda given: Condition(**given))
numbers = st.builds(
    lambda given, bounds: Condition(**given, bounds=bounds), of_values([*PRICES, 9.0]), BOUNDS
)
dates = DATES.map(lambda bounds: Condition(bounds=bounds))
filters = st.fixed_dictionaries(
    {}, optional={"category": texts, "brand": texts, "price": numbers, "released": dates}
)


def passes(item: Item, name: str, condition: Condition) -> bool:
    value = values_of(item, name)
    if name in ("category", "brand"):
        found = set(value or ()) - {""}  # type: ignore[arg-type]
        wanted = condition.any_of
        return (wanted is None or bool(found & set(wanted))) and not found & set(condition.none_of)
    if value is None:
        return condition.any_of is None and not condition.bounds
    return (
        (condition.any_of is None or value in condition.any_of)
        and value not in condition.none_of
        and all(bool(COMPARISONS[at](value, bound)) for at, bound in condition.bounds.items())
    )


def rows_by_looking(all_items: list[Item], wanted: dict[str, Condition]) -> list[int]:
    return [
        row
        for row, item in enumerate(all_items)
        if all(passes(item, name, condition) for name, condition in wanted.items())
    ]


def test_an_item_has_the_ancestors_of_its_paths() -> None:
    assert list(with_ancestors(["a > b > c", "d", "a > e"])) == [
        "a",
        "a > b",
        "a > b > c",
        "d",
        "a",
        "a > e",
    ]


def test_rows_by_hand() -> None:
    index = AttributeIndex.of(
        [
            Item("0", "x", ("Hair > Shampoo", "Offers"), {"price": 5.0, "brand": ("Acme",)}),
            Item("1", "x", ("Skin",), {"price": 7.5, "released": "2026-11-30"}),
            Item("2", "y", ("Hair > Conditioner",), {"brand": ("Acme", "Best")}),
            Item("3", "y", ()),
        ],
        TYPES,
    )

    def rows(**wanted: Condition) -> list[int]:
        return index.allowed(wanted).tolist()

    assert rows(category=Condition(["Hair"])) == [0, 2]
    assert rows(category=Condition(["Hair > Shampoo", "Skin"])) == [0, 1]
    assert rows(category=Condition(["Shampoo", "hair", ""])) == []
    assert rows(category=Condition([])) == []
    assert rows() == [0, 1, 2, 3]
    assert rows(category=Condition(none_of=["Hair"])) == [1, 3]
    assert rows(category=Condition(["Hair"], none_of=["Offers"])) == [2]
    assert rows(category=Condition(["Hair"]), brand=Condition(["Best", "Acme"])) == [0, 2]
    assert rows(price=Condition(bounds={"gte": 5, "lt": 7.5})) == [0]
    assert rows(price=Condition(bounds={"gt": 5})) == [1]  # no price, no match
    assert rows(price=Condition([5.0])) == [0]
    assert rows(price=Condition(none_of=[5.0])) == [1, 2, 3]
    noon = datetime(2026, 11, 29, 12, tzinfo=UTC).timestamp()
    assert rows(released=Condition(bounds={"gt": noon})) == [1]
    assert rows(released=Condition(bounds={"gt": noon}), brand=Condition(["Acme"])) == []
    with pytest.raises(KeyError):
        rows(colour=Condition(["red"]))


@settings(deadline=None)
@given(
    first=many_items,
    turns=st.lists(st.tuples(many_items, st.lists(st.integers(0, 30))), max_size=3),
    wanted=filters,
)
def test_an_index_equals_looking_while_items_come_and_go(
    first: list[Item],
    turns: list[tuple[list[Item], list[int]]],
    wanted: dict[str, Condition],
) -> None:
    index, there = AttributeIndex.of(first, TYPES), first
    states = [(index, there)]
    for new, drawn in turns:
        removed = [row for row in drawn if row < len(there) + len(new)]
        index = index.with_items(new).without_rows(np.array(removed, np.int32))
        kept = enumerate([*there, *new])
        there = [item for row, item in kept if row not in removed]
        states.append((index, there))
    for state, expected in states:  # older ones did not change
        for _ in range(2):  # the second time they are remembered
            rows = state.allowed(wanted)
            assert rows.dtype == np.int32
            assert rows.tolist() == rows_by_looking(expected, wanted)


def test_rows_of_a_filter_are_remembered() -> None:
    items = [
        Item(str(row), "", ("a", f"b{row % 7}"), {"price": float(row % 10)}) for row in range(2000)
    ]
    index = AttributeIndex.of(items, {"price": "number"})
    some = {"category": Condition(["b1", "b2"], none_of=["b3"]), "price": Condition([1.0, 2.0])}
    turned = {"price": Condition([2.0, 1.0]), "category": Condition(["b2", "b1"], none_of=["b3"])}
    assert not index.remembers(some)
    found = index.allowed(some)
    assert index.remembers(turned)
    assert index.allowed(turned) is found
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 7
    assert index.allowed({"category": Condition(["a"])}).base is None  # no part of the postings
    for other in (
        {"category": Condition(["b1", "b2"]), "price": Condition([1.0, 2.0])},
        {"category": Condition(none_of=["b1", "b2"]), "price": Condition([1.0, 2.0])},
        {"category": Condition(["b1", "b2"], none_of=["b3"]), "price": Condition([1.0])},
        {"price": Condition(bounds={"gte": 1.0, "lt": 2.0})},
        {"price": Condition(bounds={"gt": 1.0, "lte": 2.0})},
        {"price": Condition()},
        {"price": Condition([])},
    ):
        assert index.allowed(other).tolist() == rows_by_looking(items, other)
    assert not index.remembers({"price": Condition([])})  # no rows


def test_other_items_are_looked_up_again() -> None:
    index = AttributeIndex.of([Item("0", "", ("a",)), Item("1", "", ("b",))])
    wanted = {"category": Condition(["a"])}
    assert index.allowed(wanted).tolist() == [0]
    more = index.with_items([Item("2", "", ("a",))])
    assert not more.remembers(wanted)
    assert more.allowed(wanted).tolist() == [0, 2]
    fewer = more.without_rows(np.array([0], np.int32))
    assert fewer.allowed(wanted).tolist() == [1]
    assert index.allowed(wanted).tolist() == [0]


def test_what_is_remembered_has_a_bound() -> None:
    items = [Item(str(row), "", (), {"price": float(row)}) for row in range(3000)]
    index = AttributeIndex.of(items, {"price": "number"})
    remembered = index._remembered
    assert remembered.most_bytes == 2**20
    last = {"price": Condition(bounds={"gte": 0.0})}
    for above in range(400):
        last = {"price": Condition(bounds={"gte": float(above)})}
        assert index.allowed(last).tolist() == list(range(above, 3000))
        assert remembered.num_bytes <= remembered.most_bytes
    assert index.remembers(last)
    assert not index.remembers({"price": Condition(bounds={"gte": 0.0})})
    long = {"price": Condition([*map(float, range(20_000))])}  # what it asks for is too long
    assert len(index.allowed(long)) == 3000
    assert not index.remembers(long)
    assert 50 < len(remembered) < 100


def test_an_index_takes_four_bytes_a_text_and_eight_bytes_an_item_and_number() -> None:
    many = [Item(str(row), "", (f"a > {row % 500}",)) for row in range(10_000)]
    assert AttributeIndex.of(many).nbytes < 4 * 2 * len(many) + 10_000
    priced = [Item(str(row), "", (), {"price": float(row)}) for row in range(10_000)]
    assert AttributeIndex.of(priced, {"price": "number"}).nbytes < 8 * len(many) + 10_000


def test_hints_name_what_no_item_has() -> None:
    items = [
        Item("0", "", ("Books",), {"price": 5.0, "since": "2026-11-30T01:00:00+01:00"}),
        Item("1", "", ("Tea",), {"price": 20.0}),
    ]
    index = AttributeIndex.of(items, {**TYPES, "since": "date"})
    wanted = {
        "category": Condition(["Books", "books", "Zebra"]),
        "brand": Condition(none_of=["Acme"]),
        "price": Condition(bounds={"gt": 20}),
        "released": Condition(bounds={"gt": 0}),
        "since": Condition(bounds={"lt": 0}),
    }
    assert index.hints(wanted, any_left=False) == [
        "filter.category: no item has 'books'; near it is 'Books'",
        "filter.category: no item has 'Zebra'",
        "filter.brand: no item has 'Acme'",
        "filter.price: no item matches; they have 5 to 20",
        "filter.released: no item has one",
        "filter.since: no item matches; they have 2026-11-30T00:00:00Z to 2026-11-30T00:00:00Z",
    ]
    assert len(index.hints(wanted, any_left=True)) == 3
    right = {"category": Condition(["Tea"]), "price": Condition([5.0])}
    assert index.hints(right, any_left=False) == []


def some_attributes(row: int) -> dict[str, Any] | None:
    """Every third item has none."""
    if row % 3 == 0:
        return None
    return {"brand": ("Acme", "Best")[: row % 3], "price": row / 2, "released": "2026-11-30"}


def test_a_bundle_keeps_attributes_and_knows_their_types(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path / "bundle", attributes=some_attributes)
    bundle = Bundle.load(path)
    assert bundle.manifest.attributes == TYPES
    assert bundle.manifest.filters == {"category": "text", **TYPES}
    assert [item.attributes for item in bundle.items][:3] == [some_attributes(r) for r in range(3)]
    found = bundle.attributes.allowed({"price": Condition(bounds={"lte": 2})})
    assert found.tolist() == [1, 2, 4]


def test_a_bundle_without_attributes_is_written_as_ever(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path / "bundle")
    assert '"attributes"' not in (path / "manifest.json").read_text()
    assert '"attributes"' not in (path / "items.jsonl").read_text()


def test_attributes_that_do_not_fit_the_manifest_are_refused(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path / "bundle", attributes=some_attributes)
    edit_manifest(path, lambda fields: fields["attributes"].update(price="date"))
    with pytest.raises(BundleInvalid, match="the attribute price is a date, not a number"):
        Bundle.load(path)
    edit_manifest(path, lambda fields: fields["attributes"].pop("price"))
    with pytest.raises(BundleInvalid, match="the attribute price is unknown, not a number"):
        Bundle.load(path)


def test_two_types_of_one_attribute_are_refused(tmp_path: Path) -> None:
    def mixed(row: int) -> dict[str, Any]:
        return {"price": 1.0} if row else {"price": ("cheap",)}

    with pytest.raises(BundleInvalid, match="has a number as its price, others a text"):
        write_tiny_bundle(tmp_path / "bundle", attributes=mixed)
