"""`python -m service histories load|export` and `events export`: their arguments, and what is said.

Progress is on stderr. The sentence at the end, which says what was done, is returned. Knows nothing
of settings or of how the store is reached.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import get_args

from service.errors import TransferFailed
from service.histories.redis_store import RedisHistoryStore
from service.histories.transfer.bulk import (
    Timestamps,
    export_events,
    export_histories,
    load_histories,
)
from service.histories.transfer.history_files import read_histories, time_of
from service.schemas import refusals_among

SAY_EVERY = 100_000
DAY_S = 24 * 60 * 60
HISTORIES_READ = 10  # how many full histories of each user's log, to find the stored one in it
MAX_TYPES_NAMED = 10


def command_parser() -> argparse.ArgumentParser:
    """Reads the arguments of the commands. `command` of the result is which one."""
    parser = argparse.ArgumentParser(prog="python -m service")
    nouns = parser.add_subparsers(required=True)
    histories = nouns.add_parser(
        "histories", help="users' histories", description="load FILE, or export --out FILE"
    ).add_subparsers(required=True)
    load = histories.add_parser(
        "load",
        help="fill histories from a training log",
        description="Add the newest items of each user that the store lacks. Running it again "
        "changes nothing, and goes on where a run ended that was killed.",
    )
    load.add_argument(
        "file",
        type=Path,
        help="CSV or JSON lines, also .gz: user_id, item_id, timestamp in any order, and "
        "maybe event_type; or what `histories export` wrote",
    )
    load.set_defaults(command="load")
    export = histories.add_parser("export", help="write all histories to a file of JSON lines")
    export.set_defaults(command="export_histories")
    events = nouns.add_parser(
        "events",
        help="the event log",
        description="export --out FILE [--since TIME] [--until TIME], or export --days FOLDER; "
        "[--timestamps seconds|iso] [--refusals]",
    ).add_subparsers(required=True)
    exported = events.add_parser(
        "export",
        help="write events to a file that `python -m training --interactions` reads",
        description="Events that entered histories, by the time when they came in. Refusals, such "
        "as not_interested and undo_not_interested, are left out unless --refusals is given: "
        "training would take those of types that it does not know for interactions.",
    )
    exported.add_argument(
        "--since", type=_time, default=0.0, help="a date such as 2026-11-01 (UTC) or Unix seconds"
    )
    exported.add_argument("--until", type=_time, help="not included; default: now")
    exported.add_argument("--timestamps", choices=get_args(Timestamps), default="seconds")
    exported.set_defaults(command="export_events")
    exported.add_argument(
        "--refusals",
        action="store_true",
        help="also events of UNMASK_NEGATIVE_EVENT_TYPES, and those that undo them",
    )
    where = exported.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--days",
        type=Path,
        metavar="FOLDER",
        help="instead: a file for each whole day (UTC) after the newest file of the folder, such "
        "as 2026-11-30.jsonl; --since and --until are not looked at",
    )
    for command in (export, where):
        is_alone = command is export
        command.add_argument("--out", type=Path, required=is_alone, help="the file; .gz is packed")
    return parser


async def run_command(
    asked: argparse.Namespace,
    store: RedisHistoryStore,
    *,
    history_cap: int,
    history_event_types: Collection[str],
    event_log_days: int,
    negative_event_types: Collection[str] = (),
) -> str:
    """Do what was asked; returns what was done, as a sentence.

    asked: by `command_parser`
    history_event_types: types that enter histories; of a log that has types, no others are taken
    negative_event_types: types of refusals, as for `store_events`
    Raises HistoryUnavailable or TransferFailed.
    """
    if asked.command == "load":
        return await _load(store, asked.file, history_cap, history_event_types)
    if asked.command == "export_histories":
        users = await export_histories(store, asked.out, _progress("users"))
        return f"{users:,} histories written to {asked.out}."
    if not event_log_days:
        raise TransferFailed("there is no event log, because UNMASK_EVENT_LOG_DAYS is 0")
    refusing, undoing = refusals_among(negative_event_types, history_event_types)
    without = set() if asked.refusals else {*refusing, *undoing}
    if asked.days is not None:
        return await _export_days(store, asked.days, asked.timestamps, event_log_days, without)
    return await _export_events(store, asked, event_log_days, without)


async def _load(
    store: RedisHistoryStore, file: Path, history_cap: int, event_types: Collection[str]
) -> str:
    left_out: Counter[str] = Counter()

    def is_taken(event_type: str) -> bool:
        if event_type in event_types:
            return True
        is_named = event_type in left_out or len(left_out) < MAX_TYPES_NAMED
        left_out[event_type if is_named else "others"] += 1
        return False

    with closing(read_histories(file, HISTORIES_READ * history_cap, is_taken)) as histories:
        loaded = await load_histories(store, histories, _progress("users"))
    said = (
        f"{loaded.users:,} users read: {loaded.items:,} items were added to the histories of "
        f"{loaded.filled:,}; "
    )
    if loaded.unlike:
        said += (
            f"{loaded.unlike:,} were left as they were, because their histories have items of the "
            "file, but in another order, and so it is not known which items are older; "
        )
    said += "the others had theirs already."
    if loaded.refused_users or loaded.refused_items:
        said += (
            f" Ids that the service does not take were left out: {loaded.refused_users:,} users, "
            f"{loaded.refused_items:,} items."
        )
    if left_out:
        types = ", ".join(f"{name} ({number:,})" for name, number in left_out.most_common())
        said += (
            f" {left_out.total():,} lines were left out, because UNMASK_HISTORY_EVENT_TYPES does "
            f"not have their event_type: {types}."
        )
    return said


async def _export_events(
    store: RedisHistoryStore,
    asked: argparse.Namespace,
    event_log_days: int,
    without: Collection[str],
) -> str:
    exported = await export_events(
        store,
        asked.out,
        _progress("events"),
        since=asked.since,
        until=asked.until,
        log_s=event_log_days * DAY_S,
        timestamps=asked.timestamps,
        without=without,
    )
    if asked.since and exported.since > asked.since:
        print(
            f"the log goes back to {_date(exported.since)} only "
            f"(UNMASK_EVENT_LOG_DAYS={event_log_days})",
            file=sys.stderr,
        )
    _say_left_out(exported.left_out)
    return (
        f"{exported.events:,} events written to {asked.out}; "
        f"go on next time with --since {_date(exported.until)}"
    )


def _say_left_out(events: int) -> None:
    if events:
        print(
            f"{events:,} events were left out: their ids have control characters, or "
            "spaces at an end, and training refuses these",
            file=sys.stderr,
        )


async def _export_days(
    store: RedisHistoryStore,
    folder: Path,
    timestamps: Timestamps,
    event_log_days: int,
    without: Collection[str],
) -> str:
    """Write whole days that came after the newest file of the folder, oldest first.

    A day without events gets no file: training refuses an empty one.
    Raises TransferFailed where the newest file is of a day that has not ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    today = datetime.fromtimestamp(await store.clock_ms() / 1000, UTC).date()
    of_days = [(path, day) for path in folder.glob("*.jsonl") if (day := _day_of(path)) is not None]
    for path, _ in of_days:
        if not path.stat().st_size:  # of an export that was killed before it removed it
            path.unlink()
    there = [day for path, day in of_days if path.exists()]
    if there and max(there) >= today:
        raise TransferFailed(
            f"{folder} has {max(there)}.jsonl, and that day has not ended (UTC, by the store's "
            "clock), so the rest of it would never be written; move that file away"
        )
    oldest = today - timedelta(days=event_log_days)
    day = max([oldest, *(each + timedelta(days=1) for each in there)])
    if there and day == oldest > max(there) + timedelta(days=1):
        print(
            f"no file has the days from {max(there) + timedelta(days=1)} on, and the log goes back "
            f"to {oldest} only (UNMASK_EVENT_LOG_DAYS={event_log_days})",
            file=sys.stderr,
        )
    events = files = left_out = 0
    while day < today:
        path, begin = folder / f"{day}.jsonl", _midnight(day)
        exported = await export_events(
            store,
            path,
            _progress("events"),
            since=begin,
            until=begin + DAY_S,
            log_s=event_log_days * DAY_S,
            timestamps=timestamps,
            without=without,
        )
        if exported.since > begin:
            print(
                f"of {day} there are only events from {_date(exported.since)} on: the log does not "
                f"go back further (UNMASK_EVENT_LOG_DAYS={event_log_days})",
                file=sys.stderr,
            )
        if not exported.events:
            path.unlink()
            if exported.left_out:
                print(f"{path.name} is not written: its events were left out", file=sys.stderr)
        left_out += exported.left_out
        events, files = events + exported.events, files + bool(exported.events)
        day += timedelta(days=1)
    _say_left_out(left_out)
    return f"{events:,} events written to {files:,} new files in {folder}"


def _day_of(path: Path) -> date | None:
    try:
        return date.fromisoformat(path.stem)
    except ValueError:
        return None


def _midnight(day: date) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()


def _date(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return moment.replace("+00:00", "Z")


def _time(text: str) -> float:
    try:
        seconds = time_of(text)
        _date(seconds)
    except (ValueError, OverflowError, OSError):
        message = "write a date such as 2026-11-01, or Unix seconds"
        raise argparse.ArgumentTypeError(message) from None
    return seconds


def _progress(what: str) -> Callable[[int], None]:
    """Says how much is done, whenever another SAY_EVERY are."""
    said = 0

    def say(done: int) -> None:
        nonlocal said
        if done // SAY_EVERY > said:
            said = done // SAY_EVERY
            print(f"{done:,} {what}", file=sys.stderr)

    return say
