"""HTTP/1.1 as uvicorn reads it, with an end to what may come before, between and after bodies.

uvicorn's parser gathers a header, or a thousand of them, until memory ends: nothing of ours is
asked before the head of a request is complete. Knows nothing of requests.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.ids import request_id
from service.schemas import ErrorResponse

MAX_HEAD_BYTES = 64 << 10  # and what one read of the socket brings with it


class BoundedHttp(HttpToolsProtocol):
    """Refuses a message that goes on and on without a body."""

    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)  # calls what follows
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse()

    def on_message_begin(self) -> None:
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        super().on_message_complete()

    def _refuse(self) -> None:
        message = f"the headers may have {MAX_HEAD_BYTES} bytes"
        body = ErrorResponse.of("headers_too_large", message, request_id())
        content = body.model_dump_json().encode()
        lines = [
            "HTTP/1.1 431 Request Header Fields Too Large",
            "Content-Type: application/json",
            f"Content-Length: {len(content)}",
            "Connection: close",
        ]
        self.transport.write("".join(f"{line}\r\n" for line in [*lines, ""]).encode() + content)
        self.transport.close()
