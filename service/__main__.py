"""`python -m service`: settings, then one uvicorn worker until SIGTERM, Ctrl-C or a failed start.

SIGHUP loads and activates the bundle that UNMASK_BUNDLE means by then.

Exit status: that of the signal, 1 when something cannot start, 2 when a setting is wrong. The
reason is one sentence on stderr; stdout has the log, one JSON object a line.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from contextlib import suppress
from types import FrameType

import structlog
import uvicorn
from threadpoolctl import threadpool_limits

from service.app import create_app
from service.errors import PortUnavailable, SettingsInvalid, StartError
from service.http_protocol import Http
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.settings import load_settings

LOOPBACK = {"127.0.0.1", "::1", "localhost"}
BACKLOG = 4096  # a burst of new connections that finds it full waits a second for TCP to try again
SWITCH_INTERVAL_S = 0.0001  # event loop and decode thread get the interpreter back soon
KEEP_ALIVE_S = 75  # longer than clients and proxies keep an idle connection, so that they close it
LATE_REQUESTS_S = 0.2  # after the port is closed, for requests on connections that are open

log = structlog.get_logger()


class Server(uvicorn.Server):
    """uvicorn, which tells the lifecycle when it is asked to stop."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        config = uvicorn.Config(
            create_app(lifecycle),
            http=Http,
            ws="none",  # whatever is installed: no route speaks WebSocket
            lifespan="on",
            loop="asyncio",  # uvloop lets connections starve under overload (docs/decisions/024)
            access_log=False,
            log_level="error",  # of a request that is not HTTP there is a line of ours
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=lifecycle.settings.shutdown_timeout_s,
        )
        super().__init__(config)
        self._lifecycle = lifecycle
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told_to_stop = False
        lifecycle.on_failure = self._stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM: not ready at once, and answering for a while, until nobody sends any more.

        Ctrl-C and a second signal end that while.
        """
        delay_s = self._lifecycle.settings.drain_delay_s
        if sig != signal.SIGTERM or self._told_to_stop or not delay_s or self._loop is None:
            self._lifecycle.draining = True
            super().handle_exit(sig, frame)
            return
        self._told_to_stop = self._lifecycle.draining = True
        stop = super().handle_exit, sig, frame
        self._loop.call_soon_threadsafe(self._loop.call_later, delay_s, *stop)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        if hasattr(signal, "SIGHUP"):  # Windows has none
            self._loop.add_signal_handler(signal.SIGHUP, self._lifecycle.reload_soon)
        await super().serve(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the port, but take those who wait at it; let requests that are on their way arrive
        on connections that are open; then end these.
        """
        listeners, loop = sockets or [], asyncio.get_running_loop()
        for listener in listeners:
            loop.remove_reader(listener)
        await asyncio.sleep(0)  # asyncio drops whom it has let in just before a server is closed
        last = [listener.dup() for listener in listeners]  # the port is open as long as these are
        for server in self.servers:
            server.close()
        for listener in listeners:
            listener.close()
        arrived = [connection for one in last for connection in taken_at(one)]
        for connection in arrived:
            await loop.connect_accepted_socket(self._protocol, connection)
        if self._lifecycle.failure is None:
            await asyncio.sleep(LATE_REQUESTS_S)
        await super().shutdown()

    def _protocol(self) -> Http:
        return Http(self.config, self.server_state, self.lifespan.state)

    def _stop(self) -> None:
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """Open the port. Raises PortUnavailable."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named; without it answers wait 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise PortUnavailable(
            f"cannot listen on {host}:{port} ({error.strerror}); set UNMASK_PORT or UNMASK_HOST"
        ) from error
    return listener


def taken_at(listener: socket.socket) -> list[socket.socket]:
    """Close a port; the connections that nobody had accepted yet, which closing would reset.

    One that comes in the microseconds between the last look and the end is reset all the same.
    """
    arrived = []
    listener.setblocking(False)
    with listener, suppress(OSError):  # none is left, or the port is closed
        while True:
            arrived.append(listener.accept()[0])
    for connection in arrived:
        connection.setblocking(False)
    return arrived


def configure_log(level: str) -> None:
    """JSON lines on stdout."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        cache_logger_on_first_use=True,
    )


def main() -> int:
    """Serve; returns the exit status."""
    try:
        settings = load_settings(sys.argv[1:])
        listener = listen(settings.host, settings.port)
        lifecycle = Lifecycle(settings, Metrics())
    except StartError as error:
        return refuse(error)
    configure_log(settings.log_level)
    if not settings.api_keys and settings.host not in LOOPBACK:
        log.warning("no_api_keys", effect="everybody who reaches the port may ask")
    log.info("starting", url=f"http://{settings.host}:{settings.port}", bundle=settings.bundle)
    try:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        threadpool_limits(1, user_api="blas")  # numpy encodes new items, beside the decode thread
        Server(lifecycle).run(sockets=[listener])
    except KeyboardInterrupt:  # Ctrl-C, passed on by uvicorn once everything has stopped
        return 130
    if lifecycle.failure is not None:
        return refuse(lifecycle.failure)
    return 0


def refuse(error: StartError) -> int:
    """Say why the service cannot start; returns the exit status."""
    print(f"unmask: {error}", file=sys.stderr)
    return 2 if isinstance(error, SettingsInvalid) else 1


if __name__ == "__main__":
    sys.exit(main())
