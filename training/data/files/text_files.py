"""Reads CSV and JSON lines line by line: memory holds only the wanted columns and one line.

The standard library reads both formats. So the line of every value is known, a quote without a
partner is refused, and a field that is not wanted is not kept. Atomic files of RecBole are CSV
whose first line names types too. Files may be compressed with gzip, or zstd, which polars unpacks.
Does not know what the columns mean.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

import polars as pl

from training.data.files.table import Format, Kind, Table, Wanted, reason_of, shown
from training.errors import DataError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
CHUNK_ROWS = 50_000
MAX_LINE_BYTES = 16 * 2**20
MAX_OTHERS = 1000  # names of other columns that are remembered; each line may bring new ones
EXACT_BELOW = 2**53  # below this a float can hold every whole number
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
ATOMIC_TYPES = ("token", "token_seq", "float", "float_seq")  # of RecBole; _seq: between spaces
NOT_TEXT = {
    b"PK\x03\x04": "a zip archive or an Excel file; save its sheet as CSV (UTF-8)",
    b"\xd0\xcf\x11\xe0": "an Excel file; save its sheet as CSV (UTF-8)",
    b"PAR1": "a parquet file; give it the suffix .parquet",
    b"\xff\xfe": "UTF-16; save it as UTF-8",
    b"\xfe\xff": "UTF-16; save it as UTF-8",
}


class _Float(str):
    """A JSON number with a point or an exponent, as it is written."""


class _Twice(ValueError):
    """A JSON object has a wanted field more than once."""


class _Columns:
    """The wanted columns, which grow row by row and are packed chunk by chunk."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self._path, self._names = path, list(names)
        self._chunks: dict[str, list[pl.Series]] = {name: [] for name in self._names}
        self._lines: list[pl.Series] = []
        self._open_rows: list[tuple[str | None, ...]] = []  # not packed yet
        self._open_lines: list[int] = []

    def append(self, row: tuple[str | None, ...], line: int) -> None:
        self._open_rows.append(row)
        self._open_lines.append(line)
        if len(self._open_rows) == CHUNK_ROWS:
            self._pack()

    def _pack(self) -> None:
        if not self._open_rows:
            return
        rows, lines = self._open_rows, self._open_lines
        self._open_rows, self._open_lines = [], []
        for name, values in zip(self._names, zip(*rows, strict=True), strict=False):
            try:
                series = pl.Series(name, values, dtype=pl.String)
            except UnicodeEncodeError:
                row = next(row for row, value in enumerate(values) if value and not _is_text(value))
                raise DataError(
                    f"{self._path}, line {lines[row]}: {name} {shown(values[row])} holds half of a "
                    "surrogate pair, which is no character"
                ) from None
            self._chunks[name].append(series)
        self._lines.append(pl.Series(lines, dtype=pl.Int64))

    def column(self, name: str) -> pl.Series:
        self._pack()
        return pl.concat(self._chunks[name] or [pl.Series(name, [], dtype=pl.String)])

    def lines(self) -> pl.Series:
        self._pack()
        return pl.concat(self._lines or [pl.Series([], dtype=pl.Int64)])


def read_csv(path: Path, wanted: Wanted, format: Format = "csv") -> Table:
    """Read a CSV whose fields are separated by commas, semicolons, tabs or bars.

    The first line decides: the separator is the one that gives the most wanted columns. Of an
    atomic file it also names the type of each column; lists (`token_seq`) become JSON text.
    Raises DataError with the line for a quote without a partner and for a line with more or fewer
    fields.
    """
    is_atomic = format == "atomic"
    lines = _lines(path)
    header = next(lines, "")
    fields = {each: _fields(header, each, is_atomic) for each in SEPARATORS}
    known = {each: len({*map(wanted.of, fields[each])} - {None}) for each in SEPARATORS}
    if not any(known.values()):  # then the message names the columns as they may have been meant
        known = {each: len(fields[each]) for each in SEPARATORS}
    separator = max(SEPARATORS, key=lambda each: known[each])
    reader = csv.reader(chain([header], lines), delimiter=separator, strict=True)
    records = _records(reader, path)
    _, first = next(records, (1, []))
    names, lists = _atomic_names(first, wanted, path) if is_atomic else (first, frozenset())
    found, notes = wanted.match(names, path)
    if separator != "," and not is_atomic:
        notes = (*notes, f"{path.name}: fields are separated by {SEPARATORS[separator]}")
    columns, indices = _Columns(path, list(found)), list(found.values())
    for line, record in records:
        if record == first:
            raise DataError(
                f"{path}, line {line}: the first line, the names of the columns, is here again; "
                "files were put together: remove this line"
            )
        if len(record) != len(names):
            raise DataError(
                f"{path}, line {line}: {len(record)} fields, but the first line names {len(names)} "
                "columns; a field that holds the separator needs quotes around it"
            )
        for index in lists:
            record[index] = record[index] and json.dumps(record[index].split(), ensure_ascii=False)
        columns.append(tuple(record[index] or None for index in indices), line)
    return Table(
        path,
        {name: columns.column(name) for name in found},
        tuple(names[i] for i in range(len(names)) if i not in indices)[:MAX_OTHERS],
        columns.lines(),
        notes,
        {ours: names[index] for ours, index in found.items()},
        format,
    )


def _atomic_names(first: list[str], wanted: Wanted, path: Path) -> tuple[list[str], frozenset[int]]:
    """Names of the columns of an atomic file, and where there are lists that are wanted.

    Raises DataError for a column without a type, and for lists where one value is wanted.
    """
    names, lists = [], set()
    for index, field in enumerate(first):
        name, _, kind = field.strip().rpartition(":")
        if kind not in ATOMIC_TYPES or not name:
            raise DataError(
                f"{path}, line 1: {shown(field)} is no column of a RecBole file, which has a name "
                f"and a type, such as user_id:token; types are {', '.join(ATOMIC_TYPES)}"
            )
        names.append(name)
        ours = wanted.of(name)
        if ours is None or not kind.endswith("_seq"):
            continue
        if wanted.kinds[ours] == "list":
            lists.add(index)
        elif wanted.kinds[ours] != "text" or kind == "float_seq":
            raise DataError(f"{path}, line 1: {shown(field)} is a list; {ours} must be one value")
    return names, frozenset(lists)


def read_json_lines(path: Path, wanted: Wanted) -> Table:
    """Read a file with one JSON object for each line; only the wanted fields are kept.

    Numbers become text as they are written. Lists of a `list` column become JSON text. Raises
    DataError with the line if it is not an object, or if a field is of another kind than wanted.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """An object from its fields. Of two fields with one name, dict would silently keep one."""
        record = dict(pairs)
        if len(record) < len(pairs):
            names = [name for name, _ in pairs]
            twice = [name for name in record if wanted.of(name) and names.count(name) > 1]
            if twice:
                raise _Twice(f"there are two fields {twice[0]}")
        return record

    decoder = json.JSONDecoder(
        parse_float=_Float, parse_constant=lambda _: None, object_pairs_hook=once
    )
    known: dict[str, str | None] = {}  # wanted column of each name seen
    spelt: dict[str, str] = {}
    columns = _Columns(path, list(wanted.kinds))
    for line, text in enumerate(_lines(path), 1):
        if not text.strip():
            continue
        try:
            record = decoder.decode(text)
        except _Twice as twice:
            raise DataError(f"{path}, line {line}: {twice}") from None
        except (ValueError, RecursionError) as error:
            what = error.msg if isinstance(error, json.JSONDecodeError) else "too large or too deep"
            raise DataError(
                f"{path}, line {line}: not JSON ({what}); write one object a line"
            ) from None
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {line}: not an object; write one JSON object a line")
        values: dict[str, str | None] = {}
        for name, value in record.items():
            if name in known:
                column = known[name]
            else:
                column = wanted.of(name)
                if column or len(known) < MAX_OTHERS:
                    known[name] = column
                if column:
                    spelt.setdefault(column, name)
            if column:
                if column in values:
                    raise DataError(f"{path}, line {line}: there are two fields {column}")
                try:
                    values[column] = _text_of(value, wanted.kinds[column])
                except ValueError as error:
                    raise DataError(f"{path}, line {line}: {column} {error}") from None
        columns.append(tuple(values.get(column) for column in wanted.kinds), line)
    wanted.check_mapped(spelt, list(known), path)
    return Table(
        path,
        {name: columns.column(name) for name in wanted.kinds if name in spelt},
        tuple(name for name, column in known.items() if column is None),
        columns.lines(),
        tuple(
            f"{path.name}: the field {shown(name)} is read as {column}"
            for column, name in spelt.items()
            if wanted.is_said(name)
        ),
        spelt,
        "json",
    )


def _lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 text file with their line ends, without a byte order mark."""
    with path.open("rb") as opened:
        begins = opened.read(4)
        opened.seek(0)
        for mark, what in NOT_TEXT.items():
            if begins.startswith(mark):
                raise DataError(f"{path} is {what}")
        is_packed = begins.startswith((GZIP, ZSTD))
        if b"\0" in begins and not is_packed:
            raise DataError(f"{path} is no text in UTF-8, perhaps UTF-16; save it as UTF-8")
    yield from _unpacked_lines(path) if begins == ZSTD else _plain_lines(path, begins)


def _plain_lines(path: Path, begins: bytes) -> Iterator[str]:
    with path.open("rb") as opened:
        is_gzip = begins.startswith(GZIP)
        file = cast(BinaryIO, gzip.GzipFile(fileobj=opened)) if is_gzip else opened
        number = 0
        try:
            while line := file.readline(MAX_LINE_BYTES):
                number += 1
                if len(line) == MAX_LINE_BYTES:
                    raise _too_long(path, number)
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                yield line.decode()
        except UnicodeDecodeError as error:
            before = shown(error.object[: error.start].decode()[-20:])
            raise DataError(
                f"{path}, line {number}: byte {error.object[error.start]:#04x} after {before} is "
                "not UTF-8; save the file as UTF-8"
            ) from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path} is damaged after line {number}: {error}") from error


def _unpacked_lines(path: Path) -> Iterator[str]:
    """The lines of a file that zstd has packed; memory holds some of them."""
    number = 0
    try:
        scan = pl.scan_lines(path, glob=False)
        for batch in scan.collect_batches(chunk_size=CHUNK_ROWS, maintain_order=True):
            for line in batch["line"]:
                number += 1
                if len(line) >= MAX_LINE_BYTES:
                    raise _too_long(path, number)
                yield (line.removeprefix("\ufeff") if number == 1 else line) + "\n"
    except pl.exceptions.ComputeError as error:
        after = f" after line {number}" if number else ""
        raise DataError(f"{path} cannot be read{after}: {reason_of(error)}") from error
    except OSError as error:
        raise DataError(f"{path} is damaged after line {number}: {error}") from error


def _too_long(path: Path, number: int) -> DataError:
    return DataError(f"{path}, line {number}: longer than {MAX_LINE_BYTES // 2**20} MiB")


def _fields(header: str, separator: str, is_atomic: bool) -> list[str]:
    """The names in a first line."""
    try:
        names = next(csv.reader([header], delimiter=separator), [])
    except csv.Error:
        return []
    return [name.rpartition(":")[0] if is_atomic else name for name in names]


def _records(reader: Any, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Records of a CSV that are not blank, each with the line where it begins."""
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "new-line character" in str(error):
                raise DataError(
                    f"{path}, line {line}: holds a carriage return without a line feed; save the "
                    "file with the line ends of Unix or Windows"
                ) from None
            raise DataError(
                f"{path}, line {line}: cannot be read as CSV from here ({error}); look for a quote "
                "without its partner, and write a quote inside a field twice"
            ) from None
        if record:
            yield line, record


def _text_of(value: object, kind: Kind) -> str | None:
    """A JSON value as text. Raises ValueError with the end of a sentence."""
    match value:
        case None:
            return None
        case bool() | list() | dict() if kind == "label":
            return None
        case bool():
            raise ValueError(f"is {str(value).lower()}, not text")
        case _Float() if kind == "id":
            number = Decimal(value)
            if abs(number) >= EXACT_BELOW or number != number.to_integral_value():
                raise ValueError(f"{shown(value)} is neither text nor a whole number")
            return str(int(number))
        case str():
            return str(value) or None
        case int():
            return str(value)
        case list() if kind == "list":
            return json.dumps(_quoted(value), ensure_ascii=False)
    raise ValueError(f"is {'a list' if isinstance(value, list) else 'an object'}, not text")


def _quoted(value: object) -> object:
    """A list in which numbers became text and nulls are left out. Raises ValueError for others."""
    if isinstance(value, list):
        return [_quoted(each) for each in value if each is not None]
    if isinstance(value, bool | dict):
        raise ValueError("holds objects or truth values; write a list of text")
    return str(value).removesuffix(".0") if isinstance(value, _Float) else str(value)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
