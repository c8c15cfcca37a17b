"""What is checked before any of the body is read: the key, and the media type.

FastAPI's dependencies run after the body is read, and the body may be a megabyte of JSON from a
stranger. `service.http.admission.keys` decides which keys are valid.
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
GUARDS_PASSED = "unmask.guards_passed"  # in the scope of a request that has been guarded already
HEADERS_OF_JSON = {b"content-type", b"content-encoding", b"transfer-encoding"}
Guard = Callable[[Request], None]

# For the OpenAPI document only: FastAPI's description of the header that a guard reads.
BEARER = Depends(
    HTTPBearer(auto_error=False, description="A key of UNMASK_API_KEYS or UNMASK_ADMIN_KEYS.")
)


class WholePathRoute(APIRoute):
    """A route whose pattern matches the path to its very end.

    Starlette's patterns end before a trailing line break, and its `{item_id:path}` ends at the
    first line break. The request would then name another item, or another user.
    """

    def __init__(self, path: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(path, *args, **kwargs)
        pattern = self.path_regex.pattern.removesuffix("$")
        self.path_regex = re.compile(rf"{pattern}\Z", re.DOTALL)


def guarded(*guards: Guard) -> type[APIRoute]:
    """The class of routes that call these guards, one after another. Each guard may raise."""

    class GuardedRoute(WholePathRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handle_guarded(request: Request) -> Response:
                if GUARDS_PASSED not in request.scope:
                    for guard in guards:
                        guard(request)
                return await handle(JsonRequest(request.scope, request.receive))

            return handle_guarded

    return GuardedRoute


def require_json(request: Request) -> None:
    """Raise UnsupportedMedia unless the body is uncompressed JSON in UTF-8.

    A form post from a browser is refused, for example, and so is what would be misread.
    """
    sent_headers = [field for field in request.scope["headers"] if field[0] in HEADERS_OF_JSON]
    if sent_headers == [(b"content-type", b"application/json")]:  # as nearly all clients do
        return
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
