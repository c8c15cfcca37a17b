"""The HTTP side: routes, statuses, error bodies. The only module that imports FastAPI.

`create_app` is the wiring, `Routes` has one method per route, `ANSWERS` says which error is which
status. What a request means is decided in the recommender and the history store.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

import structlog
from fastapi import Depends, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from service import errors, schemas
from service.events import store_events
from service.lifecycle import VERSION, Lifecycle
from service.metrics import METRICS_CONTENT_TYPE
from service.middleware import (
    SCOPE_KEY,
    ASGIApp,
    Envelope,
    Message,
    Receive,
    RequestContext,
    Scope,
    Send,
)

MAX_BODY_BYTES = 1 << 20
MAX_ERROR_DETAILS = 20
RETRY_AFTER_S = "1"

ANSWERS: dict[type[errors.RequestError], tuple[int, str]] = {
    errors.InvalidRequest: (422, "invalid_request"),
    errors.Overloaded: (429, "overloaded"),
    errors.ClientDisconnected: (499, "client_disconnected"),  # only seen in the log and in metrics
    errors.DecodeFailed: (500, "internal_error"),
    errors.HistoryUnavailable: (503, "history_unavailable"),
    errors.NotReady: (503, "not_ready"),
    errors.DeadlineExceeded: (504, "deadline_exceeded"),
}
REJECTED: dict[type[errors.RequestError], str] = {
    errors.Overloaded: "queue_full",
    errors.NotReady: "not_ready",
}
HTTP_ERRORS: dict[int, tuple[str, str]] = {
    400: ("malformed_json", "the body is not valid JSON"),
    404: ("route_not_found", "there is no such route"),
    405: ("method_not_allowed", "this route does not have that method"),
    413: ("body_too_large", f"the body may have {MAX_BODY_BYTES} bytes"),
    415: ("unsupported_media_type", "the Content-Type must be application/json"),
}
RETRYABLE = {429, 503}

UserIdPath = Annotated[schemas.UserId, Path()]
T = TypeVar("T")

log = structlog.get_logger()


def create_app(lifecycle: Lifecycle) -> ASGIApp:
    """The ASGI application of one process. Serving it runs `lifecycle`."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with lifecycle.running():
            yield

    app = FastAPI(
        title="Unmask",
        version=VERSION,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would not have the error body
    )
    routes = Routes(lifecycle)

    def route(method: str, path: str, handler: Callable[..., Any], *statuses: int) -> None:
        app.add_api_route(
            path,
            handler,
            methods=[method],
            status_code=204 if method == "DELETE" else 200,
            responses={status: {"model": schemas.ErrorResponse} for status in statuses},
            dependencies=[Depends(require_json)] if method == "POST" else [],
        )

    posted = (400, 413, 415, 422, 500, 503)
    route("POST", "/recommend", routes.recommend, *posted, 429, 504)
    route("POST", "/events", routes.events, *posted)
    route("GET", "/users/{user_id}/history", routes.history, 422, 500, 503)
    route("DELETE", "/users/{user_id}/history", routes.erase, 422, 500, 503)
    route("GET", "/info", routes.info, 500)
    for path, health, body in (
        ("/health/live", routes.live, schemas.Liveness),
        ("/health/ready", routes.ready, schemas.Readiness),
    ):
        alias = path.replace("/health/", "/") + "z"
        app.add_api_route(path, health, responses={503: {"model": body}})
        app.add_api_route(path, health, methods=["HEAD"], include_in_schema=False)
        app.add_api_route(alias, health, methods=["GET", "HEAD"], include_in_schema=False)
    app.add_api_route("/metrics", routes.metrics, include_in_schema=False)

    app.add_middleware(BodyLimit)
    app.add_exception_handler(errors.RequestError, on_request_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_unexpected_error)
    return Envelope(app, lifecycle.metrics)


class Routes:
    """One method per route."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._settings = lifecycle.settings
        self._metrics = lifecycle.metrics
        self._salt = lifecycle.settings.log_salt.get_secret_value().encode()

    async def recommend(
        self, body: schemas.RecommendRequest, request: Request
    ) -> schemas.RecommendResponse:
        """Recommend k items to a user, best first."""
        context = context_of(request)
        context.log.update(user_hash=self._hash(body.user_id), k=body.k)
        try:
            recommender = self._lifecycle.recommender
            context.bundle = recommender.bundle.manifest.ref
            work = recommender.recommend(body, context.received)
            answer = await unless_disconnected(request, work)
        except tuple(REJECTED) as error:
            self._metrics.rejected.labels(REJECTED[type(error)]).inc()
            raise
        report(answer, context)
        return answer

    async def events(self, body: schemas.EventsRequest) -> schemas.EventsResponse:
        """Append events to the histories of their users. Safe to repeat."""
        return await store_events(
            body.events,
            self._lifecycle.histories,
            self._metrics,
            event_types=self._settings.history_event_types,
        )

    async def history(
        self,
        user_id: UserIdPath,
        limit: Annotated[
            int | None, Query(ge=1, le=schemas.MAX_HISTORY_LIMIT, description="Only the newest.")
        ] = None,
    ) -> schemas.HistoryResponse:
        """The stored items of a user, oldest to newest."""
        item_ids = await self._lifecycle.histories.read(user_id, limit)
        return schemas.HistoryResponse(user_id=user_id, history=item_ids)

    async def erase(self, user_id: UserIdPath) -> Response:
        """Forget a user."""
        await self._lifecycle.histories.erase(user_id)
        return Response(status_code=204)

    async def info(self) -> schemas.Info:
        """What runs here, and its limits."""
        settings, bundle = self._settings, self._lifecycle.bundle
        return schemas.Info(
            version=VERSION,
            bundle=schemas.BundleInfo.model_validate(bundle.manifest) if bundle else None,
            limits=schemas.Limits(
                max_k=schemas.MAX_K,
                max_beam_width=schemas.MAX_BEAM_WIDTH,
                max_queue_rows=settings.max_queue_rows,
                default_timeout_ms=settings.default_timeout_ms,
                history_cap=settings.history_cap,
                history_event_types=list(settings.history_event_types),
            ),
            history_store="redis" if settings.redis_url else "embedded",
            ort_threads=settings.ort_threads,
        )

    async def live(self, response: Response) -> schemas.Liveness:
        """200 unless only a restart helps."""
        if self._lifecycle.is_live:
            return schemas.Liveness(status="live")
        response.status_code = 503
        return schemas.Liveness(status="not_live")

    async def ready(self, response: Response) -> schemas.Readiness:
        """200 when requests are welcome."""
        reasons = self._lifecycle.not_ready
        if not reasons:
            return schemas.Readiness(status="ready", reasons=[])
        response.status_code = 503
        return schemas.Readiness(status="not_ready", reasons=reasons)

    async def metrics(self) -> Response:
        return Response(self._metrics.text(), media_type=METRICS_CONTENT_TYPE)

    def _hash(self, user_id: str) -> str:
        return hashlib.blake2b(user_id.encode(), key=self._salt, digest_size=6).hexdigest()


def report(answer: schemas.RecommendResponse, context: RequestContext) -> None:
    """Put what gateways and operators want to see into headers and the log line."""
    timings = answer.timings_ms
    context.degraded = answer.degraded
    context.headers["X-Unmask-Bundle"] = answer.bundle
    context.headers["Server-Timing"] = ", ".join(f"{name};dur={ms}" for name, ms in timings.items())
    if answer.degraded:
        context.headers["X-Unmask-Degraded"] = ",".join(answer.degraded_reasons)
    context.log.update(
        bundle=answer.bundle,
        served_by=answer.served_by,
        degraded_reasons=answer.degraded_reasons,
        n_items=len(answer.items),
        timings_ms=timings,
    )
    if answer.decoding:
        context.log.update(schedule=answer.decoding.schedule, nfe=answer.decoding.nfe)


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`, cancelled when the client goes away: FastAPI itself would run it to its end."""

    async def disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task = asyncio.create_task(work)
    gone = asyncio.create_task(disconnect())
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise errors.ClientDisconnected("the client closed the connection")
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


def require_json(request: Request) -> None:
    """Refuse other media types: a form post from a browser, say."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise HTTPException(415)


class BodyLimit:
    """Stops reading a body that is too large."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = MAX_BODY_BYTES

        async def limited() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413)
            return message

        await self._app(scope, limited, send)


async def on_request_error(request: Request, error: Exception) -> Response:
    """An error of ours."""
    assert isinstance(error, errors.RequestError)
    status, code = ANSWERS[type(error)]
    if status == 500:
        log.error("decode_failed", request_id=context_of(request).request_id, exc_info=error)
    return error_answer(request, status, code, str(error), param=getattr(error, "param", None))


async def on_validation_error(request: Request, error: Exception) -> Response:
    """Pydantic refused the request; values are never repeated."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if any(entry["type"] == "json_invalid" for entry in found):
        return error_answer(request, 400, *HTTP_ERRORS[400])
    details = [
        schemas.ErrorDetail(
            param=schemas.field_name(entry["loc"][1:]) or "body",
            message=entry["msg"],
            type=entry["type"],
        )
        for entry in found[:MAX_ERROR_DETAILS]
    ]
    message = f"{details[0].param}: {details[0].message}"
    return error_answer(
        request, 422, "invalid_request", message, param=details[0].param, details=details
    )


async def on_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own, and those raised above."""
    assert isinstance(error, HTTPException)
    code, message = HTTP_ERRORS[error.status_code]
    answer = error_answer(request, error.status_code, code, message)
    answer.headers.update(error.headers or {})
    return answer


async def on_unexpected_error(request: Request, error: Exception) -> Response:
    """A bug. The middleware logs the traceback."""
    return error_answer(request, 500, "internal_error", "something went wrong in the service")


def error_answer(
    request: Request,
    status: int,
    code: str,
    message: str,
    *,
    param: str | None = None,
    details: list[schemas.ErrorDetail] | None = None,
) -> Response:
    """The one error body."""
    body = schemas.ErrorResponse(
        error=schemas.Error(
            code=code,
            message=message,
            param=param,
            retryable=status in RETRYABLE,
            request_id=context_of(request).request_id,
            details=details or [],
        )
    )
    headers = {"Retry-After": RETRY_AFTER_S} if status in RETRYABLE else None
    return JSONResponse(body.model_dump(), status, headers)


def context_of(request: Request) -> RequestContext:
    context: RequestContext = request.scope[SCOPE_KEY]
    return context
