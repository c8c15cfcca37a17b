"""Does the service answer every request as documented, also those with something wrong?

`python -m loadtest.mutate --url http://127.0.0.1:8000 --requests 100000` takes correct requests and
changes something: a value of the JSON, bytes of the body, its encoding, a line of the head, the
framing, or only where the TCP segments end. Each is sent on a connection of its own. It must be
answered, never with 5xx, and with the documented error body unless with 2xx. The last line is JSON;
the exit status is 1 after a failure. The same seed sends the same bytes. It stores events of users
called `mutant-...` and may change other data by chance: do not use it on a service in use.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from urllib.parse import quote, urlsplit

from loadtest.clients import authorization

ERROR_FIELDS = {"code", "message", "param", "retryable", "request_id", "details"}
ANSWER_S = 60.0
MAX_SHOWN = 10
ITEMS = [f"item-{n}" for n in range(40)]
NASTY: list[Any] = [
    None, True, False, 0, -1, 3.0, 2.5, 1e308, 10**30, "", " ", ".", "..", "7", "x" * 300,
    "x" * 5000, "\0", "\n", "\ud800", "\U0001f600", "a/b", "{}", [], {}, [[]], [None], {"": ""},
    [[[[[[1]]]]]], ["item-1"] * 600, float("nan"), float("inf"),
]  # fmt: skip


@dataclass
class Request:
    """A request before it is written as bytes.

    value:   the body is the JSON of it, if `body` is None
    framing: `length`, `chunked`, or one of the wrong framings of `change_framing`
    """

    method: str
    path: str
    body: bytes | None = None
    value: Any = None  # of which the body is the JSON
    headers: list[tuple[str, str]] = field(default_factory=list)
    framing: str = "length"


@dataclass
class Answer:
    """One answer; names and values of `headers` are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


# Correct requests


def right_request(source: random.Random) -> Request:
    """A random request of the kinds that clients send."""
    user = f"mutant-{source.randrange(50)}"
    item = source.choice(ITEMS)
    event = {"event_id": str(source.random()), "user_id": user, "item_id": item}
    recommend = {"user_id": user, "k": source.randrange(1, 20)}
    if source.random() < 0.5:
        recommend |= {"history": source.sample(ITEMS, 3), "exclude_items": [item], "explain": True}
    choices: list[tuple[str, str, Any]] = [
        ("POST", "/recommend", recommend),
        ("POST", "/recommend/batch", {"requests": [recommend, recommend]}),
        ("POST", "/events", {"events": [event | {"event_type": "click", "value": 1.5}]}),
        ("POST", f"/items/{item}/similar", {"k": 3}),
        ("GET", f"/users/{user}/history?limit=5", None),
        ("DELETE", f"/users/{user}/history", None),
        ("GET", f"/items/{item}", None),
        ("GET", source.choice(["/livez", "/health/ready", "/info", "/models", "/metrics"]), None),
    ]
    method, path, value = source.choices(choices, [6, 2, 4, 2, 1, 1, 1, 1])[0]
    return Request(method, path, value=value)


# Changes. Each takes a request and a random generator, and changes the request.


def change_nothing(request: Request, source: random.Random) -> None:
    """No change: only the segments end elsewhere."""


def change_value(request: Request, source: random.Random) -> None:
    """Change one value or one name of the JSON."""
    if not request.value:
        return change_path(request, source)
    request.value = json.loads(json.dumps(request.value))
    place, key = request.value, source.choice(list(request.value))
    while isinstance(place[key], dict | list) and place[key] and source.random() < 0.8:
        place = place[key]
        key = source.choice(list(place) if isinstance(place, dict) else range(len(place)))
    how = source.randrange(4)
    if how == 0:
        del place[key]
    elif how == 1 and isinstance(place, dict):
        place[str(source.choice(NASTY))] = place.pop(key)
    else:
        place[key] = source.choice(NASTY)
    return None


def change_bytes(request: Request, source: random.Random) -> None:
    """Change some bytes of the body."""
    body = bytearray(written(request.value)) or bytearray(b"x")
    for _ in range(source.randrange(1, 4)):
        place = source.randrange(len(body))
        how = source.randrange(3)
        if how == 0:
            body[place] = source.randrange(256)
        elif how == 1:
            body[place:place] = source.randbytes(source.randrange(1, 9))
        else:
            del body[place + 1 :]
    request.body = bytes(body)


def change_encoding(request: Request, source: random.Random) -> None:
    """Write the same text in another encoding, or name another one."""
    body = written(request.value)
    how = source.randrange(4)
    if how == 0:
        request.body = b"\xef\xbb\xbf" + body
    elif how == 1:
        request.body = body.decode().encode(source.choice(["utf-16", "utf-16-le", "utf-32"]))
    elif how == 2:
        request.body = gzip.compress(body, mtime=0)
        request.headers.append(("Content-Encoding", "gzip"))
    else:
        request.headers.append(("Content-Encoding", source.choice(["br", "identity", "", "x"])))


def change_size(request: Request, source: random.Random) -> None:
    """A very large body, header or URL, many headers, or an empty body."""
    how = source.randrange(20)
    if how == 0:
        request.body = b" " * (1 << 21)
    elif how == 1:
        request.headers.append(("X-Long", "x" * 200_000))
    elif how == 2:
        request.path += "?" + "x" * 100_000
    elif how < 8:
        request.headers += [("X-Many", "y")] * source.randrange(500)
    else:
        request.body = b""


def change_path(request: Request, source: random.Random) -> None:
    """Insert characters into the path, some of them percent-encoded."""
    place = source.randrange(1, len(request.path) + 1)
    strange = source.choice(
        ["%", "%00", "%ff", "%c3%28", "%2e%2e", "/", "//", "/../", " ", "\\", "?", "#", "\xe9", "*",
         "%0d%0a", ";", "@", ":", quote("\U0001f600"), "\x7f", "."]
    )  # fmt: skip
    request.path = request.path[:place] + strange + request.path[place:]


def change_method(request: Request, source: random.Random) -> None:
    request.method = source.choice(
        ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND",
         "BREW", "get", "P OST", "", "PRI"]
    )  # fmt: skip


def change_header(request: Request, source: random.Random) -> None:
    """Add a known header with a strange value, or a header with a strange name."""
    name = source.choice(
        ["Content-Type", "Accept", "Accept-Encoding", "Authorization", "Connection", "Cookie",
         "Expect", "Host", "Origin", "Range", "TE", "Upgrade", "X-Forwarded-For",
         "X-Forwarded-Proto", "X-Request-ID", "traceparent", "If-None-Match",
         "Transfer-Encoding", "X Y", "", "\xe9"]
    )  # fmt: skip
    value = source.choice(
        ["", " ", "x", "text/plain", "application/json; charset=utf-16", "application/JSON",
         "close", "keep-alive", "Upgrade", "h2c", "websocket", "100-continue",
         "chunked", "gzip, chunked",
         "Bearer ", "Bearer \xe9", "bytes=0-1", "127.0.0.1, x", "\xe9\xff", "a\x00b", "a\rb", "\t",
         "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "x" * 5000]
    )  # fmt: skip
    request.headers.append((name, value))


def offer_upgrade(request: Request, source: random.Random) -> None:
    """Offer an upgrade, as clients of HTTP/2 do."""
    request.headers += [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c")]
    request.framing = source.choice(["length", "chunked"])
    if source.random() < 0.5:
        change_value(request, source)


def change_framing(request: Request, source: random.Random) -> None:
    """Change the length that is given for the body.

    Never to a longer one: the service would wait some seconds for the rest.
    """
    request.framing = source.choice(
        ["chunked", "chunked", "shorter", "twice", "both", "negative", "word", "plus", "bad chunk"]
    )


Change = Callable[[Request, random.Random], None]
CHANGES: list[Change] = [
    change_nothing,
    change_value,
    change_bytes,
    change_encoding,
    change_size,
    change_path,
    change_method,
    change_header,
    offer_upgrade,
    change_framing,
]


def written(value: Any) -> bytes:
    """The JSON of a value; no bytes for None."""
    return b"" if value is None else json.dumps(value).encode()


def as_bytes(request: Request, source: random.Random) -> bytes:
    """The bytes of head and body."""
    body = written(request.value) if request.body is None else request.body
    length = ("Content-Length", str(len(body)))
    chunks = [length] if request.framing != "chunked" else [("Transfer-Encoding", "chunked")]
    if request.framing == "shorter":
        chunks = [("Content-Length", str(source.randrange(len(body) + 1)))]
    elif request.framing == "twice":
        chunks = [length, length]
    elif request.framing in ("both", "bad chunk"):
        chunks = [("Transfer-Encoding", "chunked")] + [length] * (request.framing == "both")
    elif request.framing in ("negative", "word", "plus"):
        chunks = [
            ("Content-Length", {"negative": "-1", "word": "ten", "plus": "+1"}[request.framing])
        ]
    if request.framing == "chunked":
        half = source.randrange(len(body) + 1)
        parts = [part for part in (body[:half], body[half:]) if part]
        extension = source.choice([b"", b";a=b", b" "])
        trailer = source.choice([b"", b"X-Request-ID: trailer\r\n"])
        body = b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts)
        body += b"0\r\n" + trailer + b"\r\n"
    elif request.framing == "bad chunk":
        body = b"zz\r\n" + body
    headers = [("Host", "x"), *request.headers, *chunks]
    if not any(name == "Content-Type" for name, _ in headers):
        headers.insert(1, ("Content-Type", "application/json"))
    headers += authorization().items()
    lines = [
        f"{request.method} {request.path} HTTP/1.1",
        *(f"{n}: {v}" for n, v in headers),
        "",
        "",
    ]
    return "\r\n".join(lines).encode("latin-1") + body


def segments(sent: bytes, source: random.Random) -> list[bytes]:
    """The bytes cut into segments: not at all, after the head, or at random places."""
    places = [sent.find(b"\r\n\r\n") + 4] if source.random() < 0.3 else []
    if source.random() < 0.3:
        places += [source.randrange(len(sent)) for _ in range(source.randrange(1, 6))]
    ends = sorted({0, len(sent), *places})
    return [sent[start:end] for start, end in pairwise(ends)]


# Sending and checking


async def ask(host: str, port: int, parts: list[bytes], *, has_body: bool) -> Answer:
    """Send on a new connection and return the first answer. Raises ValueError if there is none.

    has_body: whether the answer has a body, as its Content-Length says; false for HEAD
    """
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 22)
    try:
        for part in parts:
            writer.write(part)
            try:
                await writer.drain()
            except ConnectionError:
                break  # the service may have answered already
            await asyncio.sleep(0)
        while True:
            try:
                top = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                raise ValueError("closed without an answer") from error
            first, *lines = top.decode("latin-1").rstrip("\r\n").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines)
            status = int(first.split()[1])
            if status >= 200:
                break
        length = int(headers.get("content-length", 0)) if has_body else 0
        return Answer(status, headers, await reader.readexactly(length))
    finally:
        writer.transport.abort()  # leaves no port in TIME_WAIT


def fault(answer: Answer, *, has_body: bool) -> str | None:
    """What is wrong with an answer; None if nothing is."""
    if answer.status >= 500:
        return f"status {answer.status}: {answer.body[:200]!r}"
    if "x-request-id" not in answer.headers:
        return "no X-Request-ID"
    if answer.status < 300 or not has_body:
        return None
    if answer.headers.get("content-type") != "application/json":
        return f"status {answer.status} as {answer.headers.get('content-type')}"
    error = json.loads(answer.body).get("error", {})
    if set(error) != ERROR_FIELDS or not error["code"] or not error["message"]:
        return f"not the one error body: {answer.body[:200]!r}"
    if error["request_id"].lower() != answer.headers["x-request-id"]:
        return "another request id in the body than in the header"
    return None


@dataclass
class Outcome:
    """The results of all requests. `failures`: one sentence each."""

    statuses: Counter[int] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def mutated(seed: int, number: int) -> tuple[str, list[bytes]]:
    """The names of the changes and the segments of one request."""
    source = random.Random(f"{seed} {number}")
    request = right_request(source)
    changes = source.sample(CHANGES, source.choice([1, 1, 1, 2]))
    for change in changes:
        change(request, source)
    sent = as_bytes(request, source)
    return " ".join(change.__name__ for change in changes), segments(sent, source)


async def mutate(url: str, num_requests: int, seed: int, connections: int) -> Outcome:
    """Send `num_requests` requests, over `connections` connections at a time."""
    place = urlsplit(url)
    host, port = place.hostname or "127.0.0.1", place.port or 80
    outcome, numbers = Outcome(), iter(range(num_requests))

    async def send() -> None:
        for number in numbers:
            changes, parts = mutated(seed, number)
            has_body = not b"".join(parts).startswith(b"HEAD ")
            outcome.changes.update(changes.split())
            try:
                asked = ask(host, port, parts, has_body=has_body)
                answer = await asyncio.wait_for(asked, ANSWER_S)
                outcome.statuses[answer.status] += 1
                found = fault(answer, has_body=has_body)
                if answer.status >= 400 and has_body and not found:
                    outcome.codes[json.loads(answer.body)["error"]["code"]] += 1
            except (ValueError, OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                found = f"{type(error).__name__}: {error}"
            if found:
                sent = b"|".join(parts)
                outcome.failures.append(f"{number} {changes}: {found}\n    {sent[:400]!r}")

    await asyncio.gather(*(send() for _ in range(connections)))
    return outcome


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--connections", type=int, default=8, help="at a time")
    options = parser.parse_args()
    outcome = asyncio.run(mutate(options.url, options.requests, options.seed, options.connections))
    for failure in outcome.failures[:MAX_SHOWN]:
        print(failure)
    print(
        json.dumps(
            {
                "requests": options.requests,
                "seed": options.seed,
                "failures": len(outcome.failures),
                "statuses": dict(sorted(outcome.statuses.items())),
                "codes": dict(outcome.codes.most_common()),
            }
        )
    )
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main())
