"""A store that takes no writes: full, read-only, or unable to save. Reads work, nothing is lost.

When the cause is gone, each call that was refused is repeated, and stores exactly once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from running_service import wait_until
from running_valkey import REDIS_7, VALKEY, Server, clustered, replicated, running
from stores import event, shown, with_store

from service.errors import HistoryUnavailable
from service.histories.redis_store import RedisHistoryStore, history_key
from service.schemas.events import Event

ROOM = 1 << 20  # bytes that are free before the store is full
LONG = "x" * 100
Servers = Callable[[Path], AbstractContextManager[tuple[str, list[Server]]]]


def one(binary: str) -> Servers:
    @contextmanager
    def start(folder: Path) -> Iterator[tuple[str, list[Server]]]:
        server = Server(folder, {"save": '""', "appendonly": "no"}, binary=binary)
        with running(server):
            yield server.url, [server]

    return start


@contextmanager
def cluster(folder: Path) -> Iterator[tuple[str, list[Server]]]:
    with clustered(folder) as nodes:
        yield "redis+cluster://" + ",".join(f"127.0.0.1:{n.port}" for n in nodes), nodes


@pytest.mark.parametrize(
    "start", [one(VALKEY), one(REDIS_7), cluster], ids=["valkey9", "redis7", "cluster"]
)
def test_a_full_store_refuses_writes_and_is_read_on(start: Servers, tmp_path: Path) -> None:
    def batch(number: int) -> list[Event]:
        return [event(f"u{number}-{n}", f"i{n}{LONG}", f"e{n}{LONG}") for n in range(100)]

    async def use(store: RedisHistoryStore) -> None:
        await store.append([event("old", "a")])
        await store.remember([("old", shown("r1", "a"))])
        await store.write_items("tiny", {"x": "1"})
        limits = [used_memory(node) + ROOM for node in servers]
        for node, limit in zip(servers, limits, strict=True):
            node.ask("CONFIG", "SET", "maxmemory", limit, "maxmemory-policy", "noeviction")
        refused: list[list[Event]] = []
        for number in range(1000):  # many times the room
            try:
                await store.append(batch(number))
            except HistoryUnavailable:
                refused.append(batch(number))
                if len(refused) == 20:
                    break
        assert len(refused) == 20
        for node, limit in zip(servers, limits, strict=True):
            assert used_memory(node) < limit + ROOM / 2  # and buffers of connections
        assert (await store.read("old")).history == ["a"]
        assert await store.read_page("old", "r1") == ((["a"], []), shown("r1", "a"))
        assert (await store.read_items("tiny", 0))[1] == {"x": "1"}
        await store.erase("old")  # frees memory, so it is not refused
        for node in servers:
            node.ask("CONFIG", "SET", "maxmemory", 0)
        for events in refused:
            await store.append(events)  # what was stored of it is a duplicate
            for one in events[::20]:
                assert (await store.read(one.user_id)).history == [one.item_id]

    with start(tmp_path) as (url, servers):
        with_store(url, use)


def is_in_step(replica: Server) -> bool:
    found: bool = replica.ask("INFO", "replication")["master_link_status"] == "up"
    return found


def used_memory(server: Server) -> int:
    found: int = server.ask("INFO", "memory")["used_memory"]
    return found


def test_every_write_is_refused_where_there_is_no_room(tmp_path: Path) -> None:
    """Also writes whose first command frees memory, or may run without memory."""
    with running(server := Server(tmp_path, {"maxmemory-policy": "noeviction"})):

        async def use(store: RedisHistoryStore) -> None:
            await store.remember([("u", shown("r1", "a"))])
            before = server.ask("DBSIZE")
            server.ask("CONFIG", "SET", "maxmemory", 1)
            seen = event("u", "a", "e2", event_type="view", recommendation_id="r1")
            for _ in range(3):
                for call in (
                    lambda: store.append([event("u", "a", "e1")]),
                    lambda: store.append([seen], ["view"]),
                    lambda: store.remember([("u", shown("r2", "a"))]),
                    lambda: store.write_items("tiny", {"x": "1"}),
                ):
                    with pytest.raises(HistoryUnavailable):
                        await call()
            assert server.ask("DBSIZE") == before

        with_store(server.url, use)


def test_a_read_only_store_loses_nothing(tmp_path: Path) -> None:
    """A primary that became a replica. Its name leads to the new primary after a while."""
    with replicated(tmp_path) as (primary, replica):

        async def use(store: RedisHistoryStore) -> None:
            await store.append([event("u", "a")])
            await asyncio.to_thread(primary.ask, "WAIT", 1, 5000)
            replica.ask("REPLICAOF", "NO", "ONE")
            primary.ask("REPLICAOF", "127.0.0.1", replica.port)
            await asyncio.to_thread(wait_until, lambda: is_in_step(primary))
            assert "cmd=eval" in primary.ask("CLIENT", "LIST")
            with pytest.raises(HistoryUnavailable):
                await store.append([event("u", "b")])
            # No connection to it is left open, so its name is looked up again.
            await asyncio.to_thread(
                wait_until, lambda: "cmd=eval" not in primary.ask("CLIENT", "LIST")
            )
            assert (await store.read("u")).history == ["a"]
            assert primary.ask("LLEN", history_key("u")) == 1
            primary.ask("REPLICAOF", "NO", "ONE")
            assert [fate.is_new for fate in await store.append([event("u", "b")])] == [True]
            assert (await store.read("u")).history == ["a", "b"]

        with_store(primary.url, use)
