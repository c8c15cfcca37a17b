"""What every HTTP answer gets, whoever made it: request id, headers, metrics, one log line.

It also asks the gate. When too many requests are inside, it refuses the next before anything of it
is read, so that refusing costs almost nothing. The server refuses some requests on its own: those
that are not HTTP, or not complete in time. It does so with `refuse`, which gives the same body,
metrics and log line.

Plain ASGI around the whole FastAPI application, because Starlette makes its answer to an unexpected
exception outside all inner middleware. Knows nothing of the bodies of routes. A handler leaves what
it knows in the RequestContext.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import structlog

from service.http.admission.gate import Gate, PlaceInGate, WaitingLine
from service.schemas import ErrorResponse
from service.telemetry import Metrics, Traces, request_id

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Header = tuple[bytes, bytes]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

SCOPE_KEY = "unmask"
TOO_MANY = "too many requests are being answered; try again in a second"
RECOMMEND = "/recommend"
QUIET_ROUTES = {"/health/live", "/health/ready", "/livez", "/readyz", "/metrics"}
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}  # a client may invent others
QUIET_REFUSALS = {"inflight", "unkeyed", "arriving"}  # there may be thousands of them
NOT_OF_CLIENTS = {"rate_limit", "unkeyed", "arriving"}  # not about the service's health
OUTCOMES = {429: "rejected", 503: "rejected", 504: "timeout", 499: "cancelled"}
TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")

log = structlog.get_logger()


@dataclass
class RequestContext:
    """What is known of one request. `received` is in seconds of time.monotonic()."""

    request_id: str
    received: float = field(default_factory=time.monotonic)
    headers: dict[str, str] = field(default_factory=dict)  # added to the answer
    log: dict[str, Any] = field(default_factory=dict)  # added to the log line
    traceparent: str | None = None  # as the client sent it
    bundle: str = "none"
    variant: str = "none"
    degraded: bool = False
    rejected: str | None = None  # why it was refused, if it was
    place: PlaceInGate | None = None  # its place in the gate that it has to pass
    line: WaitingLine | None = None  # the line that it has to wait in
    status: int | None = None  # status of its answer, once the answer has begun
    refused: int | None = None  # the status that the server sent while the body arrived
    timings_ms: dict[str, float] = field(default_factory=dict)  # of a recommendation
    span: Any = None  # where there are traces


class Envelope:
    """Wraps an ASGI application. See the module.

    gate: the gate of clients
    limit_of: the limit that a request has to pass, or None; default: `gate` for every request
    is_draining: whether connections should end with their next answer
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        gate: Gate,
        *,
        limit_of: Callable[[Scope], Gate | WaitingLine | None] | None = None,
        is_draining: Callable[[], bool] = lambda: False,
        traces: Traces | None = None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._limit_of = limit_of or (lambda _: gate)
        self._traces = traces
        self._is_draining = is_draining
        metrics.inflight_requests.set_function(lambda: gate.inside)

    def admit(self, scope: Scope) -> Sequence[Message]:
        """Ask the limit of an HTTP request.

        Returns no messages if the request may pass, else the two messages of its 429 answer.
        """
        context = scope[SCOPE_KEY]
        limit = self._limit_of(scope)
        if limit is None:
            return ()
        if limit.admits():
            if isinstance(limit, WaitingLine):
                context.line = limit
                return ()
            context.place = PlaceInGate(limit)
            if scope["method"] != "POST":  # a POST takes it in `url_and_body`
                context.place.take()
            return ()
        context.rejected = limit.reason
        self._begin_span(scope, context)
        self._observe(scope, 429, context)
        return self._failure(429, "overloaded", TOO_MANY, context)

    def refuse(self, scope: Scope | None, status: int, code: str, message: str) -> ErrorResponse:
        """The body of an answer that the server gives on its own.

        scope: of a request that the application has got or will get, which then counts it; None =
            it will never get it, so it is counted here
        """
        if scope is None:
            context = RequestContext(request_id())
            nowhere = {"path": "", "method": ""}
            context.log["code"] = code
            self._observe(nowhere, status, context)
        else:
            context = scope.setdefault(SCOPE_KEY, _context_of(scope))
            context.refused = status
            context.log["code"] = code
        return ErrorResponse.of(code, message, context.request_id)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if SCOPE_KEY not in scope:
            scope[SCOPE_KEY] = _context_of(scope)
        context: RequestContext = scope[SCOPE_KEY]
        if context.refused is not None:  # refused before its turn came
            self._observe(scope, context.refused, context)
            return
        for message in self.admit(scope):
            await send(message)
        if context.rejected:
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                if context.place:  # the work is done, but a client may be slow to read
                    context.place.give_back(served=context.status < 400)
                message["headers"] = [*message.get("headers", ()), *self._added_headers(context)]
            await send(message)

        async def fail(status: int, code: str, sentence: str, *, retryable: bool) -> None:
            if context.status is None and context.refused is None:
                context.status = status
                for part in self._failure(status, code, sentence, context, retryable=retryable):
                    await send(part)

        try:
            self._begin_span(scope, context)
            async with context.line.turn() if context.line else nullcontext():
                await self._app(scope, receive, send_with_headers)
        except Exception:
            # Starlette has answered 500, unless it failed itself, and raises the exception again.
            log.exception("unexpected_error", request_id=context.request_id)
            sentence = "something went wrong in the service"
            await fail(500, "internal_error", sentence, retryable=False)
        except asyncio.CancelledError:
            # Only the server cancels, when its time to stop is up. It would answer in its own
            # words.
            await fail(503, "not_ready", "the service stops; ask another one", retryable=True)
        finally:
            status = context.refused or context.status or 500
            if context.place:
                context.place.give_back(served=status < 400)
            self._observe(scope, status, context)

    def _begin_span(self, scope: Scope, context: RequestContext) -> None:
        if self._traces and scope["path"] not in QUIET_ROUTES:
            seconds = time.monotonic() - context.received
            method = scope["method"] if scope["method"] in METHODS else "other"
            context.span = self._traces.begin(method, seconds, context.traceparent)

    def _added_headers(self, context: RequestContext) -> list[Header]:
        added = {"X-Request-ID": context.request_id, **context.headers}
        if self._is_draining():  # so that clients leave before the port is closed
            added["Connection"] = "close"
        return [(name.encode(), value.encode()) for name, value in added.items()]

    def _failure(
        self,
        status: int,
        code: str,
        message: str,
        context: RequestContext,
        *,
        retryable: bool = True,
    ) -> tuple[Message, Message]:
        """An answer that no route gave."""
        body = ErrorResponse.of(code, message, context.request_id, retryable=retryable)
        content = body.model_dump_json().encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
            *([(b"retry-after", b"1")] if retryable else []),
            *self._added_headers(context),
        ]
        return (
            {"type": "http.response.start", "status": status, "headers": headers},
            {"type": "http.response.body", "body": content},
        )

    def _observe(self, scope: Scope, status: int, context: RequestContext) -> None:
        seconds = time.monotonic() - context.received
        # The template of the path, never the raw path.
        route = getattr(scope.get("route"), "path_format", "other")
        if route == "other" and scope["path"] == RECOMMEND:  # refused before it was routed
            route = RECOMMEND
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._metrics.http_requests.labels(route, method, str(status)).inc()
        self._metrics.http_request_duration.labels(route, method).observe(seconds)
        if context.rejected:
            self._metrics.rejected.labels(context.rejected).inc()
        if route == RECOMMEND:
            outcome = outcome_of(status, degraded=context.degraded)
            if context.rejected in NOT_OF_CLIENTS:
                outcome = "limited"
            self._metrics.recommend_requests.labels(context.bundle, context.variant, outcome).inc()
            context.log["outcome"] = outcome
        if self._traces and context.span:
            attributes = {"http.route": route, "http.response.status_code": status}
            context.log["trace_id"] = self._traces.end(
                context.span, f"{method} {route}", attributes, context.timings_ms
            )
        is_quiet = route in QUIET_ROUTES or context.rejected in QUIET_REFUSALS
        write = log.debug if is_quiet else log.info
        write(
            "request",
            request_id=context.request_id,
            method=method,
            route=route,
            status=status,
            ms=round(1000 * seconds, 1),
            **context.log,
        )


def _context_of(scope: Scope) -> RequestContext:
    headers = dict(scope["headers"])
    sent = headers.get(b"x-request-id", b"").decode("latin-1")
    context = RequestContext(sent if REQUEST_ID.fullmatch(sent) else request_id())
    traceparent = headers.get(b"traceparent", b"").decode("latin-1")
    if match := TRACEPARENT.fullmatch(traceparent):
        context.traceparent = traceparent
        context.log["trace_id"] = match[1]
    return context


def outcome_of(status: int, *, degraded: bool) -> str:
    """How a request for recommendations ended, in the words of the metrics and the log."""
    if status == 200:
        return "degraded" if degraded else "ok"
    return OUTCOMES.get(status, "invalid" if status < 500 else "error")
