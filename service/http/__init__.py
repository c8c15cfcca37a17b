"""What clients and operators reach over HTTP: routes, errors, and what happens around every
request.

This is the only room that knows HTTP, FastAPI and uvicorn. It turns requests into calls of the
rooms below. It turns their answers and errors into statuses, headers and JSON. It decides nothing
about recommendations, histories or bundles.

Reading order: `app` (the wiring, the routes of clients), `answers` (what their answers have in
common), `bulk` (POST /recommend/batch), `operator_routes`, `page_routes` (files for browsers),
`error_map` (which error has which status), `preconditions` (what is checked before the body is
read), `url_and_body` (checks of the URL, limits of the body), `json_body` (JSON that can be read in
one way only), `lean_route` (POST /recommend without FastAPI's layers), `middleware` (request id,
metrics, log line). Who may enter: `admission`. How bytes become requests: `wire`.
"""

from service.http.app import create_app
from service.http.wire.port import Port, raised_descriptor_limit
from service.http.wire.protocol import Http

__all__ = [
    "Http",
    "Port",
    "create_app",
    "raised_descriptor_limit",
]
