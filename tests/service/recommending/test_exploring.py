"""Where new, pinned and capped items stand in an answer."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundles.bundle import Bundle
from service.recommending.assembly import Caps, chosen
from service.recommending.item_mapping import arranged, items_of
from service.recommending.planning import explored_places
from service.schemas import RecommendedItem, RecommendRequest

Rows = list[int]


def answer(
    bundle: Bundle,
    best: Rows,
    new: Rows,
    places: int,
    *,
    k: int = 12,
    pins: dict[int, int] | None = None,
    most: int = 100,
) -> list[RecommendedItem]:
    """pins: rows by rank; most: items of a category"""
    pins = pins or {}
    caps = Caps(bundle, {"category": most})
    chosen_best, chosen_new = chosen(k, best, new, places, pins.values(), caps)
    pinned = items_of(bundle, pins.values(), metadata=True, pinned=True)
    return arranged(
        items_of(bundle, [best[place] for place in chosen_best], metadata=True),
        items_of(bundle, [new[place] for place in chosen_new], metadata=True),
        dict(zip(pins, pinned, strict=True)),
    )


def row_of(item: RecommendedItem) -> int:
    return int(item.item_id.removeprefix("item-"))


@pytest.mark.parametrize(
    ("explore", "k", "places"),
    [(0, 10, 0), (0.1, 10, 1), (0.11, 10, 2), (0.07, 100, 7), (0.001, 1, 1), (1, 100, 100)],
)
def test_a_share_is_rounded_up_to_places(explore: float, k: int, places: int) -> None:
    request = RecommendRequest(user_id="u", k=k, explore=explore)
    assert explored_places(request) == places


@given(
    best=st.lists(st.integers(0, 30), unique=True, max_size=12),
    new=st.lists(st.integers(20, 40), unique=True, max_size=12),
    places=st.integers(0, 12),
)
def test_new_items_take_their_places_in_order_and_push_the_last_ones_out(
    bundle: Bundle, best: Rows, new: Rows, places: int
) -> None:
    mixed = answer(bundle, best, new, places)
    ids = [row_of(item) for item in mixed]
    assert len(set(ids)) == len(ids) >= len(best)
    assert [item.rank for item in mixed] == list(range(1, len(mixed) + 1))
    explored = [row_of(item) for item in mixed if item.explored]
    others = [row_of(item) for item in mixed if not item.explored]
    assert len(explored) <= places
    assert explored == [one for one in new if one in explored]
    assert others == [one for one in best if one not in explored][: len(others)]
    left = [one for one in new if one not in ids]
    assert not left or len(explored) == places, "a place is empty only when no new item is left"


def test_places_are_spread_over_the_answer(bundle: Bundle) -> None:
    mixed = answer(bundle, list(range(10)), [20, 21, 22], 3, k=10)
    assert [item.rank for item in mixed if item.explored] == [4, 7, 10]


@settings(max_examples=50)
@given(
    best=st.lists(st.integers(0, 60), unique=True, max_size=40),
    new=st.lists(st.integers(50, 80), unique=True, max_size=8),
    places=st.integers(0, 4),
    pins=st.dictionaries(st.integers(1, 10), st.integers(0, 199), max_size=3),
    most=st.integers(1, 3),
)
def test_caps_and_pins_hold_and_nothing_better_is_left_out(
    bundle: Bundle, best: Rows, new: Rows, places: int, pins: dict[int, int], most: int
) -> None:
    pins = dict(zip(pins, dict.fromkeys(pins.values()), strict=False))  # each row once
    mixed = answer(bundle, best, new, places, k=10, pins=pins, most=most)
    assert len(mixed) <= 10
    assert [item.rank for item in mixed] == list(range(1, len(mixed) + 1))
    rows = [row_of(item) for item in mixed]
    assert len(set(rows)) == len(rows)
    for rank, row in pins.items():
        assert rows.index(row) + 1 == rank or rank > len(rows) - len(pins)
    pinned = Counter(one for row in pins.values() for one in set(bundle.items[row].categories))
    held = Counter(one for row in rows for one in set(bundle.items[row].categories))
    assert all(number <= max(most, pinned[name]) for name, number in held.items())
    others = [row_of(item) for item in mixed if not (item.explored or item.pinned)]
    assert others == [row for row in best if row in others], "the best first"
    if len(mixed) < 10 and not new:
        for row in set(best) - set(rows):
            assert any(held[one] >= most for one in bundle.items[row].categories)
