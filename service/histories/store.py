"""What the service keeps of users and of changed items: the protocol of the history store.

A history is a list of item_ids, oldest to newest. Refusals are the items that a user is not
interested in. An event is remembered by its `event_id` for a day, and repeating it changes nothing.
An answer is remembered by its `recommendation_id` for a day too. An event that names the answer and
has one of its items is attributed to it. Knows nothing of Redis.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from service.histories.event_log import json_of
from service.schemas import Event


@dataclass(frozen=True)
class RememberedAnswer:
    """An answer as it is remembered.

    item_ids: in the order of their ranks
    before: the items of earlier pages; empty for a first page
    """

    recommendation_id: str
    bundle: str
    variant: str
    item_ids: tuple[str, ...]
    before: tuple[str, ...] = ()

    def as_json(self, now_s: int) -> str:
        """It begins with `start_of_answer`."""
        return json_of({"recommendation_id": self.recommendation_id, "at": now_s} | vars(self))


def start_of_answer(recommendation_id: str) -> str:
    """How the JSON of an answer begins."""
    return json_of({"recommendation_id": recommendation_id})[:-1] + ","


def answer_of(text: str, oldest_s: float) -> RememberedAnswer | None:
    """The answer of that JSON; None if it is older."""
    fields = json.loads(text)
    if fields.pop("at") < oldest_s:
        return None
    item_ids, before = tuple(fields.pop("item_ids")), tuple(fields.pop("before"))
    return RememberedAnswer(**fields, item_ids=item_ids, before=before)


class StoredUser(NamedTuple):
    """What is kept of a user, each oldest to newest.

    history: item_ids; refused: item_ids in which the user is not interested, each once
    """

    history: list[str]
    refused: list[str]


@dataclass(frozen=True)
class Attribution:
    """The answer that an event is attributed to.

    rank: rank of the event's item in the answer, from 1; the best one if the event has several
        items
    is_first: whether no event of this type was attributed to this answer before
    """

    bundle: str
    variant: str
    rank: int
    is_first: bool


@dataclass(frozen=True)
class Stored:
    """What became of an event. `is_new` is False for an event_id that the user has sent before.

    counts: whether it counts for what is trending: the user's first for its item within a day
    """

    is_new: bool
    attribution: Attribution | None = None
    counts: bool = False


class HistoryStore(Protocol):
    """Where histories are kept. Every method may raise HistoryUnavailable."""

    async def read(self, user_id: str, limit: int | None = None) -> StoredUser:
        """The newest `limit` items of a user's history, default: all; and all refusals.

        A replica may answer, if there is one. Then the newest events may be missing.
        """
        ...

    async def read_page(
        self, user_id: str, recommendation_id: str
    ) -> tuple[StoredUser, RememberedAnswer | None]:
        """What is kept of a user, and the answer with that id if it is remembered: one round trip.

        It always asks the primary, because the answer may have been written a moment ago.
        """
        ...

    async def remember(self, answers: Sequence[tuple[str, RememberedAnswer]]) -> None:
        """Remember answers, each with its user, for a day. Of each user, the last 20 are kept."""
        ...

    async def append(
        self,
        events: Sequence[Event],
        counted_event_types: Collection[str] = (),
        negative_event_types: Collection[str] = (),
        trending_event_types: Collection[str] = (),
    ) -> list[Stored]:
        """Store events in the order given: in histories and the log, and attribute them to answers.

        counted_event_types: types that are attributed but enter neither history nor log
        negative_event_types: types of events that enter the user's refusals and the log, and are
            attributed to no answer; UNDO before such a type takes the item out of the refusals
        trending_event_types: types of which events with one item may count
        Each event is stored completely or not at all.
        """
        ...

    async def erase(self, user_id: str) -> None:
        """Forget the user, in the log too. Nothing happens if there is nothing to forget."""
        ...
