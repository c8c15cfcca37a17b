"""The one body that all errors have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from service.schemas.fields import AnswerModel


class ErrorDetail(AnswerModel):
    """One wrong field. The message never repeats the value."""

    param: str
    message: str
    type: str


class Error(AnswerModel):
    """`retryable` is true when the same request may succeed later."""

    code: str
    message: str
    param: str | None
    retryable: bool
    request_id: str
    details: list[ErrorDetail]


class ErrorResponse(AnswerModel):
    """The body of every answer that is not a success."""

    error: Error

    @classmethod
    def of(
        cls,
        code: str,
        message: str,
        request_id: str,
        *,
        param: str | None = None,
        retryable: bool = False,
        details: Sequence[ErrorDetail] = (),
    ) -> Self:
        """The one body that all errors have."""
        error = Error(
            code=code,
            message=message,
            param=param,
            retryable=retryable,
            request_id=request_id,
            details=list(details),
        )
        return cls(error=error)
