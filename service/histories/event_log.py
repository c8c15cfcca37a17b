"""The event log: accepted events, oldest first, in one list for each key slot of the store.

The list of a user's slot can be written in the same step as the user's history, in a cluster too,
and it is short enough to take a user's events out of it. An entry is JSON: when the event came in
(milliseconds of the store's clock, never less than the entry before), then user, item, type,
timestamp and value. Knows keys and entries, and nothing of connections or commands.
"""

from __future__ import annotations

import itertools
import json
from functools import cache, partial
from typing import NamedTuple

from redis.crc import key_slot

from service.schemas import Event

LETTERS = "@ABCDEFGHIJKLMNO"  # 4 of them, the first one of 4, have every slot once

# ensure_ascii is off, so that an id has the same bytes in all entries.
json_of = partial(json.dumps, ensure_ascii=False, separators=(",", ":"))


class LoggedEvent(NamedTuple):
    """An event of the log. at_ms: when it came in; timestamp: Unix seconds, if the client said"""

    at_ms: int
    user_id: str
    item_id: str
    event_type: str
    timestamp: float | None
    value: float | None

    @property
    def happened_s(self) -> float:
        """When it happened, in Unix seconds: as the client says, but not after it came in."""
        came_s = self.at_ms / 1000
        return came_s if self.timestamp is None else min(self.timestamp, came_s)


def log_key_of(slot: int) -> str:
    """The key of the log of a slot; it is in this slot itself."""
    return f"unmask:log:{{{_tags()[slot]}}}"


def log_key(user_key: str) -> str:
    """The key of the log that has the events of the user with that key."""
    return log_key_of(key_slot(user_key.encode()))


def start_of_user(user_id: str) -> str:
    """How the entries of a user go on after their time."""
    return f"{json_of(user_id)},"


def rest_of_entry(event: Event) -> str:
    """The entry of an event, without its time and the comma after it."""
    fields = (event.user_id, event.item_id, event.event_type, event.timestamp, event.value)
    return json_of(fields)[1:]


def event_of(entry: str) -> LoggedEvent:
    """The event of an entry. Raises ValueError or TypeError for text that is none."""
    return LoggedEvent(*json.loads(entry))


@cache
def _tags() -> dict[int, str]:
    """For each slot a text that, in braces, puts a key into it."""
    tags = ("".join(letters) for letters in itertools.product(LETTERS[:4], *[LETTERS] * 3))
    return {key_slot(tag.encode()): tag for tag in tags}
