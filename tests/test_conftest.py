"""A skipped test fails the run under REQUIRE_ALL_TESTS=1, and only then."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TEST_FILES = {
    "passes": "def test_it():\n    pass\n",
    "skips": "import pytest\n\ndef test_it():\n    pytest.skip('not today')\n",
    "skips_module": "import pytest\n\npytest.skip('not today', allow_module_level=True)\n",
    "e2e": "import pytest\n\n@pytest.mark.e2e\ndef test_it():\n    pass\n",
    "wants_data": "def test_it(data_dir):\n    pass\n",
    "fails": "def test_it():\n    raise AssertionError\n",
}
TESTS_FAILED = int(pytest.ExitCode.TESTS_FAILED)
NO_TESTS = int(pytest.ExitCode.NO_TESTS_COLLECTED)


def run_pytest(folder: Path, test_file: str, *options: str, **env: str) -> tuple[int, str]:
    """Run one test file with our conftest.py in its own process; returns exit code and output."""
    shutil.copy(Path(__file__).with_name("conftest.py"), folder)
    helpers = {"PYTHONPATH": str(Path(__file__).with_name("service"))}  # of conftest.py
    (folder / "pytest.ini").write_text(
        "[pytest]\nmarkers =\n    data: real data\n    e2e: Docker\n"
    )
    (folder / "test_it.py").write_text(TEST_FILES[test_file])
    ours = ("UNMASK_", "REQUIRE_ALL_TESTS")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--strict-markers", "-rs", *options],
        cwd=folder,
        env={**clean, **helpers, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **env},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("test_file", "require_all", "exit_code"),
    [
        ("passes", "1", 0),
        ("skips", "0", 0),
        ("skips", "1", TESTS_FAILED),
        ("skips_module", "1", TESTS_FAILED),
        ("wants_data", "1", TESTS_FAILED),
        ("fails", "0", TESTS_FAILED),
    ],
)
def test_a_skip_fails_the_run_only_when_all_are_required(
    tmp_path: Path, test_file: str, require_all: str, exit_code: int
) -> None:
    code, output = run_pytest(tmp_path, test_file, REQUIRE_ALL_TESTS=require_all)
    assert code == exit_code, output
    assert ("allows no skipped test" in output) == (exit_code != 0 and test_file != "fails")


def test_a_test_on_data_skips_with_the_way_out_and_runs_with_data(tmp_path: Path) -> None:
    code, output = run_pytest(tmp_path, "wants_data")
    assert code == 0
    assert "set UNMASK_DATA_DIR" in output

    code, output = run_pytest(tmp_path, "wants_data", UNMASK_DATA_DIR=str(tmp_path))
    assert code == 0
    assert "1 passed" in output


def test_asking_for_data_is_the_marker(tmp_path: Path) -> None:
    code, output = run_pytest(tmp_path, "wants_data", "-m", "not data")
    assert code == NO_TESTS, output


def test_a_test_with_docker_is_left_out_and_not_skipped_unless_asked_for(tmp_path: Path) -> None:
    code, output = run_pytest(tmp_path, "e2e", REQUIRE_ALL_TESTS="1")
    assert code == NO_TESTS, output
    assert "1 deselected" in output

    code, output = run_pytest(tmp_path, "e2e", "--e2e", REQUIRE_ALL_TESTS="1")
    assert code == 0, output
