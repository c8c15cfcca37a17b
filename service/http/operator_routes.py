"""The HTTP side of what operators use: health, facts, metrics, bundles in memory, new items.

Health, facts and metrics are open. All other routes exist only when UNMASK_ADMIN_KEYS is set. The
lifecycle and its loaded bundles decide what an operation means.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request, Response
from pydantic import BaseModel

from service import schemas
from service.bundles import REFERENCE, Bundle
from service.http.answers import json_answer, report, unless_disconnected
from service.http.error_map import context_of
from service.http.preconditions import BEARER, Guard, WholePathRoute, guarded, require_json
from service.lifecycle import VERSION, Lifecycle
from service.schemas import MAX_BEAM_WIDTH, MAX_K, ErrorResponse, ItemsRequest, ItemsResponse
from service.telemetry import METRICS_CONTENT_TYPE

SHARE = 5
MAX_NUMBER = 2**53  # of a change; larger numbers are not exact in the store
BundleRef = Annotated[str, Path(max_length=200, pattern=f"^{REFERENCE.pattern}$")]


def add_health_routes(app: FastAPI, lifecycle: Lifecycle) -> None:
    """Add the routes of health, facts and metrics."""
    routes = HealthRoutes(lifecycle)

    def route(path: str, handler: Callable[..., Any], *aliases: str, **declared: Any) -> None:
        for own in (path, *aliases):
            for method in ("GET", "HEAD"):
                app.router.add_api_route(
                    own,
                    handler,
                    methods=[method],
                    include_in_schema=(own, method) == (path, "GET"),
                    route_class_override=WholePathRoute,
                    **declared,
                )

    failed: dict[int, Any] = {500: {"model": ErrorResponse}}
    route("/info", routes.info, responses=failed)
    route("/models", routes.models, responses=failed)
    route("/health/live", routes.live, "/livez", responses={503: {"model": schemas.Liveness}})
    route("/health/ready", routes.ready, "/readyz", responses={503: {"model": schemas.Readiness}})
    text = {"content": {METRICS_CONTENT_TYPE: {"schema": {"type": "string"}}}}
    route("/metrics", routes.metrics, response_class=MetricsResponse, responses={200: text})


def add_admin_routes(app: FastAPI, lifecycle: Lifecycle, admin_key: Guard) -> None:
    """Add the routes that need an administrator's key."""
    routes = AdminRoutes(lifecycle)

    def route(
        path: str,
        handler: Callable[..., Any],
        *statuses: int,
        has_body: bool,
        method: str = "POST",
        model: type[BaseModel] | None = None,
    ) -> None:
        body_statuses = (408, 413, 415) if has_body else ()
        for one in (method, "HEAD") if method == "GET" else (method,):
            app.router.add_api_route(
                f"/admin/{path}",
                handler,
                methods=[one],
                responses=({200: {"model": model}} if model else {})
                | {
                    status: {"model": ErrorResponse}
                    for status in sorted({400, 401, 403, 422, 429, 500, *body_statuses, *statuses})
                },
                dependencies=[BEARER],
                include_in_schema=one == method,
                route_class_override=guarded(admin_key, *([require_json] if has_body else [])),
            )

    route("bundles/rollback", routes.rollback, 409, 503, has_body=False)
    route("bundles/{bundle}/load", routes.load, 404, 409, 503, 504, has_body=True)
    route("bundles/{bundle}/activate", routes.activate, 409, 503, has_body=False)
    route("bundles/{bundle}/unload", routes.unload, 409, 503, has_body=False)
    route("bundles/{bundle}/info", routes.info, 409, 503, has_body=False, method="GET")
    answer, statuses = schemas.RecommendResponse, (404, 409, 503, 504)
    route("bundles/{bundle}/recommend", routes.recommend, *statuses, has_body=True, model=answer)
    route("items", routes.items, 502, 503, has_body=True)
    route("items", routes.item_changes, 503, has_body=False, method="GET")
    route("drain", routes.drain, has_body=False)


class MetricsResponse(Response):
    """The text format of Prometheus."""

    media_type = METRICS_CONTENT_TYPE


class SharedText:
    """A text that takes time to make. A thread makes it once for all who asked before it began.

    However many ask, making the text takes at most one `SHARE`th of a processor. Nobody gets a text
    that was begun before the request for it.
    """

    def __init__(self, make: Callable[[], bytes]) -> None:
        self._make = make
        self._making = asyncio.Lock()
        self._free_at = 0.0  # time.monotonic()
        self._next: asyncio.Task[bytes] | None = None  # the next text, not begun yet

    async def get(self) -> bytes:
        """The text, made after this call."""
        if self._next is None:
            self._next = asyncio.create_task(self._made())
        return await asyncio.shield(self._next)

    async def _made(self) -> bytes:
        async with self._making:
            await asyncio.sleep(self._free_at - time.monotonic())
            self._next = None
            text, seconds = await asyncio.to_thread(self._timed)
            self._free_at = time.monotonic() + (SHARE - 1) * seconds
            return text

    def _timed(self) -> tuple[bytes, float]:
        started = time.thread_time()
        text = self._make()
        return text, time.thread_time() - started


class HealthRoutes:
    """One method per route."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._metrics_text = SharedText(lifecycle.workers.metrics_text)

    async def info(self) -> schemas.Info:
        """What runs here, and its limits."""
        lifecycle, settings = self._lifecycle, self._lifecycle.settings
        bundle = lifecycle.bundle
        return schemas.Info(
            version=VERSION,
            bundle=bundle_info_of(bundle) if bundle else None,
            limits=schemas.Limits(
                max_k=MAX_K,
                max_beam_width=min(MAX_BEAM_WIDTH, settings.max_queue_rows),
                max_queue_rows=settings.max_queue_rows,
                max_inflight=settings.max_inflight,
                default_timeout_ms=settings.default_timeout_ms,
                slo_ms=settings.slo_ms,
                history_cap=settings.history_cap,
                history_event_types=list(settings.history_event_types),
                negative_event_types=list(settings.negative_event_types),
            ),
            history_store="redis" if settings.redis_url else "embedded",
            ort_threads=settings.ort_threads,
            needs_key=bool(settings.api_keys),
        )

    async def models(self) -> schemas.Models:
        """The bundles in memory."""
        return models_of(self._lifecycle)

    async def live(self, response: Response) -> schemas.Liveness:
        """200, unless only a restart helps."""
        reasons = self._lifecycle.not_live
        if not reasons:
            return schemas.Liveness(status="live", reasons=[], cure=None)
        response.status_code = 503
        cure = "restart the process; its log says what went wrong"
        return schemas.Liveness(status="not_live", reasons=reasons, cure=cure)

    async def ready(self, response: Response) -> schemas.Readiness:
        """200 when requests are welcome."""
        reasons = self._lifecycle.not_ready
        if not reasons:
            return schemas.Readiness(status="ready", reasons=[])
        response.status_code = 503
        return schemas.Readiness(status="not_ready", reasons=reasons)

    async def metrics(self) -> MetricsResponse:
        """What Prometheus reads."""
        return MetricsResponse(await self._metrics_text.get())


class AdminRoutes:
    """One method per route."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._loaded_bundles = lifecycle.loaded_bundles

    async def load(self, bundle: BundleRef, body: schemas.LoadRequest) -> schemas.Models:
        """Verify, load and prime a bundle beside the active one."""
        await self._lifecycle.in_all.load(bundle, shadow_fraction=body.shadow_fraction)
        return models_of(self._lifecycle)

    async def activate(self, bundle: BundleRef) -> schemas.Models:
        """Answer from a bundle in memory from now on."""
        await self._lifecycle.in_all.activate(bundle)
        return models_of(self._lifecycle)

    async def unload(self, bundle: BundleRef) -> schemas.Models:
        """Remove a bundle from memory that is not in use."""
        await self._lifecycle.in_all.unload(bundle)
        return models_of(self._lifecycle)

    async def info(self, bundle: BundleRef) -> schemas.BundleInfo:
        """What a bundle in memory is, as GET /info says it of the active one."""
        return bundle_info_of(self._loaded_bundles.of(bundle).bundle)

    async def recommend(
        self, bundle: BundleRef, body: schemas.RecommendRequest, request: Request
    ) -> Response:
        """What a bundle in memory would answer to a request for recommendations.

        Nobody is served: the answer is not remembered, so events cannot name it and it has no next
        page; it counts for no experiment and in no metric of recommendations.
        """
        context = context_of(request)
        context.log["k"] = body.k
        work = self._lifecycle.recommender.preview(body, bundle, context.received)
        answer = await unless_disconnected(request, work)
        report(answer, context)
        return json_answer(answer)

    async def rollback(self) -> schemas.Models:
        """Answer from the bundle before the active one."""
        await self._lifecycle.in_all.rollback()
        return models_of(self._lifecycle)

    async def items(self, body: ItemsRequest) -> ItemsResponse:
        """Add, remove and hide items of the active bundle. The next start has the changes too."""
        return await self._lifecycle.in_all.change_items(body)

    async def item_changes(
        self,
        after: Annotated[
            int,
            Query(ge=0, le=MAX_NUMBER, description="`next` of the page before."),
            schemas.DIGITS,
        ] = 0,
    ) -> schemas.ItemChangesResponse:
        """The changes of items that are kept, in pages, oldest first."""
        return await self._lifecycle.changes.listed(after)

    async def drain(self) -> schemas.Drained:
        """Be not ready from now on, but go on answering. For a hook that runs before SIGTERM."""
        await self._lifecycle.in_all.drain()
        return schemas.Drained(status="draining")


def bundle_info_of(bundle: Bundle) -> schemas.BundleInfo:
    """A bundle as it is now. Items may have been added or removed since it was written."""
    manifest = bundle.manifest
    fields = manifest.model_dump(include=set(schemas.BundleInfo.model_fields))
    return schemas.BundleInfo(
        **fields
        | {
            "num_items": bundle.catalogue.num_items,
            "num_items_in_bundle": manifest.num_items,
            "attributes": manifest.filters,
            "max_horizon": manifest.max_horizon,
            "knows_held_out": manifest.knows_held_out,
            "decoding": schemas.DefaultDecoding.model_validate(manifest.decoding),
            "dense": manifest.dense is not None,
            "has_map": bundle.places is not None,
        }
    )


def models_of(lifecycle: Lifecycle) -> schemas.Models:
    """The bundles in memory, as JSON."""
    loaded_bundles = lifecycle.loaded_bundles
    shadowed = loaded_bundles.shadow_fraction
    return schemas.Models(
        configured=lifecycle.configured,
        residents=[
            schemas.ResidentInfo(
                bundle=loaded.ref,
                digest=manifest.digest,
                is_signed=manifest.signature is not None,
                family=manifest.family,
                roles=loaded_bundles.roles(loaded),
                num_items=loaded.bundle.catalogue.num_items,
                decoding=schemas.DefaultDecoding.model_validate(manifest.decoding),
                shadow_fraction=shadowed if loaded is loaded_bundles.candidate else None,
            )
            for loaded in loaded_bundles.all
            for manifest in [loaded.bundle.manifest]
        ],
    )
