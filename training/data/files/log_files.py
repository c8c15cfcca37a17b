"""Reads the file of interactions: which user had which item, and in which order.

The order comes from `position` or `timestamp`. If the two contradict each other, the file is
refused, because it might otherwise be read backwards. Knows nothing of rows and splits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from training.config import InteractionsConfig
from training.data.files.columns import id_column, ranked
from training.data.files.event_types import KINDS, EventTypes, event_types
from training.data.files.table import ROWS_AT_ONCE, Kind, Table, shown, words_of
from training.data.files.table_files import read_table
from training.data.files.times import NUMBER, position_column, time_column
from training.errors import DataError

# Such columns suggest that lines have different weights. All lines count the same; a note says so.
LIKE_WEIGHTS = (
    "event_type", "event", "event_name", "action", "action_type", "behavior", "behavior_type",
    "rating", "overall", "stars", "score", "weight", "quantity", "clicked", "click", "purchased",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class LogTable:
    """The lines of a log that count, before they are ordered.

    table: columns user_id, item_id, position, timestamp, as far as the file has them
    types: what the event types of all its lines say
    """

    table: Table
    types: EventTypes

    @property
    def unused(self) -> tuple[str, ...]:
        """Columns of the file that are not read, as it writes them."""
        labels = [self.table.names.get(each, each) for each in KINDS if each in self.table.columns]
        used = self.types.name if len(self.types.counts) > 1 else None
        return (*self.table.others, *(name for name in labels if name != used))


def read_log(
    path: Path,
    config: InteractionsConfig,
    notes: list[str],
    warnings: list[str] | None = None,
) -> pl.DataFrame:
    """Read a log of `user_id`, `item_id`, `position` or `timestamp`, perhaps with event types.

    See `ordered_log`. `notes` gets sentences about how the file was read, `warnings` about what may
    not be as meant. Raises DataError with the line of a value that cannot be read or has two
    meanings, ConfigError for columns and event types that are named and not there.
    """
    return ordered_log(read_log_table(path, config, notes, warnings), config, notes)


def read_log_table(
    path: Path, config: InteractionsConfig, notes: list[str], warnings: list[str] | None = None
) -> LogTable:
    """The lines that count, from a file or a folder of parts."""
    table = read_log_columns(path, config, notes)
    types = event_types(table, config, notes, [] if warnings is None else warnings)
    return LogTable(table if types.kept is None else table.at(types.kept), types)


def read_log_columns(path: Path, config: InteractionsConfig, notes: list[str]) -> Table:
    """All lines of a log, with the columns that are needed."""
    kinds: dict[str, Kind] = {
        "user_id": "id", "item_id": "id", "position": "order", "timestamp": "order"
    }  # fmt: skip
    table = read_table(path, kinds | KINDS, config.columns)
    needed = ["user_id", "item_id"]
    if config.order_by or not {"position", "timestamp"} & table.columns.keys():
        needed.append(config.order_by or "position or timestamp")
    table.require(needed)
    notes.extend(table.notes)
    return table


def ordered_log(log: LogTable, config: InteractionsConfig, notes: list[str]) -> pl.DataFrame:
    """The interactions of a log, sorted by user, each user's oldest to newest.

    Ids become strings as they are written ("007" stays "007"). A user's items are ordered by
    `position` if there is such a column; a user must not have a position twice. Else they are
    ordered by `timestamp`; equal timestamps keep the order of the file. `config.order_by` may
    choose the column.
    Returns user_id, item_id, order (the position or time); for a split by time also time, which
    never decreases for a user; where event types say so, weight (float32) and is_target (bool).
    """
    table, path = log.table, log.table.path
    orders = [name for name in ("position", "timestamp") if name in table.columns]
    order = config.order_by or orders[0]
    events = {"weight": log.types.weights, "is_target": log.types.targets}
    lines = pl.DataFrame(
        {
            "user_id": id_column(table, "user_id", notes),
            "item_id": id_column(table, "item_id", notes),
            "order": (
                position_column(table)
                if order == "position"
                else time_column(table, config.time_format, notes)
            ),
            **{name: column for name, column in events.items() if column is not None},
        }
    )
    if len(orders) == 2:
        lines = lines.with_row_index("row")
    frame = _by_user_and_order(lines)
    same_user = frame["user_id"] == frame["user_id"].shift()
    tied = same_user & (frame["order"] == frame["order"].shift())
    if order == "position":
        if tied.any():
            second = tied.arg_max() or 0
            user_id, position = frame["user_id"][second], frame["order"][second]
            row = _row_of(second, frame, lines)
            table.refuse(row, f"user {user_id} has position {position} more than once")
    else:
        tied &= frame["item_id"] != frame["item_id"].shift()
        if tied.any():
            place = table.place(_row_of(tied.arg_max() or 0, frame, lines))
            notes.append(
                f"{path.name}: lines with the timestamp of the line before, of the same user: "
                f"{tied.sum():,} of {len(frame):,}, for instance {place}; these keep the order of "
                "the file"
            )
    if len(orders) == 2:
        if config.order_by is None:
            _check_agreement(table, frame, config.time_format)
        unused = orders[order == orders[0]]
        by_time = config.split == "time" and unused == "timestamp"
        use = "says only what is held out" if by_time else "is not used"
        notes.append(f"{path.name}: ordered by {order}; the column {unused} {use}")
    if weights := [name for name in log.unused if words_of(name) in LIKE_WEIGHTS]:
        notes.append(
            f"{path.name}: {', '.join(map(shown, weights))} is not used; every line counts alike, "
            "so leave out the lines that are no interactions"
        )
    if config.split == "time":
        frame = frame.with_columns(time=_times(table, frame, config, order, notes))
    return frame.drop("row", strict=False)


def _row_of(place: int, frame: pl.DataFrame, lines: pl.DataFrame) -> int:
    """Where a row of the sorted frame is among the lines, which takes less than to carry it along.

    Of lines with the same user and order, the sort has kept their order.
    """
    names = ("user_id", "order")
    alike, there = (
        pl.select(pl.all_horizontal(each[name] == frame[name][place : place + 1] for name in names))
        .to_series()
        .arg_true()
        for each in (frame, lines)
    )
    return int(there[int((alike < place).sum())])


def _by_user_and_order(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame sorted, rows that are alike in their order; some users at a time.

    A sort of many rows needs several times the memory of these rows.
    """
    names, user = ranked(frame["user_id"])
    until = np.cumsum(np.bincount(user, minlength=len(names)))
    parts = until // ROWS_AT_ONCE
    firsts = np.flatnonzero(np.diff(parts, prepend=-1))  # users, at each of whom a part begins
    sorted_parts = []
    for first, last in zip(firsts, [*(firsts[1:] - 1), len(names) - 1], strict=True):
        of_part = frame if len(firsts) == 1 else frame.filter((user >= first) & (user <= last))
        sorted_parts.append(of_part.sort("user_id", "order", maintain_order=True))
    return pl.concat(sorted_parts) if sorted_parts else frame


def _times(
    table: Table, frame: pl.DataFrame, config: InteractionsConfig, order: str, notes: list[str]
) -> pl.Series:
    """When each interaction of the frame happened.

    Raises DataError where that is not known, or contradicts the order of a user's interactions.
    """
    if order == "timestamp":
        return as_dates(table, frame["order"], config.time_format)
    if "timestamp" not in table.columns:
        raise DataError(
            f"{table.path}: interactions.split=time needs a column timestamp, and there is none; "
            "say interactions.split=leave_last_out, or add the column"
        )
    try:
        times = time_column(table, config.time_format, notes)[frame["row"]]
    except DataError as error:
        raise DataError(
            f"{error}; interactions.split=time needs to know when every interaction happened: "
            "leave out the others, or say interactions.split=leave_last_out"
        ) from error
    back = (frame["user_id"] == frame["user_id"].shift()) & (times < times.shift())
    if back.any():
        table.refuse(
            frame["row"][back.arg_max() or 0],
            "by position it comes after an interaction of the same user with a later timestamp, so "
            "interactions.split=time cannot say on which side it is; say "
            "--set interactions.order_by=timestamp",
        )
    return as_dates(table, times, config.time_format)


def as_dates(table: Table, times: pl.Series, time_format: str | None) -> pl.Series:
    """Times that were written as dates, and read as nanoseconds, as dates again."""
    written = table.columns["timestamp"]
    if time_format is None:
        is_date = not written.dtype.is_numeric() and not re.match(NUMBER, str(written[0]).strip())
    else:
        is_date = not time_format.startswith("epoch_")
    return times.cast(pl.Datetime("ns")) if is_date and times.dtype.is_integer() else times


def _check_agreement(table: Table, frame: pl.DataFrame, time_format: str | None) -> None:
    """Raise a DataError if timestamps contradict positions; lines without a time are not checked.

    frame: row, user_id; in the order of the positions
    """
    there = table.columns["timestamp"].is_not_null()
    if table.columns["timestamp"].dtype.is_float():
        there &= table.columns["timestamp"].is_not_nan()
    if not there.any():
        return
    timed = table.at(there)
    try:
        times = time_column(timed, time_format, [])
    except DataError:
        return  # times that cannot be read are not used, so they need not agree
    rows = there.arg_true().to_frame("row").with_columns(time=times)
    frame = frame.join(rows, on="row", how="inner", maintain_order="left")
    back = (frame["user_id"] == frame["user_id"].shift()) & (frame["time"] < frame["time"].shift())
    if back.any():
        later = back.arg_max() or 0
        row, before = frame["row"][later], frame["row"][later - 1]
        position, timestamp = table.columns["position"], table.columns["timestamp"]
        table.refuse(
            row,
            f"position {position[row]} of user {shown(frame['user_id'][later])} comes after "
            f"position {position[before]} in {table.place(before)}, but its timestamp "
            f"{shown(timestamp[row])} before {shown(timestamp[before])}; say "
            "--set interactions.order_by=position or --set interactions.order_by=timestamp",
        )
