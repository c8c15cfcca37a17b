"""`--table cold` on a tiny world: nothing that is fitted knows the new items; users are counted.

One run of the pipeline, of one epoch, serves all tests: that without the new items. With them it
and without its prior it stands in for the run that knows them, because an export takes seconds.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from service.bundles.bundle import Bundle
from training.baselines import BERT4RecConfig, SASRecConfig
from training.comparison.comparison import MAIN_TABLES, Plan, compare
from training.comparison.document import Origin
from training.comparison.ranked_systems import FinishedRun
from training.config import ComparisonTable, RunConfig
from training.data.interactions import Dataset, load_dataset
from training.data.subsample import without_items
from training.data.synthetic import make_world, write_world
from training.errors import ConfigError, DataError
from training.evaluation.cold_items import ColdItems
from training.preset import load_config

QUIET = Console(quiet=True)
ORIGIN = Origin("a tiny world", "tiny", "python -m training compare")
PLAN = Plan((SASRecConfig(),), BERT4RecConfig(), tables=frozenset({ComparisonTable.COLD}))
USERS, ITEMS = 80, 60
QUICK = ["fit.epochs=1", "fit.validation_users=20", "evaluation.schedule_users=20"]
QUICK += ["codebook.num_codes=16", "neighbours.weights=[0.7]", "neighbours.scales=[0.3]"]
QUICK += ["evaluation.schedules=[{ r_warm = 0 }]", "evaluation.invalid_sid_users=5"]
QUICK += ["bundle.held_out_users=1000", "neighbours.likeness_weights=[0]"]
QUICK += ["embeddings.content_dims=24"]  # so all files have networks of one shape: traced once


@dataclass(frozen=True)
class Compared:
    """A comparison of new items only: its folder, its data, which items are new, its CSV."""

    out: Path
    dataset: Dataset
    new_ids: set[str]
    rows: list[dict[str, str]]
    said: dict[str, Any]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    folder = tmp_path_factory.mktemp("new-items")
    write_world(make_world(USERS, ITEMS, 0.1, 7), folder / "world")
    vectors = np.random.default_rng(1).normal(size=(ITEMS, 64)).astype(np.float32)
    np.save(folder / "world" / "item_embeddings.npy", vectors)
    dataset = load_dataset(folder / "world")
    config = load_config("tiny", QUICK)
    cold = ColdItems.of(dataset, config.evaluation, QUIET)
    assert dataset.embeddings is not None
    of = FinishedRun.of
    fitted: list[tuple[Path, Dataset]] = []

    def with_stand_in(
        config: RunConfig, of_data: Dataset, out: Path, console: Console
    ) -> FinishedRun:
        fitted.append((out, of_data))
        if out.name == "cold":
            return of(config, of_data, out, console)
        left = of(config, without_items(of_data, cold.drawn), out.parent / "cold", console)
        bundle = cold.added_to(left.bundle)
        return replace(left, bundle=replace(bundle, decoder=replace(bundle.decoder, prior=None)))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FinishedRun, "of", with_stand_in)
        said = compare(config, dataset, folder / "out", QUIET, plan=PLAN, origin=ORIGIN)
    assert [out for out, _ in fitted] == [folder / "out" / name for name in ("unmask", "cold")]
    assert fitted[0][1] is dataset
    with (folder / "out" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    ids = {dataset.split.train.item_ids[row] for row in cold.drawn}
    return Compared(folder / "out", dataset, ids, rows, said)


def test_nothing_that_is_fitted_knows_the_new_items(compared: Compared) -> None:
    train, bundle = compared.dataset.split.train, Bundle.load(compared.out / "cold" / "trial")
    assert 0 < len(compared.new_ids) < ITEMS / 5
    left = [item_id for item_id in train.item_ids if item_id not in compared.new_ids]
    assert list(bundle.catalogue.item_ids) == left
    histories = [
        [train.item_ids[row] for row in train.history_of(user)] for user in range(train.num_users)
    ]
    counted = Counter(item_id for history in histories for item_id in history)
    assert bundle.catalogue.popularity.tolist() == [counted[item_id] for item_id in left]

    prior = bundle.decoder.prior
    assert prior is not None
    assert len(prior.neighbours) == len(left)
    together = {  # an affinity needs a user with both items
        (one, other) for history in histories for one in history for other in history
    }
    for row, item_id in enumerate(left):
        found = prior.neighbours[row][prior.affinities[row] > 0]
        assert all((item_id, left[other]) in together for other in found)

    assert len(np.load(compared.out / "cold" / "codebook" / "codes.npy")) == len(left)
    assert len(np.load(compared.out / "cold" / "codebook" / "content.npy")) == len(left)
    held_out = (compared.out / "cold" / "trial" / "held_out.jsonl").read_text()
    users = [json.loads(line) for line in held_out.splitlines()]
    assert users
    for user in users:
        assert not {*user["history"], user["target"]} & compared.new_ids


def test_users_are_counted_and_paired(compared: Compared) -> None:
    split = compared.dataset.split
    targets = [split.train.item_ids[row] for row in split.test.targets]
    num_new = sum(target in compared.new_ids for target in targets)
    assert 0 < num_new < USERS
    states = ("as trained", "put back", "kept out of training")
    of_new = [f"Unmask, {prior}{state}" for state in states for prior in ("", "prior off, ")]
    assert [(row["system"], row["setting"]) for row in compared.rows] == [
        *((system, "target is new") for system in [*of_new, "text kNN"]),
        *((f"Unmask, {state}", "all others") for state in states),
    ]
    for row in compared.rows:
        is_new = row["setting"] == "target is new"
        assert int(row["users"]) == (num_new if is_new else USERS - num_new)
        assert (row["recall@100"] != "") == is_new
        assert row["parameters"] == ""
    by_name = {row["system"]: row for row in compared.rows if row["setting"] == "target is new"}
    assert by_name["Unmask, as trained"]["verdict"] == ""
    # All 60 items are in an answer of 100, except those seen: no target is beyond it.
    seen = sum(
        targets[window] in {split.train.item_ids[row] for row in split.test.history_of(window)}
        for window in range(USERS)
        if targets[window] in compared.new_ids
    )
    assert {float(row["recall@100"]) for row in by_name.values()} == {
        round((num_new - seen) / num_new, 5)
    }
    # The stand-in is the other run without its prior: all is as with the prior off.
    figures = [
        {**by_name[f"Unmask, {name}"], "system": "", "note": ""}
        for name in ("put back", "prior off, put back", "prior off, kept out of training")
    ]
    assert figures[0] == figures[1] == figures[2]
    trained, put_back, kept_out = (
        row["recall@10"] for row in compared.rows if row["setting"] == "all others"
    )
    assert trained == put_back != kept_out
    assert compared.said["rows"] == {"cold": len(compared.rows)}


def test_the_document_says_how_it_was_measured(compared: Compared) -> None:
    text = (compared.out / "comparison.md").read_text()
    assert "## New items" in text
    assert "*Kept out of training*: a run of its own" in text
    assert f"{len(compared.new_ids)} new items, of " in text
    assert "| Unmask, kept out of training |" in text
    assert "## Systems" not in text


def test_a_second_run_is_asked_for_and_refused_before_anything_is_fitted(
    compared: Compared, tmp_path: Path
) -> None:
    assert ComparisonTable.COLD not in MAIN_TABLES
    without = replace(compared.dataset, embeddings=None)
    config = load_config("tiny", QUICK)
    with pytest.raises(DataError, match="it has none; give --embeddings"):
        compare(config, without, tmp_path / "out", QUIET, plan=PLAN, origin=ORIGIN)
    config = load_config("tiny", [*QUICK, "embeddings.content_dims=0"])
    with pytest.raises(ConfigError, match="set it above 0"):
        compare(config, compared.dataset, tmp_path / "out", QUIET, plan=PLAN, origin=ORIGIN)
    config = load_config("tiny", [*QUICK, "codebook.kind=random"])
    with pytest.raises(ConfigError, match=r"another codebook\.kind than random"):
        compare(config, compared.dataset, tmp_path / "out", QUIET, plan=PLAN, origin=ORIGIN)
    assert not (tmp_path / "out").exists()
