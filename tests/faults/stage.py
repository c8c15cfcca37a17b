"""What a fault is injected into, and the row of the table with its result."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clients import READER, Clients
from running_service import Service, service_process, wait_until
from running_valkey import Server, running

ADMIN = {"Authorization": "Bearer an-admin-key"}


@dataclass
class Row:
    """One row of the table. broken: the promises that did not hold"""

    fault: str
    how: str
    promised: str
    seen: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def check(self, promise: str, held: bool) -> None:
        if not held:
            self.broken.append(promise)

    def line(self) -> str:
        held = "**no**: " + "; ".join(self.broken) if self.broken else "yes"
        cells = (self.fault, self.how, self.promised, " ".join(self.seen), held)
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


@dataclass
class Stage:
    """A folder, bundles, the number of events of a phase, and how often a fault is repeated."""

    row: Row
    folder: Path
    bundles: Path
    events: int
    times: int

    @contextlib.contextmanager
    def valkey(self, **config: str) -> Iterator[Server]:
        """An external store that writes to disk before it answers."""
        config = {"appendonly": "yes", "appendfsync": "always", "save": '""'} | config
        server = Server(self.folder / "valkey", config)
        with running(server):
            yield server

    @contextlib.contextmanager
    def service(self, name: str = "service", **settings: Any) -> Iterator[Service]:
        """A service with tiny@1 that keeps all events of a user."""
        settings = {
            "bundles_dir": self.bundles,
            "bundle": "tiny@1",
            "history_cap": 100_000,
            "redis_timeout_ms": 200,
            "default_timeout_ms": 10_000,
            "admin_keys": ADMIN["Authorization"].split()[1],
        } | settings
        with service_process(self.folder / name, **settings) as service:
            yield service

    @contextlib.contextmanager
    def clients(self, service: Service, *, ends: bool = False) -> Iterator[Clients]:
        """Clients of the service. At the end of the block the row gets what they saw.

        ends: whether the service ends meanwhile, so that requests may have no answer
        """

        def is_known() -> bool:
            event = {"event_id": "1", "user_id": READER, "item_id": "item-1", "event_type": "click"}
            return service.client.post("/events", json={"events": [event]}).status_code == 200

        wait_until(is_known)
        clients = Clients(service)
        with clients.running():
            self.row.check("before", clients.reaches(self.events))
            clients.phase = "meanwhile"
            yield clients
            clients.phase = "after"
            self.row.check("recovery without a restart", clients.reaches(self.events))
        self._account(clients, ends)

    def _account(self, clients: Clients, ends: bool) -> None:
        row, found = self.row, clients.audit()
        row.check("every acknowledged event is found", found.missing == 0)
        row.check("each once", found.twice == 0)
        row.check("nobody gives up", clients.given_up == 0)
        total = sum(clients.seen.values(), type(clients.seen["after"])())
        for what, expected in (
            ("events", {"200", "503"}),
            ("recommendations", {"200"}),
            ("live", {"200"}),
        ):
            got = {name.partition(" ")[2] for name in total if name.startswith(f"{what} ")}
            got -= {"refused", "no answer"} if ends else set()
            row.check(f"{what} get {' or '.join(sorted(expected))} only", got <= expected)
        row.seen.append(
            f"{found.acknowledged:,} events acknowledged, {found.missing} of them missing, "
            f"{found.twice} twice."
        )
        row.seen.append(f"Meanwhile: {told(clients, 'meanwhile')}.")
        row.seen.append(f"Afterwards: {told(clients, 'after')}.")

    def logged(self, service: Service, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in service.stdout.splitlines()]
        return [line for line in lines if line["event"] == event]


def told(clients: Clients, phase: str) -> str:
    """The answers that clients got, in words."""
    seen = clients.seen[phase]
    parts = []
    for what in ("events", "recommendations", "live"):
        got = sorted(name for name in seen if name.startswith(f"{what} "))
        counts = ", ".join(f"{name.partition(' ')[2]}: {seen[name]}" for name in got)
        if what == "recommendations" and seen["popular"]:
            counts += f" (popular items: {seen['popular']})"
        if counts:
            parts.append(f"{what} {counts}")
    return "; ".join(parts) or "nobody asked"
