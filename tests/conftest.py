"""Fixtures for all tests: real data sets, a free port, the running demo. And the rule about skips.

A test that uses `data_dir` is marked `data`. Without data it is skipped, with the reason. With
REQUIRE_ALL_TESTS=1 (set by CI) a skipped test fails the run, so that no test is left out unnoticed.
Tests marked `e2e` run only with --e2e.
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ports import find_free_port

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent

# Files that begin so come first, in this order. On a fresh clone one worker compiles the search,
# and the other does what does not need it meanwhile, instead of compiling it too. Then what takes
# minutes, so that at the end no worker waits for another one's.
FIRST = (
    "training/test_damage",
    "service/test_lowest_versions",
    "training/data/files",
    "training/baselines",
    "training/families",
    "training",
)

# Processes keep their compiled modules, else each compiles them again, and pytest rewrites them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Tests make many objects that live long enough: looked through after every 700 they cost much.
gc.set_threshold(100_000, 50, 50)
# Workers share the processors. The threads of a small product only wait for each other, busily.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REQUIRE_ALL = os.environ.get("REQUIRE_ALL_TESTS") == "1"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder that holds the real data sets, one folder each."""
    value = os.environ.get("UNMASK_DATA_DIR")
    if not value:
        pytest.skip("set UNMASK_DATA_DIR to the folder that holds the data sets")
    folder = Path(value)
    if not folder.is_dir():
        pytest.fail(f"UNMASK_DATA_DIR={value} is not a folder")
    return folder.resolve()


@dataclass(frozen=True)
class Demo:
    """The running demo: its address, and what it printed before it was ready."""

    url: str
    output: str


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """What `make demo` starts, on a free port and with its own histories, ended by Ctrl-C."""
    port = find_free_port()
    folder = tmp_path_factory.mktemp("demo")
    environment = {
        **os.environ,
        "PORT": str(port),
        "UNMASK_HISTORY_DIR": str(folder / "history"),
        "UNMASK_DEFAULT_TIMEOUT_MS": "10000",  # on a busy machine nothing is late
        "UNMASK_SLO_MS": "60000",
        "UNMASK_REDIS_TIMEOUT_MS": "5000",
    }
    with (
        (folder / "stderr").open("w+") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "service.demo"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Serving on"):
                break
        else:
            errors.seek(0)
            pytest.fail("the demo did not start: " + "".join(lines) + errors.read())
        try:
            yield Demo(f"http://127.0.0.1:{port}", "".join(lines))
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(300) == 0
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))  # the server is gone too


@pytest.fixture
def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    return find_free_port()


def pytest_configure(config: pytest.Config) -> None:
    """How many examples property tests draw; and Ctrl-C.

    Those that name no number draw 30, others in each run; in CI always the same ones, as far as
    Hypothesis can. With --hypothesis-profile=default they draw 100. Background jobs of a shell
    ignore Ctrl-C; processes started by the tests must not.
    """
    if config.pluginmanager.has_plugin("_hypothesis_pytestplugin"):
        from hypothesis import settings

        settings.register_profile("suite", max_examples=30, derandomize=REQUIRE_ALL)
        if not config.getoption("--hypothesis-profile"):
            settings.load_profile("suite")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--e2e", action="store_true", help="run the tests that need a Docker engine")
    parser.addoption("--faults", action="store_true", help="inject every fault of tests/faults")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _turn(item.path.relative_to(TESTS).as_posix()))
    for item in items:
        if "data_dir" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.data)
    if not config.getoption("--e2e"):  # left out by choice: that is no skip
        left_out = [item for item in items if item.get_closest_marker("e2e")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("e2e")]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """It imports everything and leaves no garbage, so the garbage collector passes over that."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, object, object]:
    """On a fresh clone one worker rewrites a module's asserts; the others wait and read that."""
    if not isinstance(collector, pytest.Module):
        return (yield)
    with collector.path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        return (yield)


def _turn(file: str) -> int:
    return next((turn for turn, start in enumerate(FIRST) if file.startswith(start)), len(FIRST))


def pytest_sessionfinish(session: pytest.Session) -> None:
    green = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    if REQUIRE_ALL and session.exitstatus in green and _skipped(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if REQUIRE_ALL and (skipped := _skipped(config)):
        terminalreporter.write_line(
            f"REQUIRE_ALL_TESTS=1 allows no skipped test, and {skipped} were skipped", red=True
        )


def _skipped(config: pytest.Config) -> int:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return len(reporter.stats.get("skipped", ())) if reporter else 0
