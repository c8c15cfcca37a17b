"""The HTTP side of what clients use: routes and their statuses.

`create_app` is the wiring. `Routes` has one method per route. The recommender and the history store
decide what a request means. `service.http.error_map` says which error has which status. The routes
of operators are in `service.http.operator_routes`.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.telemetry import TelemetryConfig
from pydantic import BaseModel, ValidationError

from service import errors, schemas
from service.histories import store_events
from service.http.admission.admission_rules import AdmissionRules, bearer_key_of, client_key_of
from service.http.admission.gate import Gate
from service.http.admission.keys import Keys
from service.http.answers import json_answer, report, unless_disconnected, unless_known
from service.http.bulk import Bulk
from service.http.error_map import add_handlers, context_of
from service.http.json_body import parsed
from service.http.lean_route import LeanRoute
from service.http.middleware import RECOMMEND, ASGIApp, Envelope
from service.http.operator_routes import add_admin_routes, add_health_routes
from service.http.page_routes import add_docs_routes, add_page_routes
from service.http.preconditions import BEARER, Guard, guarded, require_json
from service.http.url_and_body import UrlAndBodyChecks
from service.lifecycle import VERSION, Lifecycle
from service.recommending import (
    ItemPages,
    TrendingItems,
    attributes_of,
    conditions_of,
    groups_on_map,
    map_of,
    similar_items,
)
from service.schemas import (
    EventsRequest,
    EventsResponse,
    ItemResponse,
    SimilarRequest,
    SimilarResponse,
)

UserIdPath = Annotated[schemas.UserId, Path()]
ItemIdPath = Annotated[schemas.ItemId, Path()]
BASIC = 'Basic realm="Unmask: any name, and a key as the password", charset="UTF-8"'
T = TypeVar("T")
UNCHANGED = {"description": "What the client has, by its If-None-Match, is as it is now."}
# FastAPI's own, which variables of the environment switch on, sends paths: they have user ids.
NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "auto_configure": False,
}


def create_app(lifecycle: Lifecycle) -> ASGIApp:
    """The ASGI application of one process. Serving it runs `lifecycle`."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with lifecycle.running():
            yield

    app = FastAPI(
        title="Unmask",
        version=VERSION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page loads its parts from a host of others
        redoc_url=None,
        redirect_slashes=False,  # a redirect would not have the error body
        telemetry=NO_TELEMETRY,
    )
    settings = lifecycle.settings
    keys = Keys(settings.api_keys, settings.admin_keys, settings.rate_limit)

    def client_key(request: Request) -> None:
        keys.check_client(client_key_of(request.scope))

    def page_key(request: Request) -> None:
        if not keys.is_client(client_key_of(request.scope)):
            raise errors.Unauthenticated("send a valid key as the password", challenge=BASIC)

    def admin_key(request: Request) -> None:
        keys.check_admin(bearer_key_of(request.scope))

    is_open = not (settings.api_keys or settings.rate_limit)
    guards = [] if is_open else [client_key]
    routes = Routes(lifecycle, keys)
    client_roots = add_client_routes(app, routes, guards)
    if settings.admin_keys:
        add_admin_routes(app, lifecycle, admin_key)
    add_health_routes(app, lifecycle)
    add_docs_routes(app)
    if settings.page:
        add_page_routes(app, page_key if settings.api_keys else None)
    add_handlers(app)
    lean = LeanRoute(
        app, RECOMMEND, [*guards, require_json], schemas.RecommendRequest, routes.recommend
    )
    gate = Gate(settings.slo_ms / 1000, settings.max_inflight)
    return Envelope(
        UrlAndBodyChecks(lean, app, lifecycle.metrics),
        lifecycle.metrics,
        gate,
        limit_of=AdmissionRules(keys, gate, client_roots).limit_of,
        is_draining=lambda: lifecycle.draining,
        traces=lifecycle.traces,
    )


def add_client_routes(app: FastAPI, routes: Routes, guards: Sequence[Guard]) -> set[str]:
    """Add the routes of clients; each declares every status that it may answer with.

    Returns the first parts of their paths.
    """
    roots = set()

    def route(
        method: str,
        path: str,
        handler: Callable[..., Any],
        *statuses: int,
        model: type[BaseModel] | None = None,
    ) -> None:
        roots.add(path.split("/")[1])
        posted = [require_json] if method == "POST" else []
        own = {*statuses, 400, 422, 429, 500}
        own |= {408, 413, 415} if method == "POST" else set()
        own |= {401} if guards else set()
        responses: dict[int | str, dict[str, Any]] = {200: {"model": model}} if model else {}
        responses |= {
            status: {"model": schemas.ErrorResponse} if status != 304 else UNCHANGED
            for status in sorted(own)
        }
        for one in (method, "HEAD") if method == "GET" else (method,):
            app.router.add_api_route(
                path,
                handler,
                methods=[one],
                status_code=204 if method == "DELETE" else 200,
                responses=responses,
                dependencies=[BEARER] if guards else [],
                include_in_schema=one == method,
                route_class_override=guarded(*guards, *posted),
            )

    answer, answers = schemas.RecommendResponse, schemas.BatchResponse
    route("POST", RECOMMEND, routes.recommend, 404, 503, 504, model=answer)
    route("POST", "/explain", routes.explain, 404, 503, 504, model=schemas.ExplainResponse)
    route("POST", "/recommend/batch", routes.recommend_batch, 503, model=answers)
    route("POST", "/events", routes.events, 503)
    route("POST", "/trending", routes.trending, 503)
    route("GET", "/users/{user_id}/history", routes.history, 503)
    route("DELETE", "/users/{user_id}/history", routes.erase, 503)
    # An item_id may contain slashes, so the longer path comes first.
    route("POST", "/items/{item_id:path}/similar", routes.similar, 404, 503)
    route("GET", "/items/{item_id:path}", routes.item, 404, 503)
    route("GET", "/items", routes.items, 431, 503)  # a filter may be too long for a URL
    if routes.has_page:
        route("GET", "/held-out-users", routes.held_out_users, 503)
    route("GET", "/map", routes.map, 304, 404, 503, model=schemas.MapResponse)
    route("GET", "/map/groups", routes.map_groups, 304, 404, 503, model=schemas.MapGroupsResponse)
    return roots


class Routes:
    """One method per route."""

    def __init__(self, lifecycle: Lifecycle, keys: Keys) -> None:
        self._lifecycle = lifecycle
        self._keys = keys
        self._settings = lifecycle.settings
        self._metrics = lifecycle.metrics
        self._pages = ItemPages()
        is_strict = lifecycle.settings.fallback == "off"
        self._trending = TrendingItems(lifecycle.trending, is_strict=is_strict)
        self.has_page = lifecycle.settings.page
        self._salt = lifecycle.settings.log_salt.get_secret_value().encode()

    async def recommend(self, body: schemas.RecommendRequest, request: Request) -> Response:
        """Recommend k items to a user, best first."""
        context = context_of(request)
        context.log.update(user_hash=self._hash(body.user_id), k=body.k)
        recommender = self._lifecycle.recommender
        assignment = recommender.assign(body)
        context.bundle, context.variant = assignment.loaded_bundle.ref, assignment.label
        work = recommender.recommend(body, assignment, context.received)
        answer = await unless_disconnected(request, work)
        report(answer, context)
        return json_answer(answer)

    async def explain(self, body: schemas.ExplainRequest, request: Request) -> Response:
        """How an item comes to its rank in the answer to a request, or why it has none."""
        context = context_of(request)
        context.log.update(user_hash=self._hash(body.user_id), k=body.k)
        recommender = self._lifecycle.recommender
        assignment = recommender.assign(body)
        context.bundle, context.variant = assignment.loaded_bundle.ref, assignment.label
        work = recommender.explain(body, assignment, context.received, self._pages)
        answer = await unless_disconnected(request, work)
        report(answer, context)
        context.log.update(rank=answer.rank, reason=answer.reason)
        return json_answer(answer)

    async def recommend_batch(self, body: schemas.BatchRequest, request: Request) -> Response:
        """Answer several requests, in their order. Each has its own status."""
        context = context_of(request)
        context.log.update(requests=len(body.requests))
        recommender = self._lifecycle.recommender
        self._keys.charge(client_key_of(request.scope), len(body.requests) - 1)
        bulk = Bulk(recommender, self._metrics, context)
        return json_answer(await unless_disconnected(request, bulk.answer(body)))

    async def events(self, body: EventsRequest) -> EventsResponse:
        """Append events to the histories of their users. Repeating the same events is safe."""
        return await store_events(
            body.events,
            self._lifecycle.histories,
            self._metrics,
            event_types=self._settings.history_event_types,
            counted_event_types=self._settings.counted_event_types,
            negative_event_types=self._settings.negative_event_types,
            trending=self._lifecycle.trending,
        )

    async def trending(
        self, body: schemas.TrendingRequest, request: Request
    ) -> schemas.TrendingResponse:
        """The items that most users had lately. The network is not called."""
        bundle = self._lifecycle.loaded_bundles.active.bundle
        context = context_of(request)
        answer = await self._trending.answer(bundle, body)
        context.log.update(bundle=answer.bundle, k=body.k, n_items=len(answer.items))
        context.headers["X-Unmask-Bundle"] = answer.bundle
        if answer.degraded:
            context.headers["X-Unmask-Degraded"] = ",".join(answer.degraded_reasons)
        return answer

    async def history(
        self,
        user_id: UserIdPath,
        limit: Annotated[
            int | None,
            Query(ge=1, le=schemas.MAX_HISTORY_LIMIT, description="Only the newest of `history`."),
            schemas.DIGITS,
        ] = None,
    ) -> schemas.HistoryResponse:
        """The stored items of a user, oldest to newest, and those that the user has refused."""
        stored = await self._lifecycle.histories.read(user_id, limit)
        return schemas.HistoryResponse(
            user_id=user_id, history=stored.history, refused=stored.refused
        )

    async def erase(self, user_id: UserIdPath) -> Response:
        """Forget a user."""
        await self._lifecycle.erase(user_id)
        return Response(status_code=204)

    async def item(self, item_id: ItemIdPath) -> ItemResponse:
        """An item of the active bundle."""
        bundle = self._lifecycle.loaded_bundles.active.bundle
        row = self._row_of(item_id)
        item, sid = bundle.items[row], bundle.catalogue.codes[row]
        same = bundle.decoder.trie.rows_with(sid).tolist()
        return ItemResponse(
            item_id=item.item_id,
            title=item.title,
            categories=list(item.categories),
            attributes=attributes_of(item),
            sid=sid.tolist(),
            popularity_rank=row + 1,
            hidden=row in bundle.hidden.rows_at(time.time()),
            same_sid=[bundle.items[other].item_id for other in same if other != row],
            bundle=bundle.manifest.ref,
        )

    async def items(
        self, query: Annotated[schemas.ItemsQuery, Query()]
    ) -> schemas.FoundItemsResponse:
        """Items of the active bundle, page by page. The network is not called."""
        bundle = self._lifecycle.loaded_bundles.active.bundle
        conditions = conditions_of(filter_of_query(query), bundle)
        return await self._pages.found(bundle, query, conditions)

    async def held_out_users(
        self, query: Annotated[schemas.HeldOutUsersQuery, Query()]
    ) -> schemas.HeldOutUsersResponse:
        """Test users of the active bundle, for the page: whom to look at."""
        bundle = self._lifecycle.loaded_bundles.active.bundle
        users = bundle.held_out[query.first : query.first + query.limit]
        return schemas.HeldOutUsersResponse(
            num_users=len(bundle.held_out),
            users=[
                schemas.HeldOut(user_id=one.user_id, history=list(one.history), target=one.target)
                for one in users
            ],
            bundle=bundle.manifest.ref,
        )

    async def similar(self, item_id: ItemIdPath, body: SimilarRequest) -> SimilarResponse:
        """Items of the active bundle that share codes with an item. The network is not called."""
        bundle = self._lifecycle.loaded_bundles.active.bundle
        row = self._row_of(item_id)
        similar = await asyncio.to_thread(similar_items, bundle, row, body.k)
        return SimilarResponse(item_id=item_id, similar=similar, bundle=bundle.manifest.ref)

    async def map(self, query: Annotated[schemas.MapQuery, Query()], request: Request) -> Response:
        """Where the items of the active bundle are on the map of its catalogue."""
        bundle = self._lifecycle.loaded_bundles.active.bundle
        answer = await self._pages.made(lambda: map_of(bundle, query).model_dump_json().encode())
        return unless_known(request, answer)

    async def map_groups(
        self, query: Annotated[schemas.MapGroupsQuery, Query()], request: Request
    ) -> Response:
        """Which items of the map share a code at a position, or a value of an attribute."""
        bundle = self._lifecycle.loaded_bundles.active.bundle
        answer = await self._pages.made(
            lambda: groups_on_map(bundle, query).model_dump_json().encode()
        )
        return unless_known(request, answer)

    def _row_of(self, item_id: str) -> int:
        rows = self._lifecycle.loaded_bundles.active.bundle.catalogue.rows_of([item_id])
        if not len(rows):
            raise errors.ItemNotFound("the active bundle has no such item")
        return int(rows[0])

    def _hash(self, user_id: str) -> str:
        return hashlib.blake2b(user_id.encode(), key=self._salt, digest_size=6).hexdigest()


def filter_of_query(query: schemas.ItemsQuery) -> schemas.Filter:
    """The filter that a URL has as JSON."""
    if query.filter is None:
        return {}
    try:
        with schemas.NearFieldsCounted():
            return schemas.FILTER.validate_python(parsed(query.filter, "filter"))
    except ValueError as error:
        if isinstance(error, ValidationError):
            found = [{**one, "loc": ("query", "filter", *one["loc"])} for one in error.errors()]
            raise RequestValidationError(found) from None
        message = 'must be JSON, percent-encoded, such as {"category": ["Books"]}'
        raise errors.InvalidRequest(message, param="filter") from None
