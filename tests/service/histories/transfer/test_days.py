"""`events export --days`: a file for each whole day after the newest one of the folder."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
from running_valkey import Server, running
from stores import event, with_store

from service.errors import TransferFailed
from service.histories.event_log import log_key, rest_of_entry
from service.histories.redis_store import RedisHistoryStore, history_key
from service.histories.transfer import command_parser, run_command

MIDNIGHT = datetime(2026, 11, 30, tzinfo=UTC)
DAY = [f"{(MIDNIGHT - timedelta(days=ago)).date()}" for ago in range(8)]


@pytest.fixture(autouse=True)
def a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the morning of a day that does not end during the test."""

    async def clock_ms(store: RedisHistoryStore) -> int:
        return int((MIDNIGHT + timedelta(hours=3)).timestamp() * 1000)

    monkeypatch.setattr(RedisHistoryStore, "clock_ms", clock_ms)


def export(valkey: Server, folder: Path, days: int = 5) -> str:
    async def use(store: RedisHistoryStore) -> str:
        asked = command_parser().parse_args(["events", "export", "--days", str(folder)])
        return await run_command(
            asked, store, history_cap=200, history_event_types=[], event_log_days=days
        )

    return with_store(valkey.url, use)


def put_event(valkey: Server, item_id: str, at: datetime, **fields: str) -> None:
    """As if it had come in then."""
    entry = f"[{int(at.timestamp() * 1000)},{rest_of_entry(event('u', item_id, **fields))}"
    with redis.Redis.from_url(valkey.url) as server:
        server.rpush(log_key(history_key("u")), entry)


def items_of(path: Path) -> list[str]:
    return [json.loads(line)["item_id"] for line in path.read_text().splitlines()]


def test_days_are_exported_once_and_caught_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    valkey, folder = Server(tmp_path / "valkey", {"save": '""'}), tmp_path / "interactions"
    with running(valkey):
        put_event(valkey, "a", MIDNIGHT - timedelta(days=3))
        put_event(valkey, "b", MIDNIGHT - timedelta(days=2, milliseconds=1))
        put_event(valkey, "c", MIDNIGHT - timedelta(milliseconds=1))
        put_event(valkey, "today", MIDNIGHT)
        assert export(valkey, folder) == f"3 events written to 2 new files in {folder}"
        assert capsys.readouterr().err == (
            f"of {DAY[5]} there are only events from {DAY[5]}T03:00:00.000Z on: the log does not "
            "go back further (UNMASK_EVENT_LOG_DAYS=5)\n"
        )
        assert sorted(path.name for path in folder.iterdir()) == [
            f"{DAY[3]}.jsonl",
            f"{DAY[1]}.jsonl",
        ]
        assert items_of(folder / f"{DAY[3]}.jsonl") == ["a", "b"]
        assert items_of(folder / f"{DAY[1]}.jsonl") == ["c"]
        assert export(valkey, folder) == f"0 events written to 0 new files in {folder}"

        (folder / f"{DAY[1]}.jsonl").unlink()  # a night that was missed; other files are no days
        (folder / "0-before.jsonl").write_text("{}\n")
        assert export(valkey, folder) == f"1 events written to 1 new files in {folder}"
        assert capsys.readouterr().err == ""

        (folder / f"{DAY[1]}.jsonl").write_text("")  # killed before it was removed
        assert export(valkey, folder) == f"1 events written to 1 new files in {folder}"
        assert items_of(folder / f"{DAY[1]}.jsonl") == ["c"]

        for path in folder.glob("2*.jsonl"):
            path.rename(folder / f"{DAY[7]}.jsonl")
        export(valkey, folder)
        assert "no file has the days from" in capsys.readouterr().err


def test_what_was_left_out_is_said_and_a_part_of_today_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    valkey, folder = Server(tmp_path / "valkey", {"save": '""'}), tmp_path / "interactions"
    with running(valkey):
        put_event(valkey, " spaces ", MIDNIGHT - timedelta(hours=1))
        assert export(valkey, folder) == f"0 events written to 0 new files in {folder}"
        said = capsys.readouterr().err
        assert f"{DAY[1]}.jsonl is not written: its events were left out" in said
        assert "1 events were left out" in said

        (folder / f"{DAY[0]}.jsonl").write_text("{}\n")
        with pytest.raises(TransferFailed, match=rf"{DAY[0]}\.jsonl, and that day has not ended"):
            export(valkey, folder)


def test_refusals_are_exported_if_that_is_asked_for(tmp_path: Path) -> None:
    valkey = Server(tmp_path / "valkey", {"save": '""'})
    types = ("click", "dont_show", "undo_dont_show", "dislike")

    def export(*more: str) -> list[str]:
        async def use(store: RedisHistoryStore) -> str:
            asked = command_parser().parse_args(["events", "export", *more])
            return await run_command(
                asked,
                store,
                history_cap=200,
                history_event_types=["click", "dislike"],
                event_log_days=2,  # each day is a pass through the whole log
                negative_event_types=["dont_show", "dislike"],
            )

        with_store(valkey.url, use)
        [path] = [path for path in (tmp_path / "out").iterdir() if path.suffix == ".jsonl"]
        found = [json.loads(line)["event_type"] for line in path.read_text().splitlines()]
        path.unlink()
        return found

    folder = tmp_path / "out"
    folder.mkdir()
    out = ("--out", str(folder / "events.jsonl"))
    with running(valkey):
        for event_type in types:
            put_event(valkey, "a", MIDNIGHT - timedelta(hours=9), event_type=event_type)
        assert export(*out) == export("--days", str(folder)) == ["click", "dislike"], (
            "a type of histories is no refusal"
        )
        assert export(*out, "--refusals") == list(types)
        assert export("--days", str(folder), "--refusals") == list(types)
