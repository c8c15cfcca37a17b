"""`python -m service histories` and `events` beside a service with an embedded store, and alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog
from ports import find_free_port
from running_service import PATIENCE_S, service_process

from service.__main__ import main
from service.histories import read_histories
from service.histories.transfer.bulk import USERS_AT_ONCE

NO_LOG = {"event_log_days": "0", "redis_url": "redis://h"}


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """A command sends the log of its process to stderr."""
    yield
    structlog.reset_defaults()


def run(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("UNMASK_")}
    environment |= {"UNMASK_HISTORY_DIR": str(folder / "history")}
    environment |= {f"UNMASK_{name.upper()}": value for name, value in settings.items()}
    command = [sys.executable, "-W", "error", "-m", "service", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def done(folder: Path, *arguments: str) -> str:
    ended = run(folder, *arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def test_the_store_of_a_service_is_filled_and_read(bundles_dir: Path, tmp_path: Path) -> None:
    """Before its start, while it runs, and after its end."""
    log, out = tmp_path / "log.csv", tmp_path / "events.jsonl"
    log.write_text("user_id,item_id,timestamp\nu,item-2,2\nu,item-1,1\n/,item-1,1\n")
    load = ("histories", "load", str(log))
    since = f"{datetime.now(UTC).date() - timedelta(days=2)}"
    export = ("events", "export", "--since", since, "--out", str(out))
    said = done(tmp_path, *load)
    assert "2 users read: 2 items were added to the histories of 1" in said
    assert "left out: 1 users, 0 items" in said
    with service_process(
        tmp_path / "service",
        bundles_dir=bundles_dir,
        bundle="tiny@1",
        history_dir=tmp_path / "history",
    ) as service:
        assert service.client.get("/users/u/history").json()["history"] == ["item-1", "item-2"]
        service.send("item-3", user_id="u")
        service.send("item-4", user_id="gone")
        assert service.client.delete("/users/gone/history").status_code == 204
        assert "0 items were added" in done(tmp_path, *load)
        said = done(tmp_path, *export)
        assert service.client.get("/users/u/history").json()["history"] == [
            *("item-1", "item-2", "item-3")
        ]
    [event] = [json.loads(line) for line in out.read_text().splitlines()]
    assert (event["user_id"], event["item_id"], event["event_type"]) == ("u", "item-3", "click")
    assert said.startswith(f"1 events written to {out}; go on next time with --since 2")
    since = said.split()[-1]
    old = run(
        tmp_path, *export, *("--since", "2026-01-01", "--until", since, "--timestamps", "iso")
    )
    assert "the log goes back to 2" in old.stderr
    assert old.stdout.endswith(f"--since {since}\n")
    assert json.loads(out.read_text())["timestamp"][-1] == "Z"
    histories = tmp_path / "histories.jsonl.gz"
    assert done(tmp_path, "histories", "export", "--out", str(histories)).startswith("1 histories")
    assert dict(read_histories(histories, 9)) == {"u": ["item-1", "item-2", "item-3"]}


@pytest.mark.parametrize(
    ("arguments", "settings", "status", "why"),
    [
        (["events", "export", "--out", "x"], {}, 1, "there is no store in"),
        (["events", "export", "--out", "x"], NO_LOG, 1, "there is no event log"),
        (["histories", "load", "none.csv"], {}, 1, "none.csv cannot be read: No such file"),
        (["histories", "export", "--out", "x"], {"redis_url": "http://h"}, 2, "UNMASK_REDIS_URL"),
        (["events", "export", "--out", "x", "--since", "soon"], {}, 2, "write a date such as"),
        (
            ["events", "export", "--out", "x", "--since", "2", "--until", "1"],
            {"redis_url": "redis://h"},
            *(1, "end before it begins"),
        ),
        (["events"], {}, 2, "required"),
        (["histories", "load"], {}, 2, "required"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    settings: dict[str, str],
    status: int,
    why: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in settings.items():
        monkeypatch.setenv(f"UNMASK_{name.upper()}", value)
    monkeypatch.setattr(sys, "argv", ["service", *arguments])
    with pytest.raises(SystemExit) as ended:
        sys.exit(main())
    assert ended.value.code == status
    assert why in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_store_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNMASK_REDIS_URL", f"redis://127.0.0.1:{find_free_port()}")
    arguments = ["histories", "export", "--out", str(tmp_path / "x")]
    monkeypatch.setattr(sys, "argv", ["service", *arguments])
    assert main() == 1
    said = capsys.readouterr().err
    assert "nothing listens at its address" in said
    assert "unmask: the history store did not answer" in said
    assert list(tmp_path.iterdir()) == []


def test_what_is_left_out_or_as_it_was_is_said(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    header = "user_id,item_id,timestamp,event_type\n"
    log.write_text(f"{header}u,a,1,click\nu,b,2,view\nu,c,3,click\nu,d,4,view\nu,e,5,seen\n")
    said = done(tmp_path, "histories", "load", str(log))
    assert said.startswith("1 users read: 2 items were added to the histories of 1;")
    assert "as they were" not in said
    assert "3 lines were left out, because UNMASK_HISTORY_EVENT_TYPES does not have" in said
    assert said.endswith("event_type: view (2), seen (1).\n")
    log.write_text(f"{header}u,c,1,click\nu,z,2,click\n")
    said = done(tmp_path, "histories", "load", str(log))
    assert "0 items were added to the histories of 0; 1 were left as they were, because " in said
    assert "left out" not in said


@contextmanager
def waiting(folder: Path, *arguments: str, **settings: str) -> Iterator[subprocess.Popen[str]]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("UNMASK_")}
    environment |= {f"UNMASK_{name.upper()}": value for name, value in settings.items()}
    environment["TMPDIR"] = str(folder)
    command = [sys.executable, "-W", "error", "-m", "service", *arguments]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def terminated(process: subprocess.Popen[str], is_busy: Callable[[], bool]) -> None:
    """Check that SIGTERM ends it in an orderly way once it is busy."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_busy():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.terminate()
    process.communicate(timeout=PATIENCE_S)  # asyncio may complain of a connection in the making
    assert process.returncode == 128 + signal.SIGTERM


def test_a_load_that_is_terminated_leaves_no_log_behind(tmp_path: Path) -> None:
    """While it reads, with a store of its own; while it waits for a store that does not answer."""
    temporary, log, history = tmp_path / "tmp", tmp_path / "log.csv", tmp_path / "history"
    temporary.mkdir()

    def is_sorting() -> bool:
        return any(temporary.glob("unmask-sort-*/log.sqlite"))

    log.write_text("user_id,item_id,timestamp\n" + "u,i,1\n" * 2_000_000)
    load = ("histories", "load", str(log))
    with waiting(temporary, *load, history_dir=str(history)) as process:
        terminated(process, is_sorting)
    assert list(temporary.iterdir()) == []
    assert not (history / "address").exists()
    users = range(USERS_AT_ONCE + 1)
    log.write_text("user_id,item_id,timestamp\n" + "".join(f"u{user},i,1\n" for user in users))
    with silent_store() as url, waiting(temporary, *load, redis_url=url) as process:
        terminated(process, is_sorting)
    assert list(temporary.iterdir()) == []


def test_an_export_that_is_terminated_leaves_no_file_behind(tmp_path: Path) -> None:
    temporary, folder = tmp_path / "tmp", tmp_path / "out"
    temporary.mkdir()
    folder.mkdir()
    export = ("histories", "export", "--out", str(folder / "x.gz"))
    with silent_store() as url, waiting(temporary, *export, redis_url=url) as process:
        terminated(process, lambda: (folder / ".x.gz.unfinished").exists())
    assert list(folder.iterdir()) == []


@contextmanager
def silent_store() -> Iterator[str]:
    """The URL of a server that does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"redis://127.0.0.1:{server.getsockname()[1]}"
