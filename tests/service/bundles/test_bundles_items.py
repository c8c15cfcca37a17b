"""The index of attributes, compared with looking at every item."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundles import items
from service.bundles.items import AttributeIndex, Item, with_ancestors

VALUES = ["a", "b", "c", "a > b", "a > c", "a > b > c", ""]
categories = st.lists(st.sampled_from(VALUES), max_size=4).map(tuple)
titles = st.sampled_from(["x", "y", ""])
many_items = st.lists(st.builds(Item, st.just("id"), titles, categories), max_size=12)
wanted_values = st.lists(st.sampled_from([*VALUES, "x", "y", "unheard of"]), max_size=4)
filters = st.dictionaries(st.sampled_from(["category", "title"]), wanted_values)


@pytest.fixture(autouse=True)
def _two_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adds titles, so that there are two attributes."""
    both = {**items.ATTRIBUTES, "title": lambda item: [item.title]}
    monkeypatch.setattr(items, "ATTRIBUTES", both)


def rows_by_looking(all_items: list[Item], wanted: dict[str, list[str]]) -> list[int]:
    return [
        row
        for row, item in enumerate(all_items)
        if all(
            (set(values) - {""}) & set(items.ATTRIBUTES[attribute](item))
            for attribute, values in wanted.items()
        )
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
            Item("0", "x", ("Hair > Shampoo", "Offers")),
            Item("1", "x", ("Skin",)),
            Item("2", "y", ("Hair > Conditioner",)),
            Item("3", "y", ()),
        ]
    )
    assert index.allowed({"category": ["Hair"]}).tolist() == [0, 2]
    assert index.allowed({"category": ["Hair > Shampoo", "Skin"]}).tolist() == [0, 1]
    assert index.allowed({"category": ["Shampoo", "hair", ""]}).tolist() == []
    assert index.allowed({"category": ["Hair"], "title": ["y"]}).tolist() == [2]
    assert index.allowed({"category": []}).tolist() == []
    assert index.allowed({}).tolist() == [0, 1, 2, 3]
    with pytest.raises(KeyError):
        index.allowed({"colour": ["red"]})


@settings(deadline=None)
@given(
    first=many_items,
    turns=st.lists(st.tuples(many_items, st.lists(st.integers(0, 30))), max_size=3),
    wanted=filters,
)
def test_an_index_equals_looking_while_items_come_and_go(
    first: list[Item], turns: list[tuple[list[Item], list[int]]], wanted: dict[str, list[str]]
) -> None:
    index, there = AttributeIndex.of(first), first
    states = [(index, there)]
    for new, drawn in turns:
        removed = [row for row in drawn if row < len(there) + len(new)]
        index = index.with_items(new).without_rows(np.array(removed, np.int32))
        kept = enumerate([*there, *new])
        there = [item for row, item in kept if row not in removed]
        states.append((index, there))
    for state, expected in states:  # older ones did not change
        rows = state.allowed(wanted)
        assert rows.dtype == np.int32
        assert rows.tolist() == rows_by_looking(expected, wanted)


def test_an_index_takes_four_bytes_a_value() -> None:
    many = [Item(str(row), "", (f"a > {row % 500}",)) for row in range(10_000)]
    index = AttributeIndex.of(many)
    assert index.nbytes < 4 * 2 * len(many) + 10_000
