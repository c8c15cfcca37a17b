"""Work that may hang, waited for so long and then given up: reading a disk that is far away, say.

A thread cannot be killed. One that was given up goes on until what it waits for comes, and what it
makes then is dropped; so only few may be given up at a time. They do not keep the process from
ending. Knows nothing of bundles.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


class Impatience(Exception):
    """Too many threads that were given up are there still."""


class Patience:
    """Call everything in the event loop.

    limit_s: how long work is waited for; most_given_up: threads that may hang before no more begin
    """

    def __init__(self, limit_s: float | None, most_given_up: int = 2) -> None:
        self.limit_s = limit_s
        self._most_given_up = most_given_up
        self._given_up: list[threading.Thread] = []

    @property
    def num_given_up(self) -> int:
        """Threads that were given up and have not ended since."""
        self._given_up = [thread for thread in self._given_up if thread.is_alive()]
        return len(self._given_up)

    async def wait_for(self, make: Callable[[], T]) -> T:
        """What `make` returns or raises, from a thread of its own.

        Raises TimeoutError when the time is up, and Impatience when no thread may begin.
        """
        if self.num_given_up >= self._most_given_up:
            raise Impatience
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        # Not in the future: tasks refer to those, and would keep what was made as long as the
        # garbage collector does not come by.
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
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(end)

        thread = threading.Thread(target=work, daemon=True, name="patience")
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
