"""How the store is called: a circuit breaker, a limit of time that holds, and reads in one call.

A store that fails again and again is left alone for a while: after FAILURES failures in a row the
breaker opens, and calls are refused without a try. After OPEN_S one call may go through as a probe.
Under load many requests come in one turn of the event loop, and a call costs the loop more than
what it reads, so their reads share one. A call is one success or failure, however many asked. For
one event loop, so there are no locks. Knows no keys and no commands.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from enum import IntEnum
from typing import Any, Generic, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.errors import HistoryUnavailable

Asked = TypeVar("Asked")
Found = TypeVar("Found")
FAILURES = 5
OPEN_S = 2.0
MOST_AT_ONCE = 16  # reads of one call: the loop does nothing else while it reads the replies


class BreakerState(IntEnum):
    """The state, as the metric shows it."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """Ask `admits` before a call. Call `succeeded`, `failed` or `gave_up` after it.

    clock: seconds, never going back
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._open_until: float | None = None
        self._probing = False

    @property
    def state(self) -> BreakerState:
        if self._open_until is None:
            return BreakerState.CLOSED
        if self._clock() < self._open_until:
            return BreakerState.OPEN
        return BreakerState.HALF_OPEN

    def admits(self) -> bool:
        """Whether a call may be tried now. While half open, one call at a time may."""
        state = self.state
        if state == BreakerState.HALF_OPEN and not self._probing:
            self._probing = True
            return True
        return state == BreakerState.CLOSED

    def succeeded(self) -> None:
        """The store answered a call that was admitted."""
        self._failures, self._open_until, self._probing = 0, None, False

    def failed(self) -> None:
        """The store did not answer a call that was admitted."""
        self._failures += 1
        self._probing = False
        if self._failures >= FAILURES:
            self._open_until = self._clock() + OPEN_S

    def gave_up(self) -> None:
        """The caller stopped waiting, which says nothing about the store."""
        self._probing = False


class Limit:
    """Of the time of each call. For one event loop."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._tasks: set[asyncio.Task[list[Any]]] = set()

    async def end(self) -> None:
        """Wait for work that ignored being cancelled."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def run(self, work: Coroutine[Any, Any, list[Any]]) -> list[Any]:
        """Do the work within the timeout, even if it ignores being cancelled. Raises TimeoutError.

        When the event loop itself was late, the reply may have arrived unread, and the store is not
        to blame. So the reply gets as much more time as the loop was late, at most the timeout once
        more.

        Sometimes the work goes on until its socket's timeout: redis-py sends with asyncio.wait_for,
        which may lose a cancellation in Python 3.11.
        """
        loop = asyncio.get_running_loop()
        due = loop.time() + self._timeout_s
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        try:
            await asyncio.wait([task], timeout=self._timeout_s)
            if not task.done():
                await asyncio.wait([task], timeout=min(loop.time() - due, self._timeout_s))
            if task.done():
                return task.result()
            raise TimeoutError
        finally:
            task.cancel()

    def _forget(self, task: asyncio.Task[list[Any]]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # read it, because nobody may have waited for it


class JointReads(Generic[Asked, Found]):
    """Call `read`. Create it inside the event loop that uses it.

    read_all: what is found for each that is asked for, in their order; raises HistoryUnavailable
    """

    def __init__(self, read_all: Callable[[Sequence[Asked]], Awaitable[Sequence[Found]]]) -> None:
        self._read_all = read_all
        self._waiting: list[tuple[Asked, asyncio.Future[Found]]] = []  # asked in this turn
        self._tasks: set[asyncio.Task[None]] = set()

    async def read(self, asked: Asked) -> Found:
        """What is found for it. Raises HistoryUnavailable. Whoever is cancelled stops no others."""
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Found] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._begin)
        self._waiting.append((asked, found))
        return await found

    async def end(self) -> None:
        """Wait for the calls that have begun."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _begin(self) -> None:
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), MOST_AT_ONCE):
            some = waiting[start : start + MOST_AT_ONCE]
            task = asyncio.get_running_loop().create_task(self._answer(some))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, waiting: list[tuple[Asked, asyncio.Future[Found]]]) -> None:
        left = [one for one in waiting if not one[1].done()]  # nobody may wait any more
        try:
            if left:
                found = await self._read_all([asked for asked, _ in left])
                for (_, answer), one in zip(left, found, strict=True):
                    if not answer.done():
                        answer.set_result(one)
        except HistoryUnavailable as error:
            if len(left) > 1 and _may_be_of_one(error):
                await asyncio.gather(*(self._answer([one]) for one in left))
                return
            for _, answer in left:
                if not answer.done():
                    own = HistoryUnavailable(str(error))
                    own.__cause__ = error.__cause__
                    answer.set_exception(own)
        except Exception as error:  # a bug
            for _, answer in left:
                if not answer.done():
                    answer.set_exception(error)
        finally:
            for _, answer in left:  # when it was cancelled, nobody may wait for ever
                answer.cancel()


def _may_be_of_one(error: HistoryUnavailable) -> bool:
    """Whether the store did answer: then what it holds of one user may be wrong, not of all."""
    cause = error.__cause__
    return isinstance(cause, RedisError | UnicodeDecodeError) and not isinstance(
        cause, RedisConnectionError | RedisTimeoutError
    )
