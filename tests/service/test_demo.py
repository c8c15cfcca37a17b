"""The demo as a person runs it: an answer, a JSON document, the same again, clear errors."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_demo(port: int, history_dir: Path, **env: str) -> subprocess.CompletedProcess[str]:
    ours = {"PORT": str(port), "ONCE": "1", "UNMASK_HISTORY_DIR": str(history_dir)}
    return subprocess.run(
        [sys.executable, "-m", "service.demo"],
        cwd=ROOT,
        env={**os.environ, **ours, **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_once_ends_with_a_json_document_and_again_with_the_same(
    free_port: int, tmp_path: Path
) -> None:
    documents = []
    for _ in range(2):  # histories are kept in between, and the port must be free again
        done = run_demo(free_port, tmp_path)
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout.splitlines()[-1])
        answer = document["response"]
        assert answer["served_by"] == "model"
        assert len(answer["items"]) == document["request"]["k"]
        assert all(item["title"] in done.stdout for item in answer["items"])
        assert 3 <= document["hits"] <= document["users"]
        assert answer.pop("recommendation_id")
        assert answer.pop("timings_ms")
        documents.append(document)
    assert documents[0] == documents[1]


@pytest.mark.parametrize("family", ["maskgr", "tiger"])
def test_other_families_are_shown_too(family: str, free_port: int, tmp_path: Path) -> None:
    done = run_demo(free_port, tmp_path, UNMASK_BUNDLE=f"demo-{family}")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["bundle"].startswith(f"demo-{family}@")
    assert document["response"]["served_by"] == "model"
    assert 3 <= document["hits"] <= document["users"]


def test_a_taken_port_is_reported(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        done = run_demo(listener.getsockname()[1], tmp_path)
    assert done.returncode == 1
    assert "choose another port" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_bundle_is_reported(free_port: int, tmp_path: Path) -> None:
    done = run_demo(free_port, tmp_path, UNMASK_BUNDLE="nowhere")
    assert done.returncode == 1
    assert "set UNMASK_BUNDLE" in done.stderr
    assert "Traceback" not in done.stderr
