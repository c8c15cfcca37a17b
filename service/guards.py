"""What a request is asked before anything of its body is read: for a key, and for its media type.

FastAPI's dependencies come after the body, which may be a megabyte of JSON from a stranger. Which
keys there are is decided in `service.keys`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

Guard = Callable[[Request], None]

# For the OpenAPI document only; FastAPI's name for what a guard reads.
BEARER = Depends(
    HTTPBearer(auto_error=False, description="A key of UNMASK_API_KEYS or UNMASK_ADMIN_KEYS.")
)


def guarded(*guards: Guard) -> type[APIRoute]:
    """The class of routes that ask these, one after another; each may raise."""

    class GuardedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handle_guarded(request: Request) -> Response:
                for guard in guards:
                    guard(request)
                return await handle(request)

            return handle_guarded

    return GuardedRoute


def require_json(request: Request) -> None:
    """Refuse other media types: a form post from a browser, say."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise HTTPException(415)


def bearer_key(request: Request) -> str | None:
    """The key that a request brings."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None
