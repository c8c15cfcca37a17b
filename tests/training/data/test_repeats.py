"""Rows that repeat others, and the headline of the report: the figure of what is served."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from logs import log_of
from rich.console import Console

from service.bundles.bundle import Bundle
from training.baselines import Popularity, ranks_by_content
from training.baselines import ranks as ranks_by_score
from training.config import InteractionsConfig
from training.data.interactions import load_dataset, read_interactions
from training.data.repeats import without_repeats
from training.data.splits import leave_last_out
from training.data.synthetic import make_world, write_world
from training.evaluation.evaluation import popularity_ranks, recall_at, targets_seen
from training.evaluation.report import evaluate_bundle
from training.pipeline import dataset_key, run
from training.preset import load_config, recorded_config, validate_config

KEPT = InteractionsConfig(collapse_repeats=False)


def frame(rows: list[tuple[str, str, int]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["user_id", "item_id", "order"], orient="row")


def test_repeats_in_a_row_and_rows_that_are_there_twice_are_left_out() -> None:
    log = frame(
        [
            ("u", "a", 1), ("u", "a", 2), ("u", "a", 3),  # view, cart, purchase
            ("u", "b", 4), ("u", "c", 4), ("u", "b", 4),  # exported twice, another one between
            ("u", "a", 5),  # comes back: no repeat in a row
            ("v", "a", 5), ("v", "a", 6),  # another user's
        ]
    )  # fmt: skip
    left, repeats = without_repeats(log)
    assert left["item_id"].to_list() == ["a", "b", "c", "a", "a"]
    assert left["user_id"].to_list() == ["u"] * 4 + ["v"]
    assert (repeats.duplicates, repeats.consecutive) == (1, 3)
    said = repeats.said(collapsed=True)
    assert said is not None
    assert said.startswith("left out: 1 rows that repeat another")
    assert "and 3 that repeat the item the same user had just before" in said
    again, none = without_repeats(left)
    assert again.equals(left)
    assert none.said(collapsed=True) is none.said(collapsed=False) is None


def funnel(world: Path, folder: Path) -> Path:
    """The same log as a shop writes it: each item is viewed, put into the cart and bought."""
    log = pl.read_parquet(world / "interactions.parquet")
    log, _ = without_repeats(log.select("user_id", "item_id", order="position"))
    log = log.rename({"order": "timestamp"})
    folder.mkdir()
    log.write_csv(folder / "plain.csv")
    steps = [log.with_columns(timestamp=pl.col("timestamp") * 10 + step) for step in range(3)]
    pl.concat([*steps, steps[0]]).write_csv(folder / "interactions.csv")  # the views twice
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(make_world(120, 60, 0.1, 7), folder)
    return folder


def test_a_funnel_log_is_read_as_the_items_that_users_went_through(
    world: Path, tmp_path: Path
) -> None:
    data = funnel(world, tmp_path / "funnel")
    plain = load_dataset(interactions=data / "plain.csv")
    read = load_dataset(data)
    assert dataset_key(read) == dataset_key(plain)
    num_rows = len(plain.split.test.rows)
    [said] = [one for one in read.notes if "left out: " in one]
    assert said.startswith(f"interactions.csv: left out: {num_rows:,} rows that repeat another")
    assert f"and {2 * num_rows:,} that repeat the item" in said
    assert not [one for one in plain.notes if "left out: " in one]

    notes: list[str] = []
    kept = read_interactions(data / "interactions.csv", KEPT, notes)
    assert kept.num_interactions == 4 * num_rows
    assert "kept, as interactions.collapse_repeats=false says: " in notes[-1]


def test_the_headline_is_what_is_served_and_chosen_by(world: Path, tmp_path: Path) -> None:
    """If every target is in its history, almost no recall of the other setting is served."""
    data = funnel(world, tmp_path / "funnel")
    quick = ["fit.epochs=2", "fit.validation_users=20", "evaluation.invalid_sid_users=5"]
    quick += ["codebook.num_codes=16", "interactions.collapse_repeats=false"]
    quick += ["evaluation.timing_users=1", "evaluation.schedule_users=20"]
    quick += ["evaluation.beam_widths=[10]", "evaluation.rankings=['rows']"]
    quick += ["embeddings.collaborative_dims=56"]  # as wide as other files' networks: traced once
    config = load_config("tiny", quick)
    dataset = load_dataset(data, config=config.interactions)
    report = run(config, dataset, tmp_path / "run", Console(quiet=True), until="evaluation")
    assert report["exclude_seen"] is True
    assert report["targets_seen"] == report["users"] == 120
    assert report["default"]["recall@10"] == report["default_prior_off"]["recall@10"] == 0
    assert report["default_nothing_excluded"]["recall@10"] > 0.3
    assert report["popularity"]["recall@40"] == 0
    folder = tmp_path / "run" / "evaluation"
    first = (folder / "report.md").read_text().splitlines()[2]
    assert first.startswith("recall@10 **0.0000**, ndcg@10 0.0000, seen items excluded: so the ")
    assert "or 120 of the 120 users, the target is already in the history" in first
    lines = [json.loads(line) for line in (folder / "ranks.jsonl").read_text().splitlines()]
    assert {(line["rank"], line["exclude_seen"]) for line in lines} == {(None, True)}
    grid = json.loads((tmp_path / "run" / "trial" / "manifest.json").read_text())["facts"]["grid"]
    assert grid["exclude_seen"] is True
    assert {point["recall@10"] for point in grid["points"]} == {0.0}

    kept = load_config("tiny", [*quick, "evaluation.exclude_seen=false"]).evaluation
    bundle, out = Bundle.load(tmp_path / "run" / "trial"), tmp_path / "kept"
    report = evaluate_bundle(
        bundle,
        dataset,
        kept,
        out,
        Console(quiet=True),
        grid=grid,
        ranks_by_content=ranks_by_content,
    )
    assert report["exclude_seen"] is False
    assert report["default"]["recall@10"] > 0.3
    assert report["default_seen_excluded"]["recall@10"] == 0
    text = (out / "report.md").read_text()
    assert "nothing excluded: so the service answers requests that say" in text


def test_the_data_of_a_bundle_of_before_is_read_as_it_was_then() -> None:
    now = load_config("tiny").model_dump(mode="json")
    assert recorded_config(now) == now
    before = {**now, "interactions": {"core": 5, "cold_items": True}}
    config = validate_config(recorded_config(before), None, source="a bundle")
    assert not config.interactions.collapse_repeats
    assert config.interactions.core == 5
    assert recorded_config(None) == {}


def test_popularity_leaves_seen_items_out_as_the_scorers_do() -> None:
    random = np.random.default_rng(0)
    histories = [random.integers(0, 30, random.integers(3, 12)).tolist() for _ in range(200)]
    split = leave_last_out(log_of(histories, 30))
    order = np.argsort(-split.train.popularity(), kind="stable")
    place = np.argsort(order)
    split = leave_last_out(log_of([place[history].tolist() for history in histories], 30))
    for exclude_seen in (False, True):
        found = popularity_ranks(split.test, k=10, exclude_seen=exclude_seen)
        scorer = Popularity(split.train)
        expected = ranks_by_score(split.test, scorer, k=10, exclude_seen=exclude_seen)
        assert found.tolist() == expected.tolist()
        assert recall_at(found, 10) > 0
    assert recall_at(found[targets_seen(split.test)], 10) == 0 < targets_seen(split.test).sum()
