"""The ways to back up a store and to bring it back that docs/how-to/operate.md describes."""

from __future__ import annotations

import shutil
from pathlib import Path

from running_service import wait_until
from running_valkey import Server, running
from stores import event, shown, with_store

from service.histories import RedisHistoryStore

SETTINGS = {"save": '""', "appendonly": "yes", "appendfsync": "no"}


def fill(server: Server) -> dict[str, str]:
    async def use(store: RedisHistoryStore) -> None:
        for n in range(50):
            await store.append([event(f"u{n}", item) for item in "abc"])
        await store.remember([("u1", shown("r1", "a"))])
        await store.write_items("shop", {"x": "1"})

    with_store(server.url, use)
    return digests(server)


def digests(server: Server) -> dict[str, str]:
    keys = sorted(server.ask("KEYS", "*"))
    assert all(server.ask("TTL", key) > 0 for key in keys if "items" not in key)
    return {key: server.ask("DEBUG", "DIGEST-VALUE", key)[0] for key in keys}


def test_a_copy_of_the_append_only_files_is_a_backup(tmp_path: Path) -> None:
    """Copied while the server runs, with rewriting off meanwhile."""
    server = Server(tmp_path / "one", SETTINGS | {"enable-debug-command": "yes"})
    with running(server):
        before = fill(server)
        server.ask("CONFIG", "SET", "auto-aof-rewrite-percentage", 0)
        wait_until(lambda: server.ask("INFO", "persistence")["aof_rewrite_in_progress"] == 0)
        shutil.copytree(tmp_path / "one" / "appendonlydir", tmp_path / "two" / "appendonlydir")
        server.ask("CONFIG", "SET", "auto-aof-rewrite-percentage", 100)
    restored = Server(tmp_path / "two", SETTINGS | {"enable-debug-command": "yes"})
    with running(restored):
        assert digests(restored) == before


def test_a_snapshot_is_a_backup_if_it_is_read_without_the_append_only_file(tmp_path: Path) -> None:
    """With it on, the server starts empty: a trap that the page warns of."""
    server = Server(tmp_path / "one", SETTINGS | {"enable-debug-command": "yes"})
    with running(server):
        before = fill(server)
        server.ask("SAVE")
    for name in ("trap", "two"):
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / "one" / "dump.rdb", tmp_path / name)
    trap = Server(tmp_path / "trap", SETTINGS)
    with running(trap):
        assert trap.ask("DBSIZE") == 0
    settings = {"save": '""', "enable-debug-command": "yes"}
    restored = Server(tmp_path / "two", settings | {"appendonly": "no"})
    with running(restored):
        assert digests(restored) == before
        restored.ask("CONFIG", "SET", "appendonly", "yes")
        wait_until(lambda: restored.ask("INFO", "persistence")["aof_rewrite_in_progress"] == 0)
        assert restored.ask("INFO", "persistence")["aof_last_bgrewrite_status"] == "ok"
    again = Server(tmp_path / "two", SETTINGS | {"enable-debug-command": "yes"})
    with running(again):
        assert digests(again) == before
