"""`python -m service`: settings, then one uvicorn server until SIGTERM, Ctrl-C or a failed start.

With several workers it becomes their supervisor, which starts this program again for each.

`histories` and `events` as the first argument are commands beside it, with their last line on
stdout and all else on stderr.

SIGHUP loads and activates the bundle that UNMASK_BUNDLE names at that moment.

Exit status: that of the signal, 1 when something cannot start, 2 when a setting is wrong. The
reason is one sentence on stderr. The log is on stdout, one JSON object a line.
"""

from __future__ import annotations

import gc

gc.disable()  # while modules are imported: that leaves no garbage, and a start is sooner done

import asyncio
import json
import logging
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, cast

import structlog
import uvicorn
from structlog.typing import EventDict
from threadpoolctl import threadpool_limits

from service.errors import SettingsInvalid, StartError, UnmaskError
from service.http import Http, Port, create_app, raised_descriptor_limit
from service.lifecycle import Lifecycle, done_command
from service.settings import load_settings
from service.telemetry import Metrics

gc.enable()

LOOPBACK = {"127.0.0.1", "::1", "localhost"}
SWITCH_INTERVAL_S = 0.0001  # the event loop and the decode thread soon get the interpreter back
KEEP_ALIVE_S = 75  # longer than clients and proxies keep an idle connection, so they close it
KEPT_DESCRIPTORS = 64  # beside those of the pool: for the store, bundles, files
LEAST_HUNG_UP = 16
LEAST_IDLE_S = 1.0  # a new connection's first request may be on its way
LATE_REQUESTS_S = 0.2  # for late requests on open connections, once the port is closed

log = structlog.get_logger()


class Server(uvicorn.Server):
    """uvicorn's server, which tells the lifecycle when it has to stop."""

    def __init__(self, lifecycle: Lifecycle, port: Port) -> None:
        config = uvicorn.Config(
            create_app(lifecycle),
            http=Http,
            ws="none",  # no route uses WebSocket, whatever is installed
            lifespan="on",
            loop="asyncio",  # uvloop lets connections starve under overload (docs/decisions/024)
            access_log=False,
            log_level="error",  # we log a line of our own for requests that are not HTTP
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=lifecycle.settings.shutdown_timeout_s,
        )
        super().__init__(config)
        self._lifecycle = lifecycle
        self._port = port
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told_to_stop = False
        lifecycle.on_failure = self._stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On SIGTERM: be not ready at once, but go on answering for a while.

        Meanwhile clients stop sending. Ctrl-C or a second signal ends this time.
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

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])  # starts the application; the port is ours
        workers = self._lifecycle.workers
        if workers.count > 1:
            self.server_state.connections = Counted(workers.has_open)
        if workers.waits_with_the_port:
            self._lifecycle.on_ready = self._take_connections
        else:
            self._take_connections()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the port and end the connections, without losing requests.

        Connections that wait at the port are taken first. Requests that are on their way on open
        connections may still arrive. Then the connections end.
        """
        await self._port.close()
        if self._lifecycle.failure is None:
            await asyncio.sleep(LATE_REQUESTS_S)
        await super().shutdown()

    def _take_connections(self) -> None:
        workers = self._lifecycle.workers
        workers.has_open(0)
        self._port.serve(self._protocol, self._hang_up, workers.others_have_fewer)

    def _protocol(self) -> Http:
        return Http(self.config, self.server_state, self.lifespan.state)

    def _hang_up(self) -> None:
        """Close some idle connections: those that have been idle for longest."""
        connections = cast("set[Http]", self.server_state.connections)
        idle = [(one.idle_until, one) for one in connections]
        now = asyncio.get_running_loop().time()
        latest = now + self.config.timeout_keep_alive - LEAST_IDLE_S
        ends = [(until, id(one), one) for until, one in idle if until and until <= latest]
        ends = sorted(ends)[: max(LEAST_HUNG_UP, len(ends) // 10)]
        quiet = [connection for _, _, connection in ends if not connection.has_unread]
        for connection in quiet:
            connection.shutdown()
        self._lifecycle.metrics.connections_hung_up.inc(len(quiet))

    def _stop(self) -> None:
        self.should_exit = True


class Counted(set[Any]):
    """The open connections; tells how many there are whenever that changes."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        super().__init__()
        self._tell = tell

    def add(self, element: Any) -> None:
        super().add(element)
        self._tell(len(self))

    def discard(self, element: Any) -> None:
        super().discard(element)
        self._tell(len(self))


def configure_log(level: str, worker: int | None = None) -> None:
    """Log JSON lines on stdout, each in one write: several processes and threads share it.

    worker: its number, if there are several
    """

    def numbered(_logger: object, _method: str, line: EventDict) -> EventDict:
        line["worker"] = worker
        return line

    structlog.configure(
        processors=[
            *([] if worker is None else [numbered]),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(_json_bytes),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.BytesLoggerFactory(sys.stdout.buffer),
        cache_logger_on_first_use=True,
    )


def _json_bytes(line: EventDict, **options: Any) -> bytes:
    return json.dumps(line, **options).encode()


def main() -> int:
    """Serve, or run a command; returns the exit status."""
    if sys.argv[1:2] in (["histories"], ["events"]):
        return command(sys.argv[1:])
    try:
        settings = load_settings(sys.argv[1:])
        lifecycle = Lifecycle(settings, Metrics())
        workers = lifecycle.workers
        port = Port(
            settings.host,
            settings.port,
            max_descriptors=raised_descriptor_limit(),
            keep=KEPT_DESCRIPTORS + settings.redis_pool_size,
            descriptor=workers.descriptor,
        )
        salt = settings.log_salt.get_secret_value()
        workers.supervise(port.descriptor, settings.workers, sys.argv[1:], salt)
    except StartError as error:
        return refuse(error)
    configure_log(settings.log_level, workers.number if workers.count > 1 else None)
    if not settings.api_keys and settings.host not in LOOPBACK:
        log.warning("no_api_keys", effect="everybody who reaches the port may ask")
    log.info(
        "starting",
        url=f"http://{settings.host}:{settings.port}",
        bundle=settings.bundle,
        backlog=port.backlog,
        descriptors=port.max_descriptors,
    )
    try:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        threadpool_limits(1, user_api="blas")  # numpy encodes new items while others decode
        Server(lifecycle, port).run()
    except KeyboardInterrupt:  # Ctrl-C, passed on by uvicorn once everything has stopped
        return 130
    if lifecycle.failure is not None:
        return refuse(lifecycle.failure)
    return 0


def command(arguments: Sequence[str]) -> int:
    """Run a command beside the service; returns the exit status.

    SIGTERM ends it as an error does: what is unfinished is removed.
    """
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    before = signal.signal(signal.SIGTERM, _end_command)
    try:
        print(done_command(arguments))
    except UnmaskError as error:
        return refuse(error)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _end_command(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not break off the cleaning up
    raise SystemExit(128 + number)


def refuse(error: UnmaskError) -> int:
    """Say why the service cannot start, or a command not end; returns the exit status."""
    print(f"unmask: {error}", file=sys.stderr)
    return 2 if isinstance(error, SettingsInvalid) else 1


if __name__ == "__main__":
    sys.exit(main())
