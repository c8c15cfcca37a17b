"""What does a request cost the service, and what did it cost at another commit?

`python -m loadtest.request_cost --against COMMIT` serves the same bundle from a worktree of that
commit and from this folder, and sends both the same requests in turns. It prints processor time a
request, apart for the thread of the event loop and for the others (decoding), and answers a second,
each with the ratios of the turns. Processor time hardly depends on what else the machine does; the
rate does. The last line is JSON. With `--only-here` nothing is compared. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from loadtest.clients import HeldOutUser, ServiceProcess, read_held_out, run_service

HERE = Path(__file__).resolve().parents[1]
PATIENT: dict[str, Any] = {  # nothing is refused because the machine is busy
    "slo_ms": 60_000,
    "default_timeout_ms": 10_000,
    "redis_timeout_ms": 5000,
    "encoder_cache": 0,
    "log_level": "info",
}


@dataclass(frozen=True)
class Cost:
    """Of one turn. loop_us, other_us: processor time a request; rate: answers a second"""

    loop_us: float
    other_us: float
    rate: float

    @property
    def total_us(self) -> float:
        """Of all threads."""
        return self.loop_us + self.other_us


class Client(asyncio.Protocol):
    """Sends one request after the other on a connection of its own, until there are no more."""

    def __init__(self, requests: Iterator[bytes], ended: asyncio.Future[None]) -> None:
        self._requests = requests
        self._ended = ended
        self._received = b""
        self._missing = 0  # bytes of the body of an answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def _send(self) -> None:
        request = next(self._requests, None)
        if request is not None:
            self._transport.write(request)
        else:
            self._transport.close()
            if not self._ended.done():
                self._ended.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        if len(body) < length:
            return
        self._received = b""
        if not head.startswith(b"HTTP/1.1 200 "):
            self._fail(f"an answer was {head[:15].decode()}: {body[:300].decode()}")
            return
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"a connection was closed ({exc})")

    def _fail(self, reason: str) -> None:
        if not self._ended.done():
            self._ended.set_exception(RuntimeError(reason))


async def ask(url: str, requests: Sequence[bytes], num_clients: int) -> None:
    """Send all requests, each once, from so many connections at a time."""
    address = urllib.parse.urlsplit(url)
    loop, left = asyncio.get_running_loop(), iter(requests)
    ends = [loop.create_future() for _ in range(num_clients)]
    for ended in ends:
        client = functools.partial(Client, left, ended)
        await loop.create_connection(client, str(address.hostname), int(address.port or 80))
    await asyncio.gather(*ends)


def cost_of(service: ServiceProcess, requests: Sequence[bytes], num_clients: int) -> Cost:
    """What these requests cost a service."""
    loop_s, other_s = service.thread_cpu_s
    started = time.perf_counter()
    asyncio.run(ask(service.url, requests, num_clients))
    seconds = time.perf_counter() - started
    after = service.thread_cpu_s
    num = len(requests)
    return Cost(1e6 * (after[0] - loop_s) / num, 1e6 * (after[1] - other_s) / num, num / seconds)


def encoded(users: Sequence[HeldOutUser], num: int, *, stored: bool) -> list[bytes]:
    """Requests as bytes. stored: the history is in the store, and not in the request"""
    requests = []
    for user in itertools.islice(itertools.cycle(users), num):
        body = json.dumps({"user_id": user.user_id} if stored else user.request()).encode()
        head = (
            "POST /recommend HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        requests.append(head.encode() + body)
    return requests


def store_histories(url: str, users: Sequence[HeldOutUser]) -> None:
    """Send the histories of users as events."""
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        for body in itertools.chain.from_iterable(user.event_bodies() for user in users):
            client.post("/events", json=body).raise_for_status()


@contextlib.contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """A folder with that commit, removed afterwards."""
    git = ["git", "-C", str(HERE), "worktree"]
    with tempfile.TemporaryDirectory(prefix="unmask-against-") as folder:
        path = Path(folder) / "checkout"
        subprocess.run([*git, "add", "--quiet", "--detach", str(path), commit], check=True)
        try:
            yield path
        finally:
            subprocess.run([*git, "remove", "--force", str(path)], check=True)


def measured(
    services: dict[str, ServiceProcess], requests: Sequence[bytes], num_clients: int, turns: int
) -> dict[str, list[Cost]]:
    """The costs of each service, turn by turn. Who is first changes from turn to turn."""
    found: dict[str, list[Cost]] = {name: [] for name in services}
    for service in services.values():
        asyncio.run(ask(service.url, requests[: len(requests) // 4 + 1], num_clients))
    for turn in range(turns):
        names = list(services)
        for name in names if turn % 2 else names[::-1]:
            found[name].append(cost_of(services[name], requests, num_clients))
    return found


def row(name: str, values: Sequence[float], digits: int = 0) -> str:
    """A line of the table: median, minimum and maximum."""
    shown = (statistics.median(values), min(values), max(values))
    return f"  {name:<34}" + "".join(f"{value:>10.{digits}f}" for value in shown)


def report(case: str, found: dict[str, list[Cost]]) -> dict[str, object]:
    """Print a case; returns it for the line of JSON."""
    print(f"\n{case:<36}{'median':>10}{'min':>10}{'max':>10}")
    summary: dict[str, object] = {"case": case}
    for name, costs in found.items():
        print(row(f"{name}: event loop, us a request", [cost.loop_us for cost in costs]))
        print(row(f"{name}: other threads, us", [cost.other_us for cost in costs]))
        print(row(f"{name}: answers a second", [cost.rate for cost in costs]))
        summary[name] = [{key: round(value, 1) for key, value in asdict(c).items()} for c in costs]
    if len(found) == 2:
        pairs = list(zip(*found.values(), strict=True))
        for what, ratios in (
            ("before / here, event loop", [one.loop_us / two.loop_us for one, two in pairs]),
            ("before / here, processor time", [one.total_us / two.total_us for one, two in pairs]),
            ("here / before, answers a second", [two.rate / one.rate for one, two in pairs]),
        ):
            print(row(what, ratios, 2))
            summary[what] = [round(ratio, 3) for ratio in ratios]
    return summary


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    against = parser.add_mutually_exclusive_group(required=True)
    against.add_argument("--against", metavar="COMMIT", help="or a folder that has one")
    against.add_argument("--only-here", action="store_true", help="compare with nothing")
    parser.add_argument("--bundle", type=Path, help="default: the demo's, as that commit has it")
    parser.add_argument("--users", type=int, default=300, help="of held_out.jsonl (300)")
    parser.add_argument("--requests", type=int, default=1000, help="of each turn (1000)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 32], help="at a time (1 32)")
    parser.add_argument("--turns", type=int, default=5, help="of each service (5)")
    asked = parser.parse_args(arguments)
    cores = os.sched_getaffinity(0)
    summaries = []
    with contextlib.ExitStack() as stack:
        folders = {"here": HERE}
        if asked.against:
            given = Path(asked.against)
            before = given if given.is_dir() else stack.enter_context(worktree(asked.against))
            folders = {"before": before.resolve(), **folders}
        # Older bundles can be read here; the other commit may not know what newer ones have.
        oldest = next(iter(folders.values()))
        bundle = asked.bundle or sorted((oldest / "models_store" / "demo").iterdir())[-1]
        users = read_held_out(bundle / "held_out.jsonl")[: asked.users]
        services = {}
        for name, folder in folders.items():
            os.sched_setaffinity(0, cores)  # each service starts from all of them
            running = run_service(bundle, checkout=folder, **PATIENT)
            services[name] = stack.enter_context(running)
            store_histories(services[name].url, users)
        for stored, num_clients in itertools.product((False, True), asked.clients):
            case = f"history in the {'store' if stored else 'request'}, {num_clients} at a time"
            requests = encoded(users, asked.requests, stored=stored)
            found = measured(services, requests, num_clients, asked.turns)
            summaries.append(report(case, found))
    print(json.dumps({"bundle": bundle.name, "cases": summaries}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
