"""The routes of browsers: the page for people at `/`, the API's documentation at `/docs`.

Files only, the same for everybody. Their headers let a browser run and show nothing but these
files, and talk to nobody but this service. Where client keys are set, the page asks for one as HTTP
Basic does, because a browser cannot send a bearer key for a page; it then sends the key with what
the page asks for. The documentation is open, as its document at /openapi.json is.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from service.http.preconditions import Guard, guarded
from service.page import DOCS, PAGE, Asset, assets_of

NOTHING_ELSE = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# The browser itself refuses scripts that write HTML. The documentation's library does that.
NO_HTML = "; require-trusted-types-for 'script'; trusted-types 'none'"
HEADERS = {
    "Cache-Control": "no-cache",  # kept, but asked about each time
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
INDEX = "index.html"


def add_page_routes(app: FastAPI, guard: Guard | None) -> None:
    """Add the page. guard: called before each of its files; None where everybody may see it."""
    private = {"Cache-Control": "private, no-cache"} if guard else {}
    headers = {**HEADERS, **private, "Content-Security-Policy": NOTHING_ELSE + NO_HTML}
    _add(app, "/", "/page", assets_of(PAGE), headers, [guard] if guard else [])


def add_docs_routes(app: FastAPI) -> None:
    """Add the documentation of all routes. It needs no network but this service."""
    headers = {**HEADERS, "Content-Security-Policy": NOTHING_ELSE}
    _add(app, "/docs", "/docs", assets_of(DOCS), headers, [])


def _add(
    app: FastAPI,
    path: str,
    folder: str,
    assets: Mapping[str, Asset],
    headers: Mapping[str, str],
    guards: list[Guard],
) -> None:
    def file(name: str, request: Request) -> Response:
        if name not in assets:
            raise HTTPException(404)
        return answer_of(assets[name], request, headers)

    async def index(request: Request) -> Response:
        return file(INDEX, request)

    async def asset(name: str, request: Request) -> Response:
        return file(name, request)

    for own, handler in ((path, index), (f"{folder}/{{name}}", asset)):
        for method in ("GET", "HEAD"):
            app.router.add_api_route(
                own,
                handler,
                methods=[method],
                include_in_schema=False,
                route_class_override=guarded(*guards),
            )


def answer_of(asset: Asset, request: Request, headers: Mapping[str, str]) -> Response:
    """A file, compressed for those who take that; 304 for those who have it."""
    tag = f'W/"{asset.tag}"'  # weak: the same for both forms
    headers = {**headers, "ETag": tag, "Vary": "Accept-Encoding"}
    known = request.headers.get("if-none-match", "")
    if tag in (one.strip() for one in known.split(",")):
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        return Response(asset.compressed, headers=headers, media_type=asset.media_type)
    return Response(asset.content, headers=headers, media_type=asset.media_type)
