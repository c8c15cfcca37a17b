"""What requests and answers look like in JSON: fields, bounds, one sentence each.

Unknown fields are refused, so that a misspelt one is not silently a default. Bounds that depend on
the bundle (r_warm, m_par) are checked by the recommender. Knows nothing of HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from service.decoding import Ranking

DegradedReason = Literal["history_unavailable", "history_unknown"]

MAX_K = 100
MAX_BEAM_WIDTH = 200
MAX_FINISH_ROWS = 1_000_000
MAX_HISTORY_LIMIT = 10_000
MAX_TIMESTAMP_S = 10**11  # the year 5138; below today's milliseconds
MAX_FIELD_CHARS = 100

# User ids are path segments and Redis hash tags.
USER_ID = re.compile(r"^[^/{}\x00-\x1f\x7f]+$")


def _check_user_id(user_id: str) -> str:
    if not USER_ID.fullmatch(user_id):
        raise PydanticCustomError("user_id", "must not contain / { } or control characters")
    return user_id


UserId = Annotated[
    str,
    StringConstraints(min_length=1, max_length=256),
    AfterValidator(_check_user_id),
    Field(json_schema_extra={"pattern": USER_ID.pattern}),
]
ItemId = Annotated[str, StringConstraints(min_length=1, max_length=256)]
AttributeName = Annotated[str, StringConstraints(min_length=1, max_length=64)]
AttributeValue = Annotated[str, StringConstraints(min_length=1, max_length=500)]


def field_name(loc: Iterable[str | int]) -> str:
    """`history.1` for ("history", 1); cut, because a client may invent a name of any length."""
    return ".".join(str(part) for part in loc)[:MAX_FIELD_CHARS]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class RecommendRequest(_Request):
    """Ask for k items for a user; only `user_id` is required."""

    user_id: UserId = Field(description="Whose history to read; any string you like.")
    k: int = Field(10, ge=1, le=MAX_K, description="How many items.")
    r_warm: int | None = Field(
        None, ge=0, description="First decode steps, one position each; default: the bundle's."
    )
    m_par: int | None = Field(
        None, ge=1, description="Positions filled by each later step; default: the bundle's."
    )
    beam_width: int | None = Field(
        None,
        ge=1,
        le=MAX_BEAM_WIDTH,
        description="Beams kept at each step, at least k; default: the bundle's, or k.",
    )
    ranking: Ranking | None = Field(
        None,
        description="What a beam is worth: the probability of its rows (`rows`), that of its codes "
        "(`path`), or that and its best completion (`best`); default: the bundle's.",
    )
    finish_rows: int | None = Field(
        None,
        ge=0,
        le=MAX_FINISH_ROWS,
        description="When the beams hold at most so many rows, these are scored and no step "
        "follows; 0 = never; default: the bundle's.",
    )
    history: list[ItemId] | None = Field(
        None,
        max_length=500,
        description="Item ids, oldest to newest; when given, the stored history is not read.",
    )
    exclude_items: list[ItemId] = Field(
        [], max_length=1000, description="Items not to return; unknown ids are ignored."
    )
    exclude_seen: bool = Field(True, description="Leave out every item of the history.")
    filter: dict[
        AttributeName, Annotated[list[AttributeValue], Field(min_length=1, max_length=50)]
    ] = Field(
        {},
        max_length=8,
        description="Only items that have, of each attribute, one of the values; see README.md.",
    )
    timeout_ms: int | None = Field(
        None, ge=1, le=10_000, description="Deadline, from receipt; default: the service's."
    )

    @model_validator(mode="after")
    def _beams_hold_k_items(self) -> Self:
        if self.beam_width is not None and self.beam_width < self.k:
            raise PydanticCustomError("beam_width", "beam_width must be at least k")
        return self


class RecommendedItem(_Answer):
    """One item; `score` is the log-probability, comparable inside one answer, null if popular."""

    item_id: str
    title: str
    rank: int
    score: float | None
    sid: list[int]


class UsedDecoding(_Answer):
    """How the items were decoded; `nfe` is the number of denoiser calls, encoder not counted.

    `nfe` is below the length of `schedule` where `finish_rows` ended the search.
    """

    r_warm: int
    m_par: int
    beam_width: int
    ranking: Ranking
    finish_rows: int
    schedule: list[int]
    nfe: int


class UsedHistory(_Answer):
    """The history behind an answer; `unknown_items` of its `length` are not in the bundle."""

    source: Literal["store", "request", "unavailable"]
    length: int
    unknown_items: int


class RecommendResponse(_Answer):
    """Items, best first. `decoding` is null when the items are the popular ones."""

    recommendation_id: str
    user_id: str
    served_by: Literal["model", "popular"]
    degraded: bool
    degraded_reasons: list[DegradedReason]
    bundle: str
    items: list[RecommendedItem]
    decoding: UsedDecoding | None
    history: UsedHistory
    timings_ms: dict[str, float]


class Event(_Request):
    """Something a user did with an item, or saw. `timestamp` and `value` are not used yet.

    An event that names the `recommendation_id` of an answer of the last day, and an item in it, is
    attributed to that answer. A history is in the order in which its events arrive.
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
        description="When it happened, in Unix seconds; not used, the order is that of arrival.",
    )
    value: float | None = Field(
        None, allow_inf_nan=False, description="A rating or a price, say; not used yet."
    )
    recommendation_id: str | None = Field(
        None, min_length=1, max_length=128, description="The answer that showed the item."
    )

    @property
    def all_item_ids(self) -> list[str]:
        """The items, one or more."""
        return self.item_ids or [self.item_id or ""]

    @model_validator(mode="after")
    def _has_item_id_or_item_ids(self) -> Self:
        if (self.item_id is None) == (self.item_ids is None):
            raise PydanticCustomError("item_id", "either item_id or item_ids must be given")
        return self


def _event_or_error(value: Any) -> Event | ValidationError:
    try:
        return Event.model_validate(value)
    except ValidationError as error:
        return error


class EventsRequest(_Request):
    """Events, appended in the order given. A wrong event does not stop the others."""

    # Each entry is an Event, or the ValidationError that says why it is none.
    events: list[
        Annotated[
            Event | ValidationError, PlainValidator(_event_or_error, json_schema_input_type=Event)
        ]
    ] = Field(min_length=1, max_length=100)


class RejectedEvent(_Answer):
    """An event that was not stored; `index` is its place in the request."""

    index: int
    code: Literal["invalid_event", "unknown_event_type"]
    message: str


class EventsResponse(_Answer):
    """accepted + duplicates + len(rejected) is the number of events sent.

    `attributed` of the accepted ones name an answer that is remembered and an item in it.
    """

    accepted: int
    duplicates: int
    attributed: int
    rejected: list[RejectedEvent]
    took_ms: float


class HistoryResponse(_Answer):
    """A user's stored items, oldest to newest; empty for an unknown user."""

    user_id: str
    history: list[str]


class Liveness(_Answer):
    """The process answers and its decode thread lives."""

    status: Literal["live", "not_live"]


class Readiness(_Answer):
    """Whether to send requests, and why not."""

    status: Literal["ready", "not_ready"]
    reasons: list[str]


class DefaultDecoding(_Answer):
    """What a request gets that asks for nothing else."""

    model_config = ConfigDict(from_attributes=True)

    r_warm: int
    m_par: int
    beam_width: int
    ranking: Ranking
    finish_rows: int


class BundleInfo(_Answer):
    """The bundle that is served."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    version: str
    created_at: str
    num_items: int
    num_subspaces: int
    num_codes: int
    history_length: int
    decoding: DefaultDecoding


class Limits(_Answer):
    """Bounds a client should know."""

    max_k: int
    max_beam_width: int
    max_queue_rows: int
    default_timeout_ms: int
    history_cap: int
    history_event_types: list[str]


class Info(_Answer):
    """What is running; `bundle` is null until one is loaded."""

    version: str
    bundle: BundleInfo | None
    limits: Limits
    history_store: Literal["embedded", "redis"]
    ort_threads: int


class ErrorDetail(_Answer):
    """One wrong field; the message never repeats the value."""

    param: str
    message: str
    type: str


class Error(_Answer):
    """`retryable` is true when the same request may succeed later."""

    code: str
    message: str
    param: str | None
    retryable: bool
    request_id: str
    details: list[ErrorDetail]


class ErrorResponse(_Answer):
    """The body of every answer that is not a success."""

    error: Error
