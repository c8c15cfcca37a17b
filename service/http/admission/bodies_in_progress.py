"""Bodies that are still arriving: their number and their bytes are limited. The oldest makes room.

A request has no place in the gate while its body arrives. So clients who stall keep nobody out.
Such clients hold memory, and this module limits that memory: it gives up the body that has been
arriving for the longest time. It does not count by peer, because all requests behind a gateway come
from one address, and so do most clients of one network. For one event loop.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from service.errors import Overloaded
from service.http.middleware import Message, Receive

MOST = 512
MOST_BYTES = 64 << 20


@dataclass(eq=False)
class BodyInProgress:
    """A body that has not arrived completely. `task` waits for its next part."""

    num_bytes: int = 0
    task: asyncio.Task[object] | None = None
    gave_way: bool = False


class BodiesInProgress:
    """Call `part` for each message of a request, and `end` when no more messages are wanted."""

    def __init__(self, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._num_bytes = 0
        self._in_progress: dict[BodyInProgress, None] = {}  # an ordered set, oldest first

    def __len__(self) -> int:
        return len(self._in_progress)

    async def part(self, body: BodyInProgress, receive: Receive) -> Message:
        """The next message. Raises Overloaded when this body had to make room for others."""
        if body not in self._in_progress and not body.gave_way:
            self._in_progress[body] = None
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

    def end(self, body: BodyInProgress) -> None:
        """Forget a body: it is complete, or nobody reads the rest."""
        if body in self._in_progress:
            del self._in_progress[body]
            self._num_bytes -= body.num_bytes

    def _make_room(self) -> None:
        while len(self._in_progress) > self._most or self._num_bytes > self._most_bytes:
            oldest = next(iter(self._in_progress))
            self.end(oldest)
            oldest.gave_way = True
            if oldest.task is not None:
                oldest.task.cancel()


def _check(body: BodyInProgress) -> None:
    if body.gave_way:
        message = "too many requests are on their way; send this one again, and all of it at once"
        raise Overloaded(message, reason="arriving")
