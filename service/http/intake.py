"""What comes in of a request before a route reads it: a URL that is text, a body that is bounded.

While its body is on its way a request has no place in the gate.

uvicorn decodes a path with replacement characters, so that ids which are not UTF-8 would mean users
and items of other names. Plain ASGI inside the envelope, around all routes and what is no route.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from fastapi import Request
from starlette.exceptions import HTTPException

from service.errors import MalformedUrl, Overloaded
from service.http.admission.arriving import Arriving, Coming
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


class Intake:
    """Wraps an ASGI application; see the module."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._arriving = arriving = Arriving()
        metrics.arriving_requests.set_function(lambda: len(arriving))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
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
        body = Coming()
        try:
            await self._app(scope, self._read(scope[SCOPE_KEY], body, receive), send)
        finally:
            self._arriving.end(body)

    def _read(self, context: RequestContext, body: Coming, receive: Receive) -> Receive:
        """What the routes read; when the body is whole, the request needs its place in the gate."""
        is_whole = False

        async def read() -> Message:
            nonlocal is_whole
            if is_whole:
                return await receive()
            try:
                message = await self._arriving.part(body, receive)
            except Overloaded as error:
                context.headers["Connection"] = "close"  # or the rest would still come
                raise HTTPException(429) from error  # FastAPI passes on only these
            if body.num_bytes > MAX_BODY_BYTES:
                raise HTTPException(413)
            is_whole = not message.get("more_body", False)
            if is_whole:
                self._arriving.end(body)
            is_here = message["type"] == "http.request"
            if is_whole and is_here and context.place and not context.place.take():
                raise HTTPException(429) from Overloaded(TOO_MANY, reason=context.place.gate.reason)
            return message

        return read


def check_url(raw_path: bytes, query: bytes) -> None:
    """Raise MalformedUrl unless both are percent-encoded UTF-8."""
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
