"""Several processes learn what one learns: real ones, started by torchrun."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from alone import alone
from learns_together import gradients

from training.__main__ import main
from training.data import synthesize

PATIENCE_S = 300
HERE = Path(__file__).parent
FINISHED = "training.fitting.training_loop.Trainer.finished"
SETTINGS = ("fit.epochs=4", "fit.validation_users=300", "codebook.num_codes=16")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("team") / "world"
    synthesize(folder, 300, 100, 0.0, 1)
    return folder


def words(world: Path, out: Path, *settings: str) -> list[str]:
    given = [word for one in (*SETTINGS, *settings) for word in ("--set", one)]
    where = ("--data", str(world), "--out", str(out), "--until", "fit")
    return ["run", "--preset", "tiny", *where, *given]


def two_processes(*program: str) -> subprocess.Popen[str]:
    """Started by torchrun, which looks only now and then whether they are still there."""
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    options = ("--nproc-per-node=2", "--monitor-interval=3")
    return subprocess.Popen(
        [*alone(), *torchrun, *options, *program],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=HERE.parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def by_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[dict[str, Any], str]:
    """What one process answers, and what it said."""
    monkeypatch.setattr("sys.argv", ["training", *arguments])
    assert main() == 0
    printed = capsys.readouterr()
    return json.loads(printed.out.splitlines()[-1]), printed.err


def epoch_losses(run: Path) -> list[float]:
    """The mean loss of each epoch."""
    lines = map(json.loads, (run / "fit" / "scalars.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "seconds" in line]


def test_they_learn_what_one_learns(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One process begins, and it alone and two go on from there."""
    one, two = tmp_path / "one", tmp_path / "two"
    with monkeypatch.context() as stopped:
        stopped.setattr(FINISHED, property(lambda trainer: trainer.state.epoch >= 2))
        by_itself(stopped, capsys, *words(world, one))
    (one / "fit.json").unlink()
    shutil.copytree(one, two)
    process = two_processes(
        str(HERE / "learns_together.py"), str(tmp_path / "grads"), *words(world, two)
    )
    out, err = process.communicate(timeout=PATIENCE_S)
    [together] = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert "2 processes, each with its share of every minibatch" in err
    assert "resumed after epoch 2 of 4" in err
    alone, _ = by_itself(monkeypatch, capsys, *words(world, one))
    assert (together["step"], together["key"]) == (alone["step"], alone["key"])
    assert len(epoch_losses(two)) == 4
    assert epoch_losses(two) == pytest.approx(epoch_losses(one), rel=0.04)
    assert abs(together["best_recall"] - alone["best_recall"]) < 3 * (0.25 * 2 / 300) ** 0.5

    # The other process ends when the first has failed in the middle of an epoch.
    assert process.returncode == 1
    assert "error: process 1: another process of this run has ended" in err
    assert "error: scalars.jsonl: No space left on device; make room" in err

    # Where nothing is drawn, they learn the same but for rounding. The last minibatch has no share
    # for the second process.
    found = torch.load(tmp_path / "grads", weights_only=True)
    for (loss, of_step), (their_loss, theirs) in zip(gradients(alone=True), found, strict=True):
        assert their_loss == pytest.approx(loss, rel=1e-5)
        for mine, other in zip(of_step, theirs, strict=True):
            assert mine is not None
            torch.testing.assert_close(other, mine, rtol=1e-4, atol=1e-6)


def test_a_process_that_is_killed_ends_the_run_and_one_alone_goes_on(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    many = words(world, out, "fit.epochs=200", "fit.patience=1000")
    process = two_processes("-m", "training", *many)
    deadline = time.monotonic() + PATIENCE_S
    while not (out / "fit" / "checkpoint.pt").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process_of_rank_1(process.pid), signal.SIGKILL)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    [sentence] = [line for line in err.splitlines() if line.startswith("error: another process")]
    assert "run the same command again" in sentence
    assert "Traceback" not in err.partition("error: another process")[0]

    epochs = len(epoch_losses(out))
    assert 1 <= epochs < 200
    stopped = torch.load(out / "fit" / "checkpoint.pt", weights_only=True)["state"]["epoch"]
    monkeypatch.setattr(FINISHED, property(lambda trainer: trainer.state.epoch >= stopped + 2))
    done, said = by_itself(monkeypatch, capsys, *many)
    assert f"resumed after epoch {stopped} of 200" in said
    assert done["epoch"] == stopped + 2
    assert epoch_losses(out)[-1] < epoch_losses(out)[0]


def process_of_rank_1(torchrun: int) -> int:
    """The process that torchrun has started for rank 1."""
    waiting = [torchrun]
    while waiting:
        pid = waiting.pop()
        listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout
        waiting += map(int, listed.split())
        if b"\0RANK=1\0" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes():
            return pid
    raise AssertionError("no process has RANK=1")
