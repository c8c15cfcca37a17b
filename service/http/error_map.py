"""Which error has which HTTP status, and the one JSON body that all errors have.

A table of our own errors, and handlers for those of FastAPI and Starlette. Messages never repeat a
value that a client sent. Knows nothing of routes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from service import errors
from service.http.middleware import SCOPE_KEY, RequestContext
from service.schemas import ErrorDetail, ErrorResponse, field_name

MAX_BODY_BYTES = 1 << 20
MAX_ERROR_DETAILS = 20
RETRY_AFTER_S = 1

ANSWERS: dict[type[errors.UnmaskError], tuple[int, str]] = {
    errors.MalformedUrl: (400, "malformed_url"),
    errors.UnsupportedMedia: (415, "unsupported_media_type"),
    errors.InvalidRequest: (422, "invalid_request"),
    errors.BundleInvalid: (422, "bundle_invalid"),
    errors.BundleLoadTimedOut: (504, "bundle_load_timeout"),
    errors.ProviderUnavailable: (422, "bundle_invalid"),
    errors.SettingsInvalid: (422, "bundle_invalid"),  # the bundle is too wide for the settings
    errors.Unauthenticated: (401, "unauthenticated"),
    errors.Forbidden: (403, "forbidden"),
    errors.ItemNotFound: (404, "item_not_found"),
    errors.MapNotFound: (404, "map_not_found"),
    errors.RecommendationNotFound: (404, "recommendation_not_found"),
    errors.BundleNotFound: (404, "bundle_not_found"),
    errors.BundleConflict: (409, "bundle_conflict"),  # each error has its own code
    errors.Overloaded: (429, "overloaded"),
    errors.ClientDisconnected: (499, "client_disconnected"),  # shown in the log and metrics only
    errors.DecodeFailed: (500, "internal_error"),
    errors.HistoryUnavailable: (503, "history_unavailable"),
    errors.EmbedderUnavailable: (503, "embedder_unavailable"),
    errors.EmbedderUnfit: (502, "embedder_unfit"),
    errors.NotReady: (503, "not_ready"),
    errors.DeadlineExceeded: (504, "deadline_exceeded"),
}
HTTP_ERRORS: dict[int, tuple[str, str]] = {
    400: ("malformed_json", "the body is not valid JSON"),
    404: ("route_not_found", "there is no such route"),
    405: ("method_not_allowed", "this route does not have that method"),
    413: ("body_too_large", f"the body may have {MAX_BODY_BYTES} bytes"),
}
RETRYABLE = {429, 503}
ADMIN = "/admin/"
BETWEEN_FIELDS = {
    "after",
    "beam_width",
    "explain",
    "explore",
    "max_per",
    "pin",
    "schedule",
    "timeout_ms",
}  # error types of service.schemas

log = structlog.get_logger()


def add_handlers(app: FastAPI) -> None:
    """Make every error of an application answer with the one body."""
    app.add_exception_handler(errors.UnmaskError, on_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_unexpected_error)


def status_and_body(error: Exception, request_id: str) -> tuple[int, ErrorResponse]:
    """The status and body that a client gets for one of our errors, or for a bug."""
    if not isinstance(error, errors.UnmaskError):
        message = "something went wrong in the service"
        return 500, ErrorResponse.of("internal_error", message, request_id)
    status, code = ANSWERS[type(error)]
    return status, ErrorResponse.of(
        getattr(error, "code", code),
        str(error),
        request_id,
        param=getattr(error, "param", None),
        retryable=status in RETRYABLE,
    )


async def on_error(request: Request, error: Exception) -> Response:
    """Answer for one of our own errors."""
    assert isinstance(error, errors.UnmaskError)
    context = context_of(request)
    status, body = status_and_body(error, context.request_id)
    if isinstance(error, errors.Overloaded | errors.NotReady):
        context.rejected = error.reason
    if status == 500:
        log.error("decode_failed", request_id=context.request_id, exc_info=error)
    answer = _answer(status, body)
    if status in RETRYABLE:
        answer.headers["Retry-After"] = str(getattr(error, "retry_after_s", RETRY_AFTER_S))
    if isinstance(error, errors.Unauthenticated):
        answer.headers["WWW-Authenticate"] = error.challenge
    return answer


async def on_validation_error(request: Request, error: Exception) -> Response:
    """Answer when Pydantic refused the request. Values are never repeated."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if any(entry["type"] == "json_invalid" for entry in found):
        return _http_answer(request, 400)
    # Each location begins with `body`, `path` or `query`.
    found = [{**entry, "loc": entry["loc"][1:]} for entry in found]
    return _answer(422, invalid_body(found, context_of(request).request_id))


def invalid_body(found: Sequence[Mapping[str, Any]], request_id: str) -> ErrorResponse:
    """The body that a client gets for the errors that Pydantic found."""
    details = [
        ErrorDetail(
            param=field_name(_place(entry)) or "body",
            message=entry["msg"],
            type=entry["type"],
        )
        for entry in found[:MAX_ERROR_DETAILS]
    ]
    first = details[0]
    message = f"{first.param}: {first.message}"
    return ErrorResponse.of(
        "invalid_request", message, request_id, param=first.param, details=details
    )


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer for Starlette's own errors, and for HTTPExceptions that routes raise."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, errors.UnmaskError):
        return await on_error(request, error.__cause__)
    answer = _http_answer(request, error.status_code)
    answer.headers.update(error.headers or {})
    if error.status_code == 405:  # the router lists only the methods of a path's first route
        answer.headers["Allow"] = ", ".join(_methods_of(request))
    return answer


async def on_unexpected_error(request: Request, error: Exception) -> Response:
    """Answer for a bug. The middleware logs the traceback."""
    return _answer(*status_and_body(error, context_of(request).request_id))


def context_of(request: Request) -> RequestContext:
    """The RequestContext that the envelope attached to a request."""
    context: RequestContext = request.scope[SCOPE_KEY]
    return context


def _place(entry: Mapping[str, Any]) -> tuple[str | int, ...]:
    """Where in the body the error is. An error between two fields names the field to change."""
    loc: tuple[str | int, ...] = entry["loc"]
    return (*loc, entry["type"]) if entry["type"] in BETWEEN_FIELDS else loc


def _methods_of(request: Request) -> Iterable[str]:
    """The methods of all routes of this path."""
    found: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return sorted(found)


def _has_admin_routes(request: Request) -> bool:
    return any(getattr(route, "path", "").startswith(ADMIN) for route in request.app.routes)


def _http_answer(request: Request, status: int) -> Response:
    code, message = HTTP_ERRORS[status]
    if status == 404 and request.url.path.startswith(ADMIN) and not _has_admin_routes(request):
        message = "there are no routes under /admin: UNMASK_ADMIN_KEYS is not set"
    return _answer(status, ErrorResponse.of(code, message, context_of(request).request_id))


def _answer(status: int, body: ErrorResponse) -> Response:
    return Response(body.model_dump_json(), status, media_type="application/json")
