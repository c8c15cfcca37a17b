"""Checks before a route reads a request: the URL must be UTF-8 text, and the body has limits.

While its body arrives, a request has no place in the gate. It takes the place when the body is
complete.

uvicorn decodes a path with replacement characters. Without this check, an id that is not UTF-8
would name another user or item. This is plain ASGI inside the envelope, around all routes and also
around unknown paths.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException

from service.errors import MalformedUrl, Overloaded
from service.http.admission.bodies_in_progress import BodiesInProgress, BodyInProgress
from service.http.error_map import MAX_BODY_BYTES, on_error, on_http_error
from service.http.middleware import (
    SCOPE_KEY,
    TOO_MANY,
    ASGIApp,
    Message,
    Receive,
    RequestContext,
    Scope,
    Send,
)
from service.telemetry import Metrics

BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class UrlAndBodyChecks:
    """Wraps an ASGI application. See the module. routes: the application that has the routes"""

    def __init__(self, app: ASGIApp, routes: FastAPI, metrics: Metrics) -> None:
        self._app = app
        self._routes = routes
        self._bodies = bodies = BodiesInProgress()
        metrics.arriving_requests.set_function(lambda: len(bodies))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["app"] = self._routes  # as FastAPI itself does: `error_map` looks at its routes
        try:
            check_url(scope["raw_path"], scope["query_string"])
        except MalformedUrl as error:
            answer = await on_error(Request(scope), error)
            await answer(scope, receive, send)
            return
        if has_hidden_parts(scope["raw_path"]):
            answer = await on_http_error(Request(scope), HTTPException(404))
            await answer(scope, receive, send)
            return
        body = BodyInProgress()
        try:
            await self._app(scope, self._read(scope, body, receive), send)
        finally:
            self._bodies.end(body)

    def _read(self, scope: Scope, body: BodyInProgress, receive: Receive) -> Receive:
        """The `receive` for routes. It takes the place in the gate when the body is complete."""
        context: RequestContext = scope[SCOPE_KEY]
        is_too_large = announced_bytes(scope) > MAX_BODY_BYTES
        is_whole = False

        async def read() -> Message:
            nonlocal is_whole
            if is_whole:
                return await receive()
            if is_too_large:  # a client that waits for 100 Continue need not send it
                raise HTTPException(413)
            try:
                message = await self._bodies.part(body, receive)
            except Overloaded as error:
                context.headers["Connection"] = "close"  # else the rest would still arrive
                raise HTTPException(429) from error  # FastAPI passes on only HTTPExceptions
            if body.num_bytes > MAX_BODY_BYTES:
                raise HTTPException(413)
            is_whole = not message.get("more_body", False)
            if is_whole:
                self._bodies.end(body)
            is_here = message["type"] == "http.request"
            if is_whole and is_here and context.place and not context.place.take():
                raise HTTPException(429) from Overloaded(TOO_MANY, reason=context.place.gate.reason)
            return message

        return read


def announced_bytes(scope: Scope) -> int:
    """How long a request says that its body is; 0 where it does not say."""
    return next((int(value) for name, value in scope["headers"] if name == b"content-length"), 0)


def check_url(raw_path: bytes, query: bytes) -> None:
    """Raise MalformedUrl unless the path and the query are percent-encoded UTF-8."""
    for name, sent in (("path", raw_path), ("query", query)):
        if b"%" not in sent:
            continue
        if BROKEN_ESCAPE.search(sent):
            message = f"the {name} has a % that two hex digits do not follow; send %25 for a %"
            raise MalformedUrl(message)
        try:
            unquote_to_bytes(sent).decode()
        except UnicodeDecodeError:
            message = f"the {name} is not UTF-8; percent-encode the UTF-8 bytes of ids"
            raise MalformedUrl(message) from None


def has_hidden_parts(raw_path: bytes) -> bool:
    """Whether the path means a route that a gateway may not see in it.

    Gateways keep clients from /admin, say, by the path as it was sent. So the first part has to be
    sent as it is, and a slash has to be one, except in ids of items, which may have slashes.
    """
    first = raw_path[1:].partition(b"/")[0]
    return b"%" in first or (first != b"items" and b"%2f" in raw_path.lower())
