"""Reads public raw files: Amazon reviews of 2014 and MovieLens archives.

Writes the folder that `load_dataset` reads: `interactions.parquet` (user_id, item_id, position,
timestamp in Unix seconds) and `items.parquet` (item_id, title, categories). Filters nothing and
executes nothing that a file holds. Knows nothing of the network.
"""

from __future__ import annotations

import ast
import gzip
import html
import io
import json
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from training.data.files.categories import flatten
from training.data.files.table import reason_of
from training.errors import DataError

INTERACTIONS_FILE, ITEMS_FILE = "interactions.parquet", "items.parquet"
NO_GENRES = "(no genres listed)"  # what MovieLens writes for a film without any
# Errors of a damaged archive. A RuntimeError means that it has a password.
DAMAGED = (
    zipfile.BadZipFile,
    OSError,
    EOFError,
    RuntimeError,
    zlib.error,
    pl.exceptions.PolarsError,
)
FIRST_ASIN = re.compile(r"\{'asin': '([^']+)'")


@dataclass(frozen=True, eq=False)
class RawLog:
    """The contents of raw files.

    interactions: user_id, item_id, timestamp; in the order of the file
    items:        item_id, title, categories (list of text); has every item of the interactions
    """

    interactions: pl.DataFrame
    items: pl.DataFrame


@dataclass(frozen=True)
class Prepared:
    """What `prepare` wrote, in numbers for the person who asked for it."""

    folder: str
    users: int
    items: int
    interactions: int
    items_without_title: int


def read_raw(files: Sequence[Path]) -> RawLog:
    """Read the raw files of one data set; their names say the format.

    Either one MovieLens `.zip`, or `reviews_*.json.gz` with or without its `meta_*.json.gz`.
    Raises DataError if the files are neither, or are damaged.
    """
    archives = [file for file in files if file.suffix == ".zip"]
    reviews = [file for file in files if re.fullmatch(r"reviews_.+\.json\.gz", file.name)]
    metas = [file for file in files if re.fullmatch(r"meta_.+\.json\.gz", file.name)]
    match archives, reviews, metas:
        case [archive], [], [] if len(files) == 1:
            return read_movielens(archive)
        case [], [review], [] | [_] if len(files) == 1 + len(metas):
            return read_amazon_2014(review, *metas)
    raise DataError(
        f"cannot tell the format of {', '.join(file.name for file in files) or 'no files'}; give "
        "one MovieLens .zip, or reviews_X_5.json.gz with meta_X.json.gz"
    )


def prepare(log: RawLog, folder: Path) -> Prepared:
    """Write the two parquet files. A folder that has `interactions.parquet` is complete.

    A user's items are ordered by timestamp. Equal timestamps keep the order of the raw file.
    """
    user_order = pl.int_range(pl.len()).over("user_id").alias("position")
    interactions = log.interactions.sort("user_id", "timestamp", maintain_order=True).select(
        "user_id", "item_id", user_order, "timestamp"
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INTERACTIONS_FILE).unlink(missing_ok=True)
    for name, frame in ((ITEMS_FILE, log.items), (INTERACTIONS_FILE, interactions)):
        unfinished = folder / f".{name}.part"
        frame.write_parquet(unfinished)
        unfinished.replace(folder / name)
    return Prepared(
        folder=str(folder),
        users=interactions["user_id"].n_unique(),
        items=len(log.items),
        interactions=len(interactions),
        items_without_title=int((log.items["title"] == "").sum()),
    )


def read_amazon_2014(reviews: Path, meta: Path | None = None) -> RawLog:
    """Read `reviews_*_5.json.gz` (JSON lines) and `meta_*.json.gz` (lines of Python literals).

    Items are those with a review, ordered by id. A category path becomes one text, "A > B > C". An
    item that is not in the meta file has neither title nor categories.
    """
    user_ids, item_ids, timestamps = [], [], []
    for review in _records(reviews, json.loads):
        user_ids.append(_field(review, "reviewerID", str, reviews))
        item_ids.append(_field(review, "asin", str, reviews))
        timestamps.append(_field(review, "unixReviewTime", int, reviews))
    if not item_ids:
        raise DataError(f"{reviews} has no reviews")
    wanted: dict[str, tuple[str, list[str]]] = dict.fromkeys(sorted(set(item_ids)), ("", []))
    if meta is not None:
        wanted |= _amazon_items(meta, wanted.keys())
    titles, categories = zip(*wanted.values(), strict=True)
    return RawLog(
        _interactions_frame(user_ids, item_ids, timestamps),
        _items_frame(list(wanted), list(titles), list(categories)),
    )


def read_movielens(archive: Path) -> RawLog:
    """Read a MovieLens zip: `ratings.dat` and `movies.dat` (ml-1m, ml-10m), or the same as `.csv`.

    All films of the archive are items, also those nobody rated; every rating is an interaction.
    """
    try:
        with zipfile.ZipFile(archive) as files:
            names = {Path(name).name: name for name in files.namelist()}
            if "ratings.dat" in names and "movies.dat" in names:
                ratings = _double_colon_table(files.read(names["ratings.dat"]), 4)
                films = _double_colon_table(files.read(names["movies.dat"]), 3)
            elif "ratings.csv" in names and "movies.csv" in names:
                ratings = pl.read_csv(files.read(names["ratings.csv"]), infer_schema=False)
                films = pl.read_csv(files.read(names["movies.csv"]), infer_schema=False)
            else:
                raise DataError(f"{archive} holds no ratings and movies of MovieLens")
        ratings.columns, films.columns = ["user", "film", "rating", "time"], ["film", "title", "g"]
        genres = films["g"].replace(NO_GENRES, "").fill_null("").str.split("|")
        return RawLog(
            _interactions_frame(ratings["user"], ratings["film"], ratings["time"]),
            _items_frame(
                films["film"],
                films["title"].fill_null(""),
                [[genre for genre in each if genre] for each in genres.to_list()],
            ),
        )
    except DAMAGED as error:
        raise DataError(
            f"{archive} is not a whole MovieLens archive: {reason_of(error)}"
        ) from error


def _amazon_items(meta: Path, wanted: Collection[str]) -> dict[str, tuple[str, list[str]]]:
    found = {}

    def parse(line: str) -> Any:
        first = FIRST_ASIN.match(line)  # most lines are of items without a review in the 5-core
        return None if first and first[1] not in wanted else ast.literal_eval(line)

    with warnings.catch_warnings():
        # A description may hold text that looks like a wrong escape ("\d"); it stays unchanged.
        warnings.simplefilter("ignore")
        for item in _records(meta, parse):
            item_id = _field(item, "asin", str, meta)
            if item_id in wanted:
                title = html.unescape(_field(item, "title", str, meta, default="").strip())
                lists = _field(item, "categories", list, meta, default=[])
                try:
                    paths = [html.unescape(path) for path in flatten(lists)]
                except ValueError as error:
                    raise DataError(f"{meta}: categories of item {item_id} {error}") from None
                found[item_id] = (title, paths)
    return found


def _records(path: Path, parse: Callable[[str], Any]) -> Iterator[dict[str, Any]]:
    """Parsed lines of a gzip file, without those for which `parse` returns None."""
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip() and (record := parse(line.strip())) is not None:
                    if not isinstance(record, dict):
                        raise DataError(f"{path}, line {number}: not an object with fields")
                    yield record
    except (EOFError, OSError) as error:
        raise DataError(f"{path} is damaged after line {number}: {reason_of(error)}") from error
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise DataError(f"{path}, line {number} cannot be read: {reason_of(error)}") from error


def _field(record: dict[str, Any], name: str, kind: type, path: Path, default: Any = None) -> Any:
    value = record.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, kind) or (value == "" and default is None):
        said = "has no" if value in (None, "") else "has something else as"
        raise DataError(f"{path}: a line {said} {name}")
    return value


def _double_colon_table(data: bytes, num_columns: int) -> pl.DataFrame:
    """A table of `a::b::c` lines in Latin-1, all columns as text."""
    text = data.decode("latin-1").replace("::", "\t")
    schema = {str(column): pl.String for column in range(num_columns)}
    return pl.read_csv(
        io.BytesIO(text.encode()), separator="\t", has_header=False, quote_char=None, schema=schema
    )


def _interactions_frame(users: Any, items: Any, timestamps: Any) -> pl.DataFrame:
    frame = pl.DataFrame({"user_id": users, "item_id": items, "timestamp": timestamps})
    if frame.is_empty() or any(frame.null_count().row(0)):
        raise DataError("ratings must have lines, each with a user, a film and a time")
    return frame.cast({"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64})


def _items_frame(items: Any, titles: Any, categories: list[list[str]]) -> pl.DataFrame:
    return pl.DataFrame(
        {"item_id": items, "title": titles, "categories": categories},
        schema={"item_id": pl.String, "title": pl.String, "categories": pl.List(pl.String)},
    )
