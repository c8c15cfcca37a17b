"""The embedded Valkey, started and stopped in this process; killing its owner is in test_life."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis.asyncio as redis
from running_service import is_running

from service import embedded_valkey
from service.embedded_valkey import EmbeddedValkey
from service.errors import EmbeddedStoreFailed

T = TypeVar("T")


def run(story: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(story, 30))


@contextlib.asynccontextmanager
async def valkey(folder: Path) -> AsyncIterator[redis.Redis]:
    """A client of a fresh server on the folder."""
    server = EmbeddedValkey(folder)
    try:
        await server.start()
        async with redis.Redis.from_url(server.url) as client:
            yield client
    finally:
        await server.stop()


def test_data_survives_a_restart_and_the_process_does_not(tmp_path: Path) -> None:
    async def story() -> None:
        async with valkey(tmp_path / "deep" / "down") as client:
            pid = (await client.info("server"))["process_id"]
            await client.rpush("list", "a", "b")
        assert not is_running(pid)
        async with valkey(tmp_path / "deep" / "down") as client:
            assert await client.lrange("list", 0, -1) == [b"a", b"b"]

    run(story())


def test_data_survives_the_death_of_the_server(tmp_path: Path) -> None:
    async def story() -> None:
        server = EmbeddedValkey(tmp_path)
        await server.start()
        async with redis.Redis.from_url(server.url) as client:
            await client.set("key", "value")
            assert await client.waitaof(1, 0, 5000) == [1, 0]
        assert server._process is not None
        server._process.kill()
        await server.stop()
        async with valkey(tmp_path) as client:
            assert await client.get("key") == b"value"

    run(story())


def test_a_folder_has_one_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_valkey, "LOCK_WAIT_S", 0.2)

    async def story() -> None:
        async with valkey(tmp_path) as client:
            with pytest.raises(EmbeddedStoreFailed, match="stop it, or set UNMASK_HISTORY_DIR"):
                async with valkey(tmp_path):
                    pass
            assert await client.ping()

    run(story())


def test_a_long_path_is_no_problem(tmp_path: Path) -> None:
    async def story() -> None:
        async with valkey(tmp_path / ("x" * 100) / ("y" * 100)) as client:
            assert await client.ping()

    run(story())


def test_it_does_not_listen_on_the_network(tmp_path: Path) -> None:
    async def story() -> None:
        async with valkey(tmp_path) as client:
            assert (await client.config_get("port"))["port"] == "0"

    run(story())


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    async def story() -> None:
        with pytest.raises(EmbeddedStoreFailed, match=r"cannot write to .*; set UNMASK_HISTORY"):
            async with valkey(tmp_path / "file"):
                pass

    run(story())


def test_a_server_that_does_not_start_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").mkdir()
    (tmp_path / "appendonlydir" / "appendonly.aof.manifest").write_text("damaged\n")

    async def story() -> None:
        with pytest.raises(EmbeddedStoreFailed, match=r"does not start; see .*valkey\.log"):
            async with valkey(tmp_path):
                pass

    run(story())
