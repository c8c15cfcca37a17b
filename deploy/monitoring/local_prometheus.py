"""Runs a real Prometheus on this machine, with the rules of this folder, for a running service.

It is for tests and rehearsals, which last seconds or minutes: scrapes and rules run about every
second. It binds 127.0.0.1 and keeps its data in the given folder.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.monitoring.queries import RULES

READY_WITHIN_S = 120.0


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus at `url`."""

    url: str

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series of an expression now, each with `metric` and `value`."""
        found: list[dict[str, Any]] = self.get("query", query=expr)["result"]
        return found

    def value(self, expr: str) -> float:
        """The value of an expression that gives one series; NaN if it does not."""
        found = self.query(expr)
        return float(found[0]["value"][1]) if len(found) == 1 else float("nan")

    def query_range(self, expr: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """The series of an expression from `start` to `end`, each with `metric` and `values`."""
        found: list[dict[str, Any]] = self.get(
            "query_range", query=expr, start=start, end=end, step=step
        )["result"]
        return found

    def get(self, path: str, **parameters: object) -> Any:
        """The field `data` of an answer of its HTTP API."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as answer:
            return json.load(answer)["data"]


@contextlib.contextmanager
def prometheus(folder: Path, target: str, *, interval_s: int = 1) -> Iterator[Prometheus]:
    """Run Prometheus while the block runs: it scrapes `target`, a `host:port`, every `interval_s`.

    Rules are evaluated as often. Raises RuntimeError if Prometheus does not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in RULES.glob("*.yml"):
        rules = re.sub(r"(?m)^    interval: .*\n", "", path.read_text())  # all alike
        (folder / path.name).write_text(rules)
    (folder / "prometheus.yml").write_text(
        f"global: {{scrape_interval: {interval_s}s, evaluation_interval: {interval_s}s}}\n"
        f"rule_files: ['{folder}/recording.yml', '{folder}/alerts.yml']\n"
        f"scrape_configs: [{{job_name: unmask, static_configs: [{{targets: ['{target}']}}]}}]\n"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        running = Prometheus(f"http://{address}")
        until = time.monotonic() + READY_WITHIN_S
        while not _is_up(running):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"no Prometheus: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _is_up(running: Prometheus) -> bool:
    """Whether Prometheus answers and has scraped its target."""
    with contextlib.suppress(OSError):
        return running.value("up") == 1
    return False
