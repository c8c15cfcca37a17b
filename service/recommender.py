"""The story of one request: history in, items out. Read `Recommender.recommend` first.

Speaks item ids outside and catalogue rows inside. Knows nothing of HTTP or Redis commands; decoding
happens in the MicroBatcher. Times are seconds of time.monotonic() until they are reported.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from service.batching import Answer, MicroBatcher
from service.bundle import Bundle
from service.decoding import Job, Ranking, Schedule
from service.errors import DeadlineExceeded, HistoryUnavailable, InvalidRequest
from service.history import HistoryStore
from service.items import ATTRIBUTES
from service.metrics import Metrics
from service.schemas import (
    DegradedReason,
    RecommendedItem,
    RecommendRequest,
    RecommendResponse,
    UsedDecoding,
    UsedHistory,
)

Rows = NDArray[np.int32]


@dataclass(frozen=True)
class _History:
    """item_ids: oldest to newest; rows: (n,) int32, those of them the bundle knows."""

    source: Literal["store", "request", "unavailable"]
    item_ids: list[str]
    rows: Rows


class Recommender:
    """Answers requests from one bundle."""

    def __init__(
        self,
        bundle: Bundle,
        histories: HistoryStore,
        batcher: MicroBatcher,
        metrics: Metrics,
        *,
        default_timeout_ms: int,
    ) -> None:
        self.bundle = bundle
        self._catalogue = bundle.catalogue
        self._histories = histories
        self._batcher = batcher
        self._metrics = metrics
        self._default_timeout_ms = default_timeout_ms

    async def recommend(self, request: RecommendRequest, received: float) -> RecommendResponse:
        """The k best items for a user; the popular ones when there is no history to go by.

        received: when the request arrived; the deadline counts from then.
        Raises InvalidRequest, Overloaded, DeadlineExceeded, DecodeFailed or NotReady.
        """
        schedule = self._schedule_of(request)
        beam_width = self._beam_width_of(request)
        allowed = self._allowed(request)
        deadline = received + (request.timeout_ms or self._default_timeout_ms) / 1000
        stages: dict[str, float] = {}
        answer = None
        async with _until(deadline):
            with _timed(stages, "history"):
                history = await self._history_of(request)
            excluded = self._excluded(request, history)
            if len(history.rows):
                job = Job(
                    history.rows,
                    request.k,
                    schedule,
                    beam_width,
                    excluded,
                    finish_rows=self._finish_rows_of(request),
                    ranking=self._ranking_of(request),
                    allowed=allowed,
                )
                answer = await self._batcher.submit(job, deadline)
        with _timed(stages, "map"):
            items = self._decoded(answer) if answer else self._popular(request.k, excluded, allowed)
        reasons = _degraded_reasons(history)
        response = RecommendResponse(
            recommendation_id=str(uuid7()),
            user_id=request.user_id,
            served_by="model" if answer else "popular",
            degraded=bool(reasons),
            degraded_reasons=reasons,
            bundle=self.bundle.manifest.ref,
            items=items,
            decoding=self._used_decoding(request, schedule, beam_width, answer),
            history=_used_history(history),
            timings_ms=_timings_ms(stages, answer, time.monotonic() - received),
        )
        self._observe(response)
        return response

    def _schedule_of(self, request: RecommendRequest) -> Schedule:
        num_subspaces = self.bundle.manifest.num_subspaces
        r_warm, m_par = self._schedule_params(request)
        for param, value in (("r_warm", r_warm), ("m_par", m_par)):
            if value > num_subspaces:
                message = f"{param} must be at most {num_subspaces}, the bundle's num_subspaces"
                raise InvalidRequest(message, param=param)
        return Schedule.from_params(num_subspaces=num_subspaces, r_warm=r_warm, m_par=m_par)

    def _schedule_params(self, request: RecommendRequest) -> tuple[int, int]:
        defaults = self.bundle.manifest.decoding
        r_warm = defaults.r_warm if request.r_warm is None else request.r_warm
        return r_warm, request.m_par or defaults.m_par

    def _beam_width_of(self, request: RecommendRequest) -> int:
        return request.beam_width or max(self.bundle.manifest.decoding.beam_width, request.k)

    def _ranking_of(self, request: RecommendRequest) -> Ranking:
        return request.ranking or self.bundle.manifest.decoding.ranking

    def _finish_rows_of(self, request: RecommendRequest) -> int:
        default = self.bundle.manifest.decoding.finish_rows
        return default if request.finish_rows is None else request.finish_rows

    async def _history_of(self, request: RecommendRequest) -> _History:
        source: Literal["store", "request", "unavailable"]
        if request.history is not None:
            source, item_ids = "request", request.history
        else:
            try:
                source, item_ids = "store", await self._histories.read(request.user_id)
            except HistoryUnavailable:
                source, item_ids = "unavailable", []
        return _History(source, item_ids, self._catalogue.rows_of(item_ids))

    def _excluded(self, request: RecommendRequest, history: _History) -> Rows:
        rows = self._catalogue.rows_of(request.exclude_items)
        return np.union1d(rows, history.rows) if request.exclude_seen else np.unique(rows)

    def _allowed(self, request: RecommendRequest) -> Rows | None:
        if not request.filter:
            return None
        if unknown := request.filter.keys() - ATTRIBUTES.keys():
            known = ", ".join(ATTRIBUTES)
            message = f"items have no such attribute; filter by: {known}"
            raise InvalidRequest(message, param=f"filter.{min(unknown)}")
        self._metrics.filtered_requests.inc()
        return self.bundle.attributes.allowed(request.filter)

    def _decoded(self, answer: Answer) -> list[RecommendedItem]:
        rows, scores = answer.decoded.rows.tolist(), answer.decoded.scores.tolist()
        return [
            self._item(row, rank, round(score, 4))
            for rank, (row, score) in enumerate(zip(rows, scores, strict=True), start=1)
        ]

    def _popular(self, k: int, excluded: Rows, allowed: Rows | None) -> list[RecommendedItem]:
        """excluded: distinct, so that enough of the first k + len(excluded) rows are left."""
        first = k + len(excluded)  # rows are ordered by popularity
        rows = np.arange(min(first, self._catalogue.num_items), dtype=np.int32)
        if allowed is not None:
            rows = allowed[:first]
        rows = rows[~np.isin(rows, excluded)][:k]
        return [self._item(row, rank, None) for rank, row in enumerate(rows.tolist(), start=1)]

    def _item(self, row: int, rank: int, score: float | None) -> RecommendedItem:
        item = self.bundle.items[row]
        sid = self._catalogue.codes[row].tolist()
        return RecommendedItem(
            item_id=item.item_id, title=item.title, rank=rank, score=score, sid=sid
        )

    def _used_decoding(
        self, request: RecommendRequest, schedule: Schedule, beam_width: int, answer: Answer | None
    ) -> UsedDecoding | None:
        if answer is None:
            return None
        r_warm, m_par = self._schedule_params(request)
        return UsedDecoding(
            r_warm=r_warm,
            m_par=m_par,
            beam_width=beam_width,
            ranking=self._ranking_of(request),
            finish_rows=self._finish_rows_of(request),
            schedule=list(schedule.steps),
            nfe=answer.decoded.nfe,
        )

    def _observe(self, response: RecommendResponse) -> None:
        metrics, history = self._metrics, response.history
        timings_s = {stage: ms / 1000 for stage, ms in response.timings_ms.items()}
        metrics.recommend_duration.labels(response.served_by).observe(timings_s.pop("total"))
        for stage, seconds in timings_s.items():
            metrics.stage_duration.labels(stage).observe(seconds)
        for reason in response.degraded_reasons:
            metrics.fallbacks.labels(reason).inc()
        metrics.history_length.labels(history.source).observe(history.length)
        metrics.unknown_history_items.inc(history.unknown_items)
        metrics.items_returned.observe(len(response.items))
        if response.decoding:
            metrics.nfe.observe(response.decoding.nfe)


@asynccontextmanager
async def _until(deadline: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            yield
    except TimeoutError:
        raise DeadlineExceeded("the deadline passed") from None


@contextmanager
def _timed(stages: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        stages[stage] = time.perf_counter() - started


def _degraded_reasons(history: _History) -> list[DegradedReason]:
    if history.source == "unavailable":
        return ["history_unavailable"]
    if history.item_ids and not len(history.rows):
        return ["history_unknown"]
    return []


def _used_history(history: _History) -> UsedHistory:
    return UsedHistory(
        source=history.source,
        length=len(history.item_ids),
        unknown_items=len(history.item_ids) - len(history.rows),
    )


def _timings_ms(stages: dict[str, float], answer: Answer | None, total: float) -> dict[str, float]:
    batch = {}
    if answer:
        batch = {
            "queue": answer.queue_s,
            "encode": answer.timings.encode_s,
            "denoise": answer.timings.denoise_s,
            "search": answer.timings.search_s,
        }
    seconds = {"history": stages["history"], **batch, "map": stages["map"], "total": total}
    return {stage: round(1000 * value, 3) for stage, value in seconds.items()}


def uuid7() -> UUID:
    """A random UUID that sorts by its time of creation (RFC 9562, 5.7); Python 3.11 has none."""
    milliseconds = time.time_ns() // 1_000_000
    value = milliseconds << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76  # version
    value = value & ~(0x3 << 62) | 0x2 << 62  # variant
    return UUID(int=value)
