"""Says what training understands of somebody's files, before anything is trained.

Reads a log as a run does (the same functions), and goes on where a run would refuse it, as far as
it can. `guesses` looks for what is often wrong: it never changes how a file is read. Knows how
facts are said, not where they are printed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from service.bundles import Item
from training.config import InteractionsConfig, ItemsConfig
from training.data.files.event_types import counted_types, event_types, proposed
from training.data.files.item_files import read_items
from training.data.files.log_files import LogTable, as_dates, ordered_log, read_log_columns
from training.data.files.table import Table, cut, shown
from training.data.files.table_files import find_file
from training.data.files.times import LEAST_SAID, time_column, unit_of, units_by_size
from training.data.interactions import as_arrays, check_same_ids, counted_once, held_out, k_core
from training.data.splits import Interactions
from training.errors import ConfigError, DataError

EXAMPLES = (0.25, 0.5, 0.9)  # users by the length of their history
MOST_SHOWN_ITEMS = 6  # of an example, the newest
TITLE_CHARS = 40
LEAST_LINES = 100  # guesses about shares need some
BOT_SHARE = 0.1
OLDEST_LIKELY = datetime(1995, 1, 1, tzinfo=UTC).timestamp()


@dataclass
class Inspection:
    """What was understood, as far as it was. Counts of interactions are without repeats.

    columns:  what is read, by our names, as the file writes it; ignored: what is not
    events:   lines of each event type
    period:   first and last time, if times are dates; in what they are counted
    left:     users, items and interactions after the filters
    split:    training samples, validation and test users
    examples: users, each with its number of interactions and its newest items
    refused:  why training would not take the files; None = it would
    """

    path: str
    format: str = ""
    lines: int = 0
    columns: dict[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    events: dict[str, int] = field(default_factory=dict)
    period: tuple[str, str, str] | None = None
    users: int = 0
    items: int = 0
    interactions: int = 0
    copies: int = 0
    repeats: int = 0
    ties: int = 0
    left: dict[str, int] = field(default_factory=dict)
    split: dict[str, int] = field(default_factory=dict)
    items_file: dict[str, Any] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    guesses: list[str] = field(default_factory=list)
    refused: str | None = None


def inspect(
    path: Path,
    items: Path | None,
    config: InteractionsConfig,
    items_config: ItemsConfig,
) -> Inspection:
    """Look at a log, a folder of its parts, or a folder as of --data.

    Raises nothing for files that training refuses: `refused` says it.
    """
    if path.is_dir() and (found := find_file(path, "interactions")):
        items = items or find_file(path, "items")
        path = found
    told = Inspection(str(path))
    try:
        table = read_log_columns(path, config, told.notes)
    except (DataError, ConfigError) as error:
        return replace(told, refused=str(error))
    told.format = table.format + " in parts" * bool(table.parts)
    told.lines = len(table)
    log = _counting(table, config, told)
    told.columns = {
        ours: table.names.get(ours, ours)
        for ours in ("user_id", "item_id", "position", "timestamp")
        if ours in table.columns
    }
    if log.types.name is not None:
        told.columns["event_type"] = log.types.name
    told.ignored = tuple(name for name in log.unused if name != log.types.name)
    listed: tuple[Item, ...] = ()
    try:
        if items is not None:
            listed = read_items(items, items_config, told.notes, told.warnings)
            told.items_file = _about_items(items, listed)
        frame = ordered_log(log, config, told.notes)
    except (DataError, ConfigError) as error:
        told.refused = told.refused or str(error)
        return told
    seconds = _seconds(log.table, frame, config, told)
    told.ties = _ties(frame)
    told.guesses = list(_guesses(frame, seconds, listed, config, told))
    frame, repeats = counted_once(frame, config)
    told.copies, told.repeats = repeats.duplicates, repeats.consecutive
    arrays = as_arrays(frame)
    told.users, told.items = arrays.num_users, arrays.num_items
    told.interactions = arrays.num_interactions
    told.examples = _examples(arrays, {item.item_id: item.title for item in listed})
    try:
        if items is not None:
            check_same_ids(items, {item.item_id: 0 for item in listed}, path, arrays.item_ids)
        left = k_core(arrays, config.core) if config.core else arrays
        told.left = {
            "users": left.num_users,
            "items": left.num_items,
            "interactions": left.num_interactions,
        }
        split = held_out(left, config, path, told.notes)
        told.split = {
            "samples": split.train.num_windows,
            "validation_users": len(split.validation),
            "test_users": len(split.test),
        }
    except DataError as error:
        told.refused = told.refused or str(error)
    return told


def _counting(table: Table, config: InteractionsConfig, told: Inspection) -> LogTable:
    """The lines that count; all of them where their event types are refused."""
    try:
        types = event_types(table, config, told.notes, told.warnings)
    except (DataError, ConfigError) as error:
        told.refused = str(error)
        types = counted_types(table)
    told.events = types.counts
    return LogTable(table if types.kept is None else table.at(types.kept), types)


def _about_items(path: Path, listed: Sequence[Item]) -> dict[str, Any]:
    return {
        "path": str(path),
        "items": len(listed),
        "with_title": sum(bool(item.title) for item in listed),
        "with_categories": sum(bool(item.categories) for item in listed),
    }


def _seconds(
    table: Table, frame: pl.DataFrame, config: InteractionsConfig, told: Inspection
) -> pl.Series | None:
    """When each line happened, in seconds since 1970; None where times are no dates."""
    if "timestamp" not in table.columns:
        return None
    try:
        times = frame["order"]
        if "position" in table.columns and config.order_by != "timestamp":
            times = time_column(table, config.time_format, [])
        times = as_dates(table, times, config.time_format)
    except DataError:
        return None
    if times.dtype.is_temporal():
        seconds, unit = times.cast(pl.Datetime("us")).dt.epoch("us") / 1e6, "dates"
    else:
        divisor, unit = unit_of(units_by_size(times), config.time_format)
        seconds = times.cast(pl.Float64) / divisor
        if config.time_format is None and seconds.max() < LEAST_SAID:
            return None  # a counter
    told.period = (_said_time(seconds.min()), _said_time(seconds.max()), unit)
    return seconds


def _said_time(seconds: float) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return f"{seconds:g} seconds after 1970"


def _ties(frame: pl.DataFrame) -> int:
    """Lines of one user at the time of the line before, of another item."""
    same = (pl.col(name) == pl.col(name).shift() for name in ("user_id", "order"))
    other = pl.col("item_id") != pl.col("item_id").shift()
    return int(frame.select((pl.all_horizontal(*same) & other).sum()).item() or 0)


def _examples(log: Interactions, titles: Mapping[str, str]) -> list[dict[str, Any]]:
    lengths = log.lengths()
    by_length = np.argsort(lengths, kind="stable")
    places = dict.fromkeys(round(share * (len(by_length) - 1)) for share in EXAMPLES)
    found = []
    for user in by_length[list(places)]:
        newest = [log.item_ids[row] for row in log.history_of(user)[-MOST_SHOWN_ITEMS:]]
        named = [{"item_id": item_id, "title": titles.get(item_id, "")} for item_id in newest]
        found.append(
            {"user_id": log.user_ids[user], "interactions": int(lengths[user]), "newest": named}
        )
    return found


# --- what may be wrong --------------------------------------------------------------------------


def _guesses(
    frame: pl.DataFrame,
    seconds: pl.Series | None,
    listed: Sequence[Item],
    config: InteractionsConfig,
    told: Inspection,
) -> Iterator[str]:
    """Sentences about what is often wrong with logs that look like this one."""
    lines = len(frame)
    by_user, by_item = (
        frame.group_by(name).len().sort("len", name, descending=[True, False])
        for name in ("user_id", "item_id")
    )
    logged = set(by_item["item_id"])
    swapped = _swapped(by_user, by_item, logged, listed, lines)
    if swapped:
        yield swapped
    elif listed:
        yield from _unlike_ids(logged, listed, told)
    if lines >= LEAST_LINES:
        user, most = by_user.row(0)
        if most >= BOT_SHARE * lines and len(by_user) > 1 / BOT_SHARE:
            yield (
                f"user {shown(user)} has {most / lines:.0%} of all lines: a robot, a test account, "
                "or one id for all who are not logged in; leave such lines out"
            )
        single = int((by_user["len"] == 1).sum())
        if single == len(by_user):
            yield (
                "every user has one line, so there is nothing to predict: is user_id the id of an "
                "order, a session or a line?"
            )
        elif single > 0.9 * len(by_user):
            yield (
                f"{single / len(by_user):.0%} of the users have one line: is user_id the id of a "
                "session or a device? They are of no use to training"
            )
        if len(by_item) > 0.9 * lines:
            yield (
                "nearly every line has an item of its own: is item_id the id of an order or of a "
                "line?"
            )
        if told.ties > lines / 2:
            yield (
                f"{told.ties / lines:.0%} of the lines have the same time as the one before, of "
                "the same user: if these are days, or the time of an export, the order is that of "
                "the file; give exact times, or a position"
            )
    if frame["order"].n_unique() == 1 and lines > 1:
        yield "all lines have the same time: it is not that of the interactions"
    if seconds is not None:
        yield from _odd_times(seconds)
    weights, bought = proposed(list(config.events))
    if len(weights) > len(bought) > 0 and not config.targets:
        yield (
            "views are held out as purchases are, so figures say how well the next view is found: "
            f'--set "interactions.targets={bought}" measures what is bought'
        )
    if len(by_user) < 1000 or len(by_item) < 100:
        yield (
            f"this is a small log ({len(by_user):,} users, {len(by_item):,} items): figures will "
            "have wide errors"
        )


def _swapped(
    by_user: pl.DataFrame,
    by_item: pl.DataFrame,
    logged: set[str],
    listed: Sequence[Item],
    lines: int,
) -> str | None:
    """Are the users' ids those of items?"""
    if listed:
        ids = {item.item_id for item in listed}
        users = len(ids.intersection(by_user["user_id"]))
        if users > len(by_user) / 2 and len(ids & logged) < len(logged) / 10:
            return (
                "the ids of the items file are in the column user_id, not in item_id: the two are "
                "swapped"
            )
        return None
    if lines >= LEAST_LINES and len(by_item) > 20 * len(by_user):
        return (
            f"there are {len(by_item):,} items and {len(by_user):,} users: are the two columns "
            "swapped?"
        )
    return None


def _odd_times(seconds: pl.Series) -> Iterator[str]:
    now = datetime.now(UTC).timestamp()
    if late := int((seconds > now + 86_400).sum()):
        yield (
            f"{late:,} lines are of the future, up to {_said_time(seconds.max())}: is the time in "
            "another unit or zone? interactions.time_format says how to read it"
        )
    if early := int((seconds < OLDEST_LIKELY).sum()):
        yield (
            f"{early:,} lines are from before 1995, the first of {_said_time(seconds.min())}: a "
            "missing time is often written so, or it is in another unit"
        )


# How one file may write an id of the other, and what to do about it.
SPELLINGS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("with zeros in front", lambda each: each.lstrip("0") or "0"),
    ("as a number with a point, 123.0", lambda each: each.removesuffix(".0")),
    ("with other capitals", str.casefold),
    ("with something in front of the number", lambda each: re.sub(r"^\D+(?=\d+$)", "", each)),
    ("with something after the number", lambda each: re.sub(r"(?<=\d)\D.*$", "", each)),
    ("with spaces or signs inside", lambda each: re.sub(r"[^0-9A-Za-z]+", "", each)),
)


def _unlike_ids(logged: Collection[str], listed: Sequence[Item], told: Inspection) -> Iterator[str]:
    """What ids of the log have in common that are not in the items file."""
    ids = {item.item_id for item in listed}
    missing = sorted(set(logged) - ids)
    told.items_file["found"] = len(logged) - len(missing)
    if len(missing) <= len(logged) / 20:
        return
    said = f"{len(missing) / len(logged):.0%} of the items of the log are not in the items file"
    hits: Counter[int] = Counter()
    example: dict[int, tuple[str, str]] = {}
    unused = ids.difference(logged)
    for which, (_, plain) in enumerate(SPELLINGS):
        by_plain = {plain(each): each for each in unused}
        for item_id in missing:
            if (other := by_plain.get(plain(item_id))) is not None:
                hits[which] += 1
                example.setdefault(which, (item_id, other))
    best = max(hits, key=lambda which: (hits[which], -which), default=None)
    if best is None or hits[best] < len(missing) / 2:
        yield (
            f"{said}, such as {shown(missing[0])} (that file has {shown(listed[0].item_id)} and "
            "the like): is it the file of another shop or another column?"
        )
        return
    item_id, other = example[best]
    yield (
        f"{said}, because one of the two writes them {SPELLINGS[best][0]}: {shown(item_id)} here, "
        f"{shown(other)} there, and {hits[best]:,} in all; write the same ids in both"
    )


# --- in words -----------------------------------------------------------------------------------


def said(told: Inspection) -> Iterator[str]:
    """The lines of an inspection, for a person."""
    yield f"{told.path}: {told.format}, {told.lines:,} lines" if told.format else f"{told.path}:"
    for name, value in _facts(told):
        yield f"  {name:<14}{value}"
    if told.examples:
        yield "three users, their newest items last"
        for user in told.examples:
            items = ", ".join(_titled(each) for each in user["newest"])
            more = "... " * (user["interactions"] > len(user["newest"]))
            yield f"  {cut(user['user_id'])} ({user['interactions']:,}): {more}{items}"
    for heading, sentences in (
        ("how it was read", told.notes),
        ("look at this", told.warnings),
        ("what may be wrong (guesses)", told.guesses),
    ):
        if sentences:
            yield heading
            yield from (f"  - {sentence}" for sentence in sentences)
    if told.refused is None:
        yield "training takes it"


def _facts(told: Inspection) -> Iterator[tuple[str, str]]:
    if told.columns:
        yield (
            "columns read",
            ", ".join(
                ours if ours == theirs else f"{ours} (from {shown(theirs)})"
                for ours, theirs in told.columns.items()
            ),
        )
        yield "not read", ", ".join(map(shown, told.ignored)) or "none"
    if told.events:
        listed = (f"{shown(name)} {number:,}" for name, number in told.events.items())
        yield "event types", ", ".join([*listed][:10])
    if told.period:
        first, last, unit = told.period
        yield "time", f"{first} to {last} UTC ({unit})"
    if told.interactions:
        yield "repeats", f"{told.copies:,} lines twice, {told.repeats:,} of the item just before"
        yield "ties", f"{told.ties:,} lines at the time of the line before, of the same user"
        yield (
            "interactions",
            f"{told.interactions:,} of {told.users:,} users and {told.items:,} items",
        )
    if told.left:
        left = told.left
        yield (
            "after filters",
            f"{left['interactions']:,} of {left['users']:,} users and {left['items']:,} items",
        )
    if told.split:
        split = told.split
        yield (
            "for training",
            f"{split['samples']:,} samples; {split['validation_users']:,} users for validation, "
            f"{split['test_users']:,} for the test",
        )
    if told.items_file:
        about = told.items_file
        found = f"; it has {about['found']:,} of {told.items:,} items of the log"
        yield (
            "items file",
            f"{about['items']:,} items, {about['with_title']:,} with a title, "
            f"{about['with_categories']:,} with categories" + found * ("found" in about),
        )


def _titled(item: Mapping[str, str]) -> str:
    title = cut(item["title"], TITLE_CHARS)
    return f"{cut(item['item_id'])} {shown(title)}" if title else cut(item["item_id"])
