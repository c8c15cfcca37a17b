"""The port: open early, connections taken from it while there are descriptors, closed last.

asyncio's own server is not used: where descriptors end, it writes a traceback for each connection
that could wait, every second (Python 3.11), and uvicorn lets fewer wait than it is told to. Here
some descriptors are kept for the history store, bundles and files; when the others are used up, it
is said once, connections that ask nothing are closed, and those who come wait at the port. Knows
nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

import structlog

from service.errors import PortUnavailable

BACKLOG = 4096  # who comes when it is full waits a second for TCP to try again
AT_ONCE = 100  # connections taken in one turn of the event loop
MOST_DESCRIPTORS = 1 << 20  # a limit of a thousand millions, as some containers have, means none
RETRY_S = 0.1  # between two looks for descriptors while they are used up
CALM_S = 10.0  # without a want of descriptors: it is over
USED_UP = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
NUM_WAITING_ALLOWED = struct.Struct("=28xI")  # of Linux's tcp_info, for a socket that listens

log = structlog.get_logger()


def raised_descriptor_limit() -> int:
    """Let this process open as many files as it may, and say how many: the soft limit is for
    programs that use select().
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):  # macOS has a limit of its own beside the hard one
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return most if soft == resource.RLIM_INFINITY else soft


class Port:
    """A socket that listens. Raises PortUnavailable.

    max_descriptors: how many files the process may have open; keep: how many of them connections
        may not take, at most half of what is left for them
    """

    def __init__(self, host: str, port: int, *, max_descriptors: int, keep: int = 64) -> None:
        self.max_descriptors = max_descriptors
        self._keep = keep
        self._listener = listen(host, port)
        self._retry: asyncio.TimerHandle | None = None
        self._end_of_want: asyncio.TimerHandle | None = None
        self._connecting: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    @property
    def backlog(self) -> int:
        """How many connections may wait; the system's own limit (somaxconn) may be lower."""
        try:
            told = self._listener.getsockopt(
                socket.IPPROTO_TCP, socket.TCP_INFO, NUM_WAITING_ALLOWED.size
            )
        except (OSError, AttributeError):  # not Linux
            return BACKLOG
        return int(NUM_WAITING_ALLOWED.unpack(told)[0])

    def serve(
        self, protocol: Callable[[], asyncio.Protocol], make_room: Callable[[], None]
    ) -> None:
        """Take connections from now on.

        make_room: close connections of which nobody waits for anything
        """
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._make_room = make_room
        self._listener.setblocking(False)
        left = max(0, self.max_descriptors - self._lowest_free())
        self._first_kept = self.max_descriptors - min(self._keep, left // 2)
        self._loop.add_reader(self._listener, self._take)

    async def close(self) -> None:
        """Take the connections that wait, which closing would reset, and close the port.

        One that comes in the microseconds between the last look and the end is reset all the same.
        """
        self._loop.remove_reader(self._listener)
        for timer in (self._retry, self._end_of_want):
            if timer:
                timer.cancel()
        with self._listener, suppress(OSError):  # none is left, or no descriptor is
            while True:
                self._connect(self._listener.accept()[0])
        if self._connecting:
            await asyncio.wait(self._connecting)

    def _take(self) -> None:
        """Some connections, now that there are any."""
        for _ in range(AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in USED_UP:
                    self._wait_for_descriptors(error.strerror or "")
                break  # else one that has gone again
            number = connection.fileno()
            self._connect(connection)
            if number >= self._first_kept:  # the lowest free one is given: all below are taken
                self._wait_for_descriptors("what is left is for the store and files")
                break

    def _connect(self, connection: socket.socket) -> None:
        task = self._loop.create_task(self._connected(connection))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connected(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError:  # it has gone
            connection.close()

    def _wait_for_descriptors(self, reason: str) -> None:
        """Take nobody until some are free; the system may have ended them, or we their use."""
        if self._end_of_want is None:
            log.error(
                "descriptors_used_up",
                limit=self.max_descriptors,
                reason=reason,
                effect="idle connections are closed, new ones wait",
                cure="let the service open more files (ulimit -n), or fewer connect to it",
            )
        self._loop.remove_reader(self._listener)
        self._want()

    def _want(self) -> None:
        if self._end_of_want:
            self._end_of_want.cancel()
        self._end_of_want = self._loop.call_later(CALM_S, self._want_no_more)
        self._make_room()
        self._retry = self._loop.call_later(RETRY_S, self._try_again)

    def _want_no_more(self) -> None:
        self._end_of_want = None
        log.info("descriptors_free_again", limit=self.max_descriptors)

    def _try_again(self) -> None:
        self._retry = None
        if self._lowest_free() < self._first_kept:
            self._loop.add_reader(self._listener, self._take)
        else:
            self._want()

    def _lowest_free(self) -> int:
        """The descriptor that is given next: all below are in use."""
        try:
            free = os.dup(self._listener.fileno())
        except OSError:
            return self.max_descriptors
        os.close(free)
        return free


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
