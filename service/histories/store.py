"""What the service keeps of users and of changed items: the protocol of the history store.

A history is a list of item_ids, oldest to newest. An event is remembered by its `event_id` for a
day, and repeating it changes nothing. An answer is remembered by its `recommendation_id` for a day
too. An event that names the answer and has one of its items is attributed to it. Knows nothing of
Redis.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

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
    """What became of an event. `is_new` is False for an event_id that the user has sent before."""

    is_new: bool
    attribution: Attribution | None = None


class HistoryStore(Protocol):
    """Where histories are kept. Every method may raise HistoryUnavailable."""

    async def read(self, user_id: str, limit: int | None = None) -> list[str]:
        """The newest `limit` items of a user (default: all), oldest to newest.

        A replica may answer, if there is one. Then the newest events may be missing.
        """
        ...

    async def read_page(
        self, user_id: str, recommendation_id: str
    ) -> tuple[list[str], RememberedAnswer | None]:
        """The history, and the answer with that id if it is remembered, in one round trip.

        It always asks the primary, because the answer may have been written a moment ago.
        """
        ...

    async def remember(self, answers: Sequence[tuple[str, RememberedAnswer]]) -> None:
        """Remember answers, each with its user, for a day. Of each user, the last 20 are kept."""
        ...

    async def append(
        self, events: Sequence[Event], counted_event_types: Collection[str] = ()
    ) -> list[Stored]:
        """Store events in the order given: in histories and the log, and attribute them to answers.

        counted_event_types: types that are attributed but enter neither history nor log
        Each event is stored completely or not at all.
        """
        ...

    async def erase(self, user_id: str) -> None:
        """Forget the user, in the log too. Nothing happens if there is nothing to forget."""
        ...
