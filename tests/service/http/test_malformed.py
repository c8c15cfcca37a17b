"""Ten thousand bodies and some HTTP messages that nobody should send, sent to a live service."""

from __future__ import annotations

import contextlib
import copy
import http.client
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from raw_http import answers, connection, error_code, exchange
from running_service import Service, service_process, wait_until

NUM_BODIES = 10_000
CLIENTS = 4
MAX_GROWTH_BYTES = 12 << 20  # 1.2 kB a body
SECRET = "hunter2"  # in every value, in no name
ADMIN = {"Authorization": "Bearer an-admin-key"}
RIGHT: dict[str, Any] = {
    "/recommend": {
        "user_id": SECRET,
        "k": 3,
        "history": [SECRET],
        "exclude_items": [SECRET],
        "filter": {"category": [SECRET]},
        "timeout_ms": 100,
    },
    "/recommend/batch": {"requests": [{"user_id": SECRET, "history": [SECRET]}]},
    "/events": {
        "events": [
            {"event_id": SECRET, "user_id": SECRET, "item_id": SECRET, "event_type": "click"}
        ]
    },
    "/items/item-1/similar": {"k": 3},
    "/trending": {"filter": {"category": [SECRET]}, "exclude_items": [SECRET]},
    "/admin/items": {"add": [{"item_id": SECRET, "title": SECRET, "embedding": [1.0]}]},
    "/admin/bundles/tiny@1/load": {"shadow_fraction": 0.5},
}
FIELD = {  # one of each body, for every kind of nonsense
    "/recommend": "k",
    "/recommend/batch": "timeout_ms",
    "/events": "events",
    "/items/item-1/similar": "k",
    "/trending": "k",
    "/admin/items": "remove",
    "/admin/bundles/tiny@1/load": "shadow_fraction",
}


@pytest.fixture(scope="module")
def service(
    bundles_dir: Path, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """tiny@1, with an administrator."""
    with service_process(
        tmp_path_factory.mktemp("malformed"),
        bundles_dir=bundles_dir,
        bundle="tiny@1",
        redis_url=redis_url,
        admin_keys="an-admin-key",
    ) as service:
        yield service


@pytest.fixture(scope="module")
def documented(service: Service) -> dict[str, set[int]]:
    """The documented statuses of each route."""
    paths = service.client.get("/openapi.json").json()["paths"]
    templates = {
        "/items/item-1/similar": "/items/{item_id}/similar",
        "/admin/bundles/tiny@1/load": "/admin/bundles/{bundle}/load",
    }
    return {
        path: {int(status) for status in paths[templates.get(path, path)]["post"]["responses"]}
        for path in RIGHT
    }


# Bodies. Each function takes a route and a random generator, and makes a wrong body.

Make = Callable[[str, random.Random], bytes]


def with_raw(path: str, raw: str) -> bytes:
    """The right body, except for one field that is written as given."""
    body = {name: value for name, value in RIGHT[path].items() if name != FIELD[path]}
    text = json.dumps(body)
    return f'{text[:-1]}{", " if body else ""}"{FIELD[path]}": {raw}}}'.encode()


def random_bytes(path: str, source: random.Random) -> bytes:
    return source.randbytes(source.randrange(1, 400))


def cut_json(path: str, source: random.Random) -> bytes:
    text = json.dumps(RIGHT[path]).encode()
    return text[: source.randrange(len(text))]


def flipped_json(path: str, source: random.Random) -> bytes:
    text = bytearray(json.dumps(RIGHT[path]).encode())
    text[source.randrange(len(text))] = source.randrange(128, 256)  # alone it is not UTF-8
    return bytes(text)


def wrong_type(path: str, source: random.Random) -> bytes:
    values = [SECRET, [[SECRET]], {"a": SECRET}, [None], True, [{}], -1.5]
    body = copy.deepcopy(RIGHT[path])
    body[FIELD[path]] = source.choice(values)
    return json.dumps(body).encode()


def wrong_whole(path: str, source: random.Random) -> bytes:
    return json.dumps(source.choice([SECRET, [SECRET], 7, None, True, 1e300, []])).encode()


def unknown_field(path: str, source: random.Random) -> bytes:
    name = "".join(source.choices("abcdefgh.é\x00\u2028", k=source.randrange(1, 3000)))
    return json.dumps(RIGHT[path] | {name: SECRET}).encode()


def huge_number(path: str, source: random.Random) -> bytes:
    digits = "9" * source.choice([30, 400, 5000, 100_000])
    return with_raw(path, source.choice(["", "-"]) + digits + source.choice(["", ".5", "e999"]))


def not_a_number(path: str, source: random.Random) -> bytes:
    return with_raw(path, source.choice(["NaN", "Infinity", "-Infinity", "1e999", "0x10", "01"]))


def deep(path: str, source: random.Random) -> bytes:
    opening, closing = source.choice(["[]", ('{"a":', "}")])
    depth = source.choice([50, 900, 5000, 100_000])
    return with_raw(path, opening * depth + "1" + closing * depth)


def lone_surrogate(path: str, source: random.Random) -> bytes:
    raw = f'"{SECRET}\\ud83d"'
    return with_raw(path, source.choice([raw, f"[{raw}]", f"{{{raw}: {raw}}}"]))


def surrogate_name(path: str, source: random.Random) -> bytes:
    return json.dumps({f"\udc00{source.random()}": SECRET, **RIGHT[path]}).encode()


def nul(path: str, source: random.Random) -> bytes:
    raw = f'"{SECRET}\\u0000"' + source.choice(["", "\x00"])
    return with_raw(path, raw)


def duplicate_names(path: str, source: random.Random) -> bytes:
    again = f'"{FIELD[path]}": {{"a": "{SECRET}"}}'  # the last one counts
    return with_raw(path, f"1, {', '.join([again] * source.choice([1, 2, 500]))}")


def giant_list(path: str, source: random.Random) -> bytes:
    entry = source.choice([f'"{SECRET}"', "{}", "[]", "1"])
    return with_raw(path, f"[{', '.join([entry] * source.choice([1001, 20_000]))}]")


MAKERS: list[Make] = [
    random_bytes,
    cut_json,
    flipped_json,
    wrong_type,
    wrong_whole,
    unknown_field,
    huge_number,
    not_a_number,
    deep,
    lone_surrogate,
    surrogate_name,
    nul,
    duplicate_names,
    giant_list,
]
HEAVY = {huge_number, deep, giant_list}  # up to some 100 kB: one in ten


def refused(path: str, status: int, content: bytes, documented: dict[str, set[int]]) -> None:
    """Whether an answer is a documented 4xx with the one body that repeats no value."""
    if path == "/events" and status == 200:  # each wrong event is refused in its place
        answer = json.loads(content)
        assert answer["accepted"] == answer["duplicates"] == 0
        assert SECRET.encode() not in content
        return
    assert status in documented[path], (path, status)
    assert 400 <= status < 500, (path, status, content)
    error = json.loads(content)["error"]
    assert set(error) == {"code", "message", "param", "retryable", "request_id", "details"}
    assert SECRET.encode() not in content
    assert len(content) < 10_000


def test_ten_thousand_malformed_bodies(service: Service, documented: dict[str, set[int]]) -> None:
    def send(seed: int, num_bodies: int) -> set[tuple[str, int]]:
        source, seen = random.Random(seed), set()
        headers = {"Content-Type": "application/json", **ADMIN}
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", service.client.base_url.port)
        ) as connection:
            for _ in range(num_bodies):
                make, path = source.choice(MAKERS), source.choice(list(RIGHT))
                while make in HEAVY and source.random() > 0.1:
                    make = source.choice(MAKERS)
                body = make(path, source)
                connection.request("POST", path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
                try:
                    refused(path, answer.status, content, documented)
                except AssertionError as error:
                    raise AssertionError(f"{make.__name__} {path} {body[:300]!r}") from error
                seen.add((path, answer.status))
        return seen

    def send_all(num_bodies: int, seed: int) -> set[tuple[str, int]]:
        with ThreadPoolExecutor(CLIENTS) as pool:
            shares = [pool.submit(send, seed + n, num_bodies // CLIENTS) for n in range(CLIENTS)]
            return set().union(*(share.result() for share in shares))

    seen = send_all(NUM_BODIES // 5, seed=0)
    before = service.rss_bytes
    seen |= send_all(NUM_BODIES * 4 // 5, seed=CLIENTS)
    assert service.rss_bytes - before < MAX_GROWTH_BYTES
    assert seen >= {(path, status) for path in RIGHT for status in (400, 422)}
    assert is_well(service)
    assert SECRET not in service.stdout + service.stderr


def is_well(service: Service) -> bool:
    answer = service.recommend(user_id="x", history=["item-1"])
    return answer.status_code == 200 and answer.json()["served_by"] == "model"


@pytest.mark.parametrize(
    "event",
    [7, None, [], "x", {}, {"event_id": SECRET, "user_id": {SECRET: 1}}, {"user_id": "\ud800"}],
)
def test_a_malformed_event_is_refused_in_its_place(service: Service, event: Any) -> None:
    body = json.dumps({"events": [event]})
    headers = {"Content-Type": "application/json"}
    answer = service.client.post("/events", content=body, headers=headers)
    assert (answer.status_code, answer.json()["accepted"]) == (200, 0)
    assert answer.json()["rejected"][0]["code"] == "invalid_event"
    assert SECRET not in answer.text


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "é",
     "application/json+x", "application/jsonp"],
)  # fmt: skip
def test_another_content_type_is_refused(
    service: Service, documented: dict[str, set[int]], content_type: str
) -> None:
    for path, body in RIGHT.items():
        headers = httpx.Headers(ADMIN)
        headers.encoding = "latin-1"
        headers["Content-Type"] = content_type
        answer = service.client.post(path, content=json.dumps(body), headers=headers)
        assert answer.status_code == 415
        refused(path, answer.status_code, answer.content, documented)


# Messages that are not quite HTTP


def head(*lines: str, path: str = "/recommend") -> bytes:
    """The head of a message. Without lines it does not end."""
    fixed = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json"]
    end = [""] if lines else []
    return "".join(f"{line}\r\n" for line in [*fixed, *lines, *end]).encode("latin-1")


CHUNK = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
BODY = b'{"user_id": "hunter2"}'


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)], 400),  # TLS
        ([b"GET\r\n\r\n"], 400),
        ([b"GET / HTTP/9.9\r\n\r\n"], 400),
        ([b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n"], 400),
        ([b"get / HTTP/1.1\r\nHost: x\r\n\r\n"], 400),
        ([b"CONNECT example.org:80 HTTP/1.1\r\nHost: x\r\n\r\n"], 400),
        ([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], 400),  # HTTP/2 without asking
        ([head(path="/users/Zoë/history"), b"\r\n"], 400),
        ([head(path="/users/\x80/history"), b"\r\n"], 400),
        ([head(path="/a b"), b"\r\n"], 400),
        ([head(path="no-slash"), b"\r\n"], 400),
        ([head("Content-Length: -1"), BODY], 400),
        ([head("Content-Length: +1"), BODY], 400),
        ([head("Content-Length: abc"), BODY], 400),
        ([head("Content-Length: 99999999999999999999999"), BODY], 400),
        ([head("Content-Length: 5", "Content-Length: 6"), BODY], 400),
        ([head("Content-Length: 5", "Transfer-Encoding: chunked"), BODY], 400),
        ([head("Content-Length: 5"), BODY + b"\r\n\r\n"], 400),  # too short: the rest is nonsense
        ([head("Transfer-Encoding: chunked"), b"zz\r\n" + BODY], 400),
        ([head("Transfer-Encoding: chunked") + b"zz\r\n" + BODY], 400),
        ([head("Transfer-Encoding: chunked"), b"-5\r\n" + BODY], 400),
        ([head("Transfer-Encoding: chunked", "Connection: close"), *[CHUNK] * 20, b"0\r\n\r\n"],
         413),
        ([head("Transfer-Encoding: nonsense"), BODY], 400),
        ([head("no colon here"), BODY], 400),
        ([head("X: a\0b"), BODY], 400),
        ([head("X: folded\r\n value"), BODY], 400),
        ([head(), b"X: ", *[b"x" * (1 << 20)] * 32], 431),
        ([head(), *[b"x: y\r\n" * 100_000] * 16], 431),
        ([head("Transfer-Encoding: chunked"), CHUNK, b"0\r\n", *[b"x: y\r\n" * 100_000] * 16],
         431),
        ([head("Transfer-Encoding: chunked"), b"5;", *[b"x" * (1 << 20)] * 32], 431),
    ],
)  # fmt: skip
def test_a_broken_message_is_refused_in_the_one_body_and_counted(
    service: Service, parts: list[bytes], status: int
) -> None:
    before, counted = service.rss_bytes, counts(service)
    *answered, last = answers(exchange(service, *parts))
    assert (last[0], error_code(last)) == (status, CODES[status])
    assert last[1]["connection"] == "close"
    assert "date" in last[1]
    assert SECRET.encode() not in last[2]
    # Only where the body is whole before the nonsense begins.
    assert [(one[0], error_code(one)) for one in answered] in ([], [(400, "malformed_json")])
    seen = Counter(str(one[0]) for one in [*answered, last])
    wait_until(lambda: counts(service) == counted + seen)
    lines = [json.loads(line) for line in service.stdout.splitlines()]
    [line] = [line for line in lines if line.get("request_id") == last[1]["x-request-id"]]
    assert (line["event"], line["status"]) == ("request", status)
    assert service.stderr == ""
    assert service.rss_bytes - before < MAX_GROWTH_BYTES
    assert is_well(service)


CODES = {400: "malformed_request", 413: "body_too_large", 431: "headers_too_large"}


def counts(service: Service) -> Counter[str]:
    """Refused requests by status."""
    found: Counter[str] = Counter()
    for name, value in service.samples().items():
        if name.startswith("unmask_http_requests_total") and 'status="4' in name:
            found[name.partition('status="')[2][:3]] += int(value)
    return found


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (head("Content-Length: 22") + BODY, [200]),
        (head("content-length:22 \t") + BODY, [200]),
        (head("Transfer-Encoding: chunked") + b"16\r\n" + BODY + b"\r\n0\r\nX: y\r\n\r\n", [200]),
        (head("Content-Length: 22").replace(b"Host: x\r\n", b"") + BODY, [200]),
        (head("Content-Length: 22", path="http://x/recommend") + BODY, [200]),
        (b"\r\n" + head("Content-Length: 22") + BODY, [200]),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", [404]),
        (b"OPTIONS /recommend HTTP/1.1\r\nHost: x\r\n\r\n", [405]),
        (b"PROPFIND /recommend HTTP/1.1\r\nHost: x\r\n\r\n", [405]),
        (b"HEAD /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", [404]),
        (head("Content-Length: 0"), [422]),
        (head("Content-Length: 22", "Expect: nothing") + BODY, [200]),
    ],
)
def test_an_odd_request_is_answered_and_the_next_one_too(
    service: Service, sent: bytes, statuses: list[int]
) -> None:
    bodies = [] if sent.startswith(b"HEAD") else [None]
    last = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    received = exchange(service, sent, last)
    if not bodies:
        top, _, received = received.partition(b"\r\n\r\n")
        assert top.startswith(b"HTTP/1.1 404")
        statuses = []
    *found, live = answers(received)
    assert [one[0] for one in found] == statuses
    assert json.loads(live[2])["status"] == "live"
    for one in found:
        assert one[0] == 200 or error_code(one)


def test_http_1_0_is_answered_and_the_connection_closed(service: Service) -> None:
    sent = head("Content-Length: 22").replace(b"HTTP/1.1", b"HTTP/1.0")
    [(status, headers, _)] = answers(exchange(service, sent + BODY))
    assert (status, headers["connection"]) == (200, "close")


def test_a_client_that_expects_100_continue_gets_it(service: Service) -> None:
    with connection(service) as client:
        client.sendall(head("Content-Length: 22", "Expect: 100-continue "))
        assert client.recv(1 << 16) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(BODY)
        [(status, _, _)] = answers(client.recv(1 << 16))
        assert status == 200
