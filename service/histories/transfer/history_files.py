"""Reads histories from a file: a log of interactions (CSV or JSON lines), or histories themselves.

A log may be in any order. It is sorted on disk, by user and time; lines with equal times keep their
order. Files may be compressed with gzip. Every error names the line. Knows nothing of stores.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import sqlite3
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from itertools import chain, groupby
from pathlib import Path
from typing import Any, BinaryIO, cast

from service.errors import TransferFailed
from service.schemas import is_text

COLUMNS = ("user_id", "item_id", "timestamp")
TABLES = {
    b"PAR1": "a parquet file: save it as CSV or JSON lines, for instance "
    "polars.read_parquet(FILE).write_csv(CSV_FILE)",
    b"PK\x03\x04": "a zip file: unpack it",
}
SORT_MEMORY_KB = 64 * 1024


def read_histories(
    path: Path, cap: int, is_taken: Callable[[str], bool] = lambda event_type: True
) -> Generator[tuple[str, list[str]], None, None]:
    """Each user once, with the newest `cap` items, oldest to newest.

    is_taken: is asked for each line of a log that has an `event_type` whether to take it
    A log has the columns or fields user_id, item_id and timestamp (numbers, or dates as in ISO
    8601; without a zone they are UTC). A file of histories has JSON lines with user_id and history.
    Raises TransferFailed, which names the line.
    """
    lines = _lines(path)
    first = next(lines, "")
    lines = chain([first], lines)
    if first.lstrip().startswith("{"):
        records = _json_records(path, lines)
        head = next(records)
        records = chain([head], records)
        if "history" in head[1]:
            yield from _whole(path, records, cap)
            return
    else:
        records = _csv_records(path, lines)
    taken = (
        (line, record)
        for line, record in records
        if record.get("event_type") in (None, "") or is_taken(str(record["event_type"]))
    )
    yield from _sorted(path, taken, cap)


def time_of(text: str) -> float:
    """Unix seconds from a number or an ISO date, in UTC unless it says. Raises ValueError."""
    try:
        seconds = float(text)
    except ValueError:
        moment = datetime.fromisoformat(text.strip())
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(seconds):
        raise ValueError("not finite")
    return seconds


def _sorted(
    path: Path, records: Iterable[tuple[int, dict[str, Any]]], cap: int
) -> Iterator[tuple[str, list[str]]]:
    with (
        tempfile.TemporaryDirectory(prefix="unmask-sort-") as folder,
        closing(sqlite3.connect(f"{folder}/log.sqlite", isolation_level=None)) as database,
    ):
        for setting in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{SORT_MEMORY_KB}"):
            database.execute(f"PRAGMA {setting}")
        database.execute("CREATE TABLE log (user TEXT, time REAL, line INTEGER, item TEXT)")
        database.execute("BEGIN")
        rows = _rows(path, records)
        database.executemany("INSERT INTO log VALUES (?, ?, ?, ?)", rows)
        by_user = database.execute("SELECT user, item FROM log ORDER BY user, time, line")
        for user_id, interactions in groupby(by_user, lambda row: cast(str, row[0])):
            yield user_id, list(deque((item for _, item in interactions), cap))


def _rows(
    path: Path, records: Iterable[tuple[int, dict[str, Any]]]
) -> Iterator[tuple[str, float, int, str]]:
    is_date: bool | None = None
    for line, record in records:
        user_id, item_id, timestamp = (record.get(name) for name in COLUMNS)
        missing = [name for name in COLUMNS if record.get(name) in (None, "")]
        if missing:
            raise TransferFailed(f"{path}, line {line}: there is no {missing[0]}")
        text = str(timestamp)
        try:
            seconds = time_of(text)
        except ValueError:
            raise TransferFailed(
                f"{path}, line {line}: timestamp must be a number or a date such as "
                "2014-05-31T23:59:59Z"
            ) from None
        was_date, is_date = is_date, not _is_number(text)
        if was_date not in (None, is_date):
            raise TransferFailed(
                f"{path}, line {line}: its timestamp is a {'date' if is_date else 'number'}, that "
                "of the line before is none; write all alike"
            )
        yield _id_of(user_id, path, line), seconds, line, _id_of(item_id, path, line)


def _whole(
    path: Path, records: Iterable[tuple[int, dict[str, Any]]], cap: int
) -> Iterator[tuple[str, list[str]]]:
    for line, record in records:
        user_id, history = record.get("user_id"), record.get("history")
        if not isinstance(history, list) or user_id in (None, ""):
            raise TransferFailed(f"{path}, line {line}: user_id and a list, history, are needed")
        yield (
            _id_of(user_id, path, line),
            [_id_of(item_id, path, line) for item_id in history[-cap:]],
        )


def _id_of(value: Any, path: Path, line: int) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not is_text(str(value)):
        raise TransferFailed(f"{path}, line {line}: ids must be text or whole numbers")
    return str(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _csv_records(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(lines, strict=True)
    try:
        names = [name.strip().lower() for name in next(reader, [])]
        if missing := [name for name in COLUMNS if name not in names]:
            raise TransferFailed(
                f"{path}: the first line names no column {missing[0]}; it must name user_id, "
                "item_id and timestamp, with commas between"
            )
        for record in reader:
            if len(record) == len(names):
                yield reader.line_num, dict(zip(names, record, strict=True))
            elif record:
                raise TransferFailed(
                    f"{path}, line {reader.line_num}: {len(record)} fields, but the first line "
                    f"names {len(names)} columns"
                )
    except csv.Error as error:
        raise TransferFailed(f"{path}, line {reader.line_num}: no CSV ({error})") from None


def _json_records(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(lines, 1):
        if text.strip():
            try:
                record = json.loads(text)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                raise TransferFailed(f"{path}, line {line}: no JSON object; write one on each line")
            yield line, record


def _lines(path: Path) -> Iterator[str]:
    """Lines of UTF-8 text, without a byte order mark."""
    number = 0
    try:
        with path.open("rb") as opened:
            start = opened.read(4)
            opened.seek(0)
            if start in TABLES:
                raise TransferFailed(f"{path} is {TABLES[start]}")
            is_gzip = start.startswith(b"\x1f\x8b")
            file = cast(BinaryIO, gzip.GzipFile(fileobj=opened)) if is_gzip else opened
            for number, line in enumerate(file, 1):
                yield (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).decode()
    except UnicodeDecodeError:
        raise TransferFailed(f"{path}, line {number}: no text in UTF-8") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise TransferFailed(f"{path} is damaged after line {number}: {error}") from None
    except OSError as error:
        raise TransferFailed(f"{path} cannot be read: {error.strerror}") from error
