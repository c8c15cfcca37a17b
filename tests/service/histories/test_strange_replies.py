"""What answers at the store's address is no Redis, or a broken one: 503, no traceback, nothing
acknowledged, one clear line.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from service.errors import HistoryUnavailable
from service.histories import RedisHistoryStore, RememberedAnswer
from service.schemas import Event
from service.telemetry import Metrics

EVENT = Event(event_id="1", user_id="u", item_id="i", event_type="click")
SHOWN = RememberedAnswer("r", "tiny@1", "none", ("i",), ())
GREETING = b"%1\r\n+proto\r\n:3\r\n"
REPLIES = {
    "a status": b"+OK\r\n",
    "nothing": b"$-1\r\n",
    "a boolean": b"#t\r\n",
    "a float": b",1.5\r\n",
    "a map": b"%1\r\n+a\r\n+b\r\n",
    "a list of errors": b"*1\r\n-ERR x\r\n",
    "lists in lists": b"*1\r\n*1\r\n*0\r\n",
    "HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
}


@contextlib.asynccontextmanager
async def answering(reply: bytes) -> AsyncIterator[int]:
    """The port of a server that greets as Redis does, and then gives this reply to everything."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), contextlib.closing(writer):
            while data := await reader.read(1 << 16):
                greeting = (
                    b"%1\r\n+proto\r\n:3\r\n" if data.startswith(b"*2\r\n$5\r\nHELLO") else b""
                )
                writer.write(greeting or reply * 4)
                await writer.drain()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        server.close()


@pytest.mark.parametrize("has_password", [True, False])
@pytest.mark.parametrize("kind", REPLIES)
def test_a_reply_of_another_kind_is_no_answer(kind: str, has_password: bool) -> None:
    async def ask() -> list[str]:
        async with answering(REPLIES[kind]) as port:
            secret = ":a-secret@" if has_password else ""
            store = RedisHistoryStore(
                f"redis://{secret}127.0.0.1:{port}",
                Metrics(),
                timeout_s=5,
                pool_size=1,
                history_cap=10,
                history_ttl_s=100,
            )
            with capture_logs() as logged:
                for call in (
                    store.append([EVENT]),
                    store.remember([("u", SHOWN)]),
                    store.read("u"),
                    store.read_page("u", "r"),
                    store.items_version("tiny"),
                    store.read_items("tiny", 0),
                    store.write_items("tiny", {"i": "{}"}),
                    store.erase("u"),
                    store.fill([("u", ["i"])]),
                    store.count_trending("w", 1, {"i": 1}, 60),
                    store.read_trending(60, 0, 9),
                    store.clock_ms(),
                    store.read_log([0]),
                    store.histories_of(["u"]),
                    anext(store.users()),
                ):
                    with pytest.raises(HistoryUnavailable):
                        await call
            await store.close()
            return [line["reason"] for line in logged]

    said = asyncio.run(ask())
    assert any("does not speak as Redis does" in reason for reason in said), said
    assert "a-secret" not in "".join(said)
