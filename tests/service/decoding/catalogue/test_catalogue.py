"""What a catalogue refuses, how item ids become rows, and how items come and go."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import assert_same_catalogue, catalogues, of_rows

from service.decoding.catalogue.catalogue import Catalogue


def parts(**changed: Any) -> dict[str, Any]:
    """A valid catalogue's fields, some of them replaced."""
    valid = {
        "item_ids": ("b", "a", "c"),
        "codes": np.array([[0, 3], [1, 2], [0, 3]], dtype=np.uint16),
        "num_codes": 4,
        "popularity": np.array([7, 2, 2], dtype=np.int64),
    }
    return valid | changed


def test_a_valid_catalogue() -> None:
    catalogue = Catalogue(**parts())
    assert (catalogue.num_items, catalogue.num_subspaces) == (3, 2)
    assert catalogue.row_of == {"b": 0, "a": 1, "c": 2}
    assert catalogue.vectors.shape == (3, 0)
    assert catalogue.vectors.dtype == np.float16
    vectors = np.ones((3, 5), np.float16)
    assert Catalogue(**parts(vectors=vectors)).vectors is vectors


def test_rows_may_be_looked_up_elsewhere() -> None:
    elsewhere = {"b": 0, "a": 1, "c": 2}
    assert Catalogue(**parts(row_of=elsewhere)).row_of is elsewhere
    assert Catalogue(**parts(item_ids=["b", "a", "c"])).row_of == elsewhere


def test_rows_of_keeps_the_order_and_drops_unknown_items() -> None:
    rows = Catalogue(**parts()).rows_of(["c", "gone", "b", "c"])
    assert rows.tolist() == [2, 0, 2]
    assert rows.dtype == np.int32
    assert Catalogue(**parts()).rows_of([]).dtype == np.int32


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"codes": np.zeros((3, 2), dtype=np.int64)}, "uint16 array"),
        ({"codes": np.zeros(3, dtype=np.uint16)}, "uint16 array"),
        ({"codes": np.zeros((2, 2), dtype=np.uint16)}, "one entry per item"),
        ({"item_ids": ("a", "b")}, "one entry per item"),
        ({"popularity": np.zeros(2, dtype=np.int64)}, "one entry per item"),
        ({"vectors": np.zeros((3, 2), np.float32)}, "float16 array"),
        ({"vectors": np.zeros(3, np.float16)}, "float16 array"),
        ({"vectors": np.zeros((2, 2), np.float16)}, "vectors must have one row per item"),
        ({"num_codes": 3}, "below num_codes = 3"),
        ({"popularity": np.array([2, 7, 2])}, "most popular first"),
        ({"item_ids": ("a", "b", "a")}, "distinct"),
        ({"row_of": {"a": 0, "b": 1}}, "distinct"),
        (
            {
                "item_ids": (),
                "codes": np.zeros((0, 2), dtype=np.uint16),
                "popularity": np.zeros(0, dtype=np.int64),
            },
            "no items",
        ),
    ],
)
def test_parts_that_do_not_fit(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Catalogue(**parts(**changed))


def with_rows(catalogue: Catalogue, source: Catalogue, rows: range) -> Catalogue:
    """The catalogue with these rows of `source` added."""
    new = list(rows)
    return catalogue.with_items(
        [source.item_ids[row] for row in new], source.codes[new], source.vectors[new]
    )


@settings(deadline=None)
@given(st.data())
def test_items_added_in_any_portions_are_those_of_a_catalogue_from_scratch(
    data: st.DataObject,
) -> None:
    whole = data.draw(catalogues())
    popular = data.draw(st.integers(1, whole.num_items))
    whole.popularity[:popular] = np.arange(popular, 0, -1)
    ends = data.draw(st.lists(st.integers(popular, whole.num_items), max_size=4).map(sorted))
    grown, before = of_rows(whole, range(popular)), popular
    for end in [*ends, whole.num_items]:
        old, grown, before = grown, with_rows(grown, whole, range(before, end)), end
        assert_same_catalogue(grown, of_rows(whole, range(end)))
        assert_same_catalogue(old, of_rows(whole, range(old.num_items)))
        assert grown.rows_of(whole.item_ids).tolist() == list(range(end))


def test_two_catalogues_that_grew_from_one_do_not_see_each_others_items() -> None:
    old = Catalogue(**parts()).with_items(["d"], np.array([[1, 1]], np.uint16))
    first = old.with_items(["x", "y"], np.array([[1, 1], [2, 2]], np.uint16))
    second = old.with_items(["y"], np.array([[3, 3]], np.uint16))
    assert first.rows_of(["d", "x", "y"]).tolist() == [3, 4, 5]
    assert second.rows_of(["d", "x", "y"]).tolist() == [3, 4]
    assert old.rows_of(["d", "x", "y"]).tolist() == [3]
    assert old.with_items([], np.empty((0, 2), np.uint16)) is old


def test_catalogues_that_grew_from_one_share_memory_and_see_their_own_items_only() -> None:
    def grown(catalogue: Catalogue, *values: int) -> Catalogue:
        item_ids = [f"{catalogue.num_items}-{value}" for value in values]
        new = np.array(values)[:, None]
        return catalogue.with_items(item_ids, new.astype(np.uint16), new.astype(np.float16))

    def values_of(catalogue: Catalogue) -> list[int]:
        values = catalogue.codes[:, 0].tolist()
        assert catalogue.vectors[:, 0].tolist() == values
        assert [int(item_id.split("-")[1]) for item_id in catalogue.item_ids] == values
        assert catalogue.rows_of(catalogue.item_ids).tolist() == list(range(len(values)))
        assert catalogue.popularity.tolist() == [3, 2, 1] + [0] * (len(values) - 3)
        return values

    few = Catalogue(
        item_ids=("0-0", "1-1", "2-2"),
        codes=np.array([[0], [1], [2]], np.uint16),
        num_codes=100,
        popularity=np.array([3, 2, 1]),
        vectors=np.array([[0], [1], [2]], np.float16),
    )
    roomy = few.with_room()
    assert roomy.with_room() is roomy
    assert values_of(roomy) == values_of(few) == [0, 1, 2]
    many = list(range(3, 40))
    first = grown(few, *many)
    second = grown(first, 40)
    assert np.shares_memory(first.vectors, second.vectors)
    third, fourth = grown(second, 41), grown(second, 42, 43)
    assert np.shares_memory(second.vectors, third.vectors)
    assert not np.shares_memory(third.vectors, fourth.vectors)
    assert values_of(grown(fourth, 44)) == [*range(41), 42, 43, 44]
    much = grown(third, *range(42, 100))  # more than there is room for
    assert values_of(much) == list(range(100))
    assert values_of(grown(few, 7)) == [0, 1, 2, 7]
    for catalogue, stop in ((few, 3), (first, 40), (second, 41), (third, 42)):
        assert values_of(catalogue) == list(range(stop))
    assert values_of(fourth) == [*range(41), 42, 43]


@settings(deadline=None)
@given(st.data())
def test_items_left_are_those_of_a_catalogue_from_scratch(data: st.DataObject) -> None:
    whole = data.draw(catalogues())
    start = data.draw(st.integers(1, whole.num_items))
    grown = with_rows(of_rows(whole, range(start)), whole, range(start, whole.num_items))
    removed = data.draw(st.sets(st.integers(0, whole.num_items - 1), max_size=whole.num_items - 1))
    left = [row for row in range(whole.num_items) if row not in removed]
    shrunk = grown.without_items([*(whole.item_ids[row] for row in removed), "unknown"])
    assert_same_catalogue(shrunk, of_rows(whole, left))
    assert_same_catalogue(grown, whole)
    back = sorted(removed)
    again = shrunk.with_items(
        [whole.item_ids[row] for row in back], whole.codes[back], whole.vectors[back]
    )
    assert_same_catalogue(again, of_rows(whole, left + back))


def test_a_catalogue_is_never_empty() -> None:
    catalogue = Catalogue(**parts())
    assert catalogue.without_items(["gone"]) is catalogue
    with pytest.raises(ValueError, match="no items"):
        catalogue.without_items(["a", "b", "c", "a"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"item_ids": ["d", "a"]}, "item 'a' is in the catalogue already"),
        ({"item_ids": ["d", "d"]}, "distinct"),
        ({"item_ids": ["d"]}, "one entry per item"),
        ({"codes": np.zeros((2, 2), np.int64)}, "uint16 array"),
        ({"codes": np.full((2, 2), 4, np.uint16)}, "below num_codes = 4"),
        ({"codes": np.zeros((2, 3), np.uint16)}, "codes must be of 2 subspaces"),
        ({"vectors": np.zeros((2, 3), np.float16)}, "vectors must have 0 dimensions"),
        ({"vectors": np.full((2, 3), np.nan, np.float16)}, "vectors must be finite"),
    ],
)
def test_new_items_that_do_not_fit(changed: dict[str, Any], message: str) -> None:
    valid = {"item_ids": ["d", "e"], "codes": np.zeros((2, 2), np.uint16)}
    with pytest.raises(ValueError, match=message):
        Catalogue(**parts()).with_items(**(valid | changed))
    with pytest.raises(ValueError, match="vectors must have 1 dimensions"):
        Catalogue(**parts(vectors=np.zeros((3, 1), np.float16))).with_items(**valid)
