"""Which servers the store's calls reach: replicas, a cluster, sentinels. All are real and fail."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from ports import find_free_port
from redis.asyncio import Redis
from redis.crc import key_slot
from running_service import PATIENCE_S, wait_until
from running_valkey import Server, clustered, replicated, watched
from stores import answered, event, shown, with_store

from service.errors import HistoryUnavailable
from service.histories.redis_store import MARK_TTL_S, RedisHistoryStore, history_key
from service.telemetry.metrics import Metrics

PASSWORD = "hunter2@/?"
ESCAPED = "hunter2%40%2F%3F"
USERS = [f"user-{n}" for n in range(30)]


# --- a replica of one server ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    with replicated(tmp_path_factory.mktemp("pair")) as servers:
        yield servers


def fallbacks(metrics: Metrics) -> float | None:
    labels = {"operation": "read", "kind": "replica"}
    return metrics.registry.get_sample_value("unmask_redis_errors_total", labels)


def test_histories_are_read_from_the_replica(pair: tuple[Server, Server]) -> None:
    primary, replica = pair

    async def use(store: RedisHistoryStore) -> None:
        await store.append([event("rep", "a")])
        await asyncio.to_thread(wait_until, lambda: replica.ask("EXISTS", history_key("rep")))
        with primary.stopped():
            assert (await store.read("rep")).history == ["a"]
            with pytest.raises(HistoryUnavailable):  # it may have been written a moment ago
                await store.read_page("rep", "r1")

    metrics = Metrics()
    with_store(primary.url, use, timeout_s=1, replica_url=replica.url, metrics=metrics)
    assert fallbacks(metrics) == 0


def test_a_stalled_replica_costs_half_the_timeout(pair: tuple[Server, Server]) -> None:
    """In the other half the primary answers. After five times the replica is not asked any more."""
    primary, replica = pair
    metrics = Metrics()

    async def use(store: RedisHistoryStore) -> None:
        await store.append([event("slow", "a")])
        assert (await store.read("slow")).history in ([], ["a"])
        with replica.stopped():
            for _ in range(20):
                assert (await store.read("slow")).history == ["a"]

    with_store(primary.url, use, timeout_s=1, replica_url=replica.url, metrics=metrics)
    assert fallbacks(metrics) == 5


def test_a_missing_replica_is_no_trouble(pair: tuple[Server, Server]) -> None:
    async def use(store: RedisHistoryStore) -> None:
        await store.append([event("gone", "a")])
        assert (await store.read("gone")).history == ["a"]

    nobody = f"redis://127.0.0.1:{find_free_port()}"
    with_store(pair[0].url, use, replica_url=nobody)


# --- a cluster ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    folder = tmp_path_factory.mktemp("cluster")
    with clustered(folder, **{"cluster-require-full-coverage": "no"}) as nodes:
        yield nodes


def url_of(nodes: list[Server]) -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)


def owner_of(user_id: str, nodes: list[Server]) -> Server:
    slot = key_slot(history_key(user_id).encode())
    ranges = nodes[1].ask("CLUSTER SLOTS")
    [port] = [primary[1] for first, last, primary, *_ in ranges if first <= slot <= last]
    return next(node for node in nodes if node.port == port)


def test_a_cluster_keeps_histories_on_all_its_nodes(cluster: list[Server]) -> None:
    async def use(store: RedisHistoryStore) -> None:
        events = [event(user, item) for item in "ab" for user in USERS]
        named = {"recommendation_id": "r1"}
        stored = await store.append(events)
        assert all(fate.is_new for fate in stored)
        await store.remember([(user, shown("r1", "c")) for user in USERS])
        stored = await store.append([event(user, "c", **named) for user in USERS])
        assert all(fate.attribution and fate.attribution.is_first for fate in stored)
        for user in USERS:
            assert (await store.read(user)).history == ["a", "b", "c"]
            assert await store.read_page(user, "r1") == ((["a", "b", "c"], []), shown("r1", "c"))
            await store.erase(user)
            assert await store.read_page(user, "r1") == (([], []), None)

    assert len({owner_of(user, cluster).port for user in USERS}) == 3
    with_store(url_of(cluster), use)
    assert [node.ask("DBSIZE") for node in cluster] == [0] * 4


def test_one_node_of_a_cluster_is_not_a_store(
    cluster: list[Server], capfd: pytest.CaptureFixture[str]
) -> None:
    async def use(store: RedisHistoryStore) -> None:
        for user in USERS:
            if owner_of(user, cluster) is not cluster[1]:
                with pytest.raises(HistoryUnavailable):
                    await store.read(user)

    with_store(cluster[1].url, use)
    [line] = [text for text in capfd.readouterr().out.splitlines() if "history_store" in text]
    assert "it is a node of a cluster: the URL must start with redis+cluster://" in line


def test_one_seed_that_answers_is_enough(cluster: list[Server]) -> None:
    async def use(store: RedisHistoryStore) -> None:
        assert (await store.read("any")).history == []

    dead = f"127.0.0.1:{find_free_port()}"
    with_store(f"redis+cluster://{dead},127.0.0.1:{cluster[1].port},{dead}", use)


def test_closing_while_nodes_are_asked_for_the_map_leaves_no_connection_open(
    cluster: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancellation at the end of redis-py's `async with` would leave it open."""
    decrement = Redis._decrement_usage

    async def story() -> None:
        is_leaving = asyncio.Event()

        async def slowly(client: Redis) -> int:
            is_leaving.set()
            await asyncio.sleep(0.05)
            return await decrement(client)

        monkeypatch.setattr(Redis, "_decrement_usage", slowly)
        store = RedisHistoryStore(
            url_of(cluster),
            Metrics(),
            timeout_s=5,
            pool_size=1,
            history_cap=10,
            history_ttl_s=100,
        )
        await is_leaving.wait()
        await store.close()

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        asyncio.run(story())
        gc.collect()
    assert [str(one.message) for one in seen if one.category is ResourceWarning] == []


def test_a_slot_on_the_move_is_followed(cluster: list[Server]) -> None:
    slot = key_slot(history_key("mover").encode())
    source = owner_of("mover", cluster)
    target = next(node for node in cluster[1:3] if node is not source)
    source_id, target_id = source.ask("CLUSTER MYID"), target.ask("CLUSTER MYID")

    def move_keys() -> None:
        while keys := source.ask("CLUSTER GETKEYSINSLOT", slot, 10):
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)

    def finish() -> None:
        wait_until(lambda: any("TRYAGAIN" in str(node.ask("INFO errorstats")) for node in cluster))
        move_keys()
        for node in (target, source, *cluster):
            if node is not cluster[3]:
                node.ask("CLUSTER SETSLOT", slot, "NODE", target_id)

    async def use(store: RedisHistoryStore) -> None:
        await store.append([event("mover", "a")])
        await store.remember([("mover", shown("r1", "b"))])
        # Several connections to the target: ASKING and its command must share one.
        users = [user for user in USERS if owner_of(user, cluster) is target]
        await asyncio.gather(*(store.read(user) for user in users))
        await asyncio.to_thread(target.ask, "CLUSTER SETSLOT", slot, "IMPORTING", source_id)
        await asyncio.to_thread(source.ask, "CLUSTER SETSLOT", slot, "MIGRATING", target_id)
        assert (await store.read("mover")).history == ["a"]
        await asyncio.to_thread(move_keys)
        for _ in range(3):
            assert await store.read_page("mover", "r1") == ((["a"], []), shown("r1", "b"))  # ASK
        stored = await store.append([event("mover", "b", recommendation_id="r1")])  # ASK, 3 keys
        assert stored[0].attribution
        await store.erase("mover")
        # Some of an event's keys are nowhere now: TRYAGAIN until the slot has arrived, then MOVED.
        finishing = asyncio.create_task(asyncio.to_thread(finish))
        await store.append([event("mover", "c"), event("mover", "d")])
        await finishing
        assert (await store.read("mover")).history == ["c", "d"]
        assert target.ask("LLEN", history_key("mover")) == 2

    with_store(url_of(cluster), use, timeout_s=PATIENCE_S)


def test_replicas_of_a_cluster_answer_reads(cluster: list[Server]) -> None:
    user = next(user for user in USERS if owner_of(user, cluster) is cluster[0])

    async def use(store: RedisHistoryStore) -> None:
        await store.append([event(user, "a")])
        assert await asyncio.to_thread(cluster[0].ask, "WAIT", 1, 0) == 1
        with cluster[0].stopped():
            assert (await store.read(user)).history == ["a"]

    metrics = Metrics()
    with_store(url_of(cluster), use, replica_reads=True, metrics=metrics)
    assert fallbacks(metrics) == 0


def test_a_stalled_node_costs_its_own_users_the_timeout(cluster: list[Server]) -> None:
    stalled = cluster[2]
    theirs = next(user for user in USERS if owner_of(user, cluster) is stalled)
    others = next(user for user in USERS if owner_of(user, cluster) is cluster[1])

    async def use(store: RedisHistoryStore) -> None:
        await store.read(theirs)
        with stalled.stopped():
            stalled_read = asyncio.create_task(store.read(theirs))
            assert (await store.read(others)).history == []
            assert not stalled_read.done()
            with pytest.raises(HistoryUnavailable):
                await stalled_read
        assert await answered(lambda: store.read(theirs)) == ([], [])

    with_store(url_of(cluster), use, timeout_s=1)


def test_a_failover_in_a_cluster_is_followed(cluster: list[Server]) -> None:
    """The last of the cluster's tests, because one of its nodes is gone afterwards."""
    user = next(user for user in USERS if owner_of(user, cluster) is cluster[0])

    async def use(store: RedisHistoryStore) -> None:
        await store.erase(user)
        await store.append([event(user, "a")])
        assert await asyncio.to_thread(cluster[0].ask, "WAIT", 1, 0) == 1
        cluster[0].kill()
        with pytest.raises(HistoryUnavailable):
            await store.read(user)
        assert await answered(lambda: store.append([event(user, "b")]))
        assert await answered(lambda: store.read(user)) == (["a", "b"], [])

    with_store(url_of(cluster), use, timeout_s=1)
    assert owner_of(user, cluster[1:]) is cluster[3]


# --- sentinels ------------------------------------------------------------------------------------


def test_sentinels_say_which_server_to_ask_and_a_failover_is_followed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    metrics = Metrics()

    async def use(store: RedisHistoryStore) -> None:
        await store.append([event("sen", "a")])
        assert await asyncio.to_thread(primary.ask, "WAIT", 1, 0) == 1
        with primary.stopped():  # nothing breaks the connections to it
            assert (await store.read("sen")).history == ["a"]  # from the replica
            with pytest.raises(HistoryUnavailable) as caught:
                await store.append([event("sen", "b")])
            assert "hunter2" not in str(caught.value)
            await answered(lambda: store.append([event("sen", "b")]))
            assert await answered(lambda: store.read("sen")) == (["a", "b"], [])
            assert replica.ask("ROLE")[0] == "master"
        # The old primary wakes up and still believes that it is the primary, until the sentinel
        # tells it.
        await answered(lambda: store.append([event("sen", "c")]))
        assert await answered(lambda: store.read("sen")) == (["a", "b", "c"], [])

    with watched(tmp_path, password=PASSWORD) as (primary, replica, sentinel):
        hosts = f"127.0.0.1:{find_free_port()},127.0.0.1:{sentinel.port}"
        url = f"redis+sentinel://:{ESCAPED}@{hosts}/shop/0?sentinel_password={ESCAPED}"
        with_store(url, use, timeout_s=0.6, replica_reads=True, metrics=metrics)
    captured = capfd.readouterr()
    assert "history_store_found" in captured.out
    assert "hunter2" not in captured.out + captured.err


def test_sentinels_that_do_not_know_the_name_are_logged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sentinel = Server(tmp_path, {}, sentinel=True)

    async def use(store: RedisHistoryStore) -> None:
        with pytest.raises(HistoryUnavailable):
            await store.read("any")

    sentinel.start()
    try:
        with_store(f"redis+sentinel://127.0.0.1:{sentinel.port}/shop", use, timeout_s=0.4)
    finally:
        sentinel.kill()
    assert "watch no servers of that name" in capfd.readouterr().out


# --- durability -----------------------------------------------------------------------------------


def test_no_acknowledged_event_is_lost_when_the_store_is_killed(tmp_path: Path) -> None:
    server = Server(tmp_path, {"appendonly": "yes", "save": '""'})
    events = [event("dur", f"item-{n}") for n in range(300)]
    acknowledged = 0

    def kill_and_restart(num_times: int) -> None:
        for _ in range(num_times):
            seen = acknowledged
            wait_until(lambda seen=seen: acknowledged > seen + 20)
            server.kill()
            server.start()

    async def use(store: RedisHistoryStore) -> None:
        nonlocal acknowledged
        killing = asyncio.create_task(asyncio.to_thread(kill_and_restart, 2))
        for start in range(0, len(events), 3):
            batch = events[start : start + 3]
            await answered(lambda batch=batch: store.append(batch))
            acknowledged += len(batch)
            await asyncio.sleep(0.005)
        await killing
        assert await answered(lambda: store.read("dur")) == ([e.item_id for e in events], [])
        assert not any(fate.is_new for fate in await store.append(events[:100]))

    server.start()
    try:
        with_store(server.url, use, cap=1000, ttl_s=MARK_TTL_S)
    finally:
        server.kill()
