"""The lean POST /recommend against the declared route: the same status, headers and body."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from fastapi import FastAPI, Request, Response
from pydantic import SecretStr

from service import errors, schemas
from service.http.admission.admission_rules import bearer_key_of
from service.http.admission.gate import Gate
from service.http.admission.keys import Keys
from service.http.app import add_client_routes
from service.http.error_map import add_handlers
from service.http.lean_route import LeanRoute
from service.http.middleware import ASGIApp, Envelope, Message, Scope
from service.http.preconditions import Guard, require_json
from service.http.url_and_body import UrlAndBodyChecks
from service.telemetry.metrics import Metrics

NUM_BODIES = 3_000
JSON = (b"content-type", b"application/json")
# Whatever a field may be and may not be: each body takes some fields, each with one of these.
IDS = ["a", "item-1", "", "x" * 256, "x" * 257, "\u00e9\u4e16", "..", "a/b", "\ud800", 1, None]
NUMBERS = [0, 1, 2, 3.0, 3.5, -1, 10, 100, 101, 10**30, True, "3", None, [], float("nan"), 1e400]
VALUES: dict[str, list[Any]] = {
    "user_id": ["u", "u42", *IDS],
    **dict.fromkeys(
        ("k", "horizon", "r_warm", "m_par", "beam_width", "finish_rows", "remask", "guidance"),
        NUMBERS,
    ),
    "timeout_ms": [*NUMBERS, 10_000, 10_001],
    "schedule": ["auto", "fixed", "other", None, 1],
    "ranking": ["rows", "path", "best", "none", None],
    "order": ["confidence", "left_to_right", "up", 3],
    "retrieval": ["generate", "dense", "fused", "", {}],
    "history": [[], ["a", "b"], ["a", 1], "a", None, ["a"] * 501, {"a": 1}],
    "exclude_items": [[], ["a"], [""], None, 3],
    "exclude_seen": [True, False, 1, "true", None],
    "candidates": [["a"], [], ["a", "a"], None, [None]],
    "filter": [
        *({}, {"category": ["A"]}, {"year": {"gte": 5}}, {"": ["A"]}, {"a": []}, {"a": {}}, []),
        {"category": {"not": ["B"], "anny": ["C"]}},
        {"price": {"gt": "2026-11-30", "lt": [1]}},
    ],
    "explore": [0, 0.5, 1, 1.5, -0.1, "0.5"],
    "boost": [[], [{"filter": {"a": ["b"]}, "weight": 1}], [{"filter": {}, "weight": 9}], [{}], 1],
    "max_per": [{}, {"category": 2}, {"category": 0}, {"category": 2.0}, {"": 1}, []],
    "pin": [{}, {"a": 1}, {"a": 1, "b": 1}, {"a": 200}, {"a": 11}, [1]],
    "after": [None, "r", "", "x" * 129, 5],
    "metadata": [True, False, None],
    "explain": [True, False, "no"],
    **{name: [1, None] for name in ("user", "beam_widht", "K", "\ud800x")},
}
WHOLE = [b"", b"null", b"[]", b"3", b'"u"', b"{", b"{}x", b"\xff", b"\xef\xbb\xbf{}", b"[" * 5000]
WHOLE += [b'{"user_id": "u", "user_id": "v"}', b'{"user_id": "u", "pin": {"a": 1, "a": 2}}', b" "]
HEADERS: list[list[tuple[bytes, bytes]]] = [
    [],
    [(b"content-type", b"text/plain")],
    [(b"content-type", b"application/json; charset=utf-8")],
    [(b"content-type", b"APPLICATION/JSON")],
    [(b"content-type", b"application/json;charset=latin-1")],
    [(b"content-type", b"application/ld+json")],
    [JSON, (b"content-type", b"text/plain")],
    [(b"content-type", b"text/plain"), JSON],
    [JSON, (b"content-encoding", b"gzip")],
    [JSON, (b"content-encoding", b"identity")],
    [JSON, (b"transfer-encoding", b"chunked")],
    [JSON, (b"transfer-encoding", b"gzip, chunked")],
    [JSON, (b"content-length", b"2000000")],
]


class Answered(NamedTuple):
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Echo:
    """Stands for `Routes`: an answer says what it was asked, and some questions have none."""

    def __getattr__(self, name: str) -> Any:
        async def other() -> None: ...

        return other

    async def recommend(self, body: schemas.RecommendRequest, request: Request) -> Response:
        if body.user_id == "u42":
            raise errors.Overloaded("full", reason="queue_full", retry_after_s=7)
        if body.user_id == "a":
            raise errors.InvalidRequest("no such attribute", param="filter.a")
        if body.user_id == "bug":
            raise RuntimeError("nobody has thought of this")
        asked = f"{body!r} {sorted(body.model_fields_set)}".encode("utf-8", "backslashreplace")
        return Response(asked, media_type="application/json")


def both(guard: Guard | None = None) -> tuple[ASGIApp, ASGIApp]:
    """The lean route in front of the declared one, and the declared one alone."""
    found = []
    for is_lean in (True, False):
        app, echo = FastAPI(), Echo()
        guards = [guard] if guard else []
        add_client_routes(app, echo, guards)  # type: ignore[arg-type]
        add_handlers(app)
        model = schemas.RecommendRequest
        lean = LeanRoute(app, "/recommend", [*guards, require_json], model, echo.recommend)
        metrics, gate = Metrics(), Gate(1, 100)
        found.append(
            Envelope(UrlAndBodyChecks(lean if is_lean else app, app, metrics), metrics, gate)
        )
    return found[0], found[1]


async def ask(
    app: ASGIApp,
    body: bytes | None,
    headers: Sequence[tuple[bytes, bytes]] = (JSON,),
    method: str = "POST",
    path: str = "/recommend",
    num_parts: int = 1,
) -> Answered:
    """body: None = the client goes away before it comes"""
    scope: Scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"x-request-id", b"r"), *headers],
    }
    size = len(body or b"") // num_parts + 1
    parts = [] if body is None else [body[size * n : size * n + size] for n in range(num_parts)]
    arriving: list[Message] = [
        {"type": "http.request", "body": part, "more_body": n < num_parts}
        for n, part in enumerate(parts, start=1)
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return arriving.pop(0) if arriving else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    start, *rest = sent
    whole = b"".join(message["body"] for message in rest)
    return Answered(start["status"], sorted(start["headers"]), whole)


def random_body(draw: random.Random) -> bytes:
    """Mostly a user and some fields, each right or wrong; sometimes something else altogether."""
    if draw.random() < 0.03:
        return draw.choice(WHOLE)
    names = draw.sample(list(VALUES), draw.choice([0, 1, 1, 1, 2, 2, 3, 5]))
    body = {"user_id": "u"} if draw.random() < 0.95 else {}
    body |= {name: draw.choice(VALUES[name]) for name in names}
    return json.dumps(body).encode()


def test_thousands_of_bodies_are_answered_alike() -> None:
    async def run() -> dict[int, int]:
        lean, declared = both()
        draw = random.Random(62)
        statuses: dict[int, int] = {}
        for _ in range(NUM_BODIES):
            body, parts = random_body(draw), draw.choice([1, 1, 1, 3])
            headers = draw.choice(HEADERS) if draw.random() < 0.02 else [JSON]
            answered = await ask(lean, body, headers, num_parts=parts)
            assert answered == await ask(declared, body, headers, num_parts=parts), body
            statuses[answered.status] = statuses.get(answered.status, 0) + 1
        return statuses

    statuses = asyncio.run(run())
    assert statuses.keys() == {200, 400, 413, 415, 422, 429}
    assert statuses[200] > NUM_BODIES / 5
    assert statuses[422] > NUM_BODIES / 5


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "OPTIONS", "post"])
def test_other_methods_are_none_of_its_business(method: str) -> None:
    async def run() -> None:
        lean, declared = both()
        answered = await ask(lean, b'{"user_id": "u"}', method=method)
        assert answered == await ask(declared, b'{"user_id": "u"}', method=method)
        assert answered.status == 405

    asyncio.run(run())


@pytest.mark.parametrize("path", ["/recommend/", "/recommend\n", "/Recommend", "/recommend/batch"])
def test_other_paths_are_none_of_its_business(path: str) -> None:
    async def run() -> None:
        lean, declared = both()
        assert await ask(lean, b"{}", path=path) == await ask(declared, b"{}", path=path)

    asyncio.run(run())


def test_a_client_that_goes_away_before_its_body_came() -> None:
    async def run() -> None:
        lean, declared = both()
        assert await ask(lean, None) == await ask(declared, None)

    asyncio.run(run())


def test_a_mistake_of_ours_is_answered_alike() -> None:
    async def run() -> None:
        lean, declared = both()
        answers = [await ask(app, b'{"user_id": "bug"}') for app in (lean, declared)]
        assert answers[0] == answers[1]
        assert answers[0].status == 500
        assert json.loads(answers[0].body)["error"]["code"] == "internal_error"

    asyncio.run(run())


def test_a_key_is_asked_for_first_and_charged_once() -> None:
    """Whether the body is right or wrong: five requests pass, the sixth is refused."""

    async def run() -> None:
        for body in (b'{"user_id": "u"}', b'{"user_id": 3}', b"{"):
            statuses = []
            for number in range(2):
                keys = Keys([SecretStr("key")], [], 5.0, clock=lambda: 0.0)

                def guard(request: Request, keys: Keys = keys) -> None:
                    keys.check_client(bearer_key_of(request.scope))

                app = both(guard)[number]
                with_key = [JSON, (b"authorization", b"Bearer key")]
                answers = [await ask(app, body)]
                answers += [await ask(app, body, with_key) for _ in range(7)]
                statuses.append([answer.status for answer in answers])
            assert statuses[0] == statuses[1]
            assert statuses[0][0] == 401
            assert statuses[0].count(429) == 2

    asyncio.run(run())
