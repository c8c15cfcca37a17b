"""What clients and operators reach over HTTP: routes, errors, and what is around every request.

The only room that knows HTTP, FastAPI and uvicorn. It turns requests into calls of the rooms below
and their answers and errors into statuses, headers and JSON. It decides nothing about
recommendations, histories or bundles.

Reading order: `app` (the wiring, the routes of clients), `bulk` (POST /recommend/batch),
`operator_routes`, `error_map` (which error is which status), `preconditions` (what is checked
before a body is read), `intake` (URL and body), `json_body`, `middleware` (request id, metrics, log
line). Who is let in: `admission`. How bytes become requests: `wire`.
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
