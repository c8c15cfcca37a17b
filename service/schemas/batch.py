"""Several requests in one call, and a result for each of them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from service.schemas.errors import Error
from service.schemas.fields import AnswerModel, RequestModel, TimeoutMs, entry_or_error
from service.schemas.recommend import RecommendFields, RecommendResponse

MAX_REQUESTS = 32


class BatchEntry(RecommendFields):
    """One of several requests."""

    @model_validator(mode="before")
    @classmethod
    def _has_no_deadline(cls, value: Any) -> Any:
        if isinstance(value, dict) and "timeout_ms" in value:
            raise PydanticCustomError("timeout_ms", "is given once, for all requests")
        return value


class BatchRequest(RequestModel):
    """Several requests under one deadline. A refused request does not stop the others."""

    requests: list[Annotated[BatchEntry | ValidationError, entry_or_error(BatchEntry)]] = Field(
        min_length=1, max_length=MAX_REQUESTS
    )
    timeout_ms: TimeoutMs | None = Field(None, description="Deadline of them all, from receipt.")


class BatchResult(AnswerModel):
    """The answer to one of several requests: `response` if the status is 200, else `error`."""

    status: int
    response: RecommendResponse | None = None
    error: Error | None = None


class BatchResponse(AnswerModel):
    """Results in the order of the requests."""

    results: list[BatchResult]
