"""HTTP/1.1 as uvicorn reads and writes it, with five differences.

- uvicorn's parser gathers a header, or a thousand of them, until memory ends: here a message that
  goes on and on without a body is refused.
- uvicorn waits for ever for the rest of a request, for a client that does not read its answers, and
  for the first request of a connection. Here a request has to come, and answers to be taken, in
  time: a request holds a place in the gate from its head to the end of its answer.
- A request that is not let in is answered while it is read: a task of its own would wait behind
  those of all requests that are inside, which is what there is too much of.
- uvicorn sends the head of an answer, then its body: a process that is killed in between leaves
  half an answer, which no gateway can ask for again. Here what is written in one turn of the event
  loop is sent together, as head and body of our answers are.
- uvicorn closes a connection while the request that it has refused is still arriving. Bytes that
  nobody reads make the system reset it, and the client may never see the answer. Here what still
  comes is dropped for a while.

Knows nothing of what requests ask.
"""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, cast

from uvicorn._types import ASGI3Application, ASGISendEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.ids import request_id
from service.middleware import SCOPE_KEY, Envelope, RequestContext, Scope
from service.schemas import ErrorResponse

MAX_HEAD_BYTES = 64 << 10  # and what one read of the socket brings with it
TRANSFER_S = 10.0  # from the first byte of a request to its last; for answers that are not taken


class GatheringTransport:
    """Sends what is written in one turn of the event loop at once, at its end or by `flush`.

    is_refused: whether there is an answer to a request of which more is on its way
    linger_s: how long that is waited for
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        is_refused: Callable[[], bool],
        linger_s: float,
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._is_refused = is_refused
        self._linger_s = linger_s
        self._is_lingering = False
        self._written: list[bytes] = []

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
        """Close, after what was written; while a refused request comes, only the side that sends.

        Then the client closes the other one, or the time is up.
        """
        self.flush()
        if not (self._is_refused() and self._transport.can_write_eof()):
            self._transport.close()
        elif not self.is_closing():
            self._is_lingering = True
            self._transport.write_eof()
            self._transport.resume_reading()
            self._loop.call_later(self._linger_s, self._transport.abort)

    def stop_lingering(self) -> None:
        """Wait for the rest of a refused request no longer; what was written is still sent."""
        if self._is_lingering:
            self._transport.close()

    def is_closing(self) -> bool:
        """Whether nothing can be written any more."""
        return self._is_lingering or self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


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


class Http(HttpToolsProtocol):
    """One connection; see the module. The application must be an Envelope."""

    transfer_s = TRANSFER_S
    _head_bytes = 0
    _is_reading = False  # bytes that have arrived
    _is_incomplete = False  # a request: some of it has arrived and some not
    _is_refused = False  # by `_refuse`

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        gathering = GatheringTransport(
            cast("asyncio.Transport", transport),
            self.loop,
            self._has_been_refused,
            self.transfer_s,
        )
        super().connection_made(cast("asyncio.Transport", gathering))
        self._rest_of_request = Countdown(self.loop, self._give_up)
        self._taking_of_answers = Countdown(self.loop, gathering.abort)
        self._wait_for_a_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_keepalive_if_required()
        self._rest_of_request.stop()
        self._taking_of_answers.stop()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taking_of_answers.start(self.transfer_s)

    def resume_writing(self) -> None:
        self._taking_of_answers.stop()
        super().resume_writing()

    def shutdown(self) -> None:
        cast("GatheringTransport", self.transport).stop_lingering()
        super().shutdown()

    def on_response_complete(self) -> None:
        cast("GatheringTransport", self.transport).flush()
        if self._rest_of_request.is_running:  # that of a request behind this one
            self._rest_of_request.start(self.transfer_s)
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
        if self.transport.is_closing():
            return
        self._head_bytes += len(data)
        self._is_reading = True
        try:
            super().data_received(data)  # calls what follows
        finally:
            self._is_reading = False
        if self.transport.is_closing():
            return
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, "headers_too_large", f"the headers may have {MAX_HEAD_BYTES} bytes")
        elif self._is_incomplete:
            if not self._rest_of_request.is_running:
                self._rest_of_request.start(self.transfer_s)
        elif self.cycle is None or self.cycle.response_complete:
            self._wait_for_a_request()  # what has come may have been the rest of a refused one

    def on_message_begin(self) -> None:
        self._head_bytes = 0
        self._is_incomplete = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        self._is_incomplete = False
        self._rest_of_request.stop()
        if self.transport.is_closing():  # it was refused, and the rest has come after all
            self.transport.close()
        super().on_message_complete()

    def _has_been_refused(self) -> bool:
        """Whether an answer was written to a request that is not whole."""
        cycle = self.cycle
        is_answered = cycle is not None and cycle.scope is self.scope and cycle.response_complete
        return self._is_incomplete and (self._is_refused or is_answered)

    def _wait_for_a_request(self) -> None:
        """Until the connection has been idle for too long."""
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _give_up(self) -> None:
        """The rest of a request does not come; the application, if it waits for it, is told."""
        if self.transport.is_closing():
            return
        cycle = self.cycle
        is_own = cycle is not None and cycle.scope is self.scope  # its head has come
        is_busy = cycle is not None and not cycle.response_complete
        if self.flow.read_paused or self.pipeline or (is_busy and not is_own):
            self._rest_of_request.start(self.transfer_s)  # those before it are answered first
        elif is_own and cycle.response_started:
            self._close()
        else:
            scope = cast("Scope", cycle.scope) if is_own else {}
            context: RequestContext | None = scope.get(SCOPE_KEY)
            if context is not None:
                context.given_up = True
            message = f"the request has to be whole within {self.transfer_s:g} s"
            self._refuse(408, "request_timeout", message, context)

    def _refuse(
        self, status: int, code: str, message: str, context: RequestContext | None = None
    ) -> None:
        """Answer a request that is not whole, and close. context: once its head has come"""
        name = context.request_id if context else request_id()
        body = ErrorResponse.of(code, message, name)
        content = body.model_dump_json().encode()
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "Content-Type: application/json",
            f"Content-Length: {len(content)}",
            f"X-Request-ID: {name}",
            "Connection: close",
        ]
        self.transport.write("".join(f"{line}\r\n" for line in [*lines, ""]).encode() + content)
        self._is_refused = True
        self._close()
        if context and self.cycle is not None:  # the application is not to wait for the rest
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _close(self) -> None:
        """Close, whether or not the client takes what was written."""
        self.transport.close()
        self.loop.call_later(self.transfer_s, self.transport.abort)


def _run_through(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise RuntimeError("it had something to wait for")
