"""Starts the workers of UNMASK_WORKERS on one port, and replaces one that dies.

`python -m service` becomes this program when it is told to have several workers, after it has read
the settings and opened the port. It imports the standard library only, so it takes little memory.
The first worker starts alone: what cannot start ends everything with one sentence. The others
follow when it is ready. SIGTERM, SIGINT and SIGHUP go on to all workers. Knows nothing of what the
workers do; they know each other, see `service.loading.workers`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

WORKER = "_UNMASK_WORKER"  # environment variable: what a worker is told, as JSON
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
LOOK_EVERY_S = 0.2
STEADY_S = 60.0  # a worker that ran this long has started well
LONGEST_PAUSE_S = 60.0
PR_SET_PDEATHSIG = 1


@dataclass
class Worker:
    """A process, and how often in a row it did not last."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    due: float = 0.0  # time.monotonic() of its next start


class Supervisor:
    """The workers of one port. arguments: of `python -m service`"""

    def __init__(self, descriptor: int, count: int, folder: Path, arguments: Sequence[str]) -> None:
        self._descriptor = descriptor
        self._folder = folder
        self._arguments = arguments
        self._workers = [Worker(number) for number in range(1, count + 1)]
        self._told: signal.Signals | None = None  # the signal by which to end
        self._has_been_ready = False
        self._status = 0

    def run(self) -> int:
        """Until told to stop, or nothing can start; returns the exit status, negative: a signal."""
        while True:
            if not self._told:
                self._start_due()
            elif not any(worker.process for worker in self._workers):
                return self._status or -self._told
            caught = signal.sigtimedwait(SIGNALS, LOOK_EVERY_S)
            if caught and caught.si_signo != signal.SIGCHLD:
                self._pass_on(signal.Signals(caught.si_signo))
            for worker in self._workers:
                self._look_at(worker)

    def _start_due(self) -> None:
        first = self._workers[0]
        self._has_been_ready |= bool(first.process) and self._path(first, "ready").exists()
        for worker in self._workers if self._has_been_ready else [first]:
            if worker.process is None and worker.due <= time.monotonic():
                self._start(worker)

    def _start(self, worker: Worker) -> None:
        self._path(worker, "ready").unlink(missing_ok=True)
        told = {
            "descriptor": self._descriptor,
            "folder": str(self._folder),
            "number": worker.number,
            "count": len(self._workers),
        }
        libc = ctypes.CDLL(None)  # loaded before the fork; the child only calls it

        def begin() -> None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # however this process ends
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the worker is there to hear it
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

        worker.started = time.monotonic()
        try:
            worker.process = subprocess.Popen(
                [sys.executable, "-m", "service", *self._arguments],
                env=os.environ | {WORKER: json.dumps(told)},
                pass_fds=(self._descriptor,),
                start_new_session=True,  # Ctrl-C is for this process, which passes it on once
                preexec_fn=begin,
            )
        except OSError as error:  # too many processes, or no memory
            self._has_ended(worker, f"it could not be started: {error.strerror}")

    def _look_at(self, worker: Worker) -> None:
        """Notice the end of a worker."""
        if worker.process is None or (status := worker.process.poll()) is None:
            return
        worker.process = None
        if self._told:
            return
        how = signal_name(status) if status < 0 else f"exit status {status}"
        if not self._has_been_ready and not self._path(worker, "ready").exists():
            if status < 0:  # else it has said why
                print(f"unmask: a worker was ended by {how} while it started", file=sys.stderr)
            self._status = status if status > 0 else 1
            self._end(signal.SIGTERM)
            return
        self._has_ended(worker, how)

    def _has_ended(self, worker: Worker, how: str) -> None:
        """Say so, and when it is to start again: at once, then later and later."""
        has_lasted = time.monotonic() - worker.started > STEADY_S
        worker.failures = 1 if has_lasted else worker.failures + 1
        pause_s = (
            0.0 if worker.failures == 1 else min(2.0 ** (worker.failures - 2), LONGEST_PAUSE_S)
        )
        worker.due = time.monotonic() + pause_s
        log("error", "worker_ended", worker=worker.number, how=how, starts_again_in_s=pause_s)

    def _pass_on(self, caught: signal.Signals) -> None:
        if caught == signal.SIGHUP:
            self._send(caught)
        else:
            self._end(caught)

    def _end(self, by: signal.Signals) -> None:
        """Tell the workers to end. The last one to close the port takes who waits there."""
        if self._told is None:
            os.close(self._descriptor)
        self._told = self._told or by
        self._send(by)

    def _send(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.process is not None:
                worker.process.send_signal(number)

    def _path(self, worker: Worker, what: str) -> Path:
        return self._folder / f"{worker.number}.{what}"


def signal_name(status: int) -> str:
    """Of the negative exit status of a process."""
    return signal.Signals(-status).name


def log(level: str, event: str, **fields: object) -> None:
    """One line like those of the workers."""
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    line = json.dumps(fields | {"event": event, "level": level, "ts": now})
    os.write(sys.stdout.fileno(), f"{line}\n".encode())  # at once: the workers write there too


def become_supervisor(descriptor: int, count: int, arguments: Sequence[str]) -> None:
    """Replace this program, which keeps its process id and the port, by the supervisor."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # what arrives meanwhile is not lost
    os.set_inheritable(descriptor, True)
    sys.stdout.flush()
    program = [sys.executable, "-m", "service.supervisor", str(descriptor), str(count)]
    os.execv(sys.executable, [*program, *arguments])


def main() -> int:
    """The program; returns the exit status."""
    descriptor, count, *arguments = sys.argv[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    with tempfile.TemporaryDirectory(prefix="unmask-") as folder:  # for this user only
        status = Supervisor(int(descriptor), int(count), Path(folder), arguments).run()
    if status == -signal.SIGINT:
        return 130
    if status < 0:  # end as a process does that is told to
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
        with contextlib.suppress(ValueError):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return status


if __name__ == "__main__":
    sys.exit(main())
