"""`python -m service` as a real process on a real port, for the tests that speak HTTP to it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from ports import find_free_port

PATIENCE_S = 120  # for anything that must come; only a failure takes that long
UNHURRIED = {
    "drain_delay_s": 0,
    "slo_ms": 60_000,
    "default_timeout_ms": 10_000,
    "redis_timeout_ms": 5000,
}  # so that on a busy machine nothing is late


@dataclass
class Service:
    """A running process and a client for it. stdout and stderr go to files in `folder`."""

    process: subprocess.Popen[bytes]
    client: httpx.Client
    folder: Path

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    def recommend(self, **body: Any) -> httpx.Response:
        return self.client.post("/recommend", json=body)

    def send(self, *item_ids: str, user_id: str) -> None:
        """Append items to a history."""
        events = [
            {
                "event_id": f"{user_id}-{item_id}",
                "user_id": user_id,
                "item_id": item_id,
                "event_type": "click",
            }
            for item_id in item_ids
        ]
        answer = self.client.post("/events", json={"events": events})
        assert answer.json()["accepted"] == len(item_ids), answer.text

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self.stderr
            with contextlib.suppress(httpx.TransportError):
                return self.client.get("/health/ready").status_code == 200
            return False

        wait_until(ready)

    @property
    def rss_bytes(self) -> int:
        """Memory that the process uses now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(status.partition("VmRSS:")[2].split()[0])

    def samples(self) -> dict[str, float]:
        """`name{labels}` of every metric, labels sorted by the client library."""
        lines = self.client.get("/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def roles(self) -> dict[str, list[str]]:
        """What each bundle is in memory for."""
        loaded_bundles = self.client.get("/models").json()["residents"]
        return {entry["bundle"]: entry["roles"] for entry in loaded_bundles}

    def wait(self) -> int:
        return self.process.wait(timeout=PATIENCE_S)

    def valkey_pid(self) -> int:
        """Process id of the embedded Valkey."""
        listing = subprocess.run(
            ["pgrep", "-P", str(self.process.pid), "-f", "valkey-server"],
            capture_output=True,
            text=True,
            check=True,
        )
        return int(listing.stdout)


@contextlib.contextmanager
def service_process(
    folder: Path, *, wait: bool = True, descriptors: tuple[int, int] | None = None, **settings: Any
) -> Iterator[Service]:
    """Start the service with UNMASK_ settings in lower case, or UNHURRIED; end it with SIGTERM.

    descriptors: the soft and the hard limit of open files that it starts with
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = find_free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("UNMASK_")}
    settings = UNHURRIED | settings
    if "redis_url" not in settings:  # not the store of whoever else runs in this folder
        settings.setdefault("history_dir", folder / "history")
    environment |= {f"UNMASK_{name.upper()}": str(value) for name, value in settings.items()}
    environment |= {"UNMASK_PORT": str(port), "OMP_NUM_THREADS": "1"}
    with (
        (folder / "stdout").open("wb") as stdout,
        (folder / "stderr").open("wb") as stderr,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client,
    ):
        program = [sys.executable, "-W", "error", "-m", "service"]
        if descriptors:
            soft, hard = descriptors
            limits = f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"'
            program = ["sh", "-c", limits, "sh", *program]
        process = subprocess.Popen(
            program,
            env=environment,
            stdout=stdout,
            stderr=stderr,
        )
        service = Service(process, client, folder)
        try:
            if wait:
                service.wait_until_ready()
            yield service
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                service.wait()
            except subprocess.TimeoutExpired:
                process.kill()
                service.wait()
                raise


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """False for a zombie too: nobody may reap an orphan."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
