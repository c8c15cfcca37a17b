"""`python -m service`: settings, then one uvicorn worker until SIGTERM, Ctrl-C or a failed start.

Exit status: that of the signal, 1 when something cannot start, 2 when a setting is wrong. The
reason is one sentence on stderr; stdout has the log, one JSON object a line.
"""

from __future__ import annotations

import logging
import sys
from types import FrameType

import structlog
import uvicorn

from service.app import create_app
from service.errors import SettingsInvalid
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.settings import load_settings

KEEP_ALIVE_S = 75  # longer than clients and proxies keep an idle connection, so that they close it

log = structlog.get_logger()


class Server(uvicorn.Server):
    """uvicorn, which tells the lifecycle when it is asked to stop."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        settings = lifecycle.settings
        config = uvicorn.Config(
            create_app(lifecycle),
            host=settings.host,
            port=settings.port,
            lifespan="on",
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=settings.shutdown_timeout_s,
        )
        super().__init__(config)
        self._lifecycle = lifecycle
        lifecycle.on_failure = self._stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._lifecycle.draining = True
        super().handle_exit(sig, frame)

    def _stop(self) -> None:
        self.should_exit = True


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
    except SettingsInvalid as error:
        print(f"unmask: {error}", file=sys.stderr)
        return 2
    configure_log(settings.log_level)
    lifecycle = Lifecycle(settings, Metrics())
    log.info("starting", url=f"http://{settings.host}:{settings.port}", bundle=settings.bundle)
    try:
        Server(lifecycle).run()
    except KeyboardInterrupt:  # Ctrl-C, passed on by uvicorn once everything has stopped
        return 130
    if lifecycle.failure is not None:
        print(f"unmask: {lifecycle.failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
