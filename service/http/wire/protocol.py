"""HTTP/1.1 as uvicorn reads and writes it, with what it leaves to a gateway; see decision 028.

- What uvicorn would answer in words of its own has the one error body, and is counted.
- A head that goes on and on is refused; uvicorn gathers it until memory ends.
- A request has to come, and answers to be taken, in time; uvicorn waits for ever, and a request
  holds a place in the gate from its head to the end of its answer.
- Head and body of an answer leave together. A process that is killed between the two would leave
  half an answer, which no gateway can ask for again.
- A connection that is closed while a refused request still arrives is closed for writing only, and
  what comes is dropped for a while. Bytes that nobody reads make the system reset the connection,
  and the client may never see the answer.

Of uvicorn's own parts it uses those that tests/service/http/wire/test_http_protocol.py names. Knows
nothing of what requests ask.
"""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, NamedTuple, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.http.middleware import SCOPE_KEY, Envelope, RequestContext, Scope
from service.http.wire.parser import RequestParser

MAX_HEAD_BYTES = 64 << 10  # and what one read of the socket brings with it
TRANSFER_S = 10.0  # from the first byte of a request to its last; for answers that are not taken
MALFORMED = {  # what httptools calls it, in plain words
    "HttpParserInvalidMethodError": "the method is none that HTTP/1.1 names and this service takes",
    "HttpParserInvalidURLError": "the path has to be ASCII, other characters percent-encoded",
}


class Countdown:
    """Calls back so long after its last start, unless it was stopped."""

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
        """Begin, or begin again."""
        self.stop()
        self._timer = self._loop.call_later(seconds, self._end)

    def stop(self) -> None:
        """Nothing is called any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        self._timer = None
        self._call()


class GatheringTransport:
    """Sends what is written in one turn of the event loop at once, at its end or by `flush`.

    has_more: whether more is on its way of a request that has been answered
    linger_s: how long that is waited for, and for a client to take what was written
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
        """Keep it until the next `flush`."""
        if self._is_lingering:
            return
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
        """Close, after what was written; while more is on its way, only the side that sends.

        Then the client closes the other one, or the time is up.
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
        """Wait for the rest of no request any more; what was written is still sent."""
        self._may_linger = False
        if self._is_lingering:
            self._transport.close()

    def is_lost(self) -> None:
        """There is nothing left to end."""
        self._end.stop()

    def is_closing(self) -> bool:
        """Whether nothing can be written any more."""
        return self._is_lingering or self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Refusal(NamedTuple):
    """What is answered to a request that is not HTTP, too large or late."""

    status: int
    code: str
    message: str


TOO_LONG = Refusal(
    431, "headers_too_large", f"the URL and the headers may have {MAX_HEAD_BYTES} bytes"
)


class Http(HttpToolsProtocol):
    """One connection; see the module. The application must be an Envelope."""

    transfer_s = TRANSFER_S
    _asked = 0  # heads that have arrived
    _answered = 0
    _head_bytes = 0
    _is_in_head = False  # some of a request's head has arrived and some not
    _is_in_body = False  # the same of its body
    _refusal: Refusal | None = None  # written, or to be written behind the answers that are due
    _is_told = False  # uvicorn, that the connection is lost

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
        super().data_received(data)  # calls what follows
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
        if self._rest_of_request.is_running:  # that of a request behind this one
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
    def _num_due(self) -> int:
        """Answers to requests before the one that arrives."""
        return self._asked - self._answered - self._is_in_body

    def _has_more(self) -> bool:
        """Whether more is on its way of a request that has been answered."""
        return self._is_in_body or self._refusal is not None

    def _is_idle_from_now(self) -> None:
        """If it is, a request has to come before it has been so for too long."""
        if self._asked == self._answered and not (self._is_in_head or self._is_in_body):
            self._next_request.start(self.timeout_keep_alive)

    def _give_up(self) -> None:
        """The rest of a request does not come."""
        if self._gathering.is_closing():
            return
        if self._num_due > 0 or not self._gathering.is_reading():
            self._rest_of_request.start(self.transfer_s)  # it is not the client who is late
        elif self._num_due < 0:  # it has been answered
            self._gathering.close()
        else:
            message = f"the request has to be whole within {self.transfer_s:g} s"
            self._refuse(Refusal(408, "request_timeout", message))

    def _refuse(self, refusal: Refusal) -> None:
        """Answer a request that is not whole, in its turn, and close."""
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
