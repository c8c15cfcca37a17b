"""A store that closes connections: idle ones, or all of them at any moment. No call may fail."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_service import Service, service_process, wait_until
from running_valkey import REDIS_7, VALKEY, Server, running
from slow_proxy import slow_proxy
from stores import event, shown, with_store

from service.histories.redis_store import RedisHistoryStore, shown_key
from service.telemetry.metrics import Metrics

POOL = 4  # connections of a store in these tests: stores.with_store


@pytest.fixture(scope="module", params=[VALKEY, REDIS_7], ids=["valkey9", "redis7"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with running(found := Server(tmp_path_factory.mktemp("idle"), {}, binary=request.param)):
        yield found


def num_clients(server: Server) -> int:
    """Connections to the store, without the one that asks."""
    listing: str = server.ask("CLIENT", "LIST", "TYPE", "NORMAL")
    return len(listing.splitlines()) - 1


async def fill_pool(store: RedisHistoryStore, server: Server) -> None:
    async with asyncio.timeout(30):
        while num_clients(server) < POOL:
            # Not `read`: reads of one turn are one call.
            await asyncio.gather(*(store.items_version("none") for _ in range(4 * POOL)))


@pytest.mark.parametrize("is_noticed", [False, True], ids=["in this moment", "a while ago"])
def test_no_call_fails_when_the_store_closes_all_connections(
    server: Server, is_noticed: bool
) -> None:
    metrics, user = Metrics(), f"closed-{is_noticed}"

    async def use(store: RedisHistoryStore) -> None:
        for number in range(10):
            await fill_pool(store, server)
            server.ask("CLIENT", "KILL", "TYPE", "NORMAL", "SKIPME", "YES")
            if is_noticed:  # else this loop had no chance to notice it
                await asyncio.sleep(0.05)
            events = [event(user, f"{number}-{n}") for n in range(POOL)]
            found = await asyncio.gather(*(store.append([one]) for one in events))
            assert all(fate.is_new for [fate] in found)
        item_ids = (await store.read(user)).history
        assert len(item_ids) == len(set(item_ids)) == 10 * POOL
        server.ask("CLIENT", "KILL", "TYPE", "NORMAL", "SKIPME", "YES")
        await store.remember([(user, shown("r1", "a"))])
        server.ask("CLIENT", "KILL", "TYPE", "NORMAL", "SKIPME", "YES")
        assert (await store.read_page(user, "r1"))[1] == shown("r1", "a")
        server.ask("CLIENT", "KILL", "TYPE", "NORMAL", "SKIPME", "YES")
        await store.erase(user)
        server.ask("CLIENT", "KILL", "TYPE", "NORMAL", "SKIPME", "YES")
        await store.write_items(user, {"x": "1"})
        server.ask("CLIENT", "KILL", "TYPE", "NORMAL", "SKIPME", "YES")
        assert (await store.read_items(user, 0))[1] == {"x": "1"}

    with_store(server.url, use, metrics=metrics)
    assert "unmask_redis_errors_total{" not in errors_of(metrics)


def test_what_is_sent_again_after_it_was_done_is_done_once(server: Server) -> None:
    async def use(store: RedisHistoryStore) -> None:
        await store.read("lost")  # a connection is open
        calls = {
            "append": lambda: store.append([event("lost", "a"), event("lost", "b")]),
            "remember": lambda: store.remember([("lost", shown("r1", "a")), ("lost", shown("r2"))]),
            "write_items": lambda: store.write_items("lost", {"x": "1", "y": "2"}),
            "read": lambda: store.read("lost"),
        }
        for call in calls.values():
            proxy.mood = "forgetful"
            await call()
            assert proxy.mood == "kind"
        assert (await store.read("lost")).history == ["a", "b"]
        assert server.ask("LLEN", shown_key("lost")) == 2
        assert (await store.read_items("lost", 0))[1] == {"x": "1", "y": "2"}
        proxy.mood = "forgetful"
        await store.erase("lost")
        assert server.ask("KEYS", "*recs:*lost*") == []

    with slow_proxy(server.port) as proxy:
        with_store(f"redis://127.0.0.1:{proxy.port}", use)


def errors_of(metrics: Metrics) -> str:
    """Samples of the errors that were counted."""
    return "\n".join(
        f"{sample.name}{{{sample.labels}"
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "unmask_redis_errors_total" and sample.value
    )


def test_no_event_is_refused_when_the_store_closes_idle_connections(
    bundles_dir: Path, tmp_path: Path
) -> None:
    """With the store's own `timeout`, and several connections in the service's pool."""

    def post(service: Service, number: int) -> None:
        service.send(f"item-{number}", user_id="idle")
        assert service.recommend(user_id="idle").json()["degraded"] is False

    with (
        running(server := Server(tmp_path / "valkey", {})),
        service_process(
            tmp_path / "service",
            bundles_dir=bundles_dir,
            bundle="tiny@1",
            redis_url=server.url,
        ) as service,
    ):
        server.ask("CONFIG", "SET", "timeout", 1)
        try:
            for number in range(2):
                post(service, number)
                wait_until(lambda: num_clients(server) == 0)
            post(service, 2)
        finally:
            server.ask("CONFIG", "SET", "timeout", 0)
        errors = {k: v for k, v in service.samples().items() if "redis_errors" in k and v}
        assert not errors
        assert "history_store_trouble" not in service.stdout
