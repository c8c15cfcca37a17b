"""A TCP proxy that a test puts before a store to make it slow, silent or rude."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Literal

Mood = Literal["kind", "silent", "rude", "forgetful"]


class SlowProxy:
    """Connections to `port` are forwarded to `target`. Set `delay_s` or `mood` at any time.

    delay_s: how much later replies come
    mood: silent: replies never come; rude: each connection is reset when a command is sent;
        forgetful: once, a connection is reset instead of a reply, although the command was run
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.delay_s = 0.0
        self.mood: Mood = "kind"

    async def serve(self, started: threading.Event, ended: asyncio.Event) -> None:
        """Until `ended`."""
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await ended.wait()
        server.close()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, onward = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        replies = asyncio.create_task(self._reply(there, writer))
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if self.mood == "rude":
                    break
                onward.write(data)
                await onward.drain()
        replies.cancel()
        onward.transport.abort()
        writer.transport.abort()

    async def _reply(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await there.read(1 << 16):
                await asyncio.sleep(self.delay_s)
                if self.mood == "forgetful":
                    self.mood = "kind"
                    break
                if self.mood == "kind":
                    writer.write(data)
                    await writer.drain()
        writer.transport.abort()


@contextlib.contextmanager
def slow_proxy(target: int) -> Iterator[SlowProxy]:
    """A proxy to a port of 127.0.0.1, in its own thread."""
    proxy, started = SlowProxy(target), threading.Event()
    loop, ended = asyncio.new_event_loop(), asyncio.Event()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(proxy.serve(started, ended))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert started.wait(60)
        yield proxy
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
