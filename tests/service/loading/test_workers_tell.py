"""What workers tell each other: over real sockets, in one process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from service.errors import BundleConflict, NotReady
from service.loading import Workers
from service.telemetry import Metrics


def worker(folder: Path, number: int) -> Workers:
    return Workers(Metrics(), descriptor=0, folder=str(folder), number=number, count=3)


def test_an_operation_is_done_in_all_that_are_there(tmp_path: Path) -> None:
    done: list[tuple[int, str]] = []

    async def told() -> None:
        first, second, third = (worker(tmp_path, number) for number in (1, 2, 3))

        async def activate(ref: str) -> str:
            done.append((2, ref))
            return ref

        async def starting(ref: str) -> None:
            raise NotReady("the worker is starting")

        await first.tell("activate", ref="a@1")  # nobody is there
        await second.start({"activate": activate})
        await third.start({"activate": starting})
        await first.tell("activate", ref="a@2")
        assert await first.first_answer("activate") is None  # it lacks an argument, and says so
        await asyncio.gather(second.stop(0), third.stop(0))

    asyncio.run(told())
    assert done == [(2, "a@2")]


def test_a_worker_that_has_not_followed_is_named_with_its_reason(tmp_path: Path) -> None:
    async def told() -> None:
        first, second = worker(tmp_path, 1), worker(tmp_path, 2)

        async def refused(ref: str) -> None:
            raise BundleConflict(f"{ref} is not in memory", code="bundle_not_loaded")

        await second.start({"activate": refused})
        with pytest.raises(BundleConflict, match=r"worker 2 .*: a@1 is not in memory; ") as raised:
            await first.tell("activate", ref="a@1")
        assert raised.value.code == "workers_differ"
        await second.stop(0)

    asyncio.run(told())


def test_two_workers_do_not_load_at_once(tmp_path: Path) -> None:
    async def at_once() -> None:
        first, second = worker(tmp_path, 1), worker(tmp_path, 2)
        async with first.alone("load", wait=False):
            with pytest.raises(BundleConflict, match="wait for it"):
                async with second.alone("load", wait=False):
                    raise AssertionError("both load")
            async with second.alone("swap"):
                pass
        async with second.alone("load", wait=False):
            pass

    asyncio.run(at_once())
