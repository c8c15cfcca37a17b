"""POST /recommend without FastAPI's layers, which cost more than reading and checking the body.

FastAPI's route declares the operation and documents it. This one serves what that route would
serve: the same guards, the same model, the same handler. Whatever is not a valid request it leaves
to that route, so there is one source of errors about bodies (docs/decisions/062). Plain ASGI; knows
nothing of recommendations.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from service.errors import UnmaskError
from service.http.error_map import on_error, on_http_error
from service.http.json_body import JsonRequest
from service.http.middleware import Message, Receive, Scope, Send
from service.http.preconditions import GUARDS_PASSED, Guard

Body = TypeVar("Body", bound=BaseModel)


class LeanRoute(Generic[Body]):
    """Wraps an application that has the route declared. See the module.

    guards: of the declared route, in their order
    model, handle: of its body, and what answers
    """

    def __init__(
        self,
        app: FastAPI,
        path: str,
        guards: Sequence[Guard],
        model: type[Body],
        handle: Callable[[Body, Request], Awaitable[Response]],
    ) -> None:
        self._app = app
        self._path = path
        self._guards = guards
        self._model = model
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != self._path or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        request = JsonRequest(scope, receive)
        try:
            for guard in self._guards:
                guard(request)
            body = await self._valid(request)
            answer = None if body is None else await self._handle(body, request)
        except UnmaskError as error:
            answer = await on_error(request, error)
        except HTTPException as error:  # of `url_and_body`
            answer = await on_http_error(request, error)
        if answer is None:
            scope[GUARDS_PASSED] = True  # a key is charged once
            await self._app(scope, replayed(request, receive), send)
        else:
            await answer(scope, receive, send)

    async def _valid(self, request: JsonRequest) -> Body | None:
        """The body; None if something is wrong with it. Raises HTTPException."""
        try:
            return self._model.model_validate(await request.json())
        except HTTPException:
            raise
        except Exception:  # not JSON, not valid, not complete: the declared route says what it is
            return None


def replayed(request: JsonRequest, receive: Receive) -> Receive:
    """A `receive` that begins with the body, if that has arrived."""
    messages: list[Message] = []
    if request.whole_body is not None:
        messages.append({"type": "http.request", "body": request.whole_body, "more_body": False})

    async def read() -> Message:
        return messages.pop() if messages else await receive()

    return read
