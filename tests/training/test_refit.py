"""What ships knows everything, what was measured does not, and each says so."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from service.bundles.bundle import Bundle, verify
from training.__main__ import main
from training.baselines import BERT4RecConfig, SASRecConfig
from training.comparison.comparison import Plan, compare
from training.comparison.document import Origin
from training.config import ComparisonTable
from training.data.interactions import Dataset, load_dataset
from training.data.synthetic import make_world, write_world
from training.evaluation.evaluation import ranks_as_served
from training.fitting.neighbour_prior import count_again
from training.pipeline import run
from training.preset import load_config

QUICK = ["fit.epochs=1", "fit.validation_users=20", "evaluation.invalid_sid_users=5"]
QUICK += ["codebook.num_codes=16", "evaluation.timing_users=1", "evaluation.schedule_users=20"]
QUICK += ["embeddings.content_dims=24"]  # so all files have networks of one shape: traced once
QUICK += ["evaluation.users=20", "evaluation.rankings=['rows']", "evaluation.beam_widths=[10]"]
QUICK += ["neighbours.weights=[1]", "neighbours.scales=[0.3]", "neighbours.decays=[0.7]"]
PLAN = Plan(
    (SASRecConfig(threads=1),),
    BERT4RecConfig(threads=1),
    tables=frozenset({ComparisonTable.REFIT, ComparisonTable.SCRATCH}),
)
NEW = "only-the-newest-has-it"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world with an item that is in nothing but the last interaction of one user."""
    folder = tmp_path_factory.mktemp("world")
    write_world(make_world(120, 60, 0.1, 7), folder)
    log = pl.read_parquet(folder / "interactions.parquet")
    newest = log.filter(pl.col("user_id") == log["user_id"][0]).tail(1)
    order = next(name for name in log.columns if name not in ("user_id", "item_id"))
    newest = newest.with_columns(item_id=pl.lit(NEW), **{order: pl.col(order) + 1})
    pl.concat([log, newest]).write_parquet(folder / "interactions.parquet")
    return folder


@pytest.fixture(scope="module")
def dataset(world: Path) -> Dataset:
    return load_dataset(world)


@pytest.fixture(scope="module")
def out(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared") / "unmask"
    run(load_config("tiny", QUICK), dataset, folder, Console(quiet=True))
    return folder


def test_what_ships_has_counted_everything_in_rows_of_its_own(out: Path, dataset: Dataset) -> None:
    trial, bundle = Bundle.load(out / "trial"), Bundle.load(out / "bundle")
    everything = dataset.split.everything
    counts = dict(zip(everything.item_ids, everything.popularity().tolist(), strict=True))
    ids = bundle.catalogue.item_ids
    assert set(ids) == set(trial.catalogue.item_ids)
    assert list(ids) != list(trial.catalogue.item_ids)
    assert bundle.catalogue.popularity.tolist() == [counts[item_id] for item_id in ids]
    [row], [before] = bundle.catalogue.rows_of([NEW]), trial.catalogue.rows_of([NEW])
    assert bundle.catalogue.popularity[row] == 1
    assert trial.catalogue.popularity[before] == 0

    rows = trial.catalogue.rows_of(ids)  # codes, vectors and items have moved together
    assert np.array_equal(bundle.catalogue.codes, trial.catalogue.codes[rows])
    assert np.array_equal(bundle.catalogue.vectors, trial.catalogue.vectors[rows])
    assert list(bundle.items) == [trial.items[row] for row in rows]
    assert bundle.held_out == trial.held_out

    prior, was = bundle.decoder.prior, trial.decoder.prior
    assert prior is not None
    assert was is not None
    # What came before it calls for it now, and nothing counted does so in the trial.
    assert prior.affinities[prior.neighbours == row].any()
    assert not was.affinities[was.neighbours == before].any()
    config = load_config("tiny", QUICK).neighbours
    content = np.load(out / "codebook" / "content.npy")[rows]
    chosen = trial.manifest.facts["prior"]
    assert isinstance(chosen, dict)
    known = dataset.reordered(everything.popular_first()).split.everything
    assert known.item_ids == tuple(ids)
    counted = count_again(known, content, config, chosen)
    assert np.array_equal(prior.neighbours, counted.neighbours)
    assert np.array_equal(prior.affinities, counted.affinities)
    assert (prior.weight, prior.decay) == (was.weight, was.decay)
    assert bundle.manifest.decoding == trial.manifest.decoding


def test_the_table_ranks_what_is_counted_learnt_or_both(out: Path, dataset: Dataset) -> None:
    """Only what a row says is known is known, and nothing is done twice."""
    config, folder, origin = load_config("tiny", QUICK), out.parent, Origin("x", "tiny", "compare")
    compare(config, dataset, folder, Console(quiet=True), plan=PLAN, origin=origin)

    with (folder / "comparison.csv").open() as file:
        rows = {(row["table"], row["system"]): row for row in csv.DictReader(file)}
    names = ["unknown", "counted", "learnt", "both"]
    assert [name for table, name in rows if table == "refit"] == names
    assert [name for table, name in rows if table == "scratch"] == ["learnt on", "from scratch"]
    assert rows["refit", "unknown"]["difference"] == ""
    assert rows["refit", "both"]["recall@10"] == rows["scratch", "learnt on"]["recall@10"]
    assert "| both |" in (folder / "comparison.md").read_text()

    split = dataset.split
    trial = Bundle.load(out / "trial")
    for name, known, has_other_network in (
        ("counted", split.before_test, False),
        ("learnt", split.train, True),
        ("both", split.before_test, True),
    ):
        bundle = Bundle.load(folder / "refit" / name)
        counts = dict(zip(known.item_ids, known.popularity().tolist(), strict=True))
        ids = bundle.catalogue.item_ids
        assert bundle.catalogue.popularity.tolist() == [counts[item_id] for item_id in ids]
        same = bundle.manifest.files["encoder.onnx"] == trial.manifest.files["encoder.onnx"]
        assert same != has_other_network
        # the ranks are of the test users, whatever the order of the rows
        there = dataset
        if tuple(ids) != split.train.item_ids:
            there = dataset.reordered(known.popular_first())
        assert there.split.train.item_ids == tuple(ids)
        found = ranks_as_served(
            there.split.test, bundle.decoder, bundle.manifest.decoding, exclude_seen=True
        ).short.item
        recall = float(rows["refit", name]["recall@10"])
        assert recall == pytest.approx(np.mean(found <= 10), abs=1e-5)

    fitted = json.loads((out / "fit.json").read_text())
    for name, share in (("network", 0.25), ("network-from-scratch", 1)):
        record = json.loads((folder / "refit" / name / "record.json").read_text())
        assert record["steps"] == pytest.approx(share * fitted["step"], abs=1)
    written = {file: file.stat().st_mtime_ns for file in folder.glob("refit/*/*.json")}
    ranked = {file: file.stat().st_mtime_ns for file in folder.glob("ranks/*.npz")}
    compare(config, dataset, folder, Console(quiet=True), plan=PLAN, origin=origin)
    again = [f for f in written if f.name == "record.json" and f.stat().st_mtime_ns != written[f]]
    assert again == []
    assert ranked == {file: file.stat().st_mtime_ns for file in folder.glob("ranks/*.npz")}


def test_each_bundle_says_what_it_knows(out: Path, dataset: Dataset) -> None:
    trial, bundle = verify(out / "trial"), verify(out / "bundle")
    assert trial.version.endswith("-trial")
    assert trial.facts["refitted"] is None
    refitted, evaluation = bundle.facts["refitted"], bundle.facts["evaluation"]
    assert isinstance(refitted, dict)
    assert isinstance(evaluation, dict)
    assert refitted["parts"] == ["counts", "network"]
    assert refitted["interactions"] == dataset.split.everything.num_interactions
    assert refitted["measured_with"] == dataset.split.train.num_interactions
    assert refitted["steps"] > 0
    report = json.loads((out / "evaluation" / "report.json").read_text())
    assert evaluation["bundle"] == report["bundle"] == trial.ref
    assert evaluation["default"] == report["default"]
    for name in ("grid", "prior_trials", "fit", "config"):  # as they were chosen
        assert bundle.facts[name] == trial.facts[name]
    assert bundle.files["encoder.onnx"] != trial.files["encoder.onnx"]
    assert bundle.repeat_bias != trial.repeat_bias


def test_nothing_is_measured_with_a_bundle_that_knows_the_answers(
    out: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    said = ["--bundle", str(out / "bundle"), "--data", str(world), "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["training", "evaluate", *said])
    assert main() == 1
    assert "has learnt all interactions" in " ".join(capsys.readouterr().err.split())


def test_a_default_set_on_the_trial_goes_into_what_ships(
    out: Path, dataset: Dataset, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refitted = (out / "refit.json").stat().st_mtime_ns
    said = ["--bundle", str(out / "trial"), "--data", str(world), "--out", str(tmp_path)]
    said += ["--set-default", "--set", "evaluation.schedules=[{r_warm = 3, m_par = 3}]"]
    said += ["--set", "evaluation.rankings=['best']", "--set", "evaluation.finish_rows=[20]"]
    monkeypatch.setattr("sys.argv", ["training", "evaluate", *said])
    assert main() == 0
    run(load_config("tiny", QUICK), dataset, out, Console(quiet=True))
    assert verify(out / "bundle").decoding == verify(out / "trial").decoding
    assert verify(out / "bundle").decoding.ranking == "best"
    assert (out / "refit.json").stat().st_mtime_ns == refitted


def test_parts_of_the_refit_can_be_left_out(out: Path, dataset: Dataset) -> None:
    console = Console(quiet=True)
    counted = load_config("tiny", [*QUICK, "refit.share=0"])
    record = run(counted, dataset, out, console)
    trial, bundle = verify(out / "trial"), verify(out / "bundle")
    assert record["refitted"]["parts"] == ["counts"]
    assert not list((out / "refit").iterdir())
    for file in ("encoder.onnx", "decoder.onnx"):
        assert bundle.files[file] == trial.files[file]
    assert bundle.repeat_bias == trial.repeat_bias
    assert bundle.files["popularity.npy"] != trial.files["popularity.npy"]

    trial_only = load_config("tiny", [*QUICK, "refit.enabled=false", "bundle.version='1'"])
    record = run(trial_only, dataset, out, console)
    assert record["refitted"] is None
    assert verify(out / "bundle") == verify(out / "trial")
    assert verify(out / "bundle").version == "1"
