"""8-bit graphs in a run: made on request, measured, and kept only if they keep the recall."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from service.bundles.bundle import Bundle, verify
from service.bundles.manifest import INT8_FILES
from service.decoding import Job
from service.errors import BundleInvalid
from training.__main__ import main
from training.bundling import int8 as precision
from training.bundling.int8 import EightBit
from training.data.interactions import load_dataset
from training.data.synthetic import make_world, write_world
from training.evaluation.evaluation import schedule_of
from training.pipeline import run
from training.preset import load_config

OVERRIDES = ["fit.epochs=2", "fit.validation_users=20", "codebook.num_codes=16"]
ONE_POINT = ["evaluation.schedules=[{r_warm=0}]", "evaluation.beam_widths=[40]"]
NETWORK_ALONE = ["neighbours.weights=[0.0]"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(make_world(200, 60, 0, 7), folder)
    return folder


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to its trial bundle, which has 8-bit graphs."""
    out = tmp_path_factory.mktemp("run")
    config = load_config("tiny", [*OVERRIDES, *ONE_POINT, *NETWORK_ALONE, "export.int8=true"])
    run(config, load_dataset(world), out, Console(quiet=True), until="trial")
    return out


def test_a_bundle_has_them_and_answers_with_them(trained: Path) -> None:
    path = trained / "trial"
    facts = verify(path).facts["int8"]
    assert isinstance(facts, dict)
    assert facts["accepted"]
    assert facts["users"] == 200
    assert facts["recall@10"] >= 0.99 * facts["recall@10_fp32"] > 0
    for file in INT8_FILES:
        assert (path / file).stat().st_size > 1000

    float32, int8 = Bundle.load(path), Bundle.load(path, precision="int8")
    decoding = int8.manifest.decoding.model_copy(update={"r_warm": 2, "m_par": 2})
    schedule = schedule_of(decoding, int8.catalogue.num_subspaces)
    histories = [int8.catalogue.rows_of(user.history) for user in int8.held_out]
    jobs = [Job(history, 10, schedule, 20) for history in histories]
    together, _ = int8.decoder.decode(jobs)
    as_float, _ = float32.decoder.decode(jobs)
    for job, answer, other in zip(jobs, together, as_float, strict=True):
        [alone], _ = int8.decoder.decode([job])
        np.testing.assert_array_equal(alone.rows, answer.rows)
        np.testing.assert_allclose(alone.scores, answer.scores, rtol=0, atol=5e-3)
        assert len(set(answer.rows.tolist())) == 10
        assert len(np.intersect1d(answer.rows, other.rows)) >= 7
    assert any(
        not np.array_equal(mine.scores, other.scores)
        for mine, other in zip(together, as_float, strict=True)
    )


def test_evaluate_takes_them(
    trained: Path,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = ["--bundle", str(trained / "trial"), "--data", str(world), "--out", str(tmp_path)]
    said += ["--precision", "int8", "--set", "evaluation.invalid_sid_users=5"]
    monkeypatch.setattr("sys.argv", ["training", "evaluate", *said])
    assert main() == 0
    assert json.loads(capsys.readouterr().out)["precision"] == "int8"
    assert (tmp_path / "report.md").read_text().startswith("# tiny@")


def test_a_bundle_goes_without_them_when_they_find_less(
    trained: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These graphs are useless: their scales were fixed with inputs that are all 0."""
    made = precision.quantised

    def ruined(graph: bytes, samples: list[dict[str, np.ndarray]]) -> bytes:
        nothing = [
            {name: np.zeros_like(array) for name, array in inputs.items()} for inputs in samples
        ]
        return made(graph, nothing)

    monkeypatch.setattr(precision, "quantised", ruined)
    config = load_config("tiny", [*OVERRIDES, *ONE_POINT, *NETWORK_ALONE, "export.int8=true"])
    console = Console(record=True, width=300, file=io.StringIO())
    (trained / "trial.json").rename(tmp_path / "trial.json")
    (trained / "trial").rename(tmp_path / "kept")
    try:
        run(config, load_dataset(world), trained, console, until="trial")
        path = trained / "trial"
        manifest = verify(path)
        assert not manifest.has_int8
        assert not list(path.glob("*int8*"))
        facts = manifest.facts["int8"]
        assert isinstance(facts, dict)
        assert not facts["accepted"]
        assert facts["recall@10"] < 0.9 * facts["recall@10_fp32"]
        assert "so the bundle has no int8 graphs" in console.export_text()
        assert Bundle.load(path).precision == "fp32"
        with pytest.raises(BundleInvalid, match="they lost too much recall"):
            Bundle.load(path, precision="int8")
    finally:
        (trained / "trial").rename(tmp_path / "refused")
        (tmp_path / "kept").rename(trained / "trial")


def test_a_hundredth_of_the_recall_may_go() -> None:
    found = EightBit(b"", b"", 1000, recall=0.099, recall_fp32=0.1, error=0.001)
    assert found.accepted
    assert "UNMASK_PRECISION=int8" in str(found)
    found = replace(found, recall=0.0989)
    assert not found.accepted
    assert "less than 99 %" in str(found)
