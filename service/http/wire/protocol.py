"""HTTP/1.1 as uvicorn reads and writes it, plus what uvicorn leaves to a gateway (decision 028).

- Where uvicorn would answer in its own words, the answer has the one error body, and is counted.
- A head without end is refused. uvicorn collects it until memory ends.
- A request has to arrive in time, and a client has to read its answer in time. uvicorn waits for
  ever.
- Head and body of an answer leave together. If the process were killed between the two, it would
  leave half an answer, and a gateway cannot repeat such a request.
- When a connection is closed while a refused request still arrives, only the writing side is
  closed. What arrives is dropped for a while. If nobody read those bytes, the system would reset
  the connection, and the client might never see the answer.

tests/service/http/wire/test_http_protocol.py names the parts of uvicorn that it uses. Knows nothing
of the content of requests.
"""

from __future__ import annotations

import asyncio
import select
from asyncio import TimerHandle
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, NamedTuple, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.http.middleware import SCOPE_KEY, Envelope, RequestContext, Scope
from service.http.wire.parser import RequestParser

MAX_HEAD_BYTES = 64 << 10  # plus what one read of the socket brings with it
TRANSFER_S = 10.0  # for all bytes of a request to arrive; for a client to read
MALFORMED = {  # httptools' error, in plain words
    "HttpParserInvalidMethodError": "the method is none that HTTP/1.1 names and this service takes",
    "HttpParserInvalidURLError": "the path has to be ASCII, other characters percent-encoded",
}


class Countdown:
    """Calls back a given time after its last start, unless it was stopped."""

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
        self._loop = loop
        self._call = call
        self._timer: TimerHandle | None = None

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._timer is not None

    @property
    def ends_at(self) -> float | None:
        """In seconds of the event loop's clock; None while it is not running."""
        return self._timer.when() if self._timer is not None else None

    def start(self, seconds: float) -> None:
        """Start, or start again."""
        self.stop()
        self._timer = self._loop.call_later(seconds, self._end)

    def stop(self) -> None:
        """Stop: it does not call back any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        self._timer = None
        self._call()


class GatheringTransport:
    """Collects what is written in one turn of the event loop, and sends it at the end of the turn.

    `flush` sends it earlier.

    has_more: whether more is still arriving of a request that has been answered
    linger_s: how long `close` waits for that rest, and for the client to read what was written
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        has_more: Callable[[], bool],
        linger_s: float,
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._has_more = has_more
        self._linger_s = linger_s
        self._may_linger = True
        self._is_lingering = False
        self._written: list[bytes] = []
        self._end = Countdown(loop, transport.abort)

    def write(self, data: bytes) -> None:
        """Keep the data until the next `flush`."""
        if self._is_lingering:
            return
        if not self._written:
            self._loop.call_soon(self.flush)
        self._written.append(data)

    def flush(self) -> None:
        """Send what was written."""
        if self._written:
            written = b"".join(self._written)  # writelines may ignore a slow reader
            self._written.clear()
            self._transport.write(written)

    def close(self) -> None:
        """Send what was written, then close. While more is arriving, close the sending side only.

        Then the client closes its side, or the time is up.
        """
        if self.is_closing():
            return
        self.flush()
        self._end.start(self._linger_s)
        if self._may_linger and self._has_more() and self._transport.can_write_eof():
            self._is_lingering = True
            self._transport.write_eof()
            self._transport.resume_reading()
        else:
            self._transport.close()

    def stop_lingering(self) -> None:
        """Do not wait for the rest of a request any more. What was written is still sent."""
        self._may_linger = False
        if self._is_lingering:
            self._transport.close()

    def is_lost(self) -> None:
        """The connection is lost, so there is nothing left to end."""
        self._end.stop()

    def is_closing(self) -> bool:
        """Whether nothing can be written any more."""
        return self._is_lingering or self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Refusal(NamedTuple):
    """The answer to a request that is not HTTP, too large, or late."""

    status: int
    code: str
    message: str


TOO_LONG = Refusal(
    431, "headers_too_large", f"the URL and the headers may have {MAX_HEAD_BYTES} bytes"
)


class Http(HttpToolsProtocol):
    """One connection. See the module. The application must be an Envelope."""

    transfer_s = TRANSFER_S
    _asked = 0  # complete heads that have arrived
    _answered = 0
    _head_bytes = 0
    _is_in_head = False  # only a part of a request's head has arrived
    _is_in_body = False  # only a part of its body has arrived
    _refusal: Refusal | None = None  # already written, or due after the answers that come first
    _is_told = False  # whether uvicorn knows that the connection is lost

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.parser = cast("Any", RequestParser(self))
        self._gathering = GatheringTransport(
            cast("asyncio.Transport", transport), self.loop, self._has_more, self.transfer_s
        )
        self._rest_of_request = Countdown(self.loop, self._give_up)
        self._next_request = Countdown(self.loop, self._gathering.close)
        self._taking_of_answers = Countdown(self.loop, self._gathering.abort)
        super().connection_made(cast("asyncio.Transport", self._gathering))
        self._next_request.start(self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest_of_request.stop()
        self._next_request.stop()
        self._taking_of_answers.stop()
        self._gathering.is_lost()
        self._tell_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taking_of_answers.start(self.transfer_s)

    def resume_writing(self) -> None:
        self._taking_of_answers.stop()
        super().resume_writing()

    def shutdown(self) -> None:
        self._gathering.stop_lingering()
        super().shutdown()

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None or self._gathering.is_closing():
            return
        self._head_bytes += len(data)
        super().data_received(data)  # calls the methods below
        if self._head_bytes > MAX_HEAD_BYTES and self._refusal is None:
            self._refuse(TOO_LONG)

    def on_message_begin(self) -> None:
        self._head_bytes = 0
        self._is_in_head = True
        self._next_request.stop()
        if not self._rest_of_request.is_running:
            self._rest_of_request.start(self.transfer_s)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._head_bytes = 0
        self._asked += 1
        self._is_in_head, self._is_in_body = False, True

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._head_bytes = 0
        self._is_in_body = False
        self._rest_of_request.stop()
        self._is_idle_from_now()

    def on_response_complete(self) -> None:
        self._answered += 1
        self._gathering.flush()
        if self._rest_of_request.is_running:  # the rest of a request behind this one
            self._rest_of_request.start(self.transfer_s)
        super().on_response_complete()
        self._is_idle_from_now()
        if self._refusal is not None and not self._gathering.is_closing():
            self._refuse(self._refusal)

    def send_400_response(self, msg: str) -> None:
        parser = cast("RequestParser", self.parser)
        if self._is_in_head and parser.url_bytes >= MAX_HEAD_BYTES:  # httptools reads no such URL
            self._refuse(TOO_LONG)
            return
        error = parser.error
        message = MALFORMED.get(type(error).__name__, "the request is not valid HTTP/1.1")
        self._refuse(Refusal(400, "malformed_request", message))

    @property
    def idle_until(self) -> float | None:
        """When it is closed unless a request comes; None while one is here or on its way."""
        return self._next_request.ends_at

    @property
    def has_unread(self) -> bool:
        """Whether bytes have arrived that nobody has read yet."""
        arrived = select.poll()
        arrived.register(self._gathering.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(arrived.poll(0))

    @property
    def _num_due(self) -> int:
        """How many answers are due before that of the request that is arriving."""
        return self._asked - self._answered - self._is_in_body

    def _has_more(self) -> bool:
        """Whether more is still arriving of a request that has been answered."""
        return self._is_in_body or self._refusal is not None

    def _is_idle_from_now(self) -> None:
        """If the connection is idle, limit the time until its next request."""
        if self._asked == self._answered and not (self._is_in_head or self._is_in_body):
            self._next_request.start(self.timeout_keep_alive)

    def _give_up(self) -> None:
        """The rest of a request did not arrive in time."""
        if self._gathering.is_closing():
            return
        if self._num_due > 0 or not self._gathering.is_reading():
            self._rest_of_request.start(self.transfer_s)  # the client is not the late one
        elif self._num_due < 0:  # the request has been answered
            self._gathering.close()
        else:
            message = f"the request has to be whole within {self.transfer_s:g} s"
            self._refuse(Refusal(408, "request_timeout", message))

    def _refuse(self, refusal: Refusal) -> None:
        """Answer an incomplete request when its turn comes, and close."""
        self._refusal = refusal
        if self._num_due > 0 or self._gathering.is_closing():
            return
        scope = cast("Scope", self.scope) if self._is_in_body else None
        context: RequestContext | None = scope.get(SCOPE_KEY) if scope is not None else None
        if self._num_due == 0 and (context is None or context.status is None):
            body = cast("Envelope", self.config.app).refuse(scope, *refusal)
            content = body.model_dump_json().encode()
            lines = [
                f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}",
                f"Date: {formatdate(usegmt=True)}",
                "Content-Type: application/json",
                f"Content-Length: {len(content)}",
                f"X-Request-ID: {body.error.request_id}",
                "Connection: close",
                "\r\n",
            ]
            self._gathering.write("\r\n".join(lines).encode() + content)
        self._gathering.close()
        self._tell_lost(None)  # so that the application does not wait for the rest

    def _tell_lost(self, exc: Exception | None) -> None:
        if not self._is_told:
            self._is_told = True
            cast("RequestParser", self.parser).close()
            super().connection_lost(exc)
