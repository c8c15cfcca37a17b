"""httptools' parser of requests, for a server that accepts no upgrade and no trailers.

Some clients offer an upgrade, for example `Upgrade: h2c` from the JDK's client and `curl --http2`.
httptools (0.9, llhttp) then takes the head for the whole request, whatever body the head announces.
What follows is lost, or is read as the next request on the connection. This module parses such a
head once more without the offer. So the normal rules say where its body ends. CONNECT is refused,
because its body has no end.

httptools reports the fields after a chunked body as headers. A gateway has not checked them as
headers, so they are dropped here. White space after a header's value is not part of the value.

Knows nothing of uvicorn.
"""

from __future__ import annotations

from typing import Protocol

import httptools


class Listener(Protocol):
    """What the parser calls. For a head with an offer, it reports the beginning twice."""

    def on_message_begin(self) -> None: ...

    def on_url(self, url: bytes) -> None: ...

    def on_header(self, name: bytes, value: bytes) -> None: ...

    def on_headers_complete(self) -> None: ...

    def on_body(self, body: bytes) -> None: ...

    def on_message_complete(self) -> None: ...


class RequestParser:
    """The parser of one connection. See the module.

    error: why the last `feed_data` raised, in llhttp's words, which repeat nothing that was sent
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._parser = self._new_parser()
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._is_in_head = False
        self._has_offer = False  # whether the head parsed last offers an upgrade
        self.error: Exception | None = None

    @property
    def url_bytes(self) -> int:
        """How long the URL of the last request is, as far as it has arrived."""
        return len(self._url)

    def feed_data(self, data: bytes) -> None:
        """Parse what has arrived. Raises httptools.HttpParserError."""
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            self.error = error
            raise

    def _feed(self, data: bytes | memoryview) -> None:
        while True:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                head = self._head_without_offer()
                data = memoryview(data)[offer.args[0] :]
            else:
                return
            self._parser = self._new_parser()  # the old one may think that the connection has ended
            self._parser.feed_data(head)

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # A request after one that ends the connection is no error. It is not answered.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def _head_without_offer(self) -> bytes:
        method = self._parser.get_method()
        if method == b"CONNECT":
            raise httptools.HttpParserInvalidMethodError("CONNECT is not taken")
        version = self._parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (method, self._url, version)]
        lines += [b"%b: %b" % field for field in self._headers if field[0].lower() != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def close(self) -> None:
        """Drop the listener, so that the garbage collector does not have to find the cycle."""
        del self._listener, self._parser

    def get_method(self) -> bytes:
        return self._parser.get_method()

    def get_http_version(self) -> str:
        return self._parser.get_http_version()

    def should_keep_alive(self) -> bool:
        return self._parser.should_keep_alive()

    def should_upgrade(self) -> bool:
        """Never."""
        return False

    # What httptools calls

    def on_message_begin(self) -> None:
        self._url, self._headers = b"", []
        self._is_in_head = True
        self._listener.on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._listener.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_head:
            value = value.rstrip(b" \t")
            self._headers.append((name, value))
            self._listener.on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._has_offer = self._parser.should_upgrade()
        if not self._has_offer:
            self._listener.on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._listener.on_body(body)

    def on_message_complete(self) -> None:
        if not self._has_offer:
            self._listener.on_message_complete()
