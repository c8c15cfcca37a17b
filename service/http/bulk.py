"""The story of POST /recommend/batch: each entry is answered or refused on its own.

An entry may find the queue full because other entries of the same call are in it. Then it waits
until one of them ends. So no call is too large for the queue. Knows nothing of routes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

import structlog
from pydantic import ValidationError

from service import errors
from service.http.error_map import invalid_body, status_and_body
from service.http.middleware import RequestContext, outcome_of
from service.recommending import Recommender
from service.schemas import (
    BatchEntry,
    BatchRequest,
    BatchResponse,
    BatchResult,
    RecommendRequest,
    RecommendResponse,
)
from service.telemetry import Metrics

Ask = Callable[[], Awaitable[RecommendResponse]]

log = structlog.get_logger()


class Bulk:
    """Call `answer` for the requests of one call."""

    def __init__(self, recommender: Recommender, metrics: Metrics, context: RequestContext) -> None:
        self._recommender = recommender
        self._metrics = metrics
        self._context = context
        self._at_work = 0  # entries that are being answered now
        self._waiting: deque[asyncio.Event] = deque()  # entries that wait until one of these ends

    async def answer(self, body: BatchRequest) -> BatchResponse:
        """The results, in the order of the requests."""
        entries = (self._result(one, body.timeout_ms) for one in body.requests)
        return BatchResponse(results=await asyncio.gather(*entries))

    async def _result(
        self, one: BatchEntry | ValidationError, timeout_ms: int | None
    ) -> BatchResult:
        bundle, variant, outcome = "none", "none", "cancelled"  # labels until more is known
        request_id = self._context.request_id
        try:
            if isinstance(one, ValidationError):
                outcome = outcome_of(422, degraded=False)
                shown = invalid_body(one.errors(), request_id)
                return BatchResult(status=422, error=shown.error)
            request = RecommendRequest.model_construct(**dict(one), timeout_ms=timeout_ms)
            assignment = self._recommender.assign(request)
            bundle, variant = assignment.loaded_bundle.ref, assignment.label
            answer = await self._when_there_is_room(
                lambda: self._recommender.recommend(
                    request, assignment, self._context.received, in_bulk=True
                )
            )
            outcome = outcome_of(200, degraded=answer.degraded)
            return BatchResult(status=200, response=answer)
        except Exception as error:  # the other entries are still answered
            if isinstance(error, errors.Overloaded | errors.NotReady):
                self._metrics.rejected.labels(error.reason).inc()
            if not isinstance(error, errors.RequestError):
                log.exception("unexpected_error", request_id=request_id)
            elif isinstance(error, errors.DecodeFailed):
                log.exception("decode_failed", request_id=request_id)
            status, shown = status_and_body(error, request_id)
            outcome = outcome_of(status, degraded=False)
            return BatchResult(status=status, error=shown.error)
        finally:
            self._metrics.recommend_requests.labels(bundle, variant, outcome).inc()

    async def _when_there_is_room(self, ask: Ask) -> RecommendResponse:
        """Ask. If other entries of this call fill the queue, wait until one ends, and ask again."""
        while True:
            self._at_work += 1
            goes_on = False
            try:
                return await ask()
            except errors.Overloaded as error:
                goes_on = error.reason == "queue_full" and self._at_work > 1
                if not goes_on:
                    raise
            finally:
                self._at_work -= 1
                if not goes_on and self._waiting:
                    self._waiting.popleft().set()
            one_ended = asyncio.Event()
            self._waiting.append(one_ended)
            await one_ended.wait()
