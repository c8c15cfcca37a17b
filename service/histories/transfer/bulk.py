"""Fills the store from a file of histories, and writes histories and events of the store to files.

Each call to the store is small, so requests are answered meanwhile. A file is written under another
name and renamed at the end. An operation that was killed is begun again. Knows no commands of the
store.
"""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TextIO, TypeVar

from service.errors import TransferFailed
from service.histories.connections import NUM_SLOTS
from service.histories.event_log import LoggedEvent
from service.histories.redis_store import RedisHistoryStore
from service.schemas import is_item_id, is_new_item_id, is_user_id

T = TypeVar("T")
USERS_AT_ONCE = 200
SLOTS_AT_ONCE = 64
Timestamps = Literal["seconds", "iso"]
Progress = Callable[[int], None]  # is told how much is done


@dataclass(frozen=True)
class Loaded:
    """users: in the file; filled: those whose history gained items; refused: ids not taken

    unlike: users whose history shares items with the file but does not line up; it is as before
    """

    users: int
    filled: int
    items: int
    refused_users: int
    refused_items: int
    unlike: int


@dataclass(frozen=True)
class Exported:
    """since, until: the time that was exported, in Unix seconds; until is not in it

    left_out: events with ids that training refuses
    """

    events: int
    left_out: int
    since: float
    until: float


async def load_histories(
    store: RedisHistoryStore,
    histories: Iterable[tuple[str, Sequence[str]]],
    progress: Progress,
) -> Loaded:
    """Add the items that the store lacks, older or newer ones, see `RedisHistoryStore.fill`.

    Ids that the service does not take are left out. Raises HistoryUnavailable, or TransferFailed
    from reading. Repeating the call changes nothing of what is done.
    """
    users = filled = items = refused_users = refused_items = unlike = 0
    for portion in _portions(histories, USERS_AT_ONCE):
        taken = []
        for user_id, item_ids in portion:
            known = [item_id for item_id in item_ids if is_item_id(item_id)]
            refused_items += len(item_ids) - len(known)
            if not is_user_id(user_id):
                refused_users += 1
            elif known:
                taken.append((user_id, known))
        gained = await store.fill(taken) if taken else []
        users += len(portion)
        filled += sum(bool(number) for number in gained)
        items += sum(number or 0 for number in gained)
        unlike += gained.count(None)
        progress(users)
    return Loaded(users, filled, items, refused_users, refused_items, unlike)


async def export_histories(store: RedisHistoryStore, path: Path, progress: Progress) -> int:
    """Write all histories as JSON lines, each user once; returns how many.

    Raises HistoryUnavailable or TransferFailed; then there is no file.
    """
    written: set[str] = set()  # a scan may name a user twice
    with _whole_file(path) as file:
        async for named in store.users():
            user_ids = [user_id for user_id in dict.fromkeys(named) if user_id not in written]
            for portion in _portions(user_ids, USERS_AT_ONCE):
                histories = await store.histories_of(portion)
                for user_id, history in zip(portion, histories, strict=True):
                    if history:  # else it was erased meanwhile
                        file.write(_line({"user_id": user_id, "history": history}))
                        written.add(user_id)
            progress(len(written))
    return len(written)


async def export_events(
    store: RedisHistoryStore,
    path: Path,
    progress: Progress,
    *,
    since: float,
    until: float | None,
    log_s: int,
    timestamps: Timestamps,
    without: Collection[str] = (),
) -> Exported:
    """Write the events of the log that came in since then, as JSON lines that training reads.

    since, until: Unix seconds; until None = now. An export whose `since` is the `until` of the one
        before goes on exactly where that one ended.
    without: event types that are left out
    log_s: how long events stay in the log; `since` is not before that
    A user's events are in the order in which they came in. Events with ids that training refuses
    are left out: no bundle can have such items. Raises HistoryUnavailable or
    TransferFailed, also when `since` is later than `until` or now; then there is no file.
    """
    if until is not None and since > until:
        raise TransferFailed("the export would end before it begins: set --since before --until")
    now_ms = await store.clock_ms()
    if round(since * 1000) > now_ms:
        raise TransferFailed(
            "the export would begin in the future: set --since to a time before now (UTC, by the "
            "store's clock)"
        )
    until_ms = now_ms if until is None else min(now_ms, round(until * 1000))
    since_ms = max(round(since * 1000), now_ms - log_s * 1000)
    num_events = left_out = 0
    with _whole_file(path) as file:
        for slots in _portions(range(NUM_SLOTS), SLOTS_AT_ONCE):
            for events in await store.read_log(slots):
                for event in events:
                    if not since_ms <= event.at_ms < until_ms or event.event_type in without:
                        continue
                    if not (_is_plain(event.user_id) and _is_plain(event.item_id)):
                        left_out += 1
                        continue
                    file.write(_line(_interaction(event, timestamps)))
                    num_events += 1
            progress(num_events)
    return Exported(num_events, left_out, since_ms / 1000, until_ms / 1000)


def _is_plain(text: str) -> bool:
    """Whether training takes an id that the service took."""
    return is_new_item_id(text) and text.strip() == text


def _interaction(event: LoggedEvent, timestamps: Timestamps) -> dict[str, Any]:
    happened: float | str = event.happened_s
    if timestamps == "iso":
        moment = datetime.fromtimestamp(event.happened_s, UTC)
        happened = moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
    fields = {
        "user_id": event.user_id,
        "item_id": event.item_id,
        "timestamp": happened,
        "event_type": event.event_type,
    }
    return fields if event.value is None else fields | {"value": event.value}


def _line(fields: dict[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False) + "\n"


def _portions(values: Iterable[T], most: int) -> Iterator[list[T]]:
    rest = iter(values)
    while portion := list(islice(rest, most)):
        yield portion


@contextmanager
def _whole_file(path: Path) -> Iterator[TextIO]:
    """A file that is there when the block has ended well, and else is not. `.gz`: compressed"""
    unfinished = path.with_name(f".{path.name}.unfinished")
    opened: Callable[[Path, str], Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(unfinished, "wb") as binary:
            file = io.TextIOWrapper(binary, "utf-8", newline="\n")
            yield file
            file.flush()
            file.detach()
        with unfinished.open("rb") as done:
            os.fsync(done.fileno())
        unfinished.rename(path)
    except OSError as error:
        raise TransferFailed(f"{path} cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):  # else it would hide the error that matters
            unfinished.unlink()
