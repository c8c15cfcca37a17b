"""Bodies that are on their way: so many at a time, and so many bytes; the oldest makes room.

A request holds no place in a gate while its body comes, so that clients who stall keep nobody out.
What they hold is memory, and that is bounded here by giving up who has been at it longest. No peer
is counted: behind a gateway all requests come from one address, and most clients of one network do.
For one event loop.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from service.errors import Overloaded
from service.http.middleware import Message, Receive

MOST = 512
MOST_BYTES = 64 << 20


@dataclass(eq=False)
class Coming:
    """A body that has not come whole; `task` waits for its next part."""

    num_bytes: int = 0
    task: asyncio.Task[object] | None = None
    gave_way: bool = False


class Arriving:
    """Ask for each message of a request with `part`; `end` when no more are asked for."""

    def __init__(self, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._num_bytes = 0
        self._coming: dict[Coming, None] = {}  # an ordered set, oldest first

    def __len__(self) -> int:
        return len(self._coming)

    async def part(self, body: Coming, receive: Receive) -> Message:
        """The next message. Raises Overloaded when the body has made room for others."""
        if body not in self._coming and not body.gave_way:
            self._coming[body] = None
            self._make_room()
        _check(body)
        body.task = task = asyncio.current_task()
        try:
            message = await receive()
        except asyncio.CancelledError:
            if body.gave_way and task is not None and not task.uncancel():
                _check(body)
            raise
        finally:
            body.task = None
        size = len(message.get("body", b""))
        body.num_bytes += size
        self._num_bytes += size
        self._make_room()
        _check(body)
        return message

    def end(self, body: Coming) -> None:
        """It is whole, or nobody reads on."""
        if body in self._coming:
            del self._coming[body]
            self._num_bytes -= body.num_bytes

    def _make_room(self) -> None:
        while len(self._coming) > self._most or self._num_bytes > self._most_bytes:
            oldest = next(iter(self._coming))
            self.end(oldest)
            oldest.gave_way = True
            if oldest.task is not None:
                oldest.task.cancel()


def _check(body: Coming) -> None:
    if body.gave_way:
        message = "too many requests are on their way; send this one again, and all of it at once"
        raise Overloaded(message, reason="arriving")
