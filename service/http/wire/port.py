"""The port: opened early, closed last. It takes connections while file descriptors are left.

asyncio's own server is not used. When descriptors run out, it writes a traceback for each waiting
connection every second (Python 3.11). And uvicorn lets fewer connections wait than it is told to.
This module keeps some descriptors for the history store, bundles and files. When the others are
used up, it logs one line and closes connections that ask nothing, and new connections wait at the
port. Knows nothing of HTTP.
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

BACKLOG = 4096  # when it is full, TCP tries again after a second
AT_ONCE = 100  # connections taken in one turn of the event loop
YIELD_S = 0.002  # for a process with fewer connections to take one that waits
MOST_DESCRIPTORS = 1 << 20  # a limit of 10^9, as in some containers, means none
RETRY_S = 0.1  # between two looks for free descriptors
CALM_S = 10.0  # without a shortage of descriptors: then it is over
USED_UP = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
NUM_WAITING_ALLOWED = struct.Struct("=28xI")  # of Linux's tcp_info, for a socket that listens

log = structlog.get_logger()


def raised_descriptor_limit() -> int:
    """Let this process open as many files as it may; returns how many.

    The soft limit exists only for programs that use select().
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):  # macOS has its own limit beside the hard one
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return most if soft == resource.RLIM_INFINITY else soft


class Port:
    """A listening socket. Raises PortUnavailable.

    max_descriptors: how many files the process may have open
    keep: how many of these connections may not take; at most half of those that are free at the
        start
    descriptor: of a port that is open already, which other processes share
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        max_descriptors: int,
        keep: int = 64,
        descriptor: int | None = None,
    ) -> None:
        self.max_descriptors = max_descriptors
        self._keep = keep
        self._listener = (
            listen(host, port) if descriptor is None else socket.socket(fileno=descriptor)
        )
        self._at_once = AT_ONCE if descriptor is None else 1  # the others take some, too
        self._yield_to: Callable[[], bool] = lambda: False
        self._has_yielded = False
        self._yielding: asyncio.TimerHandle | None = None
        self._has_served = False
        self._retry: asyncio.TimerHandle | None = None
        self._end_of_shortage: asyncio.TimerHandle | None = None
        self._connecting: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> tuple[str, int]:
        """The address and port that it listens on."""
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    @property
    def backlog(self) -> int:
        """How many connections may wait. The system's own limit (somaxconn) may be lower."""
        try:
            told = self._listener.getsockopt(
                socket.IPPROTO_TCP, socket.TCP_INFO, NUM_WAITING_ALLOWED.size
            )
        except (OSError, AttributeError):  # not Linux
            return BACKLOG
        return int(NUM_WAITING_ALLOWED.unpack(told)[0])

    @property
    def descriptor(self) -> int:
        """Of the socket that listens."""
        return self._listener.fileno()

    def serve(
        self,
        protocol: Callable[[], asyncio.Protocol],
        make_room: Callable[[], None],
        yield_to: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take connections from now on.

        make_room: closes connections that nobody waits for
        yield_to: whether a connection is rather for another process, which then has a moment for it
        """
        self._loop = asyncio.get_running_loop()
        self._has_served = True
        self._yield_to = yield_to
        self._protocol = protocol
        self._make_room = make_room
        self._listener.setblocking(False)
        left = max(0, self.max_descriptors - self._lowest_free())
        self._first_kept = self.max_descriptors - min(self._keep, left // 2)
        self._loop.add_reader(self._listener, self._take)

    async def close(self) -> None:
        """Take the waiting connections, because closing would reset them, then close the port.

        A connection that arrives in the microseconds between the last look and the end is still
        reset.
        """
        if not self._has_served:
            self._listener.close()
            return
        self._loop.remove_reader(self._listener)
        for timer in (self._retry, self._end_of_shortage, self._yielding):
            if timer:
                timer.cancel()
        with self._listener, suppress(OSError):  # no connection is left, or no descriptor
            while True:
                self._connect(self._listener.accept()[0])
        if self._connecting:
            await asyncio.wait(self._connecting)

    def _take(self) -> None:
        """Take some of the connections that wait."""
        if not self._has_yielded and self._yield_to():
            self._has_yielded = True
            self._loop.remove_reader(self._listener)
            self._yielding = self._loop.call_later(YIELD_S, self._look_again)
            return
        self._has_yielded = False
        for _ in range(self._at_once):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in USED_UP:
                    self._wait_for_descriptors(error.strerror or "")
                break  # otherwise this connection has gone again
            number = connection.fileno()
            self._connect(connection)
            if number >= self._first_kept:  # all below are in use: the lowest free one is given
                self._wait_for_descriptors("what is left is for the store and files")
                break

    def _look_again(self) -> None:
        self._loop.add_reader(self._listener, self._take)

    def _connect(self, connection: socket.socket) -> None:
        task = self._loop.create_task(self._connected(connection))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connected(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError:  # the connection has gone
            connection.close()

    def _wait_for_descriptors(self, reason: str) -> None:
        """Take no connection until descriptors are free.

        Either the whole system has none left, or this process has reached its own limit.
        """
        if self._end_of_shortage is None:
            log.error(
                "descriptors_used_up",
                limit=self.max_descriptors,
                reason=reason,
                effect="idle connections are closed, new ones wait",
                cure="let the service open more files (ulimit -n), or fewer connect to it",
            )
        self._loop.remove_reader(self._listener)
        self._make_room_and_retry()

    def _make_room_and_retry(self) -> None:
        if self._end_of_shortage:
            self._end_of_shortage.cancel()
        self._end_of_shortage = self._loop.call_later(CALM_S, self._shortage_is_over)
        self._make_room()
        self._retry = self._loop.call_later(RETRY_S, self._try_again)

    def _shortage_is_over(self) -> None:
        self._end_of_shortage = None
        log.info("descriptors_free_again", limit=self.max_descriptors)

    def _try_again(self) -> None:
        self._retry = None
        if self._lowest_free() < self._first_kept:
            self._loop.add_reader(self._listener, self._take)
        else:
            self._make_room_and_retry()

    def _lowest_free(self) -> int:
        """The descriptor that the system gives next. All below it are in use."""
        try:
            free = os.dup(self._listener.fileno())
        except OSError:
            return self.max_descriptors
        os.close(free)
        return free


def listen(host: str, port: int) -> socket.socket:
    """Open the port. Raises PortUnavailable."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only if the protocol is named. Without it, answers wait 40 ms.
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
