"""What routes share once they have an answer: JSON, headers, the log line; who has gone away.

Knows nothing of what was asked.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request, Response
from pydantic import BaseModel

from service import errors, schemas
from service.http.middleware import RequestContext

T = TypeVar("T")


def json_answer(answer: BaseModel) -> Response:
    """An answer as JSON. FastAPI would validate it once more, so it is not used here."""
    return Response(answer.model_dump_json(), media_type="application/json")


def unless_known(request: Request, answer: bytes) -> Response:
    """An answer in JSON, or 304 if the client has the same one already."""
    tag = f'"{hashlib.blake2b(answer, digest_size=16).hexdigest()}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    known = request.headers.get("if-none-match", "")
    if tag in {one.strip().removeprefix("W/") for one in known.split(",")}:
        return Response(status_code=304, headers=headers)
    return Response(answer, media_type="application/json", headers=headers)


def report(
    answer: schemas.RecommendResponse | schemas.ExplainResponse, context: RequestContext
) -> None:
    """Put what gateways and operators want to see into the headers and the log line."""
    timings = answer.timings_ms
    context.timings_ms, context.degraded = timings, answer.degraded
    context.headers["X-Unmask-Bundle"] = answer.bundle
    context.headers["Server-Timing"] = ", ".join(f"{name};dur={ms}" for name, ms in timings.items())
    if answer.degraded:
        context.headers["X-Unmask-Degraded"] = ",".join(answer.degraded_reasons)
    context.log.update(
        bundle=answer.bundle,
        variant=context.variant,
        served_by=answer.served_by,
        degraded_reasons=answer.degraded_reasons,
        timings_ms=timings,
    )
    if isinstance(answer, schemas.RecommendResponse):
        context.log["n_items"] = len(answer.items)
        if answer.sequences is not None:
            context.log["n_sequences"] = len(answer.sequences)
        if explored := sum(item.explored for item in answer.items):
            context.log["n_explored"] = explored
    if answer.decoding:
        context.log.update(schedule=answer.decoding.schedule, nfe=answer.decoding.nfe)


async def unless_disconnected(request: Request, work: Awaitable[T]) -> T:
    """Do `work`, and cancel it when the client goes away. FastAPI itself would finish it."""
    task = asyncio.current_task()
    assert task is not None
    has_gone = False

    async def wait_for_disconnect() -> None:
        nonlocal has_gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        has_gone = True
        task.cancel()

    watching = asyncio.create_task(wait_for_disconnect())
    try:
        return await work
    except asyncio.CancelledError:
        if not has_gone or task.uncancel():
            raise
        raise errors.ClientDisconnected("the client closed the connection") from None
    finally:
        watching.cancel()
