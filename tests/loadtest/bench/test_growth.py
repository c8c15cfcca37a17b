"""growth runs as a command and compares each job with its own quiet median."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from loadtest.bench.growth import AFTER_S, figures

ROOT = Path(__file__).resolve().parents[3]


def test_items_are_added_while_jobs_are_decoded() -> None:
    sizes = ("--items", "2000", "--added", "50", "--rounds", "2", "--users", "3")
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.bench.growth", *sizes, "--beam-width", "10"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    sentence, *_, last = done.stdout.splitlines()
    assert sentence.startswith("50 items added to 2,000 in ")
    found = json.loads(last)
    assert (found["items"], found["added"], found["r_warm"], found["m_par"]) == (2000, 50, 4, 2)
    assert 0 < found["adding_s"]["median"] <= found["adding_s"]["worst"]
    assert min(found["jobs"].values()) > 0
    assert found["times_quiet_median"]["quiet"]["p50"] > 0


def test_a_job_is_held_against_its_own_quiet_median() -> None:
    """Job 0 takes 1 s and job 1 takes 10; while items are added each takes three times as long."""
    rows, now = [], 0.0

    def round_of(times: float) -> tuple[float, float]:
        nonlocal now
        started = now
        for job, seconds in enumerate((1.0, 10.0)):
            rows.append((job, now, now + times * seconds))
            now += times * seconds
        return started, now

    round_of(1)
    spans = [round_of(50)]  # the first one does not count
    now += 2 * AFTER_S
    for _ in range(3):
        round_of(1)
        spans.append(round_of(3))
        now += 2 * AFTER_S
    round_of(1)
    found = figures(np.array(rows), np.array(spans))
    assert found["jobs"] == {"quiet": 8, "meanwhile": 6}
    assert found["adding_s"] == {"median": pytest.approx(33), "worst": pytest.approx(33)}
    times = found["times_quiet_median"]
    assert times["quiet"] == {"p50": 1, "p99": 1, "worst": 1, "share_above_2": 0}
    assert times["meanwhile"]["worst"] == pytest.approx(3)
    assert times["meanwhile"]["share_above_2"] == 1
