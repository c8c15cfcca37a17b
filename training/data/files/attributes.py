"""Reads columns that become attributes of items, which requests can filter by.

Each has the type that `items.attributes` names. A missing value is no value. A value that is not of
the type is refused with its line. Knows nothing of bundles.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date, datetime

import polars as pl

from service.bundles import AttributeType, AttributeValue
from training.data.files.categories import WHOLE, category_column
from training.data.files.columns import NO_VALUE
from training.data.files.table import Kind, Table, plain_name, shown
from training.data.files.times import NUMBER
from training.errors import DataError

KINDS: dict[AttributeType, Kind] = {"text": "list", "number": "text", "date": "text"}
MAX_TEXT_CHARS = 500  # a client cannot ask for more: service/schemas/filters.py
ISO_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}.*")


def attribute_columns(
    table: Table, types: Mapping[str, AttributeType], notes: list[str]
) -> list[dict[str, AttributeValue] | None]:
    """The attributes of every row, None for a row without any.

    types: by the name of the column. Raises DataError for a column that is not there, and with the
    line for a value that is not of its type.
    """
    absent = [name for name in types if plain_name(name) not in table.columns]
    if absent:
        raise DataError(
            f"{table.path} has no column {' or '.join(absent)} for items.attributes; it has "
            f"{table.listed()} (a column that is read as something else is no attribute)"
        )
    found: list[dict[str, AttributeValue]] = [{} for _ in range(len(table))]
    readers = {"text": _texts, "number": _numbers, "date": _dates}
    for name, kind in types.items():
        values = readers[kind](table, plain_name(name), notes)
        for attributes, value in zip(found, values, strict=True):
            if value is not None:
                attributes[name] = value
    return [attributes or None for attributes in found]


def _texts(table: Table, name: str, notes: list[str]) -> list[tuple[str, ...] | None]:
    column = table.columns[name]
    if column.dtype == pl.Boolean:
        texts = column.cast(pl.String).to_list()
        return [None if text is None else (text,) for text in texts]
    values = category_column(table, name, WHOLE, notes)
    for row, texts in enumerate(values):
        for text in texts:
            if len(text) > MAX_TEXT_CHARS:
                table.refuse(
                    row,
                    f"{name} {shown(text)} is longer than {MAX_TEXT_CHARS} characters, so nobody "
                    "could filter by it; shorten it, or leave the column out of items.attributes",
                )
    return [texts or None for texts in values]


def _numbers(table: Table, name: str, notes: list[str]) -> list[float | None]:
    column = table.columns[name]
    if not column.dtype.is_numeric():
        text = _without_gaps(table, name, "a number")
        table.refuse_any(
            name,
            (~text.str.contains(NUMBER)).fill_null(False),
            "is no number; write it without a currency and without commas, as 1299.5",
        )
        column = text
    numbers = column.cast(pl.Float64)
    if numbers.dtype.is_float():
        numbers = numbers.fill_nan(None)
    table.refuse_any(name, numbers.is_infinite().fill_null(False), "is no finite number")
    return numbers.to_list()


def _dates(table: Table, name: str, notes: list[str]) -> list[str | None]:
    column = table.columns[name]
    if column.dtype in (pl.Date, pl.Datetime):
        days: list[date | datetime | None] = column.to_list()
        return [None if day is None else day.isoformat() for day in days]
    text = _without_gaps(table, name, "a date")
    is_date = {each: _is_date(each) for each in text.unique().to_list() if each is not None}
    wrong = [each for each, right in is_date.items() if not right]
    table.refuse_any(
        name,
        text.is_in(wrong).fill_null(False),
        "is no date; write 2026-11-30 or 2026-11-30T08:00:00Z",
    )
    return text.to_list()


def _without_gaps(table: Table, name: str, what: str) -> pl.Series:
    """A column of text without spaces around, null where it says that there is no value."""
    column = table.columns[name]
    if column.dtype not in (pl.String, pl.Categorical, pl.Enum, pl.Null):
        raise DataError(f"{table.path}: {name} must be text or {what}, not {column.dtype}")
    text = column.cast(pl.String).str.strip_chars()
    return pl.select(pl.when(~text.is_in(["", "NaT", *NO_VALUE])).then(text)).to_series()


def _is_date(text: str) -> bool:
    if not ISO_DATE.fullmatch(text):
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
