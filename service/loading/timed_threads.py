"""Runs work that may hang, such as reading a remote disk, in threads with a time limit.

A thread cannot be killed. A thread that was given up goes on until what it waits for comes, and its
result is dropped. So only a few threads may be given up at a time. They do not keep the process
from ending. Knows nothing of bundles.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


class TooManyHangingThreads(Exception):
    """Too many threads that were given up are still running."""


class TimedThreads:
    """Call everything in the event loop.

    limit_s: how long `wait_for` waits
    most_given_up: how many threads that were given up may run before no new one is started
    """

    def __init__(self, limit_s: float | None, most_given_up: int = 2) -> None:
        self.limit_s = limit_s
        self._most_given_up = most_given_up
        self._given_up: list[threading.Thread] = []

    @property
    def num_given_up(self) -> int:
        """Threads that were given up and are still running."""
        self._given_up = [thread for thread in self._given_up if thread.is_alive()]
        return len(self._given_up)

    async def wait_for(self, make: Callable[[], T]) -> T:
        """What `make` returns or raises, run in its own thread.

        Raises TimeoutError when the time is up, and TooManyHangingThreads when no thread may start.
        """
        if self.num_given_up >= self._most_given_up:
            raise TooManyHangingThreads
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        # The result is not kept in the future. Tasks refer to futures, so the result would stay in
        # memory until the garbage collector runs.
        made: list[T] = []
        failed: list[BaseException] = []

        def end() -> None:
            if not ended.done():
                ended.set_result(None)

        def work() -> None:
            try:
                made.append(make())
            except BaseException as error:
                failed.append(error)
            with suppress(RuntimeError):  # the loop is closed, so nobody waits
                loop.call_soon_threadsafe(end)

        thread = threading.Thread(target=work, daemon=True, name="timed")
        thread.start()
        try:
            async with asyncio.timeout(self.limit_s):
                await ended
        except BaseException:
            self._given_up.append(thread)
            raise
        if failed:
            raise failed.pop()
        return made.pop()
