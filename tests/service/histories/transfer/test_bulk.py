"""Histories and events between files and real stores: nothing lost, nothing twice, order kept."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.crc import key_slot
from running_valkey import Server, clustered, running
from stores import event, with_store

from service.errors import HistoryUnavailable, TransferFailed
from service.histories import (
    RedisHistoryStore,
    export_events,
    export_histories,
    load_histories,
    read_histories,
)
from service.histories.redis_store import history_key
from service.histories.transfer import bulk
from training.data.interactions import read_interactions

LOG_S = 1000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "valkey", {"save": '""'})
    with running(server):
        yield server


def silent(done: int) -> None:
    pass


def is_run(part: list[str], whole: list[str]) -> bool:
    return any(whole[at : at + len(part)] == part for at in range(len(whole) + 1))


def filled(log: list[str], stored: list[str], cap: int) -> list[str] | None:
    """What `fill` must leave, oldest to newest: the slow, plain way. None: as it was"""
    if is_run(stored, log):
        return log[-cap:]
    if is_run(log, stored):
        return stored
    same = next(n for n in range(len(log), -1, -1) if log[len(log) - n :] == stored[:n])
    if same or not {*log} & {*stored}:
        return (log + stored[same:])[-cap:]
    return None


def test_filling_adds_what_is_older_and_what_is_newer(redis_url: str) -> None:
    draw = random.Random(7)
    kinds: Counter[str] = Counter()

    def some(least: int, most: int, items: str) -> list[str]:
        return draw.choices(items, k=draw.randint(least, most))

    async def use(store: RedisHistoryStore) -> None:
        for number in range(400):
            user, log = f"f-{number}", some(1, 12, "abcde"[: draw.randint(1, 5)])
            start, end = sorted(draw.choices(range(len(log) + 1), k=2))
            stored = draw.choice(
                [
                    some(0, 5, "abcde"),
                    some(0, 5, "xy"),
                    log[start:end],
                    log[start:] + some(0, 3, "axy"),
                    some(0, 3, "xy") + log[:end],
                    some(0, 2, "axy") + log + some(0, 2, "axy"),
                ]
            )
            if stored:
                await store.append([event(user, item, str(n)) for n, item in enumerate(stored)])
            stored = stored[-6:]
            expected = filled(log, stored, 6)
            [gained] = await store.fill([(user, log)])
            if expected is None:
                kinds["unlike"] += 1
                assert gained is None
                expected = stored
            else:
                kinds["added" if gained else "had it"] += 1
                assert gained is not None
                assert (gained > 0) == (expected != stored)
            assert (await store.read(user)).history == expected
            assert await store.fill([(user, log)]) == [None if gained is None else 0]
            await store.append([event(user, "live", "live")])
            assert await store.fill([(user, log)]) in ([0], [None])
            assert (await store.read(user)).history == [*expected, "live"][-6:]

    with_store(redis_url, use, cap=6)
    assert min(kinds["unlike"], kinds["added"], kinds["had it"]) > 30
    with redis.Redis.from_url(redis_url) as client:
        assert 0 < client.ttl(history_key("f-1")) <= 1000


def test_a_log_that_grew_is_loaded_again(redis_url: str) -> None:
    """Also when histories are full, and were full before."""

    def days(first: int, last: int) -> list[str]:
        return [f"e{day}" for day in range(first, last + 1)]

    async def use(store: RedisHistoryStore) -> None:
        async def gained(log: list[str]) -> int | None:
            return (await store.fill([("grows", log)]))[0]

        assert await gained(days(1, 5)) == 5
        assert await gained(days(1, 8)) == 3
        assert await gained(days(1, 12)) == 4
        assert await gained(days(1, 2000)) == 10
        assert (await store.read("grows")).history == days(1991, 2000)
        await store.append([event("grows", "live")])
        assert await gained(days(1, 2000)) == 0
        assert await gained(days(1995, 2001)) is None
        assert (await store.read("grows")).history == [*days(1992, 2000), "live"]
        await store.append([event("few", item) for item in days(4, 5)])
        assert await store.fill([("few", days(1, 8))]) == [6]
        assert (await store.read("few")).history == days(1, 8)

    with_store(redis_url, use, cap=10)


def test_a_long_history_is_filled_whole(redis_url: str) -> None:
    items = [f"i{n}" for n in range(20_000)]

    async def use(store: RedisHistoryStore) -> None:
        await store.append([event("f-long", "new")])
        assert await store.fill([("f-long", items)]) == [19_999]
        assert (await store.read("f-long")).history == [*items[1:], "new"]
        await store.append([event("f-grows", items[7])])
        assert await store.fill([("f-grows", items)]) == [19_999]
        assert (await store.read("f-grows")).history == items
        await store.append([event("f-same", "i", str(n)) for n in range(300)])
        assert await store.fill([("f-same", [*["i"] * 20_000, "j"])]) == [19_700]

    with_store(redis_url, use, cap=20_000)


def write(path: Path, lines: Sequence[str]) -> Path:
    text = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def as_json(*fields: Any, **named: Any) -> str:
    record = dict(zip(("user_id", "item_id", "timestamp"), fields, strict=False)) | named
    return json.dumps(record)


EXPECTED = {"u1": ["b", "c", "d"], "7": ["x"]}
LOGS = {
    "log.csv": [
        "item_id,User_Id,timestamp,rating",
        *("d,u1,9,1", "a,u1,1,2", '"b",u1,2,', "x,7,2,4", "c,u1,2,3"),
    ],
    "log.csv.gz": [
        "user_id,item_id,timestamp",
        *("u1,a,2026-01-01", "u1,d,2026-01-03T10:00:00Z", "u1,b,2026-01-03T10:00:00+02:00"),
        *("u1,c,2026-01-03T09:00", "7,x,2025-05-05"),
    ],
    "log.jsonl": [
        *(as_json("u1", "d", 1.5, event_type="click"), as_json("u1", "a", -1)),
        *("", as_json(7, "x", 1), as_json("u1", "b", "1.25"), as_json("u1", "c", 1.25)),
    ],
    "histories.jsonl.gz": [
        as_json("u1", history=["z", "a", "b", "c", "d"]),
        as_json(7, history=["x"]),
    ],
}


@pytest.mark.parametrize("name", LOGS)
def test_files_are_read_with_the_newest_items_of_each_user(name: str, tmp_path: Path) -> None:
    assert dict(read_histories(write(tmp_path / name, LOGS[name]), 3)) == EXPECTED


def test_a_byte_order_mark_and_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b"\xef\xbb\xbfuser_id,item_id,timestamp\r\nu,i,1\r\n")
    assert list(read_histories(path, 3)) == [("u", ["i"])]
    path.write_bytes(b"user_id,item_id,timestamp\n")
    assert list(read_histories(path, 3)) == []


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl"])
def test_lines_of_other_types_are_left_out(name: str, tmp_path: Path) -> None:
    """A line that is left out may lack the rest."""
    rows = [("u", "a", 1, "click"), ("u", "b", 2, "view"), ("u", "", 3, "view"), ("v", "c", 4, "")]
    lines = ["user_id,item_id,timestamp,event_type", *(",".join(map(str, row)) for row in rows)]
    if name == "log.jsonl":
        lines = [as_json(*row[:3], event_type=row[3]) for row in rows] + [as_json("w", "d", 5)]
    asked = []

    def is_taken(event_type: str) -> bool:
        asked.append(event_type)
        return event_type == "click"

    found = dict(read_histories(write(tmp_path / name, lines), 3, is_taken))
    assert found == {"u": ["a"], "v": ["c"]} | ({"w": ["d"]} if name == "log.jsonl" else {})
    assert asked == ["click", "view", "view"]


HEADER = b"user_id,item_id,timestamp\n"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "names no column user_id"),
        (b"user_id;item_id;timestamp\n", "names no column user_id"),
        (HEADER + b"u,i\n", "line 2: 2 fields, but the first line names 3"),
        (HEADER + b"u,i,1\nu,,1\n", "line 3: there is no item_id"),
        (HEADER + b"u,i,soon\n", "line 2: timestamp must be a number or a date"),
        (HEADER + b"u,i,nan\n", "line 2: timestamp must be"),
        (HEADER + b"u,i,1\nu,i,2026-01-01\n", "line 3: its timestamp is a date"),
        (HEADER + b'u,"i,1\n', "no CSV"),
        (HEADER + b"u,\xff,1\n", "line 2: no text in UTF-8"),
        (b'{"user_id": "u", "item_id": "i", "timestamp": 1}\n[]\n', "line 2: no JSON object"),
        (b'{"user_id": "u", "item_id": [1], "timestamp": 1}\n', "line 1: ids must be text"),
        (b'{"user_id": "\\ud800", "item_id": "i", "timestamp": 1}\n', "line 1: ids must be text"),
        (b'{"user_id": "u", "history": "i"}\n', "line 1: user_id and a list, history, are needed"),
        (b"PAR1....", "is a parquet file: save it as CSV or JSON lines"),
        (gzip.compress(HEADER + b"u,i,1\n", mtime=0)[:-4], "is damaged after line"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "log"
    path.write_bytes(content)
    with pytest.raises(TransferFailed, match=why):
        list(read_histories(path, 10))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TransferFailed, match="cannot be read: No such file"):
        list(read_histories(tmp_path / "none", 10))


def contents(server: Server) -> dict[str, list[str]]:
    keys = server.ask("KEYS", "unmask:history:*")
    return {key: server.ask("LRANGE", key, 0, -1) for key in keys}


def test_a_load_that_broke_off_is_run_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "USERS_AT_ONCE", 10)
    histories = [(f"u{n}", [f"i{n}", "i"]) for n in range(45)] + [("a/b", ["i"]), ("u0/", [""])]

    async def break_off(store: RedisHistoryStore) -> None:
        def stop(done: int) -> None:
            if done == 20:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            await load_histories(store, histories, stop)
        await store.append([event("u0", "live"), event("u40", "live")])

    async def load(store: RedisHistoryStore) -> bulk.Loaded:
        return await load_histories(store, histories, silent)

    with_store(server.url, break_off)
    assert with_store(server.url, load) == bulk.Loaded(47, 25, 50, 2, 1, 0)
    once = contents(server)
    assert once[history_key("u0")] == ["live", "i", "i0"]
    assert with_store(server.url, load) == bulk.Loaded(47, 0, 0, 2, 1, 0)
    assert contents(server) == once


def test_histories_go_into_another_store_by_way_of_a_file(server: Server, tmp_path: Path) -> None:
    """One server, then a cluster: of another kind, or another vendor's."""
    histories = {f"user {n}": [f"é{n}", "\n", '"'][: 1 + n % 3] for n in range(1500)}
    path = tmp_path / "histories.jsonl.gz"

    async def fill(store: RedisHistoryStore) -> int:
        await load_histories(store, histories.items(), silent)
        return await export_histories(store, path, silent)

    assert with_store(server.url, fill) == 1500
    assert {user: items for user, items in read_histories(path, 10)} == histories

    async def move(store: RedisHistoryStore) -> None:
        found = await load_histories(store, read_histories(path, 10), silent)
        assert found.items == sum(map(len, histories.values()))
        await store.append([event("user 0", "late", "late")])
        await store.erase("user 1")
        assert await export_histories(store, path, silent) == 1499
        expected = histories | {"user 0": [*histories["user 0"], "late"]}
        del expected["user 1"]
        assert {user: items for user, items in read_histories(path, 10)} == expected
        exported = await export_events(store, path, silent, **window())
        assert exported.events == 1
        slot = key_slot(history_key("user 0").encode())
        source = next(node for node in nodes[:3] if node.ask("CLUSTER COUNTKEYSINSLOT", slot))
        target = next(node for node in nodes[:3] if node is not source)
        target.ask("CLUSTER SETSLOT", slot, "IMPORTING", source.ask("CLUSTER MYID"))
        source.ask("CLUSTER SETSLOT", slot, "MIGRATING", target.ask("CLUSTER MYID"))
        before = path.read_bytes()
        with pytest.raises(HistoryUnavailable):
            await export_histories(store, path, silent)
        assert path.read_bytes() == before

    with clustered(tmp_path / "cluster") as nodes:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        with_store(f"redis+cluster://{hosts}", move)


def window(since: float = 0.0, until: float | None = None, **more: Any) -> dict[str, Any]:
    return {"since": since, "until": until, "log_s": LOG_S, "timestamps": "seconds", **more}


@pytest.mark.parametrize("timestamps", ["seconds", "iso"])
def test_what_is_exported_is_what_training_reads(
    server: Server, tmp_path: Path, timestamps: bulk.Timestamps
) -> None:
    path = tmp_path / "interactions.jsonl"
    draw = random.Random(3)
    sent: dict[str, list[str]] = {}

    async def use(store: RedisHistoryStore) -> None:
        for n in range(400):
            user, item = f"0{draw.randrange(30)}", f"it é/{draw.randrange(20)}"
            own = {"timestamp": 1e9 + n / 3, "value": 0.5} if user == "01" else {}
            await store.append([event(user, item, str(n), **own)])
            sent.setdefault(user, []).append(item)
        strange = ["new\nline", "..", " a", "a\u2003", "\x7f", "\x85"]
        await store.append([event("02", item) for item in strange])
        await store.append([event(user, "a", user) for user in (" b", "\u2003")])
        await store.append([event("end", "it é/1")])
        while True:
            found = await export_events(store, path, silent, **window(timestamps=timestamps))
            if found.events == 401:  # else it is still the millisecond of the last event
                break
        assert found.left_out == len(strange) + 2
        sent["end"] = ["it é/1"]

    with_store(server.url, use)
    found = read_interactions(path)
    assert {
        user: [found.item_ids[row] for row in found.rows[start:end]]
        for user, start, end in zip(found.user_ids, found.indptr, found.indptr[1:], strict=False)
    } == {
        user: [item for n, item in enumerate(items) if n == 0 or items[n - 1] != item]
        for user, items in sent.items()
    }


def test_exports_one_after_another_miss_nothing_and_have_nothing_twice(
    server: Server, tmp_path: Path
) -> None:
    async def use(store: RedisHistoryStore) -> None:
        since, sent, exported = 0.0, [], []
        for round_ in range(3):
            events = [event(f"u{n % 7}", f"{round_}-{n}") for n in range(50)]
            await store.append(events[:25])
            path = tmp_path / f"{round_}.jsonl"
            found = await export_events(store, path, silent, **window(since))
            exported += [json.loads(line)["item_id"] for line in path.read_text().splitlines()]
            assert len(exported) == len(set(exported))
            since = found.until
            await store.append(events[25:])
            sent += [one.item_id for one in events]
        last = await store.clock_ms()
        while await store.clock_ms() == last:  # events of this millisecond belong to the next file
            pass
        await export_events(store, path, silent, **window(since))
        exported += [json.loads(line)["item_id"] for line in path.read_text().splitlines()]
        assert sorted(exported) == sorted(sent)
        both = await export_events(store, path, silent, **window(since, since))
        assert both.events == 0

    with_store(server.url, use)


def test_erased_users_and_old_events_are_not_exported(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"

    async def use(store: RedisHistoryStore) -> bulk.Exported:
        await store.append([event("gone", "a"), event("stays", "a"), event("back", "a")])
        await store.erase("gone")
        await store.erase("back")
        await store.append([event("back", "b")])
        old = f'[{await store.clock_ms() - LOG_S * 1000 - 1},"old","a","click",null,null]'
        server.ask("RPUSH", "unmask:log:{@@@@}", old)
        while (found := await export_events(store, path, silent, **window())).events != 2:
            pass  # still the millisecond of the last event
        return found

    found = with_store(server.url, use)
    assert found.until - found.since == pytest.approx(LOG_S)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted((line["user_id"], line["item_id"]) for line in lines) == [
        ("back", "b"),
        ("stays", "a"),
    ]
    assert lines[0].keys() == {"user_id", "item_id", "timestamp", "event_type"}


def test_a_file_that_cannot_be_written_is_named(server: Server, tmp_path: Path) -> None:
    async def use(store: RedisHistoryStore) -> None:
        with pytest.raises(TransferFailed, match="cannot be written: No such file or directory"):
            await export_histories(store, tmp_path / "none" / "h.jsonl", silent)
        (tmp_path / "file").touch()
        with pytest.raises(TransferFailed, match="cannot be written: Not a directory"):
            await export_histories(store, tmp_path / "file" / "h.jsonl", silent)

    with_store(server.url, use)


def test_an_export_of_no_time_is_refused(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "x"

    async def use(store: RedisHistoryStore) -> None:
        now = await store.clock_ms() / 1000
        with pytest.raises(TransferFailed, match="end before it begins: set --since before"):
            await export_events(store, path, silent, **window(now, now - 1))
        with pytest.raises(TransferFailed, match="begin in the future: set --since to a time"):
            await export_events(store, path, silent, **window(now + 1000))

    with_store(server.url, use)
    assert not path.exists()
