"""Where new items stand in an answer that keeps places for them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.recommending.item_mapping import with_explored
from service.recommending.planning import explored_places
from service.schemas import RecommendedItem, RecommendRequest


def items_of(item_ids: list[int]) -> list[RecommendedItem]:
    return [
        RecommendedItem(
            item_id=str(one),
            title="",
            rank=rank,
            score=-float(rank),
            explored=False,
            sid=[],
            categories=None,
            explanation=None,
        )
        for rank, one in enumerate(item_ids, start=1)
    ]


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
    best: list[int], new: list[int], places: int
) -> None:
    mixed = with_explored(items_of(best), items_of(new), places)
    ids = [int(item.item_id) for item in mixed]
    assert len(set(ids)) == len(ids) >= len(best)
    assert [item.rank for item in mixed] == list(range(1, len(mixed) + 1))
    explored = [int(item.item_id) for item in mixed if item.explored]
    others = [int(item.item_id) for item in mixed if not item.explored]
    assert len(explored) <= places
    assert explored == [one for one in new if one in explored]
    assert others == [one for one in best if one not in explored][: len(others)]
    left = [one for one in new if one not in ids]
    assert not left or len(explored) == places, "a place is empty only when no new item is left"


def test_places_are_spread_over_the_answer() -> None:
    mixed = with_explored(items_of(list(range(10))), items_of([20, 21, 22]), 3)
    assert [item.rank for item in mixed if item.explored] == [4, 7, 10]
