"""Reads and checks the columns that hold ids and text.

An id must be one that the service accepts. Otherwise an item could not be excluded, shown or
posted, and nobody could ask for a user. Such an id is refused with its line before anything is
trained. Knows nothing of times and categories.
"""

from __future__ import annotations

import contextlib
import re

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.data.files.table import IDS, Table, shown
from training.errors import DataError

MAX_ID_CHARS = 256  # the limit of the service's API, service/schemas/fields.py
# The rules of the service's API (`UserId`, `ItemId` in service/schemas/fields.py).
SERVED_USER_ID = re.compile(r"[^/{}\x00-\x1f\x7f]{1,256}")
NOT_IN_IDS = {
    "user_id": (r"[/{}\x00-\x1f\x7f]", "holds /, {, } or a control character"),
    "item_id": (r"[\x00-\x1f\x7f]", "holds a control character, for instance a line break"),
}
WRITTEN_FLOAT = r"^(0|-?[1-9]\d{0,15})\.0$"
# 1.23457E+12 is all that a spreadsheet leaves of a long number, 1.2345678901234568e+17 a float.
ROUNDED = r"^-?\d(?:[.,]\d+[eE]\+?\d{2}|[eE]\+\d{2})$"
# Floats count whole numbers one by one below this size; from there on several become one.
EXACT_BELOW = {pl.Float16: 2**11, pl.Float32: 2**24, pl.Float64: 2**53}
# How programs write that there is no value.
NO_VALUE = ("nan", "NaN", "None", "null", "NULL", "<NA>", "\\N")


def id_column(table: Table, name: str, notes: list[str]) -> pl.Series:
    """A column of ids, of type IDS: "007" stays "007"; the numbers 7 and 7.0 become "7".

    If every text of the column is written like 7.0, it is read as a whole number: some programs
    write so when a column of numbers had gaps. Raises DataError with the line of the first id that
    is missing or that the service does not accept.
    """
    column = table.columns[name]
    if not column.dtype.is_float():
        # Each id is looked at once. Only one that raises a question needs its line.
        distinct = Table(table.path, {name: column.unique()}, (), None, ())
        with contextlib.suppress(DataError):
            questions: list[str] = []
            _text_of_ids(distinct, name, questions)
            if not questions:
                return _as_ids(column)
    return _as_ids(_text_of_ids(table, name, notes))


def _as_ids(column: pl.Series) -> pl.Series:
    """Text or whole numbers as IDS, a chunk at a time."""
    if column.dtype == IDS:
        return column
    chunks = [chunk.cast(pl.String).cast(IDS) for chunk in column.get_chunks()]
    return pl.concat(chunks) if chunks else column.cast(IDS)


def ranked(column: pl.Series) -> tuple[pl.Series, NDArray[np.uint32]]:
    """The distinct ids of a column of type IDS, sorted, as text; and where each row's id is there.

    Sorted by their bytes in UTF-8, as text is.
    """
    distinct = column.unique()
    names = distinct.cast(pl.String)
    order = names.arg_sort()
    codes = distinct.to_physical()[order].to_numpy()
    place_of = np.zeros(int(codes.max()) + 1 if len(codes) else 0, np.uint32)
    place_of[codes] = np.arange(len(codes), dtype=np.uint32)
    return names[order], place_of[column.to_physical().to_numpy()]


def _text_of_ids(table: Table, name: str, notes: list[str]) -> pl.Series:
    column = table.columns[name]
    if column.dtype.is_float():
        column = column.fill_nan(None)
        table.refuse_any(
            name,
            (column != column.floor()).fill_null(False),
            "is neither text nor a whole number",
        )
        table.refuse_any(
            name,
            (column.abs() >= EXACT_BELOW[column.dtype.base_type()]).fill_null(False),
            f"is stored as {column.dtype}, in which several whole numbers of this size are one; "
            "store ids as integers or text",
        )
        column = column.cast(pl.Int64)
    elif column.dtype.is_decimal():
        table.refuse_any(
            name,
            (column != column.floor()).fill_null(False),
            "is neither text nor a whole number",
        )
        column = column.cast(pl.String).str.replace(r"\.0*$", "")
    elif not (
        column.dtype.is_integer()
        or column.dtype.base_type() in (pl.String, pl.Categorical, pl.Enum, pl.Null)
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
        table.refuse_any(
            name,
            column.cast(pl.Int64).abs() >= EXACT_BELOW[pl.Float64],
            "was a float, in which several whole numbers of this size are one; export the column "
            "as text",
        )
    _check(table, name, column)
    _check_spellings(table, name, column)
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
    if column.dtype.is_float():
        column = column.fill_nan(None)
        in_range = column.abs() < EXACT_BELOW[column.dtype.base_type()]
        if ((column == column.floor()) & in_range).fill_null(True).all():
            column = column.cast(pl.Int64)
    if not (
        column.dtype.is_numeric() or column.dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null)
    ):
        raise DataError(f"{table.path}: {name} must be text, not {column.dtype}")
    column = without_null_words(table, name, column.cast(pl.String).fill_null(""), notes)
    if table.format in ("csv", "atomic") and (broken := column.str.contains(r"[\r\n]")).any():
        row = broken.arg_max()
        notes.append(
            f"{table.path.name}: {broken.sum():,} of {len(column):,} have a line break in their "
            f"{name}, the first in {table.place(row)}; if that is wrong, look there for a quote "
            "without its partner"
        )
    return column.to_list()


def without_null_words(table: Table, name: str, column: pl.Series, notes: list[str]) -> pl.Series:
    """The text with "" where a program wrote "nan", "NULL" and the like; that is said."""
    absent = column.str.strip_chars().is_in(NO_VALUE).fill_null(False)
    if not absent.any():
        return column
    row = absent.arg_max() or 0
    notes.append(
        f"{table.path.name}: lines whose {name} is {shown(column[row])} or the like: "
        f"{absent.sum():,}, the first is {table.place(row)}; programs write so that there is none, "
        f"and it is read so"
    )
    return pl.select(pl.when(~absent).then(column).otherwise(pl.lit(""))).to_series().rename(name)


def without_gaps(table: Table, name: str, column: pl.Series) -> None:
    """Raise a DataError if a column has nulls."""
    if gaps := column.null_count():
        first = column.is_null().arg_max()
        raise DataError(
            f"{table.path}: {gaps} of {len(column)} lines have no {name}, the first is "
            f"{table.place(first or 0)}"
        )


def _check_spellings(table: Table, name: str, column: pl.Series) -> None:
    """Refuse ids that a program has rounded, and one id in two spellings, 7 and 7.0."""
    table.refuse_any(
        name,
        column.str.contains(ROUNDED),
        "is what a spreadsheet or a float leaves of a longer number; export the column as text",
    )
    floats = column.filter(column.str.contains(WRITTEN_FLOAT)).unique()
    twins = column.is_in(floats.str.strip_suffix(".0").implode())
    if twins.any():
        row = twins.arg_max() or 0
        other = (column == f"{column[row]}.0").arg_max() or 0
        table.refuse(
            max(row, other),
            f"{name} {shown(column[max(row, other)])} and {shown(column[min(row, other)])} in "
            f"{table.place(min(row, other))} seem to be one; write numbers alike in all lines",
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
