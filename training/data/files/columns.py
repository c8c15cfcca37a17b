"""Reads and checks the columns that hold ids and text.

An id must be one that the service accepts. Otherwise an item could not be excluded, shown or
posted, and nobody could ask for a user. Such an id is refused with its line before anything is
trained. Knows nothing of times and categories.
"""

from __future__ import annotations

import re

import polars as pl

from training.data.files.table import Table, shown
from training.data.files.text_files import LARGEST_EXACT
from training.errors import DataError

MAX_ID_CHARS = 256  # the limit of the service's API, service/schemas/recommend.py
# The rules of the service's API (`UserId`, `ItemId` in service/schemas/recommend.py).
SERVED_USER_ID = re.compile(r"[^/{}\x00-\x1f\x7f]{1,256}")
NOT_IN_IDS = {
    "user_id": (r"[/{}\x00-\x1f\x7f]", "holds /, {, } or a control character"),
    "item_id": (r"[\x00-\x1f\x7f]", "holds a control character, for instance a line break"),
}
WRITTEN_FLOAT = r"^(0|-?[1-9]\d{0,15})\.0$"
# How programs write that there is no value.
NO_VALUE = ("nan", "NaN", "None", "null", "NULL", "<NA>", "\\N")


def id_column(table: Table, name: str, notes: list[str]) -> pl.Series:
    """A column of ids as text: "007" stays "007"; the numbers 7 and 7.0 become "7".

    If every text of the column is written like 7.0, it is read as a whole number: some programs
    write so when a column of numbers had gaps. Raises DataError with the line of the first id that
    is missing or that the service does not accept.
    """
    column = table.columns[name]
    if column.dtype.is_float() or column.dtype.is_decimal():
        column = column.fill_nan(None) if column.dtype.is_float() else column
        whole = (column == column.floor()) & (column.abs() <= LARGEST_EXACT)
        table.refuse_any(name, ~whole.fill_null(True), "is neither text nor a whole number")
        column = column.cast(pl.Int64)
    elif not (
        column.dtype.is_integer() or column.dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null)
    ):
        raise DataError(f"{table.path}: {name} must be text or whole numbers, not {column.dtype}")
    column = column.cast(pl.String).replace("", None)
    without_gaps(table, name, column)
    if column.str.contains(WRITTEN_FLOAT).all():
        notes.append(
            f"{table.path.name}: every {name} is written like {column[0]} and is read as a whole "
            f"number, {column[0][:-2]}"
        )
        column = column.str.strip_suffix(".0")
    _check(table, name, column)
    if (missing := column.is_in(NO_VALUE)).any():
        row = missing.arg_max()
        notes.append(
            f"{table.path.name}: lines whose {name} is {shown(column[row])} or the like: "
            f"{missing.sum():,}, the first is {table.place(row)}; some programs write this for a "
            "missing value, but here it is read as an id"
        )
    return column


def text_column(table: Table, name: str, notes: list[str]) -> list[str]:
    """A column of text, with "" for missing values, or for all lines if there is no such column.

    Raises DataError if it holds something else, such as lists.
    """
    if name not in table.columns:
        return [""] * len(table)
    column = table.columns[name]
    if column.dtype.is_float() and (column.is_null() | (column == column.floor())).all():
        column = column.cast(pl.Int64)
    if not (
        column.dtype.is_numeric() or column.dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null)
    ):
        raise DataError(f"{table.path}: {name} must be text, not {column.dtype}")
    column = column.cast(pl.String).fill_null("")
    is_csv = table.path.name.lower().removesuffix(".gz").endswith((".csv", ".tsv"))
    if is_csv and (broken := column.str.contains(r"[\r\n]")).any():
        row = broken.arg_max()
        notes.append(
            f"{table.path.name}: {broken.sum():,} of {len(column):,} have a line break in their "
            f"{name}, the first in {table.place(row)}; if that is wrong, look there for a quote "
            "without its partner"
        )
    return column.to_list()


def without_gaps(table: Table, name: str, column: pl.Series) -> None:
    """Raise a DataError if a column has nulls."""
    if gaps := column.null_count():
        first = column.is_null().arg_max()
        raise DataError(
            f"{table.path}: {gaps} of {len(column)} lines have no {name}, the first is "
            f"{table.place(first or 0)}"
        )


def _check(table: Table, name: str, column: pl.Series) -> None:
    characters, holds = NOT_IN_IDS[name]
    cure = "; the service does not take it, so give it another id in all files"
    for bad, what in (
        (column.str.len_chars() > MAX_ID_CHARS, f"is longer than {MAX_ID_CHARS} characters{cure}"),
        (column.str.contains(characters), holds + cure),
        (column.is_in([".", ".."]), f"cannot be written into an address{cure}"),
        (
            column.str.strip_chars() != column,
            "begins or ends with a space; take it away in all files",
        ),
    ):
        table.refuse_any(name, bad, what)
