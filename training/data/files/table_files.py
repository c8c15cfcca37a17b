"""Finds files that hold a table in a folder, and reads them by their suffix.

Only the wanted columns are read, exactly as they are written (text) or stored (parquet). A folder
of parts is read as one table. Does not know what the columns mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from training.data.files.table import (
    COMPRESSED,
    FORMATS,
    IDS,
    Kind,
    Table,
    Wanted,
    format_of,
    reason_of,
    shown,
)
from training.data.files.text_files import read_csv, read_json_lines
from training.errors import DataError

# How files begin that may have been meant as data.
LIKE_DATA = ("interaction", "item", "embedding", "product", "catalog", "metadata", "vector")
ATOMIC = {"interactions": ".inter", "items": ".item"}  # what RecBole calls them, after any name
MAX_UNUSED = 5


def find_file(folder: Path, name: str) -> Path | None:
    """The file `name` of the folder, with any suffix that can be read; None if there is none.

    It may be a folder of parts; or the one atomic file of RecBole of that kind, whatever its name.
    Raises DataError if there are two: neither wins silently.
    """
    if not folder.is_dir():
        return None
    found = sorted(path for path in folder.iterdir() if _is_called(path, name))
    if len(found) > 1:
        raise DataError(
            f"{folder} has {' and '.join(path.name for path in found)}; give --{name} with the one "
            "to use"
        )
    return found[0] if found else None


def _is_called(path: Path, name: str) -> bool:
    written = path.name.lower()
    if written == name:
        return path.is_dir()
    if format_of(path) == "atomic":
        return _unpacked(written).endswith(ATOMIC[name])
    return format_of(path) is not None and _unpacked(written).rpartition(".")[0] == name


def _unpacked(name: str) -> str:
    """The name of a file without the suffix of its compression."""
    return next((name.removesuffix(each) for each in COMPRESSED if name.endswith(each)), name)


def unused_files(folder: Path) -> list[str]:
    """A sentence for files that may have been meant as data and are not read for their name."""
    if not folder.is_dir():
        return []
    unused = [
        path.name
        for path in sorted(folder.iterdir())
        if path.name.lower().startswith(LIKE_DATA)
        and not any(_is_called(path, name) for name in ATOMIC)
        and not path.match("item_embeddings*")
    ]
    if not unused:
        return []
    more = " and others" if len(unused) > MAX_UNUSED else ""
    return [
        f"{folder}: {', '.join(map(shown, unused[:MAX_UNUSED]))}{more} not used; the names are "
        "interactions.* and items.*, parquet, CSV or JSON lines, and item_embeddings*.npy"
    ]


def read_table(
    path: Path,
    kinds: Mapping[str, Kind],
    columns: Mapping[str, str] | None = None,
    section: str = "interactions",
) -> Table:
    """Read the wanted columns of a file, or of a folder of parts; the suffix says the format.

    columns: what the file calls some of them, by our names; `section` is that of this setting
    Missing columns are left out. Upper case and spaces around the names of columns do not matter.
    An empty field of a CSV is null. Raises DataError for a file that is missing, empty, damaged or
    without lines of data, ConfigError if one of `columns` is not there.
    """
    wanted = Wanted(kinds, columns or {}, section)
    if path.is_dir():
        return _read_parts(path, wanted)
    table = _read_file(path, wanted)
    if not len(table):
        raise DataError(f"{path} has no lines of data")
    return table


def _read_file(path: Path, wanted: Wanted) -> Table:
    format = format_of(path)
    if format is None:
        is_sheet = path.name.lower().endswith((".xls", ".xlsx", ".ods"))
        hint = ", not an Excel file: save the sheet as CSV (UTF-8)" if is_sheet else ""
        raise DataError(
            f"{path} must end in {', '.join(FORMATS)}{hint}; of text files also in "
            f"{' or '.join(COMPRESSED)} after that"
        )
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty: it has 0 bytes")
        if format == "parquet":
            return _read_parquet(path, wanted)
        return read_json_lines(path, wanted) if format == "json" else read_csv(path, wanted, format)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise DataError(f"{path} cannot be read: {reason_of(error)}") from error


def _read_parts(folder: Path, wanted: Wanted) -> Table:
    """All files of a folder, and of folders in it, as one table, in the order of their names.

    Files that begin with a dot or an underscore, as Spark writes them, are no parts.
    """
    paths = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and not any(name.startswith((".", "_")) for name in inside.parts):
            paths.append(path)
    parts = [path for path in paths if format_of(path) is not None]
    if not parts:
        raise DataError(f"{folder} is a folder without files that end in {', '.join(FORMATS)}")
    first = None
    tables = []
    for path in parts:
        if format_of(path) != format_of(parts[0]):
            raise DataError(
                f"{folder} has {parts[0].relative_to(folder)} and {path.relative_to(folder)}, which"
                " are of two formats; a folder of parts is read as one table: give the file to use"
            )
        table = _read_file(path, wanted)
        if not len(table):
            continue  # a part may be empty
        first = first or table
        _check_alike(folder, first, table)
        tables.append(table)
    if first is None:
        raise DataError(f"{folder}: its files have no lines of data")
    others = [path for path in paths if path not in parts]
    unread = f"{folder.name}: {shown(others[0].name)} is not read" if others else ""
    more = f", nor {len(others) - 1} more files" if len(others) > 1 else ""
    return Table(
        folder,
        {name: pl.concat([table.columns[name] for table in tables]) for name in first.columns},
        first.others,
        None,
        (
            f"{folder.name}: {len(tables)} files are read as one, from "
            f"{tables[0].path.relative_to(folder)} to {tables[-1].path.relative_to(folder)}",
            *([unread + more] * bool(others)),
            *dict.fromkeys(note for table in tables[:1] for note in table.notes),
        ),
        first.names,
        first.format,
        tuple(tables),
    )


def _check_alike(folder: Path, first: Table, other: Table) -> None:
    """Raise DataError if two parts do not have the same columns, of those that are wanted."""
    names = [table.path.relative_to(folder) for table in (first, other)]
    for has, lacks, with_it, without in ((first, other, *names), (other, first, *names[::-1])):
        for name in has.columns:
            if name not in lacks.columns:
                raise DataError(
                    f"{folder}: {with_it} has a column {has.names.get(name, name)}, and {without} "
                    "has none; write the same columns into all parts"
                )
    for name, column in first.columns.items():
        if column.dtype != other.columns[name].dtype:
            raise DataError(
                f"{folder}: {name} is {_stored(column)} in {names[0]} and "
                f"{_stored(other.columns[name])} in {names[1]}; store it alike in all parts"
            )


def _stored(column: pl.Series) -> pl.DataType:
    return pl.String() if column.dtype == IDS else column.dtype


def _read_as(column: str, kind: Kind, scan: pl.LazyFrame) -> pl.Expr:
    is_text = scan.collect_schema()[column] == pl.String
    return pl.col(column).cast(IDS) if kind == "id" and is_text else pl.col(column)


def _read_parquet(path: Path, wanted: Wanted) -> Table:
    scan = pl.scan_parquet(path, glob=False, hive_partitioning=False)
    names = scan.collect_schema().names()
    found, notes = wanted.match(names, path)
    columns = [_read_as(names[index], wanted.kinds[name], scan) for name, index in found.items()]
    # In parts, so that the text of all ids is never in memory at once.
    frame = scan.select(columns).collect(engine="streaming") if found else None
    return Table(
        path,
        {name: frame[names[index]].rename(name) for name, index in found.items()}
        if frame is not None
        else {},
        tuple(name for index, name in enumerate(names) if index not in found.values()),
        None,
        notes,
        {ours: names[index] for ours, index in found.items()},
        "parquet",
    )
