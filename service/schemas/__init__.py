"""What requests and answers look like in JSON: fields, bounds, one sentence each.

Pydantic models and nothing else. The OpenAPI document is made from them. They know no HTTP, no
store and no bundle. Bounds that depend on a bundle are checked where the bundle is known.

Reading order: `fields` (what all share), `filters`, `recommend`, `errors` (the one error body),
`batch`, `events`, `items`, `operators`.
"""

from service.schemas.batch import BatchEntry, BatchRequest, BatchResponse, BatchResult
from service.schemas.errors import ErrorDetail, ErrorResponse
from service.schemas.events import Event, EventsRequest, EventsResponse, RejectedEvent
from service.schemas.fields import DIGITS, ItemId, UserId, field_name, is_user_id
from service.schemas.filters import FilterCondition
from service.schemas.items import (
    ItemResponse,
    ItemsRequest,
    ItemsResponse,
    NewItem,
    SimilarRequest,
    SimilarResponse,
)
from service.schemas.operators import (
    BundleInfo,
    DefaultDecoding,
    Drained,
    Info,
    Limits,
    Liveness,
    LoadRequest,
    Models,
    Readiness,
    ResidentInfo,
    Role,
)
from service.schemas.recommend import (
    MAX_BEAM_WIDTH,
    MAX_HISTORY_LIMIT,
    MAX_K,
    CodesInCommon,
    DegradedReason,
    Explanation,
    Fallback,
    HistoryResponse,
    HistorySource,
    ItemOfSequence,
    RecommendedItem,
    RecommendedSequence,
    RecommendRequest,
    RecommendResponse,
    UsedDecoding,
    UsedHistory,
    UsedVariant,
)

__all__ = [
    "DIGITS",
    "MAX_BEAM_WIDTH",
    "MAX_HISTORY_LIMIT",
    "MAX_K",
    "BatchEntry",
    "BatchRequest",
    "BatchResponse",
    "BatchResult",
    "BundleInfo",
    "CodesInCommon",
    "DefaultDecoding",
    "DegradedReason",
    "Drained",
    "ErrorDetail",
    "ErrorResponse",
    "Event",
    "EventsRequest",
    "EventsResponse",
    "Explanation",
    "Fallback",
    "FilterCondition",
    "HistoryResponse",
    "HistorySource",
    "Info",
    "ItemId",
    "ItemOfSequence",
    "ItemResponse",
    "ItemsRequest",
    "ItemsResponse",
    "Limits",
    "Liveness",
    "LoadRequest",
    "Models",
    "NewItem",
    "Readiness",
    "RecommendRequest",
    "RecommendResponse",
    "RecommendedItem",
    "RecommendedSequence",
    "RejectedEvent",
    "ResidentInfo",
    "Role",
    "SimilarRequest",
    "SimilarResponse",
    "UsedDecoding",
    "UsedHistory",
    "UsedVariant",
    "UserId",
    "field_name",
    "is_user_id",
]
