"""What comes in of a request before a route reads it: a URL that is text, a body that is bounded.

uvicorn decodes a path with replacement characters, so that ids which are not UTF-8 would mean users
and items of other names. Plain ASGI inside the envelope, around all routes and what is no route.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from fastapi import Request
from starlette.exceptions import HTTPException

from service.errors import MalformedUrl
from service.http_errors import MAX_BODY_BYTES, on_error
from service.middleware import ASGIApp, Message, Receive, Scope, Send

BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class Intake:
    """Wraps an ASGI application; see the module."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

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
        left = MAX_BODY_BYTES

        async def limited() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413)
            return message

        await self._app(scope, limited, send)


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
