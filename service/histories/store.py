"""What the service keeps, of users and of items that change: the protocol of the store.

A history is a list of item_ids, oldest to newest. An event is remembered by its `event_id` for a
day: repeating it changes nothing. So is an answer, by its `recommendation_id`: an event that names
it and holds one of its items is attributed to it. Knows nothing of Redis.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from service.schemas import Event


@dataclass(frozen=True)
class RememberedAnswer:
    """An answer as it is remembered. `item_ids` are in the order of their ranks; `before` are the
    items of earlier pages, if it was not the first page."""

    recommendation_id: str
    bundle: str
    variant: str
    item_ids: tuple[str, ...]
    before: tuple[str, ...] = ()


@dataclass(frozen=True)
class Attribution:
    """The answer that an event goes back to.

    rank: of the event's item in it, from 1, the best of them if the event has several; is_first:
    no event of this type was attributed to this answer before
    """

    bundle: str
    variant: str
    rank: int
    is_first: bool


@dataclass(frozen=True)
class Stored:
    """What became of an event; `is_new` is False for an event_id the user has sent before."""

    is_new: bool
    attribution: Attribution | None = None


class HistoryStore(Protocol):
    """Where histories are kept. Every method may raise HistoryUnavailable."""

    async def read(self, user_id: str, limit: int | None = None) -> list[str]:
        """The newest `limit` items of a user (all by default), oldest to newest.

        A replica may answer, if there is one; then the newest events may be missing.
        """
        ...

    async def read_page(
        self, user_id: str, recommendation_id: str
    ) -> tuple[list[str], RememberedAnswer | None]:
        """The history, and the answer of that id if it is remembered, in one round trip.

        Always from the primary: the answer may have been written a moment ago.
        """
        ...

    async def remember(self, answers: Sequence[tuple[str, RememberedAnswer]]) -> None:
        """Remember answers, each with the user who got it, for a day; the last 20 of a user."""
        ...

    async def append(
        self, events: Sequence[Event], counted_event_types: Collection[str] = ()
    ) -> list[Stored]:
        """Store events in the order given: append them to histories, attribute them to answers.

        counted_event_types: those that are attributed and do not enter a history. Each event is
        stored wholly or not at all.
        """
        ...

    async def erase(self, user_id: str) -> None:
        """Forget the user; nothing happens when there is nothing to forget."""
        ...
