"""JSON for operators of the service: health, facts, bundles in memory, their test users.

As in `service.schemas.fields`, unknown fields are refused. Knows nothing of HTTP.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from service.decoding import Order, Ranking, Retrieval
from service.schemas.fields import DIGITS, AnswerModel, RequestModel

MAX_FIRST = 1_000_000
Role = Literal["active", "previous", "candidate", "experiment"]


class DefaultDecoding(AnswerModel):
    """The decoding of a request that asks for nothing else."""

    model_config = ConfigDict(from_attributes=True)

    r_warm: int
    m_par: int
    beam_width: int
    ranking: Ranking
    finish_rows: int
    order: Order
    remask: int = 0
    guidance: float = 0.0
    retrieval: Retrieval


class LoadRequest(RequestModel):
    """How to load a bundle."""

    shadow_fraction: float = Field(
        0.0, ge=0, le=1, description="Share of the requests that it also answers, unseen by users."
    )


class ResidentInfo(AnswerModel):
    """A bundle in memory. It may have several roles.

    digest: of its manifest, and so of all its files; null in bundles older than digests
    family: kind of its network
    """

    bundle: str
    digest: str | None
    is_signed: bool
    family: str
    roles: list[Role]
    num_items: int
    decoding: DefaultDecoding
    shadow_fraction: float | None


class Models(AnswerModel):
    """The bundles in memory. `configured` is the bundle that a restart would load."""

    configured: str | None
    # In the code: `LoadedBundle`. Clients know these two names in JSON, so they stay.
    residents: list[ResidentInfo]


class Drained(AnswerModel):
    """The process will soon take no more requests."""

    status: Literal["draining"]


class Liveness(AnswerModel):
    """Whether the process needs a restart, and why."""

    status: Literal["live", "not_live"]
    reasons: list[str]
    cure: str | None


class Readiness(AnswerModel):
    """Whether requests should be sent, and why not."""

    status: Literal["ready", "not_ready"]
    reasons: list[str]


class ContentInfo(AnswerModel):
    """What embeddings of new items must be like.

    text: which text of an item was embedded; null when unknown
    text_columns: columns of the items file whose text was embedded behind it
    model: the model that embedded it; null when unknown
    """

    embedding_dims: int
    text: str | None
    text_columns: list[str] = Field([])
    model: str | None


class BundleInfo(AnswerModel):
    """A bundle in memory.

    num_items: now; num_items_in_bundle: before items were added and removed
    family: kind of its network
    autoregressive: it fills one position a call, from left to right, and nothing else
    history_dropout: share of training samples without a history; with 0 it cannot be guided
    dense: its network has a dense head, so requests may ask for retrieval dense and fused
    max_horizon: how many next items a request may ask for together
    content: null when it accepts no new items
    attributes: what a request can filter by, with the type of each
    has_map: `GET /map` has the places of its items
    knows_held_out: it has learnt the targets of its held-out users, so finding them is no recall
    """

    name: str
    version: str
    created_at: str
    family: str
    autoregressive: bool
    history_dropout: float = 0.0
    dense: bool
    max_horizon: int
    digest: str | None
    num_items: int
    num_items_in_bundle: int
    num_subspaces: int
    num_codes: int
    history_length: int
    decoding: DefaultDecoding
    content: ContentInfo | None
    attributes: dict[str, Literal["text", "number", "date"]]
    has_map: bool
    knows_held_out: bool


class Limits(AnswerModel):
    """Bounds that a client should know."""

    max_k: int
    max_beam_width: int
    max_queue_rows: int
    max_inflight: int
    slo_ms: int
    default_timeout_ms: int
    history_cap: int
    history_event_types: list[str]
    negative_event_types: list[str]


class Info(AnswerModel):
    """What is running. `bundle` is null until one is loaded.

    needs_key: whether clients have to send a key
    """

    version: str
    bundle: BundleInfo | None
    limits: Limits
    history_store: Literal["embedded", "redis"]
    ort_threads: int
    needs_key: bool


class HeldOutUsersQuery(RequestModel):
    """Which test users: the parameters of a URL."""

    model_config = ConfigDict(strict=False)

    first: Annotated[int, Field(ge=0, le=MAX_FIRST), DIGITS] = Field(
        0, description="The place of the first one, from 0."
    )
    limit: Annotated[int, Field(ge=1, le=100), DIGITS] = Field(20, description="How many at most.")


class HeldOut(AnswerModel):
    """A test user: history, oldest to newest, and the item that came next."""

    user_id: str
    history: list[str]
    target: str


class HeldOutUsersResponse(AnswerModel):
    """Test users of the active bundle, `num_users` in all."""

    num_users: int
    users: list[HeldOut]
    bundle: str
