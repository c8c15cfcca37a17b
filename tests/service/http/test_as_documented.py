"""What the published document says about requests is true.

Integers, methods, entries of a batch, and which errors are worth another try.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from running_service import Service, service_process

from service.http.error_map import ANSWERS, RETRYABLE

JSON = {"Content-Type": "application/json"}
ADMIN = {"Authorization": "Bearer an-admin-key"}
GOOD = {"user_id": "x", "history": ["item-1"], "k": 3}


@pytest.fixture(scope="module")
def service(
    bundles_dir: Path, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """tiny@1 with an administrator. Its queue holds two requests of the default width."""
    with service_process(
        tmp_path_factory.mktemp("documented"),
        bundles_dir=bundles_dir,
        bundle="tiny@1",
        redis_url=redis_url,
        max_queue_rows=20,
        admin_keys="an-admin-key",
    ) as service:
        yield service


@pytest.fixture(scope="module")
def document(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = service.client.get("/openapi.json").json()
    return found


def is_valid(document: dict[str, Any], path: str, body: Any) -> bool:
    """Whether it is valid by the published schema."""
    [media] = document["paths"][path]["post"]["requestBody"]["content"].values()
    schema = {**media["schema"], "components": document["components"]}
    return bool(jsonschema.Draft202012Validator(schema).is_valid(body))


INTEGERS: list[tuple[str, dict[str, Any], str, list[Any], list[Any]]] = [
    ("/recommend", GOOD, "k", [1, 20], [0, 101]),
    ("/recommend", GOOD, "horizon", [1], [0, 6]),
    ("/recommend", GOOD, "r_warm", [0, 4], [-1]),
    ("/recommend", GOOD, "m_par", [1, 4], [0]),
    ("/recommend", GOOD, "beam_width", [3, 20], [0, 201]),
    ("/recommend", GOOD, "finish_rows", [0, 1_000_000], [-1, 1_000_001]),
    ("/recommend", GOOD, "remask", [0, 3], [-1]),
    ("/recommend", GOOD, "timeout_ms", [10_000], [0, 10_001]),
    ("/recommend/batch", {"requests": [GOOD]}, "timeout_ms", [10_000], [0, 10_001]),
    ("/items/item-1/similar", {}, "k", [1, 100], [0, 101]),
    ("/trending", {}, "k", [1, 100], [0, 101]),
]
INTEGERS += [
    ("/explain", {**body, "item_id": "item-7"}, name, inside, outside)
    for path, body, name, inside, outside in INTEGERS
    if path == "/recommend"
]
OF_THE_BUNDLE = {"r_warm", "m_par", "remask"}  # it has the upper bound


@pytest.mark.parametrize(("path", "body", "name", "inside", "outside"), INTEGERS)
def test_every_integer_is_taken_as_json_schema_calls_it(
    service: Service,
    document: dict[str, Any],
    path: str,
    body: dict[str, Any],
    name: str,
    inside: list[int],
    outside: list[int],
) -> None:
    declared = path.replace("item-1", "{item_id}")

    def sent(value: Any) -> tuple[bool, int, Any]:
        content = {**body, name: value}
        answer = service.client.post(path, json=content)
        return is_valid(document, declared, content), answer.status_code, answer.json()

    for value in inside:
        for spelt in (value, float(value)):
            valid, status, _ = sent(spelt)
            assert (valid, status) == (True, 200), spelt
    for value in [*outside, *map(float, outside), inside[0] + 0.5, 1e300, "3", True, []]:
        valid, status, answer = sent(value)
        assert status == 422, value
        assert not valid or (value == 1e300 and name in OF_THE_BUNDLE)
        assert answer["error"]["param"] == name


def test_no_integer_is_left_out(document: dict[str, Any]) -> None:
    """All integers in requests are tested, also those that are added later."""

    def integers(schema: dict[str, Any], place: str) -> Iterator[str]:
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            yield from integers(document["components"]["schemas"][name], name)
            return
        if schema.get("type") == "integer":
            yield place
        for name, of in schema.get("properties", {}).items():
            yield from integers(of, f"{place}.{name}")
        for of in [*schema.get("anyOf", []), *filter(None, [schema.get("items")])]:
            yield from integers(of, place)

    found: set[str] = set()
    for methods in document["paths"].values():
        for operation in methods.values():
            for media in operation.get("requestBody", {}).get("content", {}).values():
                found |= set(integers(media["schema"], ""))
    tried = {
        f"{model}.{name}"
        for path, models in (
            ("/recommend", ("RecommendRequest", "BatchEntry")),
            ("/explain", ("ExplainRequest",)),
            ("/recommend/batch", ("BatchRequest",)),
            ("/items/item-1/similar", ("SimilarRequest",)),
            ("/trending", ("TrendingRequest",)),
        )
        for model in models
        for own, _, name, _, _ in INTEGERS
        if own == path and (model, name) != ("BatchEntry", "timeout_ms")
    }
    assert found == tried


def test_every_method_of_a_path_is_allowed_by_name(
    service: Service, document: dict[str, Any]
) -> None:
    for path, operations in document["paths"].items():
        own = {method.upper() for method in operations}
        own |= {"HEAD"} if "GET" in own else set()
        url = path.format(user_id="u", item_id="item-1", bundle="tiny@1")
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"} - own:
            answer = service.client.request(method, url)
            if path == "/items/{item_id}/similar" and method == "GET":
                assert answer.status_code == 404  # an item of the name `item-1/similar`
                continue
            assert answer.status_code == 405, (method, url)
            allowed = set(answer.headers["Allow"].split(", "))
            assert own <= allowed, (method, url)
            if path != "/items/{item_id}/similar":
                assert allowed == own


def test_head_is_get_without_its_body(service: Service, document: dict[str, Any]) -> None:
    service.send("item-1", user_id="head")
    paths = [path for path, operations in document["paths"].items() if "get" in operations]
    assert {"/users/{user_id}/history", "/items/{item_id}", "/metrics"} <= set(paths)
    for path in [*paths, "/livez", "/readyz", "/users/a%2Fb/history", "/items/none"]:
        url = path.format(user_id="head", item_id="item-1", bundle="tiny@1")
        got, head = service.client.get(url), service.client.head(url)
        assert (head.status_code, head.content) == (got.status_code, b""), url
        assert head.headers["Content-Type"] == got.headers["Content-Type"]
        if path != "/metrics":  # counts itself
            assert head.headers["Content-Length"] == got.headers["Content-Length"]


def test_a_wrong_entry_of_a_batch_stops_no_other(
    service: Service, document: dict[str, Any]
) -> None:
    entries: list[tuple[Any, str | None]] = [
        (GOOD, None),
        ({**GOOD, "k": 0}, "k"),
        ({**GOOD, "colour": "crimson"}, "colour"),
        ({**GOOD, "history": ["item-1", 7]}, "history.1"),
        ({**GOOD, "timeout_ms": 50}, "timeout_ms"),
        ({**GOOD, "beam_width": 2}, "beam_width"),
        ({**GOOD, "schedule": "auto", "r_warm": 1}, "schedule"),
        ({"user_id": "a/b"}, "user_id"),
        ("nonsense", "body"),
        (None, "body"),
        ({**GOOD, "r_warm": 5}, "r_warm"),  # the bundle says so
        ({**GOOD, "filter": {"colour": ["crimson"]}}, "filter.colour"),
        ({**GOOD, "k": 4.0}, None),
    ]
    invalid = 'unmask_recommend_requests_total{bundle="none",outcome="invalid",variant="none"}'
    before = service.samples()[invalid]
    body = {"requests": [entry for entry, _ in entries]}
    answer = service.client.post("/recommend/batch", json=body)
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert len(results) == len(entries)
    for (entry, param), result in zip(entries, results, strict=True):
        if param is None:
            assert (result["status"], len(result["response"]["items"])) == (200, int(entry["k"]))
            continue
        error = result["error"]
        assert (result["status"], error["code"], error["param"]) == (422, "invalid_request", param)
        assert error["retryable"] is False
        assert error["request_id"] == answer.headers["X-Request-ID"]
        alone = {"timeout_ms": 50} if param == "timeout_ms" else entry
        if alone is entry and entry is not None:  # the same as a single request
            told = service.client.post("/recommend", json=entry).text
            by_itself = json.loads(told.replace(", timeout_ms", ""))["error"]  # not of an entry
            assert by_itself | {"request_id": ""} == error | {"request_id": ""}
    assert "crimson" not in answer.text
    assert service.samples()[invalid] >= before + 9
    request = document["components"]["schemas"]["BatchRequest"]["properties"]["requests"]
    entry = document["components"]["schemas"][request["items"]["$ref"].rpartition("/")[2]]
    assert "timeout_ms" not in entry["properties"]
    assert {"user_id", "k", "history", "filter"} <= set(entry["properties"])
    whole = [{"requests": []}, {"requests": [GOOD] * 33}, {"requests": GOOD}, {}]
    for wrong in whole:  # these have no answer
        assert service.client.post("/recommend/batch", json=wrong).status_code == 422


def test_a_batch_that_is_larger_than_the_queue_is_answered(service: Service) -> None:
    """Its entries wait for each other. Before, they were refused because of each other."""
    for width, num_requests in ((10, 32), (20, 8), (3, 32)):
        entries = [{**GOOD, "user_id": f"b-{n}", "beam_width": width} for n in range(num_requests)]
        body = {"requests": entries, "timeout_ms": 10_000}
        answer = service.client.post("/recommend/batch", json=body).json()
        assert [result["status"] for result in answer["results"]] == [200] * num_requests
        users = [result["response"]["user_id"] for result in answer["results"]]
        assert users == [f"b-{n}" for n in range(num_requests)]


def test_batches_that_meet_in_a_full_queue_all_end(service: Service) -> None:
    body = {"requests": [GOOD | {"beam_width": 20}] * 8, "timeout_ms": 10_000}

    def ask(_: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = service.client.post("/recommend/batch", json=body).json()[
            "results"
        ]
        return found

    with ThreadPoolExecutor(4) as pool:
        results = [result for answer in pool.map(ask, range(4)) for result in answer]
    assert len(results) == 32
    assert {result["status"] for result in results} <= {200, 429}
    assert [result for result in results if result["status"] == 200]
    wrong = [one for one in results if one["status"] == 429 and not one["error"]["retryable"]]
    assert not wrong


def test_what_never_fits_is_not_worth_trying_again(service: Service) -> None:
    assert service.client.get("/info").json()["limits"]["max_beam_width"] == 20
    for asked in ({"beam_width": 21}, {"k": 21}):
        answer = service.recommend(**GOOD | asked)
        assert answer.status_code == 422
        error = answer.json()["error"]
        assert (error["param"], error["retryable"]) == ("beam_width", False)
        body = {"requests": [GOOD | asked, GOOD]}
        wide, other = service.client.post("/recommend/batch", json=body).json()["results"]
        assert (wide["status"], wide["error"]["retryable"], other["status"]) == (422, False, 200)


def test_retryable_is_what_its_status_says() -> None:
    assert {status for status, _ in ANSWERS.values()} >= RETRYABLE == {429, 503}


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({"Content-Encoding": "gzip"}, "uncompressed"),
        ({"Content-Encoding": "br"}, "uncompressed"),
        ({"Content-Encoding": "identity, deflate"}, "uncompressed"),
        ({"Content-Type": "application/json; charset=iso-8859-1"}, "UTF-8"),
        ({"Content-Type": 'application/json; charset="utf-16"'}, "UTF-8"),
        ({"Content-Type": "text/json"}, "application/json"),
        ({"Content-Type": ""}, "application/json"),
    ],
)
def test_a_body_that_would_be_misread_is_a_415(
    service: Service, document: dict[str, Any], headers: dict[str, str], says: str
) -> None:
    content = json.dumps(GOOD).encode()
    sent = gzip.compress(content) if "gzip" in headers.values() else content
    for path, operations in document["paths"].items():
        operation = operations.get("post", {})
        if "requestBody" not in operation:
            continue
        url = path.format(item_id="item-1", bundle="tiny@1")
        answer = service.client.post(url, content=sent, headers=JSON | ADMIN | headers)
        assert answer.status_code == 415, url
        error = answer.json()["error"]
        assert (error["code"], error["retryable"]) == ("unsupported_media_type", False)
        assert says in error["message"]
        assert "415" in operation["responses"]


def test_a_body_that_says_how_it_is_read_anyway_is_taken(service: Service) -> None:
    for headers in (
        {"Content-Type": "application/json; charset=UTF-8"},
        {"Content-Type": 'Application/JSON;charset="utf-8"'},
        {"Content-Encoding": "identity"},
    ):
        answer = service.client.post("/recommend", content=json.dumps(GOOD), headers=JSON | headers)
        assert answer.status_code == 200, headers
