"""What a worker knows of the other workers of its port, and how it talks to them.

Each worker listens on a Unix socket in a folder that only this user may enter. An operation is done
in one worker and then told to the others: the answer comes when all have done it. Metrics are asked
of all and added up; each worker keeps the numbers it has shown in a file, for when it dies. A
worker takes a connection only if it has no more than the others, or they do not take it. A process
without siblings has the same object, which does nothing. Knows nothing of bundles or HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import mmap
import os
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog

from service.errors import BundleConflict, NotReady, SettingsInvalid, UnmaskError
from service.supervisor import WORKER, become_supervisor
from service.telemetry import Dump, Metrics, counted, dump_of, merged, text_of_dump

METRICS_S = 1.0  # how long a scrape waits for a worker
ANSWER_S = 5.0  # how long a question of what a worker has may take
DONE_S = 30.0  # how long an operation may take
GONE_EVERY_S = 0.05
BYTES = 8  # of a number of connections
OUT = 2**62  # connections of a worker that takes none

Handler = Callable[..., Awaitable[Any]]
log = structlog.get_logger()


class Workers:
    """The workers of one port, as one of them sees them.

    descriptor: of the port; None = there is one process, which opens its own
    folder: what the workers share; None = there are no others
    number, count: this worker's, from 1; how many there are
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        descriptor: int | None = None,
        folder: str | None = None,
        number: int = 1,
        count: int = 1,
    ) -> None:
        self.number, self.count, self.descriptor = number, count, descriptor
        self._metrics = metrics
        self.folder = Path(folder) if folder else None
        self._handlers: Mapping[str, Handler] = {}
        self._server: asyncio.Server | None = None
        self._dumping = threading.Lock()
        self._before: Dump = []  # what was counted by those who had this number
        self._open: memoryview | None = None  # connections of each worker
        if self.folder:
            self._before = counted(self._kept_of(number))
            self._open = self._board()
            self._open[number - 1] = OUT
        metrics.workers.set(1)

    @classmethod
    def of_environment(cls, metrics: Metrics) -> Workers:
        """As the supervisor has told this process, if there is one."""
        return cls(metrics, **json.loads(os.environ.get(WORKER, "{}")))

    def supervise(
        self, descriptor: int, count: int, arguments: Sequence[str], log_salt: str
    ) -> None:
        """Become the supervisor of so many workers, unless this is one. Raises SettingsInvalid.

        descriptor: of the port; arguments: of the program
        log_salt: all write the same hash of a user into their logs
        """
        if count == 1 or self.descriptor is not None:
            return
        if sys.platform != "linux":
            raise SettingsInvalid("UNMASK_WORKERS is wrong: several workers run on Linux only.")
        os.environ["UNMASK_LOG_SALT"] = log_salt
        become_supervisor(descriptor, count, arguments)

    @property
    def store_socket(self) -> Path | None:
        """Where the embedded store listens for all workers; None = wherever it likes."""
        return self.folder / "valkey.sock" if self.folder else None

    @property
    def waits_with_the_port(self) -> bool:
        """Whether to take connections only when ready: another worker says how far the start is."""
        return self.folder is not None and (self.number > 1 or (self.folder / "opened").exists())

    def is_ready(self) -> None:
        """Say that this worker can answer: the supervisor starts the others."""
        if self.folder:
            (self.folder / "opened").touch()
            (self.folder / f"{self.number}.ready").touch()

    # --- connections ------------------------------------------------------------------------------

    def has_open(self, connections: int) -> None:
        """Tell the others how many connections this worker has."""
        if self._open is not None:
            self._open[self.number - 1] = connections

    def others_have_fewer(self) -> bool:
        """Whether a new connection is rather for another worker."""
        return self._open is not None and min(self._open) < self._open[self.number - 1]

    def _board(self) -> memoryview:
        assert self.folder is not None
        with open(os.open(self.folder / "open", os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            file.truncate(BYTES * self.count)
            return memoryview(mmap.mmap(file.fileno(), BYTES * self.count)).cast("q")

    # --- operations -------------------------------------------------------------------------------

    async def start(self, handlers: Mapping[str, Handler]) -> None:
        """Do from now on what other workers tell. handlers: by the name of the operation"""
        if self.folder:
            self._handlers = handlers
            path = self._path(self.number)
            self._server = await asyncio.start_unix_server(self._answer, path)

    async def stop(self, within_s: float) -> None:
        """Leave. The worker with the store is the last: it waits for the others, for a time."""
        if self._server is None:
            return
        if self.number == 1:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    asked = {"operation": "is_there"}
                    while [one for one in self._others if await self._ask(one, asked) is not None]:
                        await asyncio.sleep(GONE_EVERY_S)
        self._server.close()
        self._path(self.number).unlink(missing_ok=True)

    async def tell(self, operation: str, *, within_s: float = DONE_S, **arguments: object) -> None:
        """Let the others do the same; returns when all have.

        A worker that is starting is not asked: it will see what the others have. Raises
        BundleConflict when one has not done it.
        """
        asked = {"operation": operation, **arguments}
        answers = await asyncio.gather(*(self._ask(one, asked, within_s) for one in self._others))
        for number, answer in zip(self._others, answers, strict=True):
            if answer and "failed" in answer:
                raise BundleConflict(
                    f"worker {number} has not followed: {answer['failed']}; ask again, or restart "
                    "the service",
                    code="workers_differ",
                )

    async def first_answer(self, operation: str) -> Any:
        """What another worker says that is ready; None if there is none."""
        for number in self._others:
            answer = await self._ask(number, {"operation": operation})
            if answer and "done" in answer:
                return answer["done"]
        return None

    @asynccontextmanager
    async def alone(self, what: str, *, wait: bool = True) -> AsyncIterator[None]:
        """While the block runs, no other worker is in one of that name.

        wait: else raises BundleConflict if another one is
        """
        if self.folder is None:
            yield
            return
        with (self.folder / f"{what}.lock").open("w") as file:
            try:
                flags = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
                await asyncio.to_thread(fcntl.flock, file, flags)
            except BlockingIOError:
                message = "another bundle is being loaded; wait for it"
                raise BundleConflict(message, code="bundle_busy") from None
            yield

    @property
    def _others(self) -> list[int]:
        return [one for one in range(1, self.count + 1) if one != self.number]

    async def _ask(
        self, number: int, asked: Mapping[str, object], within_s: float = ANSWER_S
    ) -> dict[str, Any] | None:
        """The answer of another worker; None if it is not there, or has no answer yet."""
        try:
            async with asyncio.timeout(within_s):
                reader, writer = await asyncio.open_unix_connection(self._path(number))
                with contextlib.closing(writer):
                    writer.write(json.dumps(asked).encode() + b"\n")
                    said = await reader.read(-1)
        except TimeoutError:
            return {"failed": f"it has not answered in {within_s:g} s"}
        except OSError:
            return None
        answer: dict[str, Any] | None = json.loads(said) if said else None
        return answer

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            try:
                asked = json.loads(await reader.readline())
                operation = asked.pop("operation")
                if operation == "metrics":
                    writer.write(await asyncio.to_thread(self._dumped_json))
                elif operation == "is_there":
                    writer.write(b"{}")
                else:
                    done = await self._handlers[operation](**asked)
                    writer.write(json.dumps({"done": done}).encode())
            except NotReady:
                pass  # it will see by itself
            except UnmaskError as error:
                writer.write(json.dumps({"failed": str(error)}).encode())
            except Exception as error:
                log.exception("operation_failed")
                writer.write(json.dumps({"failed": type(error).__name__}).encode())
            with contextlib.suppress(OSError):
                await writer.drain()

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{number}.sock"

    # --- metrics ----------------------------------------------------------------------------------

    def metrics_text(self) -> bytes:
        """The metrics of all workers, in the Prometheus text format. Call it in a thread."""
        if self.folder is None:
            return self._metrics.text()
        dumps = [self._dumped()]
        for number in self._others:
            said = _asked(self._path(number), b'{"operation": "metrics"}\n', METRICS_S)
            try:
                dumps.append(json.loads(said))
            except ValueError:  # it is not there, or too slow: what it has shown still counts
                dumps.append(counted(self._kept_of(number)))
        return text_of_dump(merged(dumps))

    def _dumped_json(self) -> bytes:
        return json.dumps(self._dumped()).encode()

    def _dumped(self) -> Dump:
        """The metrics of this worker, kept in a file before anybody sees them."""
        assert self.folder is not None
        with self._dumping:
            dump = merged([dump_of(self._metrics.registry), self._before])
            path = self.folder / f"{self.number}.metrics"
            fresh = path.with_suffix(".fresh")
            fresh.write_text(json.dumps(dump))
            fresh.replace(path)
            return dump

    def _kept_of(self, number: int) -> Dump:
        assert self.folder is not None
        try:
            kept: Dump = json.loads((self.folder / f"{number}.metrics").read_text())
        except OSError:
            return []
        return kept


def _asked(path: Path, question: bytes, within_s: float) -> bytes:
    """What is answered there, to the end; empty if nothing is."""
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.settimeout(within_s)
            one.connect(str(path))
            one.sendall(question)
            return b"".join(iter(lambda: one.recv(1 << 20), b""))
    except OSError:
        return b""
