"""`python -m service`: settings, then one uvicorn worker until SIGTERM, Ctrl-C or a failed start.

Exit status: that of the signal, 1 when something cannot start, 2 when a setting is wrong. The
reason is one sentence on stderr; stdout has the log, one JSON object a line.
"""

from __future__ import annotations

import logging
import socket
import sys
from types import FrameType

import structlog
import uvicorn

from service.app import create_app
from service.errors import PortUnavailable, SettingsInvalid, StartError
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.settings import load_settings

KEEP_ALIVE_S = 75  # longer than clients and proxies keep an idle connection, so that they close it

log = structlog.get_logger()


class Server(uvicorn.Server):
    """uvicorn, which tells the lifecycle when it is asked to stop."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        config = uvicorn.Config(
            create_app(lifecycle),
            lifespan="on",
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=lifecycle.settings.shutdown_timeout_s,
        )
        super().__init__(config)
        self._lifecycle = lifecycle
        lifecycle.on_failure = self._stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._lifecycle.draining = True
        super().handle_exit(sig, frame)

    def _stop(self) -> None:
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """Open the port. Raises PortUnavailable."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise PortUnavailable(
            f"cannot listen on {host}:{port} ({error.strerror}); set UNMASK_PORT or UNMASK_HOST"
        ) from error
    return listener


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
    except StartError as error:
        return refuse(error)
    configure_log(settings.log_level)
    lifecycle = Lifecycle(settings, Metrics())
    log.info("starting", url=f"http://{settings.host}:{settings.port}", bundle=settings.bundle)
    try:
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
