"""The OpenAPI document and the live service agree: each answer is a declared one.

Schemathesis makes right and wrong requests from the document. Client and admin keys are set, so
every route is there. Half of the right requests name users, items and bundles that exist. Draining
is requested like everything else, and a draining process goes on answering.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from pydantic import SecretStr
from running_service import Service, service_process
from running_valkey import Server, running
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from tiny_bundle import EMBEDDING_DIMS, write_tiny_bundle

from service.http.app import create_app
from service.lifecycle import Lifecycle
from service.settings import Settings
from service.telemetry.metrics import Metrics

ADMIN = {"Authorization": "Bearer an-admin-key"}
EXAMPLES = 30  # of each operation, and what the coverage phase adds
KNOWN = {
    "bundle": ["tiny@1", "tiny@2", "tiny@3"],
    "item_id": ["item-7", "item-8"],
    "user_id": ["u"],
}
EVENT = {"event_id": "e", "user_id": "u", "item_id": "item-1", "event_type": "click"}
NEW_ITEM = {"item_id": "new", "title": "New", "embedding": [1.0] * EMBEDDING_DIMS}
# One request of each operation, but of GET /health/ready: a service is ready before it drains.
RIGHT: list[tuple[str, str, dict[str, Any] | None]] = [
    *(("GET", path, None) for path in ("/info", "/models", "/metrics", "/health/live")),
    ("POST", "/recommend", {"user_id": "u"}),
    ("POST", "/explain", {"user_id": "u", "item_id": "item-7"}),
    ("POST", "/recommend/batch", {"requests": [{"user_id": "u"}]}),
    ("POST", "/events", {"events": [EVENT]}),
    ("GET", "/users/u/history", None),
    ("DELETE", "/users/u/history", None),
    ("POST", "/items/item-7/similar", {}),
    ("POST", "/trending", {"k": 3, "filter": {"category": ["Shelves"]}}),
    ("GET", "/items?limit=2", None),
    ("GET", "/items/item-7", None),
    ("GET", "/held-out-users", None),
    ("GET", "/map?limit=5", None),
    ("GET", "/map/groups?position=3", None),
    ("POST", "/admin/bundles/tiny@1/load", {}),
    ("POST", "/admin/bundles/tiny@1/activate", None),
    ("POST", "/admin/bundles/tiny@3/load", {}),
    ("POST", "/admin/bundles/tiny@3/activate", None),
    ("GET", "/admin/bundles/tiny@3/info", None),
    ("POST", "/admin/bundles/tiny@3/recommend", {"user_id": "u"}),
    ("POST", "/admin/bundles/rollback", None),
    ("POST", "/admin/bundles/tiny@3/unload", None),
    ("POST", "/admin/items", {"add": [NEW_ITEM]}),
    ("GET", "/admin/items", None),
    ("POST", "/admin/drain", None),
]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
    ignored_auth,
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """tiny@1 with keys; it replaced tiny@2. Its items change, so it has its own history store."""
    folder = tmp_path_factory.mktemp("contract")
    for version in ("1", "2", "3"):
        write_tiny_bundle(folder / "bundles" / "tiny" / version, version=version, has_map=True)
    valkey = Server(folder / "valkey", {"save": '""'})
    with (
        running(valkey),
        service_process(
            folder,
            bundles_dir=folder / "bundles",
            bundle="tiny@2",
            redis_url=valkey.url,
            admin_keys="an-admin-key",
            api_keys="a-client-key",
        ) as service,
    ):
        service.client.headers.update(ADMIN)
        service.client.post("/admin/bundles/tiny@1/load", json={})
        assert service.client.post("/admin/bundles/tiny@1/activate").status_code == 200
        yield service


def document() -> dict[str, Any]:
    """What the service says about itself, read before a process runs."""
    keys = {"admin_keys": [SecretStr("an-admin-key")], "api_keys": [SecretStr("a-client-key")]}
    app = create_app(Lifecycle(Settings.model_validate(keys), Metrics()))

    async def ask() -> dict[str, Any]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://unmask") as client:
            found: dict[str, Any] = (await client.get("/openapi.json")).json()
            return found

    return asyncio.run(ask())


api = schemathesis.openapi.from_dict(document())
api.config.update(headers=ADMIN)
api.config.generation.allow_extra_parameters = False  # what no route reads is not refused
api.config.checks.negative_data_rejection.expected_statuses += ["431"]  # a filter in a long URL
api.config.checks.not_a_server_error.expected_statuses = ["2xx", "4xx", "503", "504"]


@api.parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_as_declared(case: Case[Any], service: Service) -> None:
    url = str(service.client.base_url)
    name_what_exists(case)
    # A wrong entry is refused inside the answer, beside the right ones.
    is_list = case.path in ("/events", "/recommend/batch")
    checks = CHECKS if is_list else [*CHECKS, negative_data_rejection]
    case.call_and_validate(url, checks=checks, timeout=300)


def name_what_exists(case: Case[Any]) -> None:
    """Give half of the right requests something to find."""
    assert case.meta
    if not case.meta.generation.mode.is_positive or len(str(case.path_parameters)) % 2:
        return
    for name, value in case.path_parameters.items():
        case.path_parameters[name] = KNOWN[name][len(str(value)) % len(KNOWN[name])]
    if case.path == "/admin/items" and isinstance(case.body, dict):
        case.body["add"] = [NEW_ITEM]


def test_the_document_is_that_of_the_process(service: Service) -> None:
    assert service.client.get("/openapi.json").json() == api.raw_schema


def test_every_operation_has_succeeded(service: Service) -> None:
    """Otherwise the tests would say nothing about the answers that matter."""
    # What is generated differs with the modules that are loaded, and may all be refused.
    for method, path, body in RIGHT:
        answer = service.client.request(method, path, json=body)
        assert answer.is_success, (method, path, answer.text)
    done = {name for name in service.samples() if name.startswith("unmask_http_requests_total")}
    for operation in api.get_all_operations():
        route = operation.ok()
        labels = f'method="{route.method.upper()}",route="{route.path}",status="20'
        assert [name for name in done if labels in name], labels


def test_the_service_is_well_afterwards(service: Service) -> None:
    answer = service.recommend(user_id="x", history=["item-1"])
    assert (answer.status_code, answer.json()["served_by"]) == (200, "model")
    assert service.client.get("/health/live").status_code == 200
