"""HTTP/1.1 as uvicorn reads and writes it, with three differences.

- uvicorn's parser gathers a header, or a thousand of them, until memory ends: here a message that
  goes on and on without a body is refused.
- A request that is not let in is answered while it is read: a task of its own would wait behind
  those of all requests that are inside, which is what there is too much of.
- uvicorn sends the head of an answer, then its body: a process that is killed in between leaves
  half an answer, which no gateway can ask for again. Here what is written in one turn of the event
  loop is sent together, as head and body of our answers are.

Knows nothing of what requests ask.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, cast

from uvicorn._types import ASGI3Application, ASGISendEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.ids import request_id
from service.middleware import Envelope, Scope
from service.schemas import ErrorResponse

MAX_HEAD_BYTES = 64 << 10  # and what one read of the socket brings with it


class GatheringTransport:
    """Sends what is written in one turn of the event loop at once, at its end or by `flush`."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._written: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Keep it until the next `flush`."""
        if not self._written:
            self._loop.call_soon(self.flush)
        self._written.append(data)

    def flush(self) -> None:
        """Send what was written."""
        if self._written:
            written = b"".join(self._written)  # writelines may not heed a slow reader
            self._written.clear()
            self._transport.write(written)

    def close(self) -> None:
        """Close, after what was written."""
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Http(HttpToolsProtocol):
    """One connection; see the module. The application must be an Envelope."""

    _head_bytes = 0
    _is_reading = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        gathering = GatheringTransport(cast("asyncio.Transport", transport), self.loop)
        super().connection_made(cast("asyncio.Transport", gathering))

    def on_response_complete(self) -> None:
        cast("GatheringTransport", self.transport).flush()
        super().on_response_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if self.transport.is_closing():  # nobody would hear
            return
        # One that stood in a pipeline starts while the one before it is about to leave the gate.
        if self._is_reading and app is self.app and not self.flow.write_paused:
            for message in cast("Envelope", self.config.app).admit(cast("Scope", cycle.scope)):
                _run_through(cycle.send(cast("ASGISendEvent", message)))
        if not cycle.response_complete:
            super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        self._is_reading = True
        try:
            super().data_received(data)  # calls what follows
        finally:
            self._is_reading = False
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
        # The body of a request that was answered at its head has stopped the clock.
        is_over = self.cycle.response_complete and not self.transport.is_closing()
        if is_over and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

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


def _run_through(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise RuntimeError("it had something to wait for")
