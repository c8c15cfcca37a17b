"""What events look like in JSON, and what became of them.

As in `service.schemas.fields`, unknown fields are refused. Knows nothing of HTTP or the store.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from service.schemas.fields import AnswerModel, ItemId, RequestModel, UserId, entry_or_error

MAX_TIMESTAMP_S = 10**11  # the year 5138; today's time in milliseconds is larger, so it is refused
UNDO = "undo_"  # before a negative event type: it takes the refusal back


def refusals_among(
    negative_event_types: Iterable[str], history_event_types: Collection[str]
) -> tuple[list[str], list[str]]:
    """The types that refuse an item, and those that undo it. A type of histories is no refusal."""
    refusing = [one for one in negative_event_types if one not in history_event_types]
    return refusing, [UNDO + one for one in refusing]


class Event(RequestModel):
    """Something that a user did with an item, or saw. `timestamp` and `value` are for training.

    An event may name the `recommendation_id` of an answer of the last day. If that answer has the
    event's item, the event is attributed to it. A history has its events in the order in which they
    arrived.
    """

    event_id: str = Field(
        min_length=1,
        max_length=128,
        description="The client's name for the event; repeating it within a day changes nothing.",
    )
    user_id: UserId
    item_id: ItemId | None = Field(None, description="The item; either this or `item_ids`.")
    item_ids: list[ItemId] | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="The items of an event that does not enter the history, e.g. an impression.",
    )
    event_type: str = Field(min_length=1, max_length=64, description="e.g. click, purchase")
    timestamp: float | None = Field(
        None,
        ge=0,
        lt=MAX_TIMESTAMP_S,
        description="When it happened, in Unix seconds; kept in the event log if the event enters "
        "the history. Histories have the order of arrival.",
    )
    value: float | None = Field(
        None,
        allow_inf_nan=False,
        description="A rating or a price, say; kept in the event log if the event enters the "
        "history.",
    )
    recommendation_id: str | None = Field(
        None, min_length=1, max_length=128, description="The answer that showed the item."
    )

    @property
    def all_item_ids(self) -> list[str]:
        """The item ids, one or more."""
        return self.item_ids or [self.item_id or ""]

    @model_validator(mode="after")
    def _has_item_id_or_item_ids(self) -> Self:
        if (self.item_id is None) == (self.item_ids is None):
            raise PydanticCustomError("item_id", "either item_id or item_ids must be given")
        return self


class EventsRequest(RequestModel):
    """Events, appended in the order given. A wrong event does not stop the others."""

    events: list[Annotated[Event | ValidationError, entry_or_error(Event)]] = Field(
        min_length=1, max_length=100
    )


class RejectedEvent(AnswerModel):
    """An event that was not stored. `index` is its position in the request, from 0."""

    index: int
    code: Literal["invalid_event", "unknown_event_type"]
    message: str


class EventsResponse(AnswerModel):
    """accepted + duplicates + len(rejected) is the number of events sent.

    `attributed` counts accepted events that name a remembered answer and an item in it.
    """

    accepted: int
    duplicates: int
    attributed: int
    rejected: list[RejectedEvent]
    took_ms: float
