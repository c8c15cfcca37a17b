"""The Makefile: what it lists, what it refuses, and that it installs only once."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def test_make_alone_lists_the_targets() -> None:
    listed = make().stdout
    assert all(f"make {target}" in listed for target in ("demo", "check", "train", "serve"))


def test_an_old_python_is_refused_with_the_way_out(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")  # what `sys.exit(version < 3.11)` comes to
    old.chmod(0o755)
    done = make("demo", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stdout
    assert "make PYTHON=" in done.stdout
    assert not (tmp_path / "venv").exists()


def test_training_without_data_says_what_is_missing(tmp_path: Path) -> None:
    stamp = tmp_path / ".everything"
    (tmp_path / ".python").touch()
    stamp.touch()
    done = make("train", f"VENV={tmp_path}")
    assert done.returncode != 0
    assert "make train DATA=folder" in done.stdout


def test_it_installs_again_only_when_the_dependencies_change(tmp_path: Path) -> None:
    def plan() -> str:
        return make("--dry-run", "check", f"VENV={tmp_path}").stdout

    assert "-m venv" in plan()
    assert "[cpu,train,ray,loadtest,otel,dev]" in plan()
    stamp = tmp_path / ".everything"
    (tmp_path / ".python").touch()
    stamp.touch()
    assert "-m pip" not in plan()
    os.utime(stamp, (0, 0))  # older than pyproject.toml
    assert "-m pip" in plan()
