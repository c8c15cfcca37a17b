"""ONNX Runtime that pip lists and that cannot be imported: the error names the cure, everywhere.

`onnxruntime` and `onnxruntime-gpu` write into one folder. Uninstalling one of them leaves a few
files that only the other brought, without `__init__.py`, and pip still lists the other as complete.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import onnxruntime
import pytest

from service.bundles.store import configured_path

ROOT = Path(__file__).resolve().parents[4]
DEMO = configured_path(ROOT / "models_store", "demo")
COMMANDS = {
    "service": ["service"],
    "training": ["training", "evaluate", "--bundle", str(DEMO), "--out", "out", "--data", "data"],
    "bench": ["loadtest.bench.decode_bench", "--bundle", str(DEMO), "--users", "1"],
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All installed packages without the files of ONNX Runtime; pip's records of it are there."""
    folder = tmp_path_factory.mktemp("site-packages")
    for entry in Path(onnxruntime.__file__).parents[1].iterdir():
        if entry.name != "onnxruntime":
            (folder / entry.name).symlink_to(entry)
    return folder


def ended(
    command: list[str], folder: Path, tmp_path: Path, port: int
) -> subprocess.CompletedProcess[str]:
    """A command in which only these packages are found."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]),
        "UNMASK_HISTORY_DIR": str(tmp_path / "history"),
        "UNMASK_PORT": str(port),
    }
    return subprocess.run(
        [sys.executable, "-S", "-m", *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_what_uninstalling_one_of_two_leaves_is_said_with_its_cure(
    name: str, installed: Path, tmp_path: Path, free_port: int
) -> None:
    left = installed / "onnxruntime" / "capi"
    left.mkdir(parents=True, exist_ok=True)
    (left / "libonnxruntime.so").write_bytes(b"")
    done = ended(COMMANDS[name], installed, tmp_path, free_port)
    said = " ".join(done.stderr.split())
    assert done.returncode == 1, said
    version = metadata.version("onnxruntime")
    assert f"though pip lists onnxruntime=={version}: " in said
    assert "share a folder" in said
    assert "python -m pip uninstall -y onnxruntime onnxruntime-gpu" in said
    assert f"python -m pip install onnxruntime=={version}" in said
    assert "Traceback" not in done.stderr
    assert "see the log" not in done.stderr


def test_a_runtime_that_is_not_there_at_all_is_said(
    installed: Path, tmp_path: Path, free_port: int
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for entry in installed.iterdir():
        if not entry.name.startswith("onnxruntime"):
            (bare / entry.name).symlink_to(entry)
    done = ended(COMMANDS["training"], bare, tmp_path, free_port)
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert "ONNX Runtime is not installed: install unmask with its extra `cpu`" in said
    assert "Traceback" not in done.stderr
