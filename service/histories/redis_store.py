"""The history store in Redis: histories, refusals, the event log, marks, answers, changed items.

The only module that knows commands, and keys but those of the log (`service.histories.event_log`).
Only inside Redis, the newest item of a history comes first. Every call has the store's own timeout,
and raises HistoryUnavailable when there is no answer. Then the call may be repeated safely. A store
that fails again and again is not asked for a while (`service.histories.calls`).
`service.histories.connections` chooses the server. `service.histories.trouble` says what its errors
mean.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.errors import HistoryUnavailable
from service.histories import event_log, scripts
from service.histories.calls import Breaker, BreakerState, JointReads, Limit
from service.histories.connections import NOT_UNDERSTOOD, Command, StoreConnection
from service.histories.store import (
    Attribution,
    RememberedAnswer,
    Stored,
    StoredUser,
    answer_of,
    start_of_answer,
)
from service.histories.store_url import parse_store_url
from service.histories.trouble import Troubles, reason_of, rights_reason
from service.schemas import UNDO, Event
from service.telemetry import Metrics

T = TypeVar("T")

MARK_TTL_S = 24 * 60 * 60  # how long an event_id and an answer are remembered
MAX_ANSWERS = 20  # answers remembered for each user

ITEMS_AT_ONCE = 100  # changes read in one call; their embeddings may be large
KEYS_AT_ONCE = 1000  # keys that a scan looks at in one call

HISTORY_PREFIX = "unmask:history:"


def history_key(user_id: str) -> str:
    """The list of a user's items. The braces keep all keys of a user in one slot."""
    return f"{HISTORY_PREFIX}{{{user_id}}}"


def marks_key(user_id: str) -> str:
    """The sorted set of a user's recent event_ids, by time. It marks answers with a hit, too."""
    return f"unmask:marks:{{{user_id}}}"


def refused_key(user_id: str) -> str:
    """The list of the items in which a user is not interested."""
    return f"unmask:refused:{{{user_id}}}"


def shown_key(user_id: str) -> str:
    """The list of the last answers that a user got, as JSON, newest first."""
    return f"unmask:recs:{{{user_id}}}"


def _items_keys(name: str) -> tuple[str, str]:
    """Two keys of a bundle's items.

    First the sorted set of item_ids by the number of their last change, then the hash of these
    changes.
    """
    return f"unmask:items-order:{{{name}}}", f"unmask:items:{{{name}}}"


def _trending_keys(half_life_s: float, writer: str = "") -> tuple[str, str]:
    """The sorted set of items by their decayed counts, and the hash with a writer's last batch."""
    return f"unmask:trending:{{{half_life_s}}}", f"unmask:trending-batch:{{{half_life_s}}}:{writer}"


class RedisHistoryStore:
    """Histories in Redis-compatible servers. Create it inside the event loop that uses it.

    url, replica_url: see `service.histories.store_url`
    replica_reads: whether replicas that a cluster or sentinels name may answer reads
    event_log_s: how long events stay in the event log; 0 = there is none
    Raises ValueError for a URL that cannot be read.
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
        event_log_s: int = 0,
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
        self._reads: JointReads[tuple[str, int], StoredUser] = JointReads(self._read_all)
        self._limit = Limit(timeout_s)
        self._metrics = metrics
        metrics.redis_breaker_state.set_function(lambda: self._breaker.state)
        self._history_cap = history_cap
        self._history_ttl_s = history_ttl_s
        self._event_log_s = event_log_s
        event_log.log_key_of(0)  # makes the table of tags now, and not at the first event

    async def read(self, user_id: str, limit: int | None = None) -> StoredUser:
        asked = (user_id, -1 if limit is None else limit - 1)
        if self._connection.is_one_place:
            return await self._reads.read(asked)
        return (await self._read_all([asked]))[0]

    async def _read_all(self, asked: Sequence[tuple[str, int]]) -> list[StoredUser]:
        """asked: users, each with the place of the last item that is wanted"""
        reading = self._connection.read([each for one in asked for each in _lists(*one)])
        return await self._call("read", reading, _users)

    async def read_page(
        self, user_id: str, recommendation_id: str
    ) -> tuple[StoredUser, RememberedAnswer | None]:
        reading = self._connection.run([*_lists(user_id), _list(shown_key(user_id))])
        start = start_of_answer(recommendation_id)

        def page(replies: list[Any]) -> tuple[StoredUser, RememberedAnswer | None]:
            *lists, answers = replies
            found = next((text for text in answers if text.startswith(start)), None)
            oldest_s = time.time() - MARK_TTL_S
            return _user(lists), answer_of(found, oldest_s) if found else None

        return await self._call("read_page", reading, page)

    async def remember(self, answers: Sequence[tuple[str, RememberedAnswer]]) -> None:
        commands = [
            Command(key, ("EVAL", scripts.REMEMBER, 1, key, text, MAX_ANSWERS - 1, MARK_TTL_S))
            for key, text in (
                (shown_key(user_id), shown.as_json(int(time.time()))) for user_id, shown in answers
            )
        ]
        await self._call("remember", self._connection.run(commands), _numbers)

    async def append(
        self,
        events: Sequence[Event],
        counted_event_types: Collection[str] = (),
        negative_event_types: Collection[str] = (),
        trending_event_types: Collection[str] = (),
    ) -> list[Stored]:
        types = counted_event_types, negative_event_types, trending_event_types
        commands = [self._append(event, *types) for event in events]
        running = self._connection.run(commands)
        found = await self._call("append", running, lambda replies: list(map(_stored, replies)))
        self._metrics.event_log_trimmed.inc(sum(num_trimmed for _, num_trimmed in found))
        return [stored for stored, _ in found]

    async def erase(self, user_id: str) -> None:
        keys, refused = _user_keys(user_id), refused_key(user_id)
        commands = [
            Command(
                keys[0], ("EVAL", scripts.ERASE, len(keys), *keys, event_log.start_of_user(user_id))
            ),
            # Apart: most users have none, and a slot that moves answers scripts only about keys
            # that are all there.
            Command(refused, ("DEL", refused)),
        ]
        await self._call("erase", self._connection.run(commands), _numbers)

    async def fill(self, histories: Sequence[tuple[str, Sequence[str]]]) -> list[int | None]:
        """Add the items of a log that histories lack; returns how many items each history gained.

        histories: user ids, each with the items of the log, oldest to newest, also more than a
            history may have: so a full history is found again in a log that has grown
        None: history and log share items but do not line up, so nothing was changed (`FILL` in
        `service.histories.scripts` has the rule). Repeating the call changes nothing.
        """
        limits = (self._history_cap, self._history_ttl_s)
        commands = [
            Command(key, ("EVAL", scripts.FILL, 1, key, *limits, *item_ids))
            for key, item_ids in ((history_key(user_id), items) for user_id, items in histories)
        ]

        def gained(replies: list[Any]) -> list[int | None]:
            _numbers(replies)
            return [None if reply < 0 else reply for reply in replies]

        return await self._call("fill", self._connection.run(commands), gained)

    async def clock_ms(self) -> int:
        """The earliest of the servers' clocks, in milliseconds since 1970."""
        asking = self._connection.each_primary(("TIME",))

        def earliest(replies: list[Any]) -> int:
            return min(int(seconds) * 1000 + int(micros) // 1000 for seconds, micros in replies)

        return await self._call("clock", asking, earliest)

    async def read_log(self, slots: Sequence[int]) -> list[list[event_log.LoggedEvent]]:
        """For each of these key slots all events of its log, oldest first."""
        commands = [_list(event_log.log_key_of(slot)) for slot in slots]

        def events(replies: list[Any]) -> list[list[event_log.LoggedEvent]]:
            return [[event_log.event_of(entry) for entry in entries] for entries in replies]

        return await self._call("read_log", self._connection.run(commands), events)

    async def users(self) -> AsyncIterator[list[str]]:
        """All users who have a history, in portions; some may be named twice.

        Users whose first event comes meanwhile may be missing. Raises HistoryUnavailable, also
        when slots of a cluster are being moved: then users might be missed.
        """
        places = await self._call("places", self._connection.places(), list)
        for number in range(len(places)):
            cursor = "0"
            while True:
                scan = ("SCAN", cursor, "MATCH", f"{HISTORY_PREFIX}*", "COUNT", KEYS_AT_ONCE)
                scanning = self._connection.each_primary(scan, only=number)
                cursor, keys = await self._call("scan", scanning, lambda replies: replies[0])
                yield [key[len(HISTORY_PREFIX) + 1 : -1] for key in keys]
                if int(cursor) == 0:
                    break
        if places != await self._call("places", self._connection.places(), list):
            raise HistoryUnavailable("slots of the cluster are being moved; wait, then try again")

    async def histories_of(self, user_ids: Sequence[str]) -> list[list[str]]:
        """The histories of some users, each oldest to newest."""
        commands = [_list(history_key(user_id)) for user_id in user_ids]
        running = self._connection.run(commands)
        return await self._call("read", running, lambda lists: list(map(_newest_last, lists)))

    async def write_items(self, name: str, entries: Mapping[str, str]) -> None:
        keys = _items_keys(name)
        parts = [part for entry in entries.items() for part in entry]
        command = Command(keys[0], ("EVAL", scripts.WRITE_ITEMS, len(keys), *keys, *parts))
        await self._call("write_items", self._connection.run([command]), _numbers)

    async def read_items(self, name: str, after: int) -> tuple[int, dict[str, str]]:
        changes = await self.list_items(name, after)
        last = changes[-1][0] if changes else after
        return last, {item_id: entry for _, item_id, entry in changes}

    async def list_items(self, name: str, after: int) -> list[tuple[int, str, str]]:
        keys = _items_keys(name)
        command = Command(
            keys[0], ("EVAL", scripts.READ_ITEMS, len(keys), *keys, after, ITEMS_AT_ONCE)
        )

        def changed(replies: list[Any]) -> list[tuple[int, str, str]]:
            [[changes, entries]] = replies
            numbers = map(int, changes[1::2])
            return list(zip(numbers, changes[::2], entries, strict=True))

        return await self._call("read_items", self._connection.run([command]), changed)

    async def items_version(self, name: str) -> int:
        order, _ = _items_keys(name)
        reading = self._connection.run([Command(order, ("EVAL", scripts.ITEMS_VERSION, 1, order))])
        return await self._call("items_version", reading, lambda replies: _number(*replies))

    async def count_trending(
        self, writer: str, batch: int, num_users: Mapping[str, int], half_life_s: float
    ) -> None:
        keys = _trending_keys(half_life_s, writer)
        parts = [part for one in num_users.items() for part in one]
        arguments = (len(keys), *keys, batch, f"{half_life_s}", *parts)
        command = Command(keys[0], ("EVAL", scripts.COUNT_TRENDING, *arguments))
        await self._call("count_trending", self._connection.run([command]), _numbers)

    async def read_trending(self, half_life_s: float, first: int, last: int) -> dict[str, float]:
        key, _ = _trending_keys(half_life_s)
        asked = ("EVAL", scripts.READ_TRENDING, 1, key, f"{half_life_s}", first, last)

        def counts(replies: list[Any]) -> dict[str, float]:
            [[now, found]] = replies
            # At most 2 ** 64: a clock that was set back may be far behind the scores.
            decayed = [2 ** min(float(score) - float(now), 64) for score in found[1::2]]
            return dict(zip(found[::2], decayed, strict=True))

        return await self._call(
            "read_trending", self._connection.run([Command(key, asked)]), counts
        )

    async def check(self) -> None:
        """Open a connection; log what the store's user may not do. Raises HistoryUnavailable."""
        items = _items_keys("check")
        firsts = (history_key("check"), refused_key("check"))
        asked = [
            Command(key, ("EVAL", scripts.CHECK, 3, key, *items, *scripts.RIGHTS)) for key in firsts
        ]
        asking = self._connection.run(asked)
        found = await self._call("check", asking, lambda lists: list(map(_newest_last, lists)))
        if denied := {*found[0], *found[1]}:
            self._troubles.seen(rights_reason(list(denied)))

    @property
    def is_down(self) -> bool:
        """Whether the store has failed so often that it is not asked now."""
        return self._breaker.state is not BreakerState.CLOSED

    async def close(self) -> None:
        """Close the connections."""
        await self._reads.end()
        await self._limit.end()
        await self._connection.close()

    def _append(
        self,
        event: Event,
        counted: Collection[str],
        negative: Collection[str],
        trending: Collection[str],
    ) -> Command:
        entered, marks, shown, log = _user_keys(event.user_id)
        how, named = scripts.PUSH, event.recommendation_id
        if event.event_type.removeprefix(UNDO) in negative:
            how = scripts.MOVE if event.event_type in negative else scripts.DROP
            entered, named = refused_key(event.user_id), None
        arguments: tuple[str | int, ...] = (
            event.event_id,
            0 if event.event_type in counted else self._history_cap,
            self._history_ttl_s,
            MARK_TTL_S,
            start_of_answer(named) if named else "",
            f"{event.event_type} {named}",
            self._event_log_s,
            event_log.rest_of_entry(event),
            how,
            int(event.event_type in trending and event.item_id is not None and how == scripts.PUSH),
            *event.all_item_ids,
        )
        keys = (entered, marks, shown, log)
        return Command(entered, ("EVAL", scripts.APPEND, len(keys), *keys, *arguments))

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
        tell_breaker = self._breaker.gave_up
        try:
            replies = await self._limit.run(work)
            try:
                found = understood(replies)
            except (*NOT_UNDERSTOOD, ValueError) as error:
                raise InvalidResponse("it does not answer as Redis does") from error
            tell_breaker = self._breaker.succeeded
            self._troubles.answered()
            return found
        except (RedisError, OSError, UnicodeDecodeError) as error:
            kind = (  # OSError includes asyncio's TimeoutError and a lost socket
                "timeout"
                if isinstance(error, TimeoutError | RedisTimeoutError)
                else "connection"
                if isinstance(error, OSError | RedisConnectionError)
                else "response"
            )
            tell_breaker = self._breaker.succeeded if kind == "response" else self._breaker.failed
            self._metrics.redis_errors.labels(operation, kind).inc()
            self._troubles.seen(reason_of(error))
            raise HistoryUnavailable("the history store did not answer; try again") from error
        finally:
            tell_breaker()
            seconds = time.perf_counter() - started
            self._metrics.redis_operation_duration.labels(operation).observe(seconds)


def _user_keys(user_id: str) -> tuple[str, str, str, str]:
    """Keys that hold something of a user, all but refusals; the log has something of others too."""
    key = history_key(user_id)
    return key, marks_key(user_id), shown_key(user_id), event_log.log_key(key)


def _list(key: str, last: int = -1) -> Command:
    return Command(key, ("LRANGE", key, 0, last))


def _lists(user_id: str, last: int = -1) -> list[Command]:
    """What `_user` understands."""
    return [_list(history_key(user_id), last), _list(refused_key(user_id))]


def _user(replies: list[Any]) -> StoredUser:
    return StoredUser(*map(_newest_last, replies))


def _users(replies: list[Any]) -> list[StoredUser]:
    return [_user(replies[first : first + 2]) for first in range(0, len(replies), 2)]


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


def _stored(reply: Any) -> tuple[Stored, int]:
    """What became of an event, and how many events were trimmed from the log."""
    if type(reply) is int and reply == 0:
        return Stored(False), 0
    if not isinstance(reply, list) or type(reply[0]) is not int:
        raise TypeError
    num_trimmed, counts, *shown = reply
    attribution = None
    if shown:
        bundle, variant, rank, is_first = shown
        attribution = Attribution(bundle, variant, rank, is_first == 1)
    return Stored(True, attribution, counts == 1), num_trimmed
