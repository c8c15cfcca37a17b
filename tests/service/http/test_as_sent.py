"""Requests that could be read in two ways, by a gateway and by the service: they are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from raw_http import answers, error_code, exchange
from running_service import Service, service_process

from service.errors import InvalidRequest
from service.http.json_body import MOST_NESTED, parsed

ADMIN = "an-admin-key"
GOOD = '"user_id": "x", "history": ["item-1"]'
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def service(
    bundles_dir: Path, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    with service_process(
        tmp_path_factory.mktemp("as-sent"),
        bundles_dir=bundles_dir,
        bundle="tiny@1",
        redis_url=redis_url,
        admin_keys=ADMIN,
    ) as service:
        yield service


def sent(service: Service, line: str, *fields: str, body: bytes = b"") -> tuple[int, bytes]:
    """Status and body of the answer to a head that goes out as it is."""
    head = [f"{line} HTTP/1.1", "Host: x", "Connection: close", *fields, "", ""]
    [answer] = answers(exchange(service, "\r\n".join(head).encode(), body))
    if answer[0] >= 400:
        assert error_code(answer)
    return answer[0], answer[2]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/recommend", '{"user_id": "a", "user_id": "x", "history": ["item-1"]}'),
        ("/recommend", f'{{{GOOD}, "k": 1, "\\u006b": 2}}'),
        ("/recommend", f'{{{GOOD}, "filter": {{"category": ["a"], "category": ["b"]}}}}'),
        ("/recommend/batch", f'{{"requests": [{{{GOOD}, "k": 1, "k": 1}}]}}'),
        ("/events", '{"events": [], "events": [{}]}'),
        ("/items/item-1/similar", '{"k": 1, "k": 2}'),
    ],
)
def test_a_name_that_stands_twice_is_refused(service: Service, path: str, body: str) -> None:
    answer = service.client.post(path, content=body, headers=JSON)
    assert answer.status_code == 422
    assert "same name twice" in answer.json()["error"]["message"]


@pytest.mark.parametrize("brackets", ["[]", ('{"a":', "}")], ids=["lists", "objects"])
@pytest.mark.parametrize("before", ["", '"\\ud83d", '], ids=["", "half a surrogate"])
@pytest.mark.parametrize("path", ["/recommend", "/events", "/items/item-1/similar"])
def test_a_body_that_is_nested_as_deep_as_a_stack_is_refused(
    service: Service, path: str, before: str, brackets: Sequence[str]
) -> None:
    opening, closing = brackets
    for depth in (5_000, 100_000):
        text = f'{{"x": [{before}{opening * depth}1{closing * depth}]}}'
        answer = service.client.post(path, content=text, headers=JSON)
        assert answer.status_code == 422, answer.text
        assert answer.json()["error"]["message"].startswith("the body has more than 200 brackets")


def test_two_hundred_brackets_within_one_another_are_read_and_many_beside_one_another() -> None:
    assert parsed("[" * MOST_NESTED + "]" * MOST_NESTED, "body")
    assert parsed(f"[{'[], ' * 5_000}{{}}]", "body") == [[]] * 5_000 + [{}]
    with pytest.raises(InvalidRequest, match="the filter has more than 200 brackets within"):
        parsed("[" * (MOST_NESTED + 2) + "]" * (MOST_NESTED + 2), "filter")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_a_body_is_read_as_utf_8_only(service: Service, encoding: str) -> None:
    text = '{"user_id": "\u00e9", "history": ["item-1"]}'
    answer = service.client.post("/recommend", content=text.encode(encoding), headers=JSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed_json")


def test_a_byte_order_mark_is_no_part_of_the_body(service: Service) -> None:
    text = f"\ufeff{{{GOOD}}}"
    answer = service.client.post("/recommend", content=text.encode(), headers=JSON)
    assert answer.status_code == 200


@pytest.mark.parametrize("codings", ["gzip, chunked", "deflate,chunked", "identity, chunked"])
def test_a_body_that_is_coded_for_its_transfer_is_a_415(service: Service, codings: str) -> None:
    body = f"{{{GOOD}}}".encode()
    status, answer = sent(
        service,
        "POST /recommend",
        "Content-Type: application/json",
        f"Transfer-Encoding: {codings}",
        body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
    )
    assert (status, json.loads(answer)["error"]["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "line",
    [
        "DELETE /users%2Fkept%2Fhistory",
        "DELETE /users/kept%2fhistory",
        "DELETE /%75sers/kept/history",
        "GET /users/kept%2Fhistory",
        "POST /%61dmin/drain",
        "POST /admin%2Fdrain",
        "POST /admin/bundles%2Frollback",
        "GET /%6detrics",
        "GET /items%2Fitem-1",
        "GET /health%2Flive",
    ],
)
def test_no_route_is_hidden_in_a_path(service: Service, line: str) -> None:
    """A gateway that keeps clients from /admin, say, looks at the path as it was sent."""
    status, answer = sent(service, line, f"Authorization: Bearer {ADMIN}", "Content-Length: 0")
    assert (status, json.loads(answer)["error"]["code"]) == (404, "route_not_found")
    assert service.client.get("/health/ready").status_code == 200  # nothing drains


def test_nobody_is_erased_by_a_hidden_path(service: Service) -> None:
    service.send("item-1", user_id="kept")
    for path in ("/users%2Fkept%2Fhistory", "/users/kept%2Fhistory", "/%75sers/kept/history"):
        assert sent(service, f"DELETE {path}")[0] == 404
    assert service.client.get("/users/kept/history").json()["history"] == ["item-1"]
    assert service.client.delete("/users/%6bept/history").status_code == 204  # ids may be escaped
    assert service.client.get("/users/kept/history").json()["history"] == []


@pytest.mark.parametrize("limit", ["1_0", "+1", "%2B1", "%201", "1.0", "", "NaN", "%D9%A1", "0x1"])
def test_a_limit_is_written_in_digits(service: Service, limit: str) -> None:
    answer = service.client.get(f"/users/x/history?limit={limit}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "limit")


def test_a_url_that_is_too_long_hears_it(service: Service) -> None:
    for length in (66_000, 100_000):
        status, answer = sent(service, f"GET /info?{'a' * length}")
        assert (status, json.loads(answer)["error"]["code"]) == (431, "headers_too_large")
