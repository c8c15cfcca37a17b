"""Finds files that hold a table in a folder, and reads them by their suffix.

Only the wanted columns are read, exactly as they are written (text) or stored (parquet). Does not
know what the columns mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from training.data.files.table import Kind, Table, match_names, reason_of, shown
from training.data.files.text_files import read_csv, read_json_lines
from training.errors import DataError

TEXT_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
SUFFIXES = (".parquet", *TEXT_SUFFIXES, *(suffix + ".gz" for suffix in TEXT_SUFFIXES))

# How files begin that may have been meant as data.
LIKE_DATA = ("interaction", "item", "embedding", "product", "catalog", "metadata", "vector")
MAX_UNUSED = 5


def find_file(folder: Path, name: str) -> Path | None:
    """The file `name` of the folder, with any suffix that can be read; None if there is none.

    Raises DataError if there are two: neither wins silently.
    """
    if not folder.is_dir():
        return None
    known = {name + suffix for suffix in SUFFIXES}
    found = sorted(path for path in folder.iterdir() if path.name.lower() in known)
    if len(found) > 1:
        raise DataError(
            f"{folder} has {' and '.join(path.name for path in found)}; give --{name} with the one "
            "to use"
        )
    return found[0] if found else None


def unused_files(folder: Path) -> list[str]:
    """A sentence for files that may have been meant as data and are not read for their name."""
    if not folder.is_dir():
        return []
    known = {name + suffix for name in ("interactions", "items") for suffix in SUFFIXES}
    unused = [
        path.name
        for path in sorted(folder.iterdir())
        if path.name.lower().startswith(LIKE_DATA)
        and path.name.lower() not in known
        and not path.match("item_embeddings*")
    ]
    if not unused:
        return []
    more = " and others" if len(unused) > MAX_UNUSED else ""
    return [
        f"{folder}: {', '.join(map(shown, unused[:MAX_UNUSED]))}{more} not used; the names are "
        "interactions.* and items.*, parquet, CSV or JSON lines, and item_embeddings*.npy"
    ]


def read_table(path: Path, wanted: Mapping[str, Kind]) -> Table:
    """Read the wanted columns of a file; its suffix says the format. Missing columns are left out.

    Upper case and spaces around the names of columns do not matter. An empty field of a CSV is
    null. Raises DataError for a file that is missing, empty, damaged or without lines of data.
    """
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        is_sheet = name.endswith((".xls", ".xlsx", ".ods"))
        hint = ", not an Excel file: save the sheet as CSV (UTF-8)" if is_sheet else ""
        raise DataError(f"{path} must end in .parquet, .csv or .jsonl{hint}")
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder, not a file")
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty: it has 0 bytes")
        if name.endswith(".parquet"):
            table = _read_parquet(path, wanted)
        elif name.removesuffix(".gz").endswith((".csv", ".tsv")):
            table = read_csv(path, wanted)
        else:
            table = read_json_lines(path, wanted)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise DataError(f"{path} cannot be read: {reason_of(error)}") from error
    if not len(table):
        raise DataError(f"{path} has no lines of data")
    return table


def _read_parquet(path: Path, wanted: Mapping[str, Kind]) -> Table:
    scan = pl.scan_parquet(path, glob=False, hive_partitioning=False)
    names = scan.collect_schema().names()
    found, notes = match_names(names, wanted, path)
    frame = scan.select([names[index] for index in found.values()]).collect() if found else None
    return Table(
        path,
        {name: frame[names[index]].rename(name) for name, index in found.items()}
        if frame is not None
        else {},
        tuple(name for index, name in enumerate(names) if index not in found.values()),
        None,
        notes,
    )
