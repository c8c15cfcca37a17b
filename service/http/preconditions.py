"""What a request is asked before anything of its body is read: for a key, and for its media type.

FastAPI's dependencies come after the body, which may be a megabyte of JSON from a stranger. Which
keys there are is decided in `service.http.admission.keys`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer

from service.errors import UnsupportedMedia
from service.http.json_body import JsonRequest

CHARSETS = {"utf-8", "utf8", "us-ascii", "ascii"}
Guard = Callable[[Request], None]

# For the OpenAPI document only; FastAPI's name for what a guard reads.
BEARER = Depends(
    HTTPBearer(auto_error=False, description="A key of UNMASK_API_KEYS or UNMASK_ADMIN_KEYS.")
)


class WholePathRoute(APIRoute):
    """A route of a path to its very end.

    Starlette's patterns end where a last line break begins, and its `{item_id:path}` at the first:
    another item, or another user, would be meant.
    """

    def __init__(self, path: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(path, *args, **kwargs)
        pattern = self.path_regex.pattern.removesuffix("$")
        self.path_regex = re.compile(rf"{pattern}\Z", re.DOTALL)


def guarded(*guards: Guard) -> type[APIRoute]:
    """The class of routes that ask these, one after another; each may raise."""

    class GuardedRoute(WholePathRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handle_guarded(request: Request) -> Response:
                for guard in guards:
                    guard(request)
                return await handle(JsonRequest(request.scope, request.receive))

            return handle_guarded

    return GuardedRoute


def require_json(request: Request) -> None:
    """Refuse other media types, a form post from a browser, say, and what would be misread."""
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMedia("the Content-Type must be application/json")
    sent = Message()
    sent["content-type"] = content_type
    if str(sent.get_param("charset", "utf-8")).lower() not in CHARSETS:
        raise UnsupportedMedia("the body must be JSON in UTF-8; leave the charset out")
    encodings = ",".join(request.headers.getlist("content-encoding")).lower().split(",")
    if {encoding.strip() for encoding in encodings} - {"", "identity"}:
        raise UnsupportedMedia("send the body uncompressed, without a Content-Encoding")
    codings = ",".join(request.headers.getlist("transfer-encoding")).lower().split(",")
    if {coding.strip() for coding in codings} - {"", "chunked"}:  # the parser leaves them as sent
        raise UnsupportedMedia("send the body uncompressed, the only Transfer-Encoding is chunked")
