"""The locust file runs: real locust, the real service, a few seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from service.bundle_store import configured_path

ROOT = Path(__file__).resolve().parents[2]


def test_a_short_run_answers_everything_and_finds_targets(demo) -> None:
    command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless"]
    command += ["--users", "2", "--spawn-rate", "2", "--run-time", "3s", "--rate", "5"]
    command += ["--host", demo.url, "--only-summary", "--stop-timeout", "5"]
    command += ["--held-out", str(configured_path(Path("models_store"), "demo") / "held_out.jsonl")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr  # locust exits 1 when a request failed
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["answers"] >= 10
    assert 0 < figures["recall@10"] <= 1
