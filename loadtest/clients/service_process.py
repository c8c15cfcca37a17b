"""Runs `python -m service` as a child process on cores of its own.

The load generator keeps the other cores: one each on a machine with two. If the service gets all
cores, they share them. Everything else goes over HTTP.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READY_WITHIN_S = 300.0  # the service may have to compile first


@dataclass(frozen=True)
class ServiceProcess:
    """A running service; `cores`: the cores that it may use."""

    url: str
    pid: int
    cores: tuple[int, ...]

    @property
    def cpu_s(self) -> float:
        """Processor seconds used by the service and its children, such as its embedded Valkey."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                fields = stat.read_text().rpartition(")")[2].split()
                if self.pid in (int(stat.parent.name), int(fields[1])):
                    ticks += sum(map(int, fields[11:15]))  # includes children that have ended
        return ticks / os.sysconf("SC_CLK_TCK")

    @property
    def thread_cpu_s(self) -> tuple[float, float]:
        """Processor seconds of the thread with the event loop, and of all other threads.

        In nanoseconds, where `cpu_s` is in ticks of the clock; without child processes. Linux only.
        """
        seconds = {}
        for folder in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                seconds[int(folder.name)] = int((folder / "schedstat").read_text().split()[0]) / 1e9
        loop_s = seconds.pop(self.pid)
        return loop_s, sum(seconds.values())

    @property
    def rss_mb(self) -> float:
        """Resident memory of the service now."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") / 1e6


@contextlib.contextmanager
def run_service(
    bundle: Path, *, num_cores: int | None = None, checkout: Path | None = None, **settings: Any
) -> Iterator[ServiceProcess]:
    """Serve a bundle while the block runs.

    checkout:  the folder whose `service` runs, by default that of this process. Given one, the log
               of the service goes to a file that nobody reads
    num_cores: cores of the service, by default half of all. Meanwhile this process uses the other
               cores, or all if there are no others
    settings:  UNMASK_ settings in lower case, without the prefix
    Raises RuntimeError if the service does not start or does not become ready.
    """
    own = sorted(os.sched_getaffinity(0))
    of_service = tuple(own[: num_cores or max(1, len(own) // 2)])
    with tempfile.TemporaryDirectory(prefix="unmask-load-") as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        values = {
            "bundle": bundle.absolute() if checkout else bundle,
            "port": port,
            "history_dir": f"{folder}/history",
            "log_level": "warning",
            "drain_delay_s": 0,
        } | settings
        environment = {k: v for k, v in os.environ.items() if not k.startswith("UNMASK_")}
        environment |= {f"UNMASK_{name.upper()}": str(value) for name, value in values.items()}
        os.sched_setaffinity(0, of_service)  # inherited
        with contextlib.ExitStack() as files:
            stdout = files.enter_context(Path(folder, "log").open("wb")) if checkout else None
            process = subprocess.Popen(
                [sys.executable, "-m", "service"], env=environment, cwd=checkout, stdout=stdout
            )
        url = f"http://127.0.0.1:{port}"
        try:
            _wait_until_ready(process, url)
            os.sched_setaffinity(0, set(own) - set(of_service) or set(own))
            yield ServiceProcess(url, process.pid, of_service)
        finally:
            os.sched_setaffinity(0, own)
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    until = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError("the service did not start; its last words are above")
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{url}/health/ready", timeout=1),
        ):
            return
        time.sleep(0.2)
    raise RuntimeError(f"the service was not ready within {READY_WITHIN_S:.0f} seconds")
