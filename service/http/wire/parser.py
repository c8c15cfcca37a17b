"""httptools' parser of requests, for a server that takes no upgrade and no trailers.

httptools (0.9, llhttp) takes the head of a request that offers an upgrade (`Upgrade: h2c` of the
JDK's client and of `curl --http2`) for the whole request, whatever body it announces: what follows
it is lost, or read as the next request on the connection. Here the head is parsed once more without
the offer, so that the same rules as ever say where its body ends. CONNECT, whose body has no end,
is refused.

It hands the fields behind a chunked body over as headers. A gateway has not looked at them as such:
here they are dropped. White space behind a header's value is no part of it.

Knows nothing of uvicorn.
"""

from __future__ import annotations

from typing import Protocol

import httptools


class Listener(Protocol):
    """Who is told what was parsed. Of a head with an offer, it is told the beginning twice."""

    def on_message_begin(self) -> None: ...

    def on_url(self, url: bytes) -> None: ...

    def on_header(self, name: bytes, value: bytes) -> None: ...

    def on_headers_complete(self) -> None: ...

    def on_body(self, body: bytes) -> None: ...

    def on_message_complete(self) -> None: ...


class RequestParser:
    """One connection's; see the module.

    error: why the last `feed_data` raised; llhttp's words, which repeat nothing that was sent
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._parser = self._new_parser()
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._is_in_head = False
        self._has_offer = False  # the head that was parsed last
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
            self._parser = self._new_parser()  # that one may think that the connection has ended
            self._parser.feed_data(head)

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # A request behind one that ends the connection is no error: it is not answered.
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
        """Let go of the listener, so that no collector has to find out that it may go."""
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
