"""The history store in Redis: histories, marks of events, answers just given, items that changed.

The only module that knows the keys; `service.histories.scripts` has the scripts. Inside Redis, and
nowhere else, the newest item of a history comes first. Every call has the store's own timeout and
raises HistoryUnavailable without an answer; repeating it is then safe. A store that fails again and
again is not asked for a while (`service.histories.breaker`). Which server is asked:
`service.histories.connections`; what its errors mean: `service.histories.trouble`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.errors import HistoryUnavailable
from service.histories.breaker import Breaker, BreakerState
from service.histories.connections import NOT_UNDERSTOOD, Command, StoreConnection
from service.histories.scripts import (
    APPEND,
    CHECK,
    ITEMS_VERSION,
    READ_ITEMS,
    REMEMBER,
    RIGHTS,
    WRITE_ITEMS,
)
from service.histories.store import Attribution, Shown, Stored
from service.histories.store_url import parse_store_url
from service.histories.trouble import Troubles, reason_of, rights_reason
from service.schemas import Event
from service.telemetry import Metrics

T = TypeVar("T")

MARK_TTL_S = 24 * 60 * 60  # how long a repeated event_id is recognised, and an answer remembered
MAX_ANSWERS = 20  # remembered of a user

ITEMS_AT_ONCE = 100  # changes that are read in one call: their embeddings may be large


def history_key(user_id: str) -> str:
    """The list of a user's items. The braces keep a user's keys on one cluster slot."""
    return f"unmask:history:{{{user_id}}}"


def marks_key(user_id: str) -> str:
    """The sorted set of a user's recent event_ids, by time; also, which answers had a hit."""
    return f"unmask:marks:{{{user_id}}}"


def shown_key(user_id: str) -> str:
    """The list of the last answers a user got, as JSON, the newest first."""
    return f"unmask:recs:{{{user_id}}}"


def _items_keys(name: str) -> tuple[str, str]:
    """The sorted set of a bundle's items by the number of their last change, and the hash of these
    changes."""
    return f"unmask:items-order:{{{name}}}", f"unmask:items:{{{name}}}"


class RedisHistoryStore:
    """Histories in Redis-compatible servers. Make it inside the event loop that uses it.

    url, replica_url: see `service.histories.store_url`; replica_reads: reads may go to the replicas
    that a cluster or sentinels name. Raises ValueError for a URL that cannot be read.
    """

    def __init__(
        self,
        url: str,
        metrics: Metrics,
        *,
        timeout_s: float,
        pool_size: int,
        history_cap: int,
        history_ttl_s: int,
        replica_url: str | None = None,
        replica_reads: bool = False,
    ) -> None:
        self._connection = StoreConnection(
            parse_store_url(url),
            timeout_s=timeout_s,
            pool_size=pool_size,
            replica_url=parse_store_url(replica_url) if replica_url else None,
            replica_reads=replica_reads,
            on_replica_error=self._note_replica,
        )
        self._replica_errors = metrics.redis_errors.labels("read", "replica")
        self._breaker = Breaker()
        self._troubles = Troubles()
        self._tasks: set[asyncio.Task[list[Any]]] = set()
        self._metrics = metrics
        metrics.redis_breaker_state.set_function(lambda: self._breaker.state)
        self._timeout_s = timeout_s
        self._history_cap = history_cap
        self._history_ttl_s = history_ttl_s

    async def read(self, user_id: str, limit: int | None = None) -> list[str]:
        last = -1 if limit is None else limit - 1
        reading = self._connection.read([_list(history_key(user_id), last)])
        return await self._call("read", reading, lambda replies: _newest_last(*replies))

    async def read_page(
        self, user_id: str, recommendation_id: str
    ) -> tuple[list[str], Shown | None]:
        commands = [_list(history_key(user_id)), _list(shown_key(user_id))]
        reading = self._connection.run(commands)
        start = _start_of_json(recommendation_id)

        def page(replies: list[Any]) -> tuple[list[str], Shown | None]:
            newest_first, answers = replies
            found = next((text for text in answers if text.startswith(start)), None)
            return _newest_last(newest_first), _from_json(found) if found else None

        return await self._call("read_page", reading, page)

    async def remember(self, answers: Sequence[tuple[str, Shown]]) -> None:
        commands = [
            Command(key, ("EVAL", REMEMBER, 1, key, _to_json(shown), MAX_ANSWERS - 1, MARK_TTL_S))
            for key, shown in ((shown_key(user_id), shown) for user_id, shown in answers)
        ]
        await self._call("remember", self._connection.run(commands), _numbers)

    async def append(
        self, events: Sequence[Event], counted_event_types: Collection[str] = ()
    ) -> list[Stored]:
        commands = [
            self._append(event, event.event_type in counted_event_types) for event in events
        ]
        running = self._connection.run(commands)
        return await self._call("append", running, lambda replies: list(map(_stored, replies)))

    async def erase(self, user_id: str) -> None:
        keys = (history_key(user_id), marks_key(user_id), shown_key(user_id))
        erasing = self._connection.run([Command(keys[0], ("DEL", *keys))])
        await self._call("erase", erasing, _numbers)

    async def write_items(self, name: str, entries: Mapping[str, str]) -> None:
        keys = _items_keys(name)
        parts = [part for entry in entries.items() for part in entry]
        command = Command(keys[0], ("EVAL", WRITE_ITEMS, len(keys), *keys, *parts))
        await self._call("write_items", self._connection.run([command]), _numbers)

    async def read_items(self, name: str, after: int) -> tuple[int, dict[str, str]]:
        keys = _items_keys(name)
        command = Command(keys[0], ("EVAL", READ_ITEMS, len(keys), *keys, after, ITEMS_AT_ONCE))

        def changed(replies: list[Any]) -> tuple[int, dict[str, str]]:
            [[changes, entries]] = replies
            last = int(changes[-1]) if changes else after
            return last, dict(zip(changes[::2], entries, strict=True))

        return await self._call("read_items", self._connection.run([command]), changed)

    async def items_version(self, name: str) -> int:
        order, _ = _items_keys(name)
        reading = self._connection.run([Command(order, ("EVAL", ITEMS_VERSION, 1, order))])
        return await self._call("items_version", reading, lambda replies: _number(*replies))

    async def check(self) -> None:
        """Open a connection; log what the store's user may not do. Raises HistoryUnavailable."""
        keys = (history_key("check"), *_items_keys("check"))
        command = Command(keys[0], ("EVAL", CHECK, len(keys), *keys, *sorted(RIGHTS)))
        asking = self._connection.run([command])
        if denied := await self._call("check", asking, lambda replies: _newest_last(*replies)):
            self._troubles.seen(rights_reason(denied))

    @property
    def is_down(self) -> bool:
        """Whether the store has failed so often that it is not asked for now."""
        return self._breaker.state is not BreakerState.CLOSED

    async def close(self) -> None:
        """Close the connections."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._connection.close()

    def _append(self, event: Event, is_counted: bool) -> Command:
        keys = (history_key(event.user_id), marks_key(event.user_id), shown_key(event.user_id))
        named = event.recommendation_id
        arguments: tuple[str | int, ...] = (
            event.event_id,
            0 if is_counted else self._history_cap,
            self._history_ttl_s,
            MARK_TTL_S,
            _start_of_json(named) if named else "",
            f"{event.event_type} {named}",
            *event.all_item_ids,
        )
        return Command(keys[0], ("EVAL", APPEND, len(keys), *keys, *arguments))

    def _note_replica(self, error: Exception) -> None:
        self._replica_errors.inc()
        self._troubles.seen(f"a replica that is read does not serve: {reason_of(error)}")

    async def _call(
        self,
        operation: str,
        work: Coroutine[Any, Any, list[Any]],
        understood: Callable[[list[Any]], T],
    ) -> T:
        """What the replies mean, within the timeout. Raises HistoryUnavailable.

        understood: may raise where they are not such as Redis gives
        """
        if not self._breaker.admits():
            work.close()
            self._metrics.redis_errors.labels(operation, "breaker_open").inc()
            raise HistoryUnavailable("the history store has failed repeatedly; try again")
        started = time.perf_counter()
        told = self._breaker.gave_up
        try:
            replies = await self._limited(work)
            try:
                found = understood(replies)
            except (*NOT_UNDERSTOOD, ValueError) as error:
                raise InvalidResponse("it does not answer as Redis does") from error
            told = self._breaker.succeeded
            self._troubles.answered()
            return found
        except (RedisError, OSError, UnicodeDecodeError) as error:
            kind = (  # OSError: asyncio's TimeoutError, and a lost socket
                "timeout"
                if isinstance(error, TimeoutError | RedisTimeoutError)
                else "connection"
                if isinstance(error, OSError | RedisConnectionError)
                else "response"
            )
            told = self._breaker.succeeded if kind == "response" else self._breaker.failed
            self._metrics.redis_errors.labels(operation, kind).inc()
            self._troubles.seen(reason_of(error))
            raise HistoryUnavailable("the history store did not answer; try again") from error
        finally:
            told()
            seconds = time.perf_counter() - started
            self._metrics.redis_operation_duration.labels(operation).observe(seconds)

    async def _limited(self, work: Coroutine[Any, Any, list[Any]]) -> list[Any]:
        """Raises TimeoutError, on time whatever the work does about being cancelled.

        Where the event loop itself was late, the reply may be there and unread, and the store is
        not to blame: it is waited for as much longer as the loop was late, at most the timeout.

        Now and then it goes on until its socket's timeout: in Python 3.11 asyncio.wait_for, which
        redis-py sends with, may lose a cancellation.
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
            task.exception()  # nobody may have waited for it


def _list(key: str, last: int = -1) -> Command:
    return Command(key, ("LRANGE", key, 0, last))


def _newest_last(newest_first: Any) -> list[str]:
    if not isinstance(newest_first, list) or not all(isinstance(one, str) for one in newest_first):
        raise TypeError
    return newest_first[::-1]


def _number(digits: Any) -> int:
    if not isinstance(digits, str):
        raise TypeError
    return int(digits)


def _numbers(replies: list[Any]) -> None:
    """Of what was done: another reply does not say that anything was."""
    if not all(type(reply) is int for reply in replies):
        raise TypeError


def _stored(reply: Any) -> Stored:
    if type(reply) is int and reply in (0, 1):
        return Stored(reply == 1)
    if not isinstance(reply, list):
        raise TypeError
    bundle, variant, rank, is_first = reply
    return Stored(True, Attribution(bundle, variant, rank, is_first == 1))


# The id comes first, so that an answer is found without reading the others' JSON. ensure_ascii is
# off so that an item_id in it has the bytes it has in an event.
_json = partial(json.dumps, ensure_ascii=False, separators=(",", ":"))


def _to_json(shown: Shown) -> str:
    return _json(
        {
            "recommendation_id": shown.recommendation_id,
            "at": int(time.time()),
            "bundle": shown.bundle,
            "variant": shown.variant,
            "item_ids": shown.item_ids,
            "before": shown.before,
        }
    )


def _start_of_json(recommendation_id: str) -> str:
    return _json({"recommendation_id": recommendation_id})[:-1] + ","


def _from_json(text: str) -> Shown | None:
    """None for an answer of more than a day ago: the list lives on while answers are added."""
    fields = json.loads(text)
    if fields.pop("at") + MARK_TTL_S < time.time():
        return None
    item_ids, before = tuple(fields.pop("item_ids")), tuple(fields.pop("before"))
    return Shown(**fields, item_ids=item_ids, before=before)
