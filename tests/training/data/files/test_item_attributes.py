"""Columns of the items file that requests can filter by."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from training.config import ItemsConfig
from training.data.files.item_files import read_items
from training.errors import DataError

TYPES: Any = {"brand": "text", "price": "number", "released": "date"}


def attributes_of(path: Path, types: Any = TYPES) -> list[Any]:
    return [item.attributes for item in read_items(path, ItemsConfig(attributes=types))]


def test_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text(
        "item_id,title,Brand,price,released\n"
        "1,A,Acme,12.50,2026-11-30\n"
        "2,B,,NULL,\n"
        "3,C,\"['Acme', 'Best > Of']\",1e3,2026-11-30T08:00:00Z\n"
        "4,D,007,,\n"
    )
    assert attributes_of(path) == [
        {"brand": ("Acme",), "price": 12.5, "released": "2026-11-30"},
        None,
        {"brand": ("Acme", "Best > Of"), "price": 1000.0, "released": "2026-11-30T08:00:00Z"},
        {"brand": ("007",)},
    ]


def test_a_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    pl.DataFrame(
        {
            "item_id": ["1", "2", "3"],
            "brand": [["Acme", "Best"], [], None],
            "sale": [True, False, None],
            "price": [1, 2, None],
            "rating": [1.5, float("nan"), 2.0],
            "released": [datetime.date(2026, 11, 30), None, datetime.date(2027, 1, 1)],
            "seen": [None, datetime.datetime(2026, 11, 30, 8), None],
        }
    ).write_parquet(path)
    types = {"brand": "text", "sale": "text", "price": "number", "rating": "number"}
    types |= {"released": "date", "seen": "date"}
    assert attributes_of(path, types) == [
        {"brand": ("Acme", "Best"), "sale": ("true",), "price": 1.0, "rating": 1.5,
         "released": "2026-11-30"},
        {"sale": ("false",), "price": 2.0, "seen": "2026-11-30T08:00:00"},
        {"rating": 2.0, "released": "2027-01-01"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("2,$12,2026-01-01", r"line 3: price '\$12' is no number; write it without a currency"),
        ('2,"1,299.50",2026-01-01', "line 3: price '1,299.50' is no number"),
        ("2,1e999,2026-01-01", "line 3: price '1e999' is no"),
        ("2,12,01/05/2014", "line 3: released '01/05/2014' is no date; write 2026-11-30"),
        ("2,12,2026-02-30", "line 3: released '2026-02-30' is no date"),
        ("2,12,20260230", "line 3: released '20260230' is no date"),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_line(
    tmp_path: Path, line: str, said: str
) -> None:
    path = tmp_path / "items.csv"
    path.write_text(f"item_id,price,released\n1,1,2026-01-01\n{line}\n")
    with pytest.raises(DataError, match=said):
        attributes_of(path, {"price": "number", "released": "date"})


def test_what_nobody_could_filter_by_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text(f"item_id,text\n1,{'x' * 501}\n")
    with pytest.raises(DataError, match="longer than 500 characters"):
        attributes_of(path, {"text": "text"})
    with pytest.raises(
        DataError, match=r"has no column colour for items\.attributes; it has item_id"
    ):
        attributes_of(path, {"colour": "text"})


@pytest.mark.parametrize("name", ["category", "Title", "", "x" * 65])
def test_names_that_are_taken_or_too_long(name: str) -> None:
    with pytest.raises(ValidationError):
        ItemsConfig(attributes={name: "text"})
