"""Requests as httptools reads them, without offers of an upgrade, trailers and white space."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import NamedTuple

import httptools
import pytest

from service.http.wire.parser import RequestParser


class Message(NamedTuple):
    """What a listener was told about one request."""

    method: bytes
    url: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    keeps_alive: bool


class Listener:
    """Collects messages. It notes when one is told twice, or not to its end."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.parser = RequestParser(self)
        self.is_in_body = False

    def on_message_begin(self) -> None:
        assert not self.is_in_body, "a request began within the body of another"
        self.url, self.body = b"", b""
        self.headers: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        assert not self.is_in_body
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        assert not self.parser.should_upgrade()
        self.is_in_body = True
        self.method = self.parser.get_method()

    def on_body(self, body: bytes) -> None:
        assert self.is_in_body
        self.body += body

    def on_message_complete(self) -> None:
        self.is_in_body = False
        keeps_alive = self.parser.should_keep_alive()
        self.messages.append(Message(self.method, self.url, self.headers, self.body, keeps_alive))


def parsed(*segments: bytes) -> list[Message]:
    listener = Listener()
    for segment in segments:
        listener.parser.feed_data(segment)
    assert not listener.is_in_body
    return listener.messages


OFFER = [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAA"]
WEBSOCKET = [b"Connection: upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13"]
BODY = b'{"user_id": "u42"}'
CHUNKED = b"a\r\n" + BODY[:10] + b"\r\n8;named=chunk\r\n" + BODY[10:] + b"\r\n0\r\n\r\n"


def request(*lines: bytes, method: bytes = b"POST", url: bytes = b"/recommend?x=1") -> bytes:
    first = b"%b %b HTTP/1.1" % (method, url)
    return b"\r\n".join([first, b"Host: x", *lines, b"", b""])


@pytest.mark.parametrize("offer", [OFFER, WEBSOCKET], ids=["h2c", "websocket"])
@pytest.mark.parametrize(
    ("framing", "sent"),
    [
        (b"Content-Length: %d" % len(BODY), BODY),
        (b"Transfer-Encoding: chunked", CHUNKED),
    ],
    ids=["length", "chunked"],
)
@pytest.mark.parametrize("order", [1, -1], ids=["first", "last"])
def test_an_offer_changes_nothing_wherever_the_segments_end(
    offer: list[bytes], framing: bytes, sent: bytes, order: int
) -> None:
    lines = [*offer, framing][::order]
    offering = request(*lines) + sent
    last = request(url=b"/livez", method=b"GET")
    plain = request(*(line for line in lines if not line.startswith(b"Upgrade:"))) + sent
    expected = parsed(plain + last)
    assert [message.body for message in expected] == [BODY, b""]
    all_bytes = offering + last
    assert parsed(all_bytes) == expected
    assert parsed(*(all_bytes[n : n + 1] for n in range(len(all_bytes)))) == expected
    for end in range(len(all_bytes)):
        assert parsed(all_bytes[:end], all_bytes[end:]) == expected


def test_offers_in_a_pipeline() -> None:
    get = request(*OFFER, url=b"/livez", method=b"GET")
    post = request(*OFFER, b"Content-Length: %d" % len(BODY)) + BODY
    found = parsed((get + post) * 500)
    assert [message.body for message in found] == [b"", BODY] * 500
    assert all(message.keeps_alive for message in found)
    assert not any(name == b"Upgrade" for message in found for name, _ in message.headers)


@pytest.mark.parametrize("connection", [b"close, Upgrade", b"Upgrade, close"])
def test_a_request_that_ends_the_connection_does_so_with_an_offer_too(connection: bytes) -> None:
    head = request(b"Connection: " + connection, b"Upgrade: h2c", b"Content-Length: 4")
    for segments in ([head + b"body"], [head, b"body"]):
        [message] = parsed(*segments)
        assert (message.body, message.keeps_alive) == (b"body", False)


def test_an_offer_of_http_1_0() -> None:
    head = request(*OFFER[:2], b"Content-Length: 4").replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    for segments in ([head + b"body"], [head, b"body"]):
        [message] = parsed(*segments)
        assert (message.body, message.keeps_alive) == (b"body", False)


@pytest.mark.parametrize(
    "lines",
    [
        [b"Content-Length: 4", b"Transfer-Encoding: chunked"],
        [b"Content-Length: 4", b"Content-Length: 5"],
        [b"Transfer-Encoding: identity"],
        [b"Content-Length: four"],
    ],
)
def test_an_offer_excuses_nothing(lines: list[bytes]) -> None:
    with pytest.raises(httptools.HttpParserError):
        parsed(request(*OFFER, *lines) + b"body")
    with pytest.raises(httptools.HttpParserError):
        parsed(request(*lines, *OFFER), b"body")


@pytest.mark.parametrize("segments", [1, 2])
def test_connect_is_refused(segments: int) -> None:
    head = request(method=b"CONNECT", url=b"example.org:80")
    parts = [head + BODY] if segments == 1 else [head, BODY]
    with pytest.raises(httptools.HttpParserInvalidMethodError):
        parsed(*parts)


def test_trailers_are_no_headers() -> None:
    chunked = request(b"Transfer-Encoding: chunked") + CHUNKED[:-2]
    trailers = b"X-Request-ID: late\r\nX: y\r\n\r\n"
    first, second = parsed(chunked + trailers + request(method=b"GET"))
    assert first.headers == [(b"Host", b"x"), (b"Transfer-Encoding", b"chunked")]
    assert first.body == BODY
    assert second.headers == [(b"Host", b"x")]


def test_white_space_around_a_value_is_not_part_of_it() -> None:
    [message] = parsed(request(b"Expect: \t 100-continue \t ", b"Empty:", method=b"GET"))
    assert message.headers[1:] == [(b"Expect", b"100-continue"), (b"Empty", b"")]


def test_random_segments() -> None:
    source = random.Random(7)
    offering = request(*OFFER, b"Transfer-Encoding: chunked") + CHUNKED
    plain = request(*OFFER[::2], b"Transfer-Encoding: chunked") + CHUNKED
    for _ in range(300):
        order = [source.random() < 0.5 for _ in range(6)]
        sent = b"".join(offering if offers else plain for offers in order)
        ends = [0, *sorted(source.sample(range(len(sent)), 5)), len(sent)]
        segments = [sent[a:b] for a, b in pairwise(ends)]
        assert parsed(*segments) == parsed(plain * 6)
