"""Runs whose files are damaged, lost or cut off, fits that diverge, folders that cannot be written.

Each gives a sentence, and the same command run again repairs it.
"""

from __future__ import annotations

import io
import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from service.bundles.bundle import verify
from training.__main__ import main
from training.config import STAGES
from training.data.interactions import load_dataset
from training.data.synthetic import make_world, write_world
from training.errors import DataError, FitDiverged
from training.families.export import export_graphs
from training.fitting.checkpoint import read_checkpoint, write_checkpoint
from training.fitting.training_loop import load_best
from training.pipeline import catalogue_of, run
from training.preset import load_config
from training.stages import files_of, work_stage

QUICK = ["fit.epochs=2", "fit.validation_users=20", "evaluation.invalid_sid_users=5"]
QUICK += ["codebook.num_codes=16", "fit.validate_every_epochs=1", "evaluation.timing_users=1"]
QUICK += ["evaluation.schedule_users=20", "evaluation.users=20", "evaluation.rankings=['rows']"]
QUICK += ["evaluation.beam_widths=[10]", "neighbours.weights=[0, 1]", "neighbours.scales=[0.1]"]
QUICK += ["neighbours.decays=[0.7]", "neighbours.likeness_weights=[0]"]
QUICK += ["embeddings.content_dims=24"]  # so all files have networks of one shape: traced once


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def a_folder(file: Path) -> None:
    file.unlink()
    (file / "inside").mkdir(parents=True)


def removed(file: Path) -> None:
    file.unlink()


DAMAGES = [emptied, truncated, flipped, a_folder, removed]
Damage = Callable[[Path], None]


class Said(Console):
    """A console that keeps what was printed and can stop a run at a sentence, like Ctrl-C."""

    def __init__(self, stop_at: str | None = None) -> None:
        super().__init__(file=io.StringIO(), width=500)
        self.stop_at = stop_at

    @property
    def text(self) -> str:
        assert isinstance(self.file, io.StringIO)
        return self.file.getvalue()

    def print(self, *said: Any, **options: Any) -> None:
        super().print(*said, **options)
        if self.stop_at and self.stop_at in " ".join(map(str, said)):
            raise KeyboardInterrupt


# -- a stage -----------------------------------------------------------------------------------


def _work(folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("codes.npy", "codebook.npz"):
        (folder / name).write_text(f"what {name} holds")
    return {"made": True}


def _stage(out: Path, key: str = "key") -> str:
    console = Said()
    work_stage(out, "codebook", key, _work, console)
    return console.text


def _others_are_forgotten(file: Path) -> None:
    record = json.loads(file.read_text())
    del record["files"]  # as before this was recorded
    file.write_text(json.dumps(record))


def _a_list(file: Path) -> None:
    file.write_text("[1, 2]")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["codes.npy", "codebook.npz"])
def test_a_file_that_is_not_as_it_was_written_is_named_and_made_again(
    damage: Damage, name: str, tmp_path: Path
) -> None:
    _stage(tmp_path)
    assert "done before" in _stage(tmp_path)
    before = files_of(tmp_path / "codebook")
    damage(tmp_path / "codebook" / name)
    said = _stage(tmp_path)
    assert f"codebook/{name} is " in said
    assert "the stage is made again" in said
    assert files_of(tmp_path / "codebook") == before
    assert "done before" in _stage(tmp_path)


@pytest.mark.parametrize("damage", [*DAMAGES, _others_are_forgotten, _a_list])
def test_a_record_that_cannot_be_read_is_made_again(damage: Damage, tmp_path: Path) -> None:
    _stage(tmp_path)
    before = files_of(tmp_path / "codebook")
    damage(tmp_path / "codebook.json")
    said = _stage(tmp_path)
    assert "done before" not in said
    assert damage is removed or "is damaged, or from another version" in said or damage is flipped
    assert files_of(tmp_path / "codebook") == before
    assert "done before" in _stage(tmp_path)


def test_a_file_in_the_place_of_a_stage_is_replaced(tmp_path: Path) -> None:
    _stage(tmp_path)
    shutil.rmtree(tmp_path / "codebook")
    (tmp_path / "codebook").write_text("a file")
    (tmp_path / ".codebook-x1").mkdir()  # of a process that was killed
    assert "codebook/codebook.npz is lost" in _stage(tmp_path)
    assert "done before" in _stage(tmp_path)
    assert "other data or settings" in _stage(tmp_path, key="another")
    assert {path.name for path in tmp_path.iterdir()} == {"codebook", "codebook.json"}


# -- a run -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(make_world(120, 60, 0.1, 7), folder)
    return folder


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without damage."""
    out = tmp_path_factory.mktemp("whole")
    run(load_config("tiny", QUICK), load_dataset(world), out, Console(quiet=True))
    return out


def _run(world: Path, out: Path, stop_at: str | None = None) -> str:
    console = Said(stop_at)
    run(load_config("tiny", QUICK), load_dataset(world), out, console)
    return console.text


def test_whatever_file_of_a_run_is_lost_the_same_command_makes_it_again(
    world: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    graphs = files_of(out / "export")
    for damages in (
        {"bundle/manifest.json": emptied},
        {"refit/checkpoint.pt": flipped, "trial/manifest.json": emptied},
        {"fit/checkpoint.pt": flipped, "evaluation/ranks.jsonl": removed},
        {"codebook/vectors.npy": a_folder, "fit/scalars.jsonl": a_folder},
    ):
        for place, damage in damages.items():
            damage(out / place)
        place = next(iter(damages))
        said = _run(world, out)
        assert f"{place} is " in said or "manifest.json" in said, place
        assert "the stage is made again" in said, place
        anew = "the fit starts again" in said
        assert anew == ("checkpoint.pt" in place), place  # else from its checkpoint, at once
        assert files_of(out / "export") == graphs, place
        verify(out / "bundle")
    assert _run(world, out).count("done before") == len(STAGES)


@pytest.mark.parametrize("damage", [emptied, truncated, a_folder, removed])
@pytest.mark.parametrize("name", ["codes.npy", "vectors.npy", "codebook.npz"])
def test_a_codebook_that_is_damaged_is_said_where_no_stage_is_made(
    name: str, damage: Damage, world: Path, whole: Path, tmp_path: Path
) -> None:
    """`step-time` only reads it and makes nothing again."""
    shutil.copytree(whole / "codebook", tmp_path / "codebook")
    damage(tmp_path / "codebook" / name)
    with pytest.raises(DataError, match="are damaged, or made of other data"):
        catalogue_of(load_dataset(world), load_config("tiny", QUICK), tmp_path)


def test_a_run_that_is_stopped_anywhere_goes_on_and_ends_as_it_would_have(
    world: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    of_refit = "more steps, on"
    for sentence in ("items share theirs", "epoch 1: loss", "neighbour prior, weight", of_refit):
        with pytest.raises(KeyboardInterrupt):
            _run(world, out, sentence)
    _run(world, out)
    for stage in ("export", "refit"):
        made, before = files_of(out / stage), files_of(whole / stage)
        for graph in ("encoder.onnx", "decoder.onnx"):
            assert made[graph] == before[graph], stage
    assert verify(out / "bundle").num_items == verify(whole / "bundle").num_items
    assert not [path.name for path in out.rglob("*") if path.suffix == ".part"]
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}


# -- a fit -------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_not_read(damage: Damage, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pt"
    write_checkpoint(file, {"key": "k", "weights": torch.arange(1000.0)})
    console = Said()
    snapshot = read_checkpoint(file, "k", console)
    assert snapshot is not None
    assert snapshot["weights"][3] == 3
    assert console.text == ""
    assert read_checkpoint(file, "another key", console) is None
    assert "was made from other inputs: the fit starts again" in console.text
    damage(file)
    console = Said()
    assert read_checkpoint(file, "k", console) is None
    assert damage is removed or "checkpoint.pt is damaged" in console.text


def test_a_checkpoint_that_cannot_be_written_whole_leaves_the_last_one(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pt"
    write_checkpoint(file, {"key": "k", "epoch": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # as a disk that is full
    try:
        with pytest.raises(OSError, match=r"large|disk full"):
            write_checkpoint(file, {"key": "k", "epoch": 2, "weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_checkpoint(file, "k", Said()) == {"key": "k", "epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def _train(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    quick = [word for one in QUICK for word in ("--set", one)]
    monkeypatch.setattr("sys.argv", ["training", "run", "--preset", "tiny", *quick, *arguments])
    return main()


def test_a_fit_that_diverges_stops_and_makes_no_bundle(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--data", str(world), "--out", str(tmp_path / "run")]
    for _ in range(2):  # the same command again is no way around it
        assert _train(monkeypatch, *arguments, "--set", "fit.learning_rate=1e30") == 1
        said = " ".join(capsys.readouterr().err.split())
        assert "the fit has diverged: " in said
        assert "in epoch 1, at step " in said
        assert "Try a smaller step: --set fit.learning_rate=2e+29 (it is 1e+30)" in said
        assert not (tmp_path / "run" / "fit.json").exists()
        assert not (tmp_path / "run" / "bundle").exists()
    assert _train(monkeypatch, *arguments, "--until", "fit") == 0  # with the usual one


def test_a_network_whose_parameters_are_not_finite_is_not_exported(
    world: Path, whole: Path
) -> None:
    config = load_config("tiny", QUICK)
    model = load_best(whole / "fit", catalogue_of(load_dataset(world), config, whole), config.model)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = torch.nan
    with pytest.raises(FitDiverged, match="not finite, so it is not exported"):
        export_graphs(model)


# -- folders -----------------------------------------------------------------------------------


def test_an_out_that_is_a_file_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    bundle, data = ["--bundle", str(tmp_path)], ["--data", str(tmp_path)]
    for out in (file, file / "below"):
        for command in (["run", *data], ["evaluate", *bundle, *data], ["compare", *data],
                        ["synthesize"], ["fetch", "steam-100k"]):  # fmt: skip
            monkeypatch.setattr("sys.argv", ["training", *command, "--out", str(out)])
            assert main() == 2, command
            said = " ".join(capsys.readouterr().err.split())
            assert f"{file} is a file; name a folder" in said
    assert file.read_text() == "mine"


def test_what_the_system_refuses_is_a_sentence(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--data", str(world), "--until", "codebook"]
    assert _train(monkeypatch, *arguments, "--out", "/proc/unmask") == 1
    assert "error: /proc/unmask: No such file or directory" in capsys.readouterr().err
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, hard))  # as a disk that is full
    try:
        assert _train(monkeypatch, *arguments, "--out", str(tmp_path / "run")) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err
    assert "make room" in said or "disk" in said, said
    assert "Traceback" not in said
    assert _train(monkeypatch, *arguments, "--out", str(tmp_path / "run")) == 0
