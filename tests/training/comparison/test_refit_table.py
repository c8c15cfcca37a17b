"""The refit table: only what it says is known is known, and nothing is done twice."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from service.bundles.bundle import Bundle
from training.baselines import BERT4RecConfig, SASRecConfig
from training.comparison.comparison import Plan, compare
from training.comparison.document import Origin
from training.config import ComparisonTable
from training.data.interactions import load_dataset
from training.data.synthetic import make_world, write_world
from training.evaluation.evaluation import ranks_as_served
from training.preset import load_config

QUICK = ["fit.epochs=2", "fit.validation_users=20", "evaluation.schedule_users=20"]
QUICK += ["codebook.num_codes=16", "neighbours.weights=[1]", "neighbours.scales=[0.3]"]
QUICK += ["neighbours.decays=[0.7]", "neighbours.likeness_weights=[1]", "refit.share=0.5"]
QUICK += ["evaluation.timing_users=1", "evaluation.rankings=['rows']"]
PLAN = Plan(
    (SASRecConfig(threads=1),),
    BERT4RecConfig(threads=1),
    tables=frozenset({ComparisonTable.REFIT, ComparisonTable.SCRATCH}),
)


def test_what_is_known_is_counted_learnt_or_both(tmp_path: Path) -> None:
    write_world(make_world(80, 60, 0.1, 7), tmp_path / "world")
    dataset, config = load_dataset(tmp_path / "world"), load_config("tiny", QUICK)
    out, origin = tmp_path / "out", Origin("a tiny world", "tiny", "compare")
    compare(config, dataset, out, Console(quiet=True), plan=PLAN, origin=origin)

    with (out / "comparison.csv").open() as file:
        rows = {(row["table"], row["system"]): row for row in csv.DictReader(file)}
    names = ["unknown", "counted", "learnt", "both"]
    assert [name for table, name in rows if table == "refit"] == names
    assert [name for table, name in rows if table == "scratch"] == ["learnt on", "from scratch"]
    assert rows["refit", "unknown"]["difference"] == ""
    assert rows["refit", "both"]["recall@10"] == rows["scratch", "learnt on"]["recall@10"]
    assert "| both |" in (out / "comparison.md").read_text()

    split = dataset.split
    trial = Bundle.load(out / "unmask" / "trial")
    for name, known, has_other_network in (
        ("counted", split.before_test, False),
        ("learnt", split.train, True),
        ("both", split.before_test, True),
    ):
        bundle = Bundle.load(out / "refit" / name)
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

    fitted = json.loads((out / "unmask" / "fit.json").read_text())
    for name, share in (("network", 0.5), ("network-from-scratch", 1)):
        record = json.loads((out / "refit" / name / "record.json").read_text())
        assert record["steps"] == pytest.approx(share * fitted["step"], abs=1)
    written = {file: file.stat().st_mtime_ns for file in out.glob("refit/*/*.json")}
    ranked = {file: file.stat().st_mtime_ns for file in out.glob("ranks/*.npz")}
    compare(config, dataset, out, Console(quiet=True), plan=PLAN, origin=origin)
    again = [f for f in written if f.name == "record.json" and f.stat().st_mtime_ns != written[f]]
    assert again == []
    assert ranked == {file: file.stat().st_mtime_ns for file in out.glob("ranks/*.npz")}
