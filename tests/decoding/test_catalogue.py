"""What a catalogue refuses, and how item ids become rows."""

from typing import Any

import numpy as np
import pytest

from service.decoding.catalogue import Catalogue


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
