"""The rights that the service needs from its store, and what happens to a call without one.

Each command that the store runs for the service, inside and outside scripts, is denied in turn.
Then the call fails, nothing of it is kept, and the same call later stores exactly once.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot
from running_valkey import REDIS_7, VALKEY, Server, clustered, running, watched
from stores import event, shown, with_store

from service.errors import HistoryUnavailable
from service.histories.event_log import log_key
from service.histories.redis_store import (
    RedisHistoryStore,
    history_key,
    marks_key,
    refused_key,
    shown_key,
)
from service.histories.scripts import RIGHTS
from service.histories.store import Attribution, RememberedAnswer, Stored

OPERATING = Path(__file__).parents[3] / "docs" / "how-to" / "operate.md"
FOREVER_S = 10**9  # a half-life in which nothing decays
Call = Callable[[], Awaitable[Any]]


def documented_acl(user: str) -> list[str]:
    """The text after ACL SETUSER in the documentation."""
    [line] = re.findall(rf"^ACL SETUSER {user} (.*)$", OPERATING.read_text(), re.MULTILINE)
    return line.replace(">PASSWORD", ">secret").split()


def set_user(server: Server, *rules: str, user: str = "unmask") -> None:
    server.ask("ACL", "SETUSER", user, *(rules or documented_acl(user)))


def rights() -> list[str]:
    return [rule[1:] for rule in documented_acl("unmask") if rule.startswith("+")]


def commands_run(server: Server) -> set[str]:
    """The commands that the server has run since CONFIG RESETSTAT, also inside scripts."""
    return {name.removeprefix("cmdstat_") for name in server.ask("INFO", "commandstats")}


def calls_of(store: RedisHistoryStore, user: str) -> dict[str, Call]:
    """All calls to the store. Their answers must always be the same."""
    click = event(user, "a", "e1", recommendation_id="r1")
    refused = event(user, "c", "e3", event_type="not_interested")
    undone = event(user, "d", "e4", event_type="undo_not_interested")
    seen = event(user, "b", "e2", recommendation_id="r1", event_type="view")
    return {
        "append": lambda: store.append([click]),
        "count": lambda: store.append([seen], ["view"]),
        "refuse": lambda: store.append([refused], (), ["not_interested"]),
        "undo": lambda: store.append([undone], (), ["not_interested"]),
        "remember": lambda: store.remember([(user, shown("r2", "c")), (user, shown("r3", "d"))]),
        "write_items": lambda: store.write_items(user, {"x": "1", "y": "2"}),
        "read": lambda: store.read(user),
        "read_page": lambda: store.read_page(user, "r1"),
        "items_version": lambda: store.items_version(user),
        "read_items": lambda: store.read_items(user, 0),
        "erase": lambda: store.erase(f"{user}-gone"),
        "fill": lambda: store.fill([(f"{user}-filled", ["a", "b"])]),
        "trend": lambda: store.count_trending(user, 1, {user: 2}, FOREVER_S),
        "read_trending": lambda: store.read_trending(FOREVER_S, 0, 99),
    }


def check_kept(server: Server, user: str) -> None:
    """Check that the store has what the calls leave, each once."""
    assert server.ask("LRANGE", history_key(user), 0, -1) == ["a"]
    assert server.ask("ZCARD", marks_key(user)) == 6  # of events, and of first hits
    assert None not in server.ask("ZMSCORE", marks_key(user), "e1", "e2")
    assert server.ask("LRANGE", refused_key(user), 0, -1) == ["c"]
    answers = server.ask("LRANGE", shown_key(user), 0, -1)
    assert [re.findall(r'"recommendation_id":"(\w+)"', text)[0] for text in answers] == [
        *("r3", "r2", "r1")
    ]
    for key in (history_key(user), marks_key(user), shown_key(user), refused_key(user)):
        assert server.ask("TTL", key) > 0
    assert server.ask("ZRANGE", f"unmask:items-order:{{{user}}}", 0, -1) == ["x", "y"]
    assert server.ask("HGETALL", f"unmask:items:{{{user}}}") == {"x": "1", "y": "2"}
    assert server.ask("EXISTS", history_key(f"{user}-gone")) == 0
    assert server.ask("LRANGE", history_key(f"{user}-filled"), 0, -1) == ["b", "a"]
    logged = [
        entry.partition(",")[2]
        for one in (user, f"{user}-gone")
        for entry in server.ask("LRANGE", log_key(history_key(one)), 0, -1)
    ]
    assert sorted(logged) == [
        f'"{user}","a","click",null,null]',
        f'"{user}","c","not_interested",null,null]',
        f'"{user}","d","undo_not_interested",null,null]',
    ]


async def prepare(store: RedisHistoryStore, user: str) -> None:
    await store.remember([(user, shown("r1", "a", "b"))])
    await store.append([event(f"{user}-gone", "a")])


def check_answers(answers: dict[str, Any]) -> None:
    assert answers["append"] == [Stored(True, Attribution("tiny@1", "b", 1, True))]
    assert answers["count"] == [Stored(True, Attribution("tiny@1", "b", 2, True))]
    assert answers["read_page"] == (
        (["a"], ["c"]),
        RememberedAnswer("r1", "tiny@1", "b", ("a", "b")),
    )
    assert answers["read"] == (["a"], ["c"])
    trending = answers["read_trending"]
    assert trending
    assert all(round(count, 4) == 2 for count in trending.values())
    assert answers["items_version"] == answers["read_items"][0] > 0
    assert answers["read_items"][1] == {"x": "1", "y": "2"}


@pytest.fixture(scope="module", params=[VALKEY, REDIS_7], ids=["valkey9", "redis7"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("rights")
    server = Server(folder, {"save": '""', "appendonly": "no"}, binary=request.param)
    with running(server):
        set_user(server, "reset", *documented_acl("unmask"))
        yield server


def test_each_command_denied_in_turn_leaves_nothing_half_done(server: Server) -> None:
    without = [right for right in rights() if right not in BESIDE]

    async def use(store: RedisHistoryStore) -> None:
        for right in without:
            user = f"without-{right}"
            await prepare(store, user)
            set_user(server, f"-{right}")
            answers: dict[str, Any] = {}
            refused = []
            for name, call in calls_of(store, user).items():
                try:
                    answers[name] = await call()
                except HistoryUnavailable:
                    refused.append(name)
            assert refused, f"{right} is not needed"
            set_user(server, f"+{right}")
            for name, call in calls_of(store, user).items():
                if name in refused or name.startswith(("read", "items")):
                    answers[name] = await call()
            check_answers(answers)
            check_kept(server, user)
            assert [fate.is_new for fate in await store.append([event(user, "a", "e1")])] == [False]
            check_kept(server, user)

    with_store(server.url_of("unmask", "secret"), use)


# Not run by scripts: of databases other than 0, of clusters and their replicas.
BESIDE = {"select", "readonly", "asking", "cluster|slots"}


def test_the_documented_rights_are_those_that_are_used(
    server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    async def use(store: RedisHistoryStore) -> None:
        await store.check()
        await prepare(store, "used")
        check_answers({name: await call() for name, call in calls_of(store, "used").items()})

    server.ask("ACL", "LOG", "RESET")
    server.ask("CONFIG", "RESETSTAT")
    with_store(server.url_of("unmask", "secret") + "/3", use)
    ours = {"info", "config|resetstat", "acl|log", "hello", "client|setinfo", "ping", "command"}
    assert commands_run(server) - ours == {*rights()} - {"readonly", "asking", "cluster|slots"}
    assert server.ask("ACL", "LOG") == []  # no command was denied
    assert {right.lower() for right in RIGHTS} == {*rights()} - BESIDE - {"eval"}
    assert "history_store_trouble" not in capfd.readouterr().out


def test_missing_rights_are_named_at_the_start(
    server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    set_user(server, "-ltrim", "-del")
    try:
        with_store(server.url_of("unmask", "secret"), lambda store: store.check())
    finally:
        set_user(server, "+ltrim", "+del")
    [line] = [line for line in capfd.readouterr().out.splitlines() if "history_store" in line]
    assert "its user may not run del, ltrim: give it the rights that docs/how-to/operate.md" in line


def test_without_lrem_a_refusal_fails_the_call_and_the_other_events_are_stored(
    server: Server,
) -> None:
    click = event("lacks", "a", "e1")
    refused = event("lacks", "c", "e2", event_type="not_interested")

    async def use(store: RedisHistoryStore) -> None:
        set_user(server, "-lrem")
        try:
            with pytest.raises(HistoryUnavailable):
                await store.append([click, refused], (), ["not_interested"])
        finally:
            set_user(server, "+lrem")
        assert await store.read("lacks") == (["a"], [])
        again = await store.append([click, refused], (), ["not_interested"])
        assert [fate.is_new for fate in again] == [False, True]
        assert await store.read("lacks") == (["a"], ["c"])

    with_store(server.url_of("unmask", "secret"), use)


def test_a_store_without_the_keys_of_refusals_is_said_at_the_start(
    server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    others = ("history", "marks", "recs", "items", "items-order", "log")
    set_user(server, "resetkeys", *(f"~unmask:{kind}:*" for kind in others))
    try:
        with pytest.raises(HistoryUnavailable):
            with_store(server.url_of("unmask", "secret"), lambda store: store.check())
    finally:
        set_user(server, "resetkeys", "~unmask:*")
    [line] = [line for line in capfd.readouterr().out.splitlines() if "history_store" in line]
    assert "its user may not use keys that start with unmask" in line


def test_the_documented_rights_are_enough_for_a_cluster(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    users = [f"user-{n}" for n in range(5)]

    async def use(store: RedisHistoryStore) -> None:
        await store.check()
        for user in users:
            await prepare(store, user)
            answers = {}
            for name, call in calls_of(store, user).items():
                answers[name] = await call()
                for node in nodes[:3]:  # the replica answers reads
                    await asyncio.to_thread(node.ask, "WAIT", int(node is nodes[0]), 5000)
            check_answers(answers)
        for node in nodes:
            set_user(node, "+scan", "+cluster|nodes")  # what `histories export` needs beside
        named = [user async for portion in store.users() for user in portion]
        assert sorted({*named}) == sorted([*users, *(f"{user}-filled" for user in users)])
        assert await store.clock_ms() > 0
        await follow_a_slot(store)

    async def follow_a_slot(store: RedisHistoryStore) -> None:
        slot = key_slot(history_key("user-0").encode())
        owners = [node for node in nodes[:3] if node.ask("CLUSTER", "COUNTKEYSINSLOT", slot)]
        source, target = owners[0], next(node for node in nodes[1:3] if node not in owners)
        target.ask("CLUSTER SETSLOT", slot, "IMPORTING", source.ask("CLUSTER MYID"))
        source.ask("CLUSTER SETSLOT", slot, "MIGRATING", target.ask("CLUSTER MYID"))
        keys = source.ask("CLUSTER GETKEYSINSLOT", slot, 10)
        source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        assert await store.read_page("user-0", "nothing") == ((["a"], ["c"]), None)  # ASK

    with clustered(tmp_path) as nodes:
        for node in nodes:
            set_user(node, "reset", *documented_acl("unmask"))
            node.ask("CONFIG", "RESETSTAT")
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        with_store(f"redis+cluster://unmask:secret@{hosts}", use, replica_reads=True)
        assert [node.ask("ACL", "LOG") for node in nodes] == [[]] * 4
        run = set().union(*(commands_run(node) for node in nodes))
    assert {"readonly", "asking", "cluster|slots"} <= run
    assert "history_store_trouble" not in capfd.readouterr().out


def test_the_documented_rights_are_enough_behind_sentinels(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def use(store: RedisHistoryStore) -> None:
        await store.check()
        await prepare(store, "sen")
        answers = {}
        for name, call in calls_of(store, "sen").items():
            answers[name] = await call()
            await asyncio.to_thread(primary.ask, "WAIT", 1, 5000)
        check_answers(answers)

    with watched(tmp_path, password="other") as (primary, replica, sentinel):
        for server in (primary, replica):
            set_user(server, "reset", *documented_acl("unmask"))
        set_user(sentinel, "reset", *documented_acl("unmask-finder"), user="unmask-finder")
        logs = [(server, server.ask("ACL", "LOG", "RESET")) for server in (primary, sentinel)]
        with_store(
            f"redis+sentinel://unmask:secret@127.0.0.1:{sentinel.port}/shop/1"
            "?sentinel_username=unmask-finder&sentinel_password=secret",
            use,
            replica_reads=True,
        )
        assert [server.ask("ACL", "LOG") for server, _ in logs] == [[], []]
    assert "history_store_trouble" not in capfd.readouterr().out
