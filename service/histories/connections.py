"""Connections to the history store: which server to ask, and how long to wait for it.

Every store is a map from the 16384 key slots to servers. A single server owns all slots, and so
does the primary that sentinels watch. The nodes of a cluster share them. A task keeps the map
current, and looks again at once after a failure. So no call waits for a search for servers. MOVED
and ASK are followed, because they say that nothing was done. Only one other thing is retried:
commands sent on a connection that turned out to be closed, once, on a new connection. So doing a
command twice must be the same as doing it once. The caller limits the time of a whole call. Knows
nothing of keys or their meaning.

redis-py's own cluster and sentinel clients are not used: docs/decisions/020.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    InvalidResponse,
    MovedError,
    ReadOnlyError,
    RedisError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.maint_notifications import MaintNotificationsConfig

from service.histories.calls import Breaker
from service.histories.store_url import Node, StoreUrl
from service.histories.trouble import reason_of
from service.tasks import ended

NUM_SLOTS = 16384
NUM_ASKED = 5  # nodes asked at once for the map, because some may be down
ASK_TIMEOUT_S = 0.5
DOUBTFUL_S = 0.5  # between two looks at the map while calls fail
CALM_S = 30.0  # while no call fails; replicas come and go
REDIRECT_PAUSE_S = 0.005  # a slot that moves may take a while
DOWN = {"s_down", "o_down", "disconnected"}  # flags of replicas not to ask

# What is raised where a reply is of another kind than Redis would give.
NOT_UNDERSTOOD = (TypeError, AttributeError, LookupError, ArithmeticError, RecursionError)

PRIMARY, REPLICA = Node("primary", 0), Node("replica", 0)  # of a store that is one server

log = structlog.get_logger()


class Command(NamedTuple):
    """The `args` of a command. All its keys are in the slot of `key`."""

    key: str
    args: tuple[str | int, ...]


@dataclass(frozen=True)
class Shard:
    """The servers of some slots. `primary` takes writes; `replicas` lag behind it."""

    primary: Node
    replicas: tuple[Node, ...] = ()


SlotMap = dict[tuple[int, int], Shard]  # by first and last slot of a range


class StoreConnection:
    """Connections to all servers of a store. Create it inside the event loop that uses it.

    timeout_s: how long a caller waits; connections give up after twice that time
    pool_size: most connections to each server
    on_replica_error: called with the error when a replica did not answer a read; then the primary
        is asked
    """

    def __init__(
        self,
        url: StoreUrl,
        *,
        timeout_s: float,
        pool_size: int,
        replica_url: StoreUrl | None,
        replica_reads: bool,
        on_replica_error: Callable[[Exception], None],
    ) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._pool_size = pool_size
        self._replica_reads = replica_reads or replica_url is not None
        self._on_replica_error = on_replica_error
        self._clients: dict[Node, Redis] = {}
        self._breakers: defaultdict[Node, Breaker] = defaultdict(Breaker)
        self._replica_prefix = "READONLY" if url.kind == "cluster" else ""
        self._map: SlotMap = {}
        self._slots: list[Shard] = []  # one for each slot; MOVED changes it at once
        self._complaint = ""
        self._known = asyncio.Event()
        self._doubt = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        self._asking: set[asyncio.Task[SlotMap]] = set()
        if url.kind == "server":
            self._clients[PRIMARY] = self._connect(url.text)
            if replica_url:
                self._clients[REPLICA] = self._connect(replica_url.text)
            shard = Shard(PRIMARY, (REPLICA,) if replica_url else ())
            self._adopt({(0, NUM_SLOTS - 1): shard})
        else:
            self._following = asyncio.create_task(self._follow())

    @property
    def is_one_place(self) -> bool:
        """Whether the same servers have all slots."""
        return self._url.kind != "cluster"

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands on the primaries, in one round trip if nothing has moved.

        Commands of one slot keep their order. Raises the first error, after all commands have been
        tried.
        """
        try:
            await self._known.wait()
            if self._url.kind == "cluster":
                replies = await self._redirected(commands)
            else:
                replies = await self._send(self._shard_of(commands[0]).primary, commands)
            _raise_first(replies)
        except BaseException:  # a cancelled call too, which may have waited for a dead server
            self._doubt.set()
            raise
        self._doubt.clear()
        return replies

    async def read(self, commands: Sequence[Command]) -> list[Any]:
        """Like `run`, for commands that write nothing. A replica may answer them.

        All must be of one slot, unless the store is one place.

        A replica gets half the timeout, and the primary the rest. A replica that fails again and
        again is not asked for a while.
        """
        await self._known.wait()
        replica = self._replica_of(commands[0])
        if replica is None:
            return await self.run(commands)
        tell_breaker = self._breakers[replica].gave_up
        try:
            async with asyncio.timeout(self._timeout_s / 2):
                replies = await self._send(replica, commands, prefix=self._replica_prefix)
                _raise_first(replies)
            tell_breaker = self._breakers[replica].succeeded
            return replies
        except (RedisError, OSError) as error:
            tell_breaker = self._breakers[replica].failed
            self._doubt.set()
            self._on_replica_error(error)
        finally:
            tell_breaker()
        return await self.run(commands)

    async def each_primary(self, args: tuple[str | int, ...], only: int | None = None) -> list[Any]:
        """The replies of all primaries to a command without keys, or of the one of that number."""
        await self._known.wait()
        nodes = self._primaries()
        asked = nodes if only is None else [nodes[only]]
        replies = await asyncio.gather(*(self._send(node, [Command("", args)]) for node in asked))
        _raise_first([reply for (reply,) in replies])
        return [reply for (reply,) in replies]

    async def places(self) -> list[Any]:
        """Which primary has which slots, by their numbers; the same as long as no slot moves.

        Raises RedisError while a slot is being moved.
        """
        await self._known.wait()
        if self._url.kind != "cluster":
            return [str(node) for node in self._primaries()]
        own = []
        for nodes in await self.each_primary(("CLUSTER NODES",)):
            [myself] = [node for node in nodes.values() if "myself" in node["flags"]]
            if myself["migrations"]:
                raise RedisError("slots of the cluster are being moved: wait until they have moved")
            own.append((myself["node_id"], myself["slots"]))
        return own

    def _primaries(self) -> list[Node]:
        return sorted({shard.primary for shard in self._map.values()})

    async def close(self) -> None:
        """Close all connections."""
        if self._following:
            await ended([self._following])
        if self._asking:  # cancelled while it opens, a connection may stay open; they end soon
            await asyncio.wait(self._asking)
        await asyncio.gather(*(client.aclose() for client in self._clients.values()))

    # --- asking servers ---------------------------------------------------------------------------

    async def _redirected(self, commands: Sequence[Command]) -> list[Any]:
        """Replies and errors of a cluster. Replies that name another server are followed."""
        replies: list[Any] = [None] * len(commands)
        asked: dict[int, Node] = {}  # the node that ASK named, by index of the command
        todo = list(range(len(commands)))
        for num_rounds in itertools.count():
            if num_rounds > 1:
                await asyncio.sleep(REDIRECT_PAUSE_S)
            groups: defaultdict[tuple[Node, str], list[int]] = defaultdict(list)
            for index in todo:
                if index in asked:
                    groups[asked[index], "ASKING"].append(index)
                else:
                    groups[self._shard_of(commands[index]).primary, ""].append(index)
            answers = await asyncio.gather(
                *(
                    self._send_or_fail(node, [commands[index] for index in indices], prefix)
                    for (node, prefix), indices in groups.items()
                )
            )
            for ((node, _), indices), answer in zip(groups.items(), answers, strict=True):
                for index, reply in zip(indices, answer, strict=True):
                    replies[index] = reply
                    self._redirect(index, reply, node, asked)
            todo = [i for i in todo if isinstance(replies[i], AskError | TryAgainError)]
            if not todo:
                break
        return replies

    def _redirect(self, index: int, reply: Any, node: Node, asked: dict[int, Node]) -> None:
        if isinstance(reply, MovedError):  # MovedError is a subclass of AskError
            asked.pop(index, None)
            self._slots[reply.slot_id] = Shard(_node_named(reply, node))
            self._doubt.set()
        elif isinstance(reply, AskError):
            asked[index] = _node_named(reply, node)

    async def _send_or_fail(
        self, node: Node, commands: Sequence[Command], prefix: str
    ) -> Sequence[Any]:
        """Like `_send`, but returns errors, so that the other nodes of a call can still answer."""
        try:
            return await self._send(node, commands, prefix)
        except (RedisError, OSError) as error:
            return [error] * len(commands)

    async def _send(self, node: Node, commands: Sequence[Command], prefix: str = "") -> list[Any]:
        """Replies and errors, one for each command. prefix: a command to send before each of them

        Servers, and proxies before them, close idle connections. A connection that is closed at
        this moment still looks open. What was sent on it is sent again.
        """
        if node not in self._clients:
            self._clients[node] = self._connect(self._url.of_server(node))
        client = self._clients[node]
        try:
            replies = await _replies(client, commands, prefix)
        except RedisConnectionError as error:
            if type(error) is not RedisConnectionError:  # the server said why
                raise
            replies = None
        if replies is None:
            await _hang_up(client)
            replies = await _replies(client, commands, prefix)
        if any(isinstance(reply, ReadOnlyError) for reply in replies):
            await _hang_up(client)  # the name may lead to another server now
        return replies

    def _shard_of(self, command: Command) -> Shard:
        return self._slots[key_slot(command.key.encode())]

    def _replica_of(self, command: Command) -> Node | None:
        """A replica that may be asked now, or None."""
        replicas = self._shard_of(command).replicas if self._replica_reads else ()
        shuffled = random.sample(replicas, len(replicas))
        return next((node for node in shuffled if self._breakers[node].admits()), None)

    def _connect(self, url: str) -> Redis:
        longest_s = 2 * self._timeout_s  # the caller's own limit is reached first
        pool = BlockingConnectionPool.from_url(
            url, max_connections=self._pool_size, timeout=longest_s, **_options(longest_s)
        )
        return Redis.from_pool(pool)

    # --- which server has which slots -------------------------------------------------------------

    async def _follow(self) -> None:
        while True:
            await self._find()
            await asyncio.sleep(DOUBTFUL_S)
            if self._known.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(CALM_S):
                        await self._doubt.wait()

    async def _find(self) -> None:
        """Ask some nodes that may know the map. The first answer is used."""
        may_know = set(self._url.seeds)
        if self._url.kind == "cluster":  # all nodes may have changed since the start
            may_know |= {shard.primary for shard in self._map.values()}
        asked = random.sample(sorted(may_know), min(NUM_ASKED, len(may_know)))
        asking = [asyncio.create_task(self._ask_for_map(node)) for node in asked]
        for task in asking:
            self._asking.add(task)
            task.add_done_callback(self._has_asked)
        for answered in asyncio.as_completed(asking):
            try:
                self._adopt(await answered)
                break
            except Exception as error:  # nonsense too, because this task must not end
                complaint = reason_of(error)
        else:
            self._complain(complaint)
        await asyncio.wait(asking)
        await self._leave()

    def _has_asked(self, task: asyncio.Task[SlotMap]) -> None:
        self._asking.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, or asyncio logs it

    async def _ask_for_map(self, node: Node) -> SlotMap:
        """Ask one node for the map. Raises RedisError or OSError.

        A node that answers but does not know the map raises RedisError.
        """
        is_cluster = self._url.kind == "cluster"
        url = self._url.of_server(node) if is_cluster else self._url.of_sentinel(node)
        async with (
            Redis.from_url(url, **_options(ASK_TIMEOUT_S)) as client,
            asyncio.timeout(ASK_TIMEOUT_S),  # cut short, closing would leave connections open
        ):
            ask: Callable[..., Awaitable[Any]] = client.execute_command
            if is_cluster:
                return _cluster_map(await ask("CLUSTER SLOTS"), node)
            name = self._url.service_name
            primary = await ask("SENTINEL GET-MASTER-ADDR-BY-NAME", name)
            if not primary:
                raise RedisError("the sentinels watch no servers of that name")
            replicas = await client.sentinel_slaves(name)
        up = [replica for replica in replicas if DOWN.isdisjoint(replica["flags"].split(","))]
        nodes = tuple(Node(replica["ip"], int(replica["port"])) for replica in up)
        return {(0, NUM_SLOTS - 1): Shard(Node(*primary), nodes)}

    def _adopt(self, found: SlotMap) -> None:
        if found != self._map and self._url.kind != "server":
            primaries = sorted({str(shard.primary) for shard in found.values()})
            log.info("history_store_found", primaries=primaries)
        self._map, self._complaint = found, ""
        # A slot without owner: whatever server is asked will say so.
        self._slots = [next(iter(found.values()))] * NUM_SLOTS
        for (first, last), shard in found.items():
            self._slots[first : last + 1] = [shard] * (last + 1 - first)
        self._known.set()

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:
            log.warning("history_store_not_found", reason=complaint)
        self._complaint = complaint

    async def _leave(self) -> None:
        """Close idle connections to servers that are no longer on the map."""
        present = {node for s in self._map.values() for node in (s.primary, *s.replicas)}
        for node in self._clients.keys() - present:
            await _hang_up(self._clients[node])


async def _replies(client: Redis, commands: Sequence[Command], prefix: str) -> list[Any]:
    pipeline = client.pipeline(transaction=False)
    for command in commands:
        if prefix:
            pipeline.execute_command(prefix)
        pipeline.execute_command(*command.args)
    try:
        replies = await pipeline.execute(raise_on_error=False)
    except UnicodeDecodeError:  # a value that this service did not write
        raise
    except (*NOT_UNDERSTOOD, ValueError) as error:  # redis-py trusts that it speaks with Redis
        raise InvalidResponse("it does not answer as Redis does") from error
    return replies[1::2] if prefix else replies


async def _hang_up(client: Redis) -> None:
    """Close the connections that nobody uses now."""
    with suppress(RedisError, OSError):
        await client.connection_pool.disconnect(inuse_connections=False)


def _options(timeout_s: float) -> dict[str, Any]:
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),  # redis-py's default retries for seconds
        "decode_responses": True,
        # With these notifications, redis-py 8.1 does not check whether the server has closed a
        # connection.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        "driver_info": None,  # else connections start with CLIENT SETINFO, which needs a right
    }


def _cluster_map(ranges: Sequence[Any], asked: Node) -> SlotMap:
    """The map, from the reply to CLUSTER SLOTS: first, last, primary, replicas of each range.

    Raises RedisError when there is no range: the node is not in a cluster yet.
    """
    if not ranges:
        raise RedisError("no slot of the cluster has an owner")
    found = {}
    for first, last, *servers in ranges:
        # Each server is host, port, and more that does not matter. No host means the node that was
        # asked. `?` means a host that the node does not know.
        nodes = [Node(server[0] or asked.host, int(server[1])) for server in servers]
        primary, *replicas = nodes
        found[first, last] = Shard(primary, tuple(n for n in replicas if n.host != "?"))
    return found


def _raise_first(replies: Sequence[Any]) -> None:
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply


def _node_named(error: AskError, asked: Node) -> Node:
    """The node that an error names.

    A node that does not know its own address leaves the host empty. Then it is the host of the node
    that was asked.
    """
    return Node(error.host or asked.host, error.port)
