"""Tables a person hands in: parquet, CSV and JSON-lines files, read as checked columns.

One idea: ids are text, exactly as written, and a column that is used has no gaps. Vectors of a
table's lines come in an .npy file beside it. Every complaint is a DataError that names the file.
Knows nothing of what the columns mean.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.errors import DataError


def find_file(folder: Path, *patterns: str) -> Path | None:
    """The file of the folder that fits the first pattern that any fits, None if there is none."""
    for pattern in patterns:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            raise DataError(f"{folder} has more than one {pattern}; name the one to use")
        if found:
            return found[0]
    return None


def read_table(path: Path) -> pl.DataFrame:
    """Read a file by its suffix. The columns of a CSV are all text; an empty field is null."""
    try:
        match path.suffix:
            case ".parquet":
                frame = pl.read_parquet(path)
            case ".csv":
                frame = pl.read_csv(path, infer_schema=False)
            case ".jsonl":
                frame = pl.read_ndjson(path, infer_schema_length=None)
            case _:
                raise DataError(f"{path} must end in .parquet, .csv or .jsonl")
    except pl.exceptions.NoDataError:
        raise DataError(f"{path} is empty") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if frame.is_empty():
        raise DataError(f"{path} has no lines of data")
    return frame


def require_columns(frame: pl.DataFrame, names: list[str], path: Path) -> None:
    """Raise DataError naming the columns that are absent."""
    absent = [name for name in names if name not in frame.columns]
    if absent:
        raise DataError(
            f"{path} needs a column {' and '.join(absent)}; it has {', '.join(frame.columns)}"
        )


def id_column(frame: pl.DataFrame, name: str, path: Path) -> pl.Series:
    """A column of ids as text: "007" stays "007", the number 7 becomes "7"."""
    column = frame[name]
    if not (column.dtype.is_integer() or column.dtype in (pl.String, pl.Categorical, pl.Null)):
        raise DataError(f"{path}: {name} must be text or whole numbers, not {column.dtype}")
    return _without_gaps(column.cast(pl.String).replace("", None), path)


def order_column(frame: pl.DataFrame, name: str, path: Path) -> pl.Series:
    """A column to sort by: numbers, dates, or text that holds one of them throughout."""
    column = frame[name]
    if column.dtype == pl.String:
        column = _numbers_or_dates(column, path)
    if column.dtype.is_float():
        column = column.fill_nan(None)
    elif not (column.dtype.is_numeric() or column.dtype.is_temporal() or column.dtype == pl.Null):
        raise DataError(f"{path}: {name} must be numbers or dates, not {column.dtype}")
    return _without_gaps(column, path)


def text_column(frame: pl.DataFrame, name: str) -> list[str]:
    """A column of text, "" where it has nothing or is not there at all."""
    if name not in frame.columns:
        return [""] * len(frame)
    return frame[name].cast(pl.String).fill_null("").to_list()


def list_column(frame: pl.DataFrame, name: str) -> list[tuple[str, ...]]:
    """A column of lists of text, or of strings split at `|`; () where there is nothing."""
    if name not in frame.columns:
        return [()] * len(frame)
    column = frame[name]
    if not isinstance(column.dtype, pl.List):
        column = column.cast(pl.String).str.split("|")
    return [
        tuple(text.strip() for text in texts or () if text and text.strip())
        for texts in column.cast(pl.List(pl.String)).to_list()
    ]


def read_vectors(path: Path, num_lines: int, lines: NDArray[np.int64]) -> NDArray[np.float32]:
    """Read an .npy file that has one vector per line of a table.

    num_lines: lines of the table, rows that the file must have
    lines:     (n,) int64, the line to take each vector from, -1 for zeros
    Returns (n, d) float32.
    """
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a NumPy array: {error}") from error
    if stored.ndim != 2 or stored.dtype.kind != "f":
        raise DataError(f"{path} must be a float array of two dimensions, one row per item")
    if len(stored) != num_lines:
        raise DataError(f"{path} has {len(stored)} rows, but the items file has {num_lines} items")
    vectors: NDArray[np.float32] = stored[np.maximum(lines, 0)].astype(np.float32)
    vectors[lines < 0] = 0
    if not np.isfinite(vectors).all():
        raise DataError(f"{path} has values that are not finite numbers")
    return vectors


def _numbers_or_dates(column: pl.Series, path: Path) -> pl.Series:
    # Whole numbers first: a float would round large ones, and so change their order.
    for read in (
        lambda: column.cast(pl.Int64),
        lambda: column.cast(pl.Float64),
        lambda: column.str.to_datetime(),
    ):
        try:
            return read()
        except pl.exceptions.PolarsError:
            continue
    raise DataError(f"{path}: {column.name} must be numbers or ISO dates throughout")


def _without_gaps(column: pl.Series, path: Path) -> pl.Series:
    if column.null_count():
        raise DataError(
            f"{path}: {column.null_count()} of {len(column)} lines have no {column.name}"
        )
    return column
