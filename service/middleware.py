"""What every HTTP answer gets, whoever made it: request id, headers, metrics, one log line.

Plain ASGI around the whole FastAPI application, because Starlette's answer to an unexpected
exception is made outside all inner middleware. Knows nothing of routes' bodies; a handler leaves
what it knows in the RequestContext.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from service.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

SCOPE_KEY = "unmask"
QUIET_ROUTES = {"/health/live", "/health/ready", "/livez", "/readyz", "/metrics"}
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}  # a client may invent one
OUTCOMES = {429: "rejected", 503: "rejected", 504: "timeout", 499: "cancelled"}

log = structlog.get_logger()


@dataclass
class RequestContext:
    """What is known of one request. `received` is in seconds of time.monotonic()."""

    request_id: str
    received: float = field(default_factory=time.monotonic)
    headers: dict[str, str] = field(default_factory=dict)  # added to the answer
    log: dict[str, Any] = field(default_factory=dict)  # added to the log line
    bundle: str = "none"
    degraded: bool = False


class Envelope:
    """Wraps an ASGI application; see the module."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = scope[SCOPE_KEY] = RequestContext(_request_id(scope))
        status = 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = {"X-Request-ID": context.request_id, **context.headers}
                message["headers"] = [
                    *message.get("headers", ()),
                    *((name.encode(), value.encode()) for name, value in added.items()),
                ]
            await send(message)

        with self._metrics.inflight_requests.track_inprogress():
            try:
                await self._app(scope, receive, send_with_headers)
            except Exception:
                # Starlette has answered 500 and passes the exception on; it ends here.
                log.exception("unexpected_error", request_id=context.request_id)
            finally:
                self._observe(scope, status, context)

    def _observe(self, scope: Scope, status: int, context: RequestContext) -> None:
        seconds = time.monotonic() - context.received
        route = getattr(scope.get("route"), "path", "other")  # the template, never the raw path
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._metrics.http_requests.labels(route, method, str(status)).inc()
        self._metrics.http_request_duration.labels(route, method).observe(seconds)
        if route == "/recommend":
            outcome = _outcome(status, context)
            self._metrics.recommend_requests.labels(context.bundle, outcome).inc()
            context.log["outcome"] = outcome
        write = log.debug if route in QUIET_ROUTES else log.info
        write(
            "request",
            request_id=context.request_id,
            method=method,
            route=route,
            status=status,
            ms=round(1000 * seconds, 1),
            **context.log,
        )


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            sent: str = value.decode("latin-1")
            if REQUEST_ID.fullmatch(sent):
                return sent
    return secrets.token_hex(16)


def _outcome(status: int, context: RequestContext) -> str:
    if status == 200:
        return "degraded" if context.degraded else "ok"
    return OUTCOMES.get(status, "invalid" if status < 500 else "error")
