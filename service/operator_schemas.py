"""JSON for whoever operates the service: health, facts, bundles in memory, items that change.

As in `service.schemas`, unknown fields are refused. Knows nothing of HTTP.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from service.decoding import Ranking
from service.schemas import Answered, AttributeValue, Body, ItemId


class DefaultDecoding(Answered):
    """What a request gets that asks for nothing else."""

    model_config = ConfigDict(from_attributes=True)

    r_warm: int
    m_par: int
    beam_width: int
    ranking: Ranking
    finish_rows: int


class LoadRequest(Body):
    """How a bundle is to be loaded."""

    shadow_fraction: float = Field(
        0.0, ge=0, le=1, description="Share of the requests that it answers too, unseen."
    )


class NewItem(Body):
    """An item to add: with its embedding, or where an embedder is set with its title alone."""

    item_id: ItemId
    title: str = Field(max_length=1000)
    categories: list[AttributeValue] = Field([], max_length=50)
    embedding: list[Annotated[float, Field(allow_inf_nan=False)]] | None = Field(
        None,
        max_length=8192,
        description="As the training items' content embeddings; without it the title is embedded.",
    )


class ItemsRequest(Body):
    """Items to add to the active bundle, and to remove from it."""

    add: list[NewItem] = Field([], max_length=100)
    remove: list[ItemId] = Field([], max_length=1000)


class ItemsResponse(Answered):
    """What changed, and how many items the bundle has now."""

    bundle: str
    added: int
    removed: int
    num_items: int


class ResidentInfo(Answered):
    """A bundle in memory. role: active, previous, candidate or experiment; it may have several."""

    bundle: str
    roles: list[Literal["active", "previous", "candidate", "experiment"]]
    num_items: int
    decoding: DefaultDecoding
    shadow_fraction: float | None


class Models(Answered):
    """The bundles in memory; `configured` is what UNMASK_BUNDLE would load at a restart."""

    configured: str | None
    residents: list[ResidentInfo]


class Drained(Answered):
    """The process takes no more requests soon."""

    status: Literal["draining"]


class Liveness(Answered):
    """The process answers and its decode thread lives."""

    status: Literal["live", "not_live"]


class Readiness(Answered):
    """Whether to send requests, and why not."""

    status: Literal["ready", "not_ready"]
    reasons: list[str]


class BundleInfo(Answered):
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


class Limits(Answered):
    """Bounds a client should know."""

    max_k: int
    max_beam_width: int
    max_queue_rows: int
    max_inflight: int
    slo_ms: int
    default_timeout_ms: int
    history_cap: int
    history_event_types: list[str]


class Info(Answered):
    """What is running; `bundle` is null until one is loaded."""

    version: str
    bundle: BundleInfo | None
    limits: Limits
    history_store: Literal["embedded", "redis"]
    ort_threads: int
