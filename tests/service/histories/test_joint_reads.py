"""Reads of one turn of the event loop are one call, and nobody notices but the store."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError, TimeoutError

from service.errors import HistoryUnavailable
from service.histories.calls import MOST_AT_ONCE, JointReads
from service.histories.redis_store import RedisHistoryStore, history_key
from service.schemas import Event
from service.telemetry.metrics import Metrics


class Source:
    """Answers n with str(n), and remembers what it was asked for together. wrong: fails alone"""

    def __init__(self, cause: Exception | None = None, wrong: int | None = None) -> None:
        self.calls: list[list[int]] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        self._cause = cause
        self._wrong = wrong

    async def read_all(self, asked: Sequence[int]) -> list[str]:
        self.calls.append(list(asked))
        await self.go_on.wait()
        if self._cause and (self._wrong is None or self._wrong in asked):
            raise HistoryUnavailable("no answer") from self._cause
        return list(map(str, asked))


def test_each_gets_its_own_answer_from_one_call() -> None:
    async def run() -> None:
        source = Source()
        reads = JointReads(source.read_all)
        num = MOST_AT_ONCE + 3
        found = await asyncio.gather(*(reads.read(number) for number in range(num)))
        assert found == [str(number) for number in range(num)]
        assert source.calls == [list(range(MOST_AT_ONCE)), list(range(MOST_AT_ONCE, num))]
        assert await reads.read(7) == "7"
        assert source.calls[2:] == [[7]]

    asyncio.run(run())


def test_one_who_leaves_stops_no_others() -> None:
    async def run() -> None:
        source = Source()
        source.go_on.clear()
        reads = JointReads(source.read_all)
        gone, soon_gone, stays = [asyncio.create_task(reads.read(number)) for number in range(3)]
        await asyncio.sleep(0)
        gone.cancel()  # before the call begins
        while not source.calls:
            await asyncio.sleep(0)
        soon_gone.cancel()
        source.go_on.set()
        assert await stays == "2"
        assert source.calls == [[1, 2]]
        await asyncio.gather(gone, soon_gone, return_exceptions=True)
        assert gone.cancelled()
        assert soon_gone.cancelled()
        await reads.end()

    asyncio.run(run())


def test_a_store_that_does_not_answer_is_asked_once() -> None:
    async def run() -> None:
        source = Source(TimeoutError())
        reads = JointReads(source.read_all)
        failed = await asyncio.gather(*map(reads.read, range(3)), return_exceptions=True)
        assert [type(error) for error in failed] == [HistoryUnavailable] * 3
        assert len(set(map(id, failed))) == 3  # each has a traceback of its own
        assert source.calls == [[0, 1, 2]]

    asyncio.run(run())


def test_what_is_wrong_with_one_is_not_wrong_with_the_others() -> None:
    async def run() -> None:
        source = Source(ResponseError("WRONGTYPE"), wrong=1)
        reads = JointReads(source.read_all)
        first, second, third = await asyncio.gather(
            *map(reads.read, range(3)), return_exceptions=True
        )
        assert (first, third) == ("0", "2")
        assert isinstance(second, HistoryUnavailable)
        assert source.calls == [[0, 1, 2], [0], [1], [2]]

    asyncio.run(run())


def test_a_bug_keeps_nobody_waiting() -> None:
    async def broken(_: Sequence[int]) -> list[str]:
        return []

    async def run() -> None:
        reads = JointReads(broken)
        with pytest.raises(ValueError, match="shorter"):
            await reads.read(1)

    asyncio.run(run())


def test_a_broken_history_in_a_real_store_is_nobody_elses(redis_url: str) -> None:
    async def run() -> None:
        metrics = Metrics()
        store = RedisHistoryStore(
            redis_url, metrics, timeout_s=5, pool_size=4, history_cap=9, history_ttl_s=60
        )
        first, second, broken = (f"joint-{uuid.uuid4()}" for _ in range(3))
        events = [
            Event(event_id="e", user_id=user, item_id=f"of-{user}", event_type="click")
            for user in (first, second)
        ]
        await store.append(events)
        async with Redis.from_url(redis_url) as client:
            await client.set(history_key(broken), "no list", ex=60)
        duration = metrics.redis_operation_duration.labels("read")

        async def together(*users: str) -> tuple[list[object], float]:
            before = sum(bucket.get() for bucket in duration._buckets)
            found = await asyncio.gather(*map(store.read, users), return_exceptions=True)
            return found, sum(bucket.get() for bucket in duration._buckets) - before

        found, num_calls = await together(first, second)
        assert [one.history for one in found] == [[f"of-{first}"], [f"of-{second}"]]
        assert num_calls == 1
        found, _ = await together(first, broken, second)
        assert [one.history for one in found[::2]] == [[f"of-{first}"], [f"of-{second}"]]
        assert isinstance(found[1], HistoryUnavailable)
        await store.close()

    asyncio.run(run())
