"""The comparison: arithmetic by hand, nothing is done twice, and all of it on a tiny world."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import training.comparison
from service.bundles.bundle import DecodingDefaults
from training.__main__ import main
from training.baselines import BERT4RecConfig, SASRecConfig, published_sasrec, ranks
from training.comparison import ranked_systems
from training.comparison.comparison import MAIN_TABLES, Plan, compare
from training.comparison.document import Comparison, Origin
from training.comparison.finished_run import FinishedRun
from training.comparison.paper_tables import ABLATIONS, ONE_CALL, reseeded
from training.comparison.ranked_systems import RankedSystems
from training.comparison.rivals import COUNTING, fit_counting
from training.comparison.table import (
    Difference,
    Row,
    csv_text,
    density_table,
    paired_difference,
    seeds_table,
    standard_error,
)
from training.config import ComparisonTable
from training.data.interactions import Dataset, load_dataset
from training.data.subsample import thin
from training.data.synthetic import make_world, write_world
from training.evaluation.evaluation import NOT_FOUND, ranks_at
from training.evaluation.ranks_store import RanksStore, SystemRanks
from training.pipeline import dataset_key
from training.preset import load_config

QUIET = Console(quiet=True)
ORIGIN = Origin("a tiny world", "tiny", "python -m training compare")
USERS = 60
NETWORK = {"width": 16, "num_layers": 1, "epochs": 1, "threads": 1}
SASRECS = (SASRecConfig(**NETWORK), SASRecConfig(**NETWORK, loss="sampled"))
PLAN = Plan(SASRECS, BERT4RecConfig(**NETWORK))
QUICK = ["fit.epochs=2", "fit.validation_users=20", "evaluation.schedule_users=20"]
QUICK += ["codebook.num_codes=16", "neighbours.weights=[0, 1]", "neighbours.scales=[0.3]"]
QUICK += ["embeddings.content_dims=24"]  # so all files have networks of one shape: traced once


@dataclass(frozen=True)
class Compared:
    """A finished comparison on a tiny world: its folder, its data, what it printed."""

    world: Path
    out: Path
    dataset: Dataset
    said: dict[str, Any]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    folder = tmp_path_factory.mktemp("comparison")
    world = folder / "world"
    write_world(make_world(USERS, 60, 0.1, 7), world)
    vectors = np.random.default_rng(1).normal(size=(60, 64)).astype(np.float32)
    np.save(world / "item_embeddings.npy", vectors)
    dataset = load_dataset(world)
    config = load_config("tiny", QUICK)
    said = compare(config, dataset, folder / "out", QUIET, plan=PLAN, origin=ORIGIN)
    return Compared(world, folder / "out", dataset, said)


def test_all_systems_are_there_and_the_csv_agrees_with_the_ranks(compared: Compared) -> None:
    recalls = compared.said["recall@10"]
    full = next(name for name in recalls if name.endswith("full system"))
    assert next(iter(recalls)) == full
    pairs = ["item kNN", "sequential memory", "transitions in log space", "sequential rules"]
    envelope = next(name for name in recalls if name.startswith("pairwise envelope"))
    counting = ["popularity", *pairs, envelope]
    baselines = [*counting, "text kNN", "SASRec (ce)", "SASRec (sampled)", "SASRec + prior"]
    again = [f"{name}, counts made again" for name in (full, *counting, "SASRec + prior")]
    others = [*baselines, "BERT4Rec", *again]
    assert list(recalls)[-len(others) :] == others
    assert recalls["sequential memory"] > 1.5 * recalls["popularity"]
    assert recalls[full] > 1.2 * recalls["popularity"]  # 60 users
    assert sum(", prior off" in name for name in recalls) == (len(recalls) - len(others)) / 2
    validation = {name: _stored(compared.out, name)["validation"] for name in pairs}
    best = max(pairs, key=validation.__getitem__)
    assert envelope == f"pairwise envelope ({best})"
    assert recalls[envelope] == recalls[best]
    assert recalls[f"{envelope}, counts made again"] == recalls[f"{best}, counts made again"]

    with (compared.out / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["table"] for row in rows} == {"systems", "schedules", "lengths"}
    stored = np.load(compared.out / "ranks" / "sequential-memory.npz")
    of_memory = next(row for row in rows if row["system"] == "sequential memory")
    assert float(of_memory["recall@10"]) == pytest.approx((stored["item"] <= 10).mean(), abs=1e-5)
    at_other = (stored["other"] <= 10).mean()
    assert float(of_memory["other_recall@10"]) == pytest.approx(at_other, abs=1e-5)
    assert of_memory["exclude_seen"] == "yes"
    schedules = [row for row in rows if row["table"] == "schedules"]
    settings = ["(0, 1)", "(0, 2)", "(2, 2)", "(4, 2)", "(1, 5)", "(0, 6)"]  # 6 positions
    assert [row["setting"] for row in schedules] == 2 * settings
    # At most a call for each step: ranked by rows the search ends once nothing is open.
    calls = [float(row["nfe"]) for row in schedules[:6]]
    assert all(1 < found <= most for found, most in zip(calls[:5], (6, 3, 4, 5, 2), strict=True))
    assert calls[5] == 1
    assert [row["difference"] == "" for row in schedules[:6]] == [False] * 3 + [True] + [False] * 2


def test_the_document_says_where_it_comes_from(compared: Compared) -> None:
    text = (compared.out / "comparison.md").read_text()
    assert "60 users, 60 items" in text
    assert "preset: tiny" in text
    assert "`python -m training compare`" in text
    assert compared.said["bundle"] in text
    assert "one seed" in text
    assert "decay 0." in text
    assert "13+ items" in text
    for line in text.splitlines():  # tables are rectangles
        if line.startswith("| :--"):
            columns = line.count("|")
        if line.startswith("| Unmask"):
            assert line.count("|") == columns
    assert (compared.out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (compared.out / "comparison.svg").read_text()


def test_a_second_call_fits_and_ranks_nothing_and_a_change_only_what_it_touches(
    compared: Compared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written() -> dict[str, int]:
        files = (compared.out / "ranks").glob("*.npz")
        return {file.stem: file.stat().st_mtime_ns for file in files}

    def never(*arguments: object, **named: object) -> None:
        raise AssertionError("this was done before")

    monkeypatch.setattr(Comparison, "draw", lambda self, out: None)  # takes a second each time
    before = written()
    table = (compared.out / "comparison.csv").read_text()
    config = load_config("tiny", QUICK)
    with monkeypatch.context() as patched:
        for name in ("fit_sequence_model", "ranks_as_served", "ranks_by_score"):
            patched.setattr(ranked_systems, name, never)
        for name in ("fit_counting", "fit_with_prior"):
            patched.setattr(ranked_systems, name, never)
        compare(config, compared.dataset, compared.out, QUIET, plan=PLAN, origin=ORIGIN)
    assert written() == before
    assert (compared.out / "comparison.csv").read_text() == table

    ce, sampled = SASRECS
    other = replace(PLAN, sasrec=(ce.model_copy(update={"dropout": 0.1, "threads": 2}), sampled))
    heavier = load_config("tiny", [*QUICK, "neighbours.weights=[0.7]"])
    compare(heavier, compared.dataset, compared.out, QUIET, plan=other, origin=ORIGIN)
    after = written()
    changed = {name for name, time in after.items() if before.get(name) != time}
    of_prior = {name for name in after if name.endswith("-prior")}
    # Counted again is the default alone, and its schedule is chosen by time: it may be another.
    again = {name for name in after if name.startswith("unmask-again-")}
    assert again & changed
    of_prior -= again
    assert of_prior | {"sasrec-ce", "sasrec-with-prior", "sasrec-with-prior-again"} <= changed
    kept = {"bert4rec", "sasrec-sampled", "popularity", "transitions-in-log-space-again"}
    assert kept | {"unmask-6", "unmask-1-1-1-1-2"} <= after.keys() - changed


def test_ablations_thin_data_and_seeds_are_runs_of_their_own(
    compared: Compared, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first run stands in for all others, because an export takes seconds."""
    first = FinishedRun.of(
        load_config("tiny", [*QUICK, "neighbours.weights=[0.7]"]),
        compared.dataset,
        compared.out / "unmask",
        QUIET,
    )
    monkeypatch.setattr(Comparison, "draw", lambda self, out: None)
    runs = {}

    def of(config: Any, dataset: Dataset, folder: Path, console: Console) -> FinishedRun:
        runs[str(folder.relative_to(tmp_path))] = (config, dataset)
        return first

    monkeypatch.setattr(FinishedRun, "of", of)
    config = load_config("tiny", [*QUICK, "model.item_vectors=false"])
    plan = replace(
        PLAN, seeds=2, tables=frozenset({ComparisonTable.ABLATIONS, ComparisonTable.DENSITY})
    )
    said = compare(config, compared.dataset, tmp_path, QUIET, plan=plan, origin=ORIGIN)

    names = {ablation.name.replace(" ", "_") for ablation in ABLATIONS} - {"no_item_vectors"}
    assert set(runs) == (
        {"unmask", "seeds/8"}
        | {f"ablations/{name}" for name in names}
        | {f"density/{dropped}" for dropped in (25, 50, 75)}
    )
    assert runs["ablations/random_mask_count"][0].masking.curriculum is False
    assert runs["ablations/position_loss"][0].fit.ranking == "path"
    assert runs["ablations/PQ_instead_of_OPQ"][0].masking == config.masking
    assert runs["ablations/random_codes"][0].codebook.kind == "random"
    assert runs["ablations/position_loss"][0].codebook.kind == "opq"
    assert runs["seeds/8"][0].fit.seed == 8
    assert runs["density/50"][0] == config
    assert set(said["rows"]) == {"seeds", "ablations", "density"}
    assert said["rows"]["ablations"] == 2 + 2 * len(names) + 1
    assert said["rows"]["density"] == 4 * 4
    assert said["rows"]["seeds"] == 5 * 2

    with (tmp_path / "comparison.csv").open() as file:
        ablations = [row for row in csv.DictReader(file) if row["table"] == "ablations"]
    as_it_is = ablations[2]  # the stand-in is the run it is compared with
    assert (as_it_is["difference"], as_it_is["verdict"]) == ("0.00000", "tie")
    by_name = {row["system"]: row["published"] for row in ablations}
    assert by_name["random count and positions"] == "-3.45 % / -3.19 %"
    assert by_name["random position choice in decoding"] == "-1.94 % / -1.85 %"
    text = (tmp_path / "comparison.md").read_text()
    assert "2 seeds" in text
    assert "| 75 % (" in text


def test_other_seeds_are_decoded_at_the_defaults_of_the_first(
    compared: Compared, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = load_config("tiny", QUICK)
    run = FinishedRun.of(config, compared.dataset, compared.out / "unmask", QUIET)
    narrow, one_call = (
        _with_default(run, DecodingDefaults(**decoding, ranking="path"))
        for decoding in (
            {"r_warm": 4, "m_par": 1, "beam_width": 3},
            {"r_warm": 0, "m_par": 6, "beam_width": 40},
        )
    )
    monkeypatch.setattr(
        FinishedRun, "of", lambda config, *rest: one_call if config.fit.seed == 8 else narrow
    )
    plan = replace(PLAN, seeds=2, tables=frozenset())
    compare(config, compared.dataset, tmp_path, QUIET, plan=plan, origin=ORIGIN)
    with (tmp_path / "comparison.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["system"] == "Unmask"]
    measured = {"setting": "", "milliseconds": "", "search_share": ""}
    first, second = (row | measured for row in rows)
    assert float(first["nfe"]) > 1
    assert first == second  # the stand-in is the same network


def test_counts_are_made_again_with_what_validation_held_out(
    compared: Compared, tmp_path: Path
) -> None:
    config, split = load_config("tiny", QUICK), compared.dataset.split
    run = FinishedRun.of(config, compared.dataset, compared.out / "unmask", QUIET)
    again = run.counted_again(split.before_test)
    before, after = run.bundle.decoder.prior, again.bundle.decoder.prior
    assert before is not None
    assert after is not None
    assert (after.weight, after.decay) == (before.weight, before.decay)
    assert after.affinities.sum() > before.affinities.sum()
    same = run.counted_again(split.train).bundle.decoder.prior
    assert same is not None
    assert np.array_equal(same.affinities, before.affinities)
    assert same.scale == before.scale

    ranked = RankedSystems(compared.dataset, RanksStore(tmp_path, QUIET), 32)
    for model in COUNTING:
        known = fit_counting(model, split, exclude_seen=True).counted_on
        found = ranked.counting(model, again=True).item
        scorer = known(split.before_test)
        assert found.tolist() == ranks(split.test, scorer, k=40, exclude_seen=True).tolist()
        assert found.tolist() != ranked.counting(model).item.tolist()


def test_sasrec_with_a_silent_prior_is_sasrec_and_with_ours_it_is_weighed(
    compared: Compared, tmp_path: Path
) -> None:
    config = load_config("tiny", QUICK)
    run = FinishedRun.of(config, compared.dataset, compared.out / "unmask", QUIET)
    ranked = RankedSystems(compared.dataset, RanksStore(tmp_path, QUIET), 32)
    sasrec = ranked.sequence_model(SASRECS[0])
    off = config.neighbours.model_copy(update={"weights": (0.0,)})
    without = replace(run, config=config.model_copy(update={"neighbours": off}))
    found = ranked.sasrec_with_prior(SASRECS[0], without)
    assert found.item.tolist() == sasrec.item.tolist()
    assert found.parameters == sasrec.parameters
    found = ranked.sasrec_with_prior(SASRECS[0], run)
    assert found.validation > sasrec.validation
    assert found.parameters > sasrec.parameters
    assert found.note.startswith("SASRec (ce), best epoch 1 of 1; prior: rarity power ")


def test_a_narrow_default_is_ranked_as_it_is_served(compared: Compared, tmp_path: Path) -> None:
    config = load_config("tiny", QUICK)
    run = FinishedRun.of(config, compared.dataset, compared.out / "unmask", QUIET)
    setting = DecodingDefaults(r_warm=4, m_par=1, beam_width=3, ranking="path")
    run = _with_default(run, setting)
    ranked = RankedSystems(compared.dataset, RanksStore(tmp_path, QUIET), 32)
    found = ranked.unmask(run, run.default, prior=True, both=True)
    of_ten, of_forty = (
        ranks_at(
            compared.dataset.split.test,
            run.bundle.decoder,
            setting.model_copy(update={"beam_width": k}),
            k=k,
            exclude_seen=True,
        ).item
        for k in (10, 40)
    )
    assert found.item.tolist() == of_ten.tolist()
    assert found.long is not None
    assert found.long.tolist() == of_forty.tolist()
    figures = next(csv.DictReader(csv_text({"x": [Row("x", "", found)]}).splitlines()))
    assert float(figures["recall@10"]) == pytest.approx((of_ten <= 10).mean(), abs=1e-5)
    assert float(figures["recall@40"]) == pytest.approx((of_forty <= 40).mean(), abs=1e-5)
    some = np.arange(USERS) < 7
    assert found.of_users(some).long is not None
    assert len(found.of_users(some).long) == 7
    assert ranked.unmask(run, ONE_CALL, prior=True, both=False).long is None


def test_the_command_prints_one_json_document(
    compared: Compared,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def with_small_baselines(*arguments: Any, plan: Plan, **named: Any) -> dict[str, Any]:
        assert plan.sasrec == (SASRecConfig(threads=1), published_sasrec(threads=1))
        assert (plan.seeds, plan.tables) == (1, MAIN_TABLES)
        return compare(*arguments, plan=PLAN, **named)

    monkeypatch.setattr(training.comparison, "compare", with_small_baselines)
    arguments = ["--data", str(compared.world), "--out", str(compared.out), "--preset", "tiny"]
    for override in [*QUICK, "neighbours.weights=[0.7]"]:
        arguments += ["--set", override]
    monkeypatch.setattr("sys.argv", ["training", "compare", *arguments])
    assert main() == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["users"] == USERS
    text = (compared.out / "comparison.md").read_text()
    assert f"# Comparison on {compared.world.name}" in text
    assert "--set fit.epochs=2" in text


def test_the_tables_asked_for_and_no_others_are_written(
    compared: Compared, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Plan] = []

    def noting(*arguments: Any, plan: Plan, **named: Any) -> dict[str, Any]:
        asked.append(plan)
        return {}

    monkeypatch.setattr(training.comparison, "compare", noting)
    command = ["training", "compare", "--data", str(compared.world), "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", [*command, "--table", "ablations", "--table", "density"])
    assert main() == 0
    monkeypatch.setattr("sys.argv", [*command, "--table", "nonsense"])
    assert main() == 2
    assert [plan.tables for plan in asked] == [{"ablations", "density"}]

    plan = replace(PLAN, tables=frozenset({ComparisonTable.SYSTEMS}))
    config = load_config("tiny", QUICK)
    other = tmp_path / "comparison"
    shutil.copytree(compared.out, other, ignore=shutil.ignore_patterns("comparison.*"))
    compare(config, compared.dataset, other, QUIET, plan=plan, origin=ORIGIN)
    text = (other / "comparison.md").read_text()
    assert "## Systems" in text
    assert "## Schedules" not in text
    assert ".svg" not in text  # it shows schedules too


def test_a_verdict_needs_two_standard_errors() -> None:
    reference = np.array([1, 11, 50, 3, NOT_FOUND, 10, 20, 40], np.int32)  # hits at 10: 3 of 8
    found = np.array([1, 9, 10, 3, NOT_FOUND, 11, 2, 4], np.int32)  # hits at 10: 6 of 8
    difference = paired_difference(found, reference)
    # differences 0 1 1 0 0 -1 1 1: mean 3/8, variance 5/8 - 9/64 = 31/64
    assert difference.mean == pytest.approx(3 / 8)
    assert difference.standard_error == pytest.approx(math.sqrt(31 / 64 / 8))
    assert difference.verdict == "tie"  # .375 < 2 * .246
    assert standard_error(found) == pytest.approx(math.sqrt(0.75 * 0.25 / 8))
    many = paired_difference(np.tile(found, 4), np.tile(reference, 4))
    assert many.mean == pytest.approx(3 / 8)
    assert many.verdict == "better"  # .375 > 2 * .123
    assert paired_difference(np.tile(reference, 4), np.tile(found, 4)).verdict == "worse"
    assert paired_difference(found, found).verdict == "tie"
    assert Difference(-0.01, 0.0).verdict == "worse"
    assert str(Difference(-0.01234, 0.005)) == "-0.0123 ± 0.0050"


def test_shares_kept_and_seeds_by_hand() -> None:
    whole = SystemRanks(np.array([1, 2, 6, 7], np.int32))  # recall@5 .5, recall@10 1
    less = SystemRanks(np.array([1, 6, 11, NOT_FOUND], np.int32))  # .25, .5
    table = density_table([Row("x", "nothing", whole), Row("x", "50 %", less, whole)])
    assert table.splitlines()[-2:] == [
        "| x | nothing | 0.5000 | 100.0 % | 1.0000 | 100.0 % |",
        "| x | 50 % | 0.2500 | 50.0 % | 0.5000 | 50.0 % |",
    ]
    assert Row("x", "", less, whole).change("recall@10") == pytest.approx(-50)
    nothing = SystemRanks(np.full(4, NOT_FOUND, np.int32))
    assert math.isnan(Row("x", "", less, nothing).change("recall@5"))
    seeds = seeds_table([Row("x", "seed 1", whole), Row("x", "seed 2", less)])
    assert "| x | 2 | 0.7500 | 0.3536 | 0.5000 |" in seeds


def test_thinning_leaves_two_and_is_the_same_for_all(compared: Compared) -> None:
    full = compared.dataset
    was, thinned = full.split.train, thin(full, 0.5)
    now = thinned.split.train
    assert dataset_key(thinned) == dataset_key(thin(full, 0.5)) != dataset_key(thin(full, 0.25))
    lengths = was.lengths()
    assert (now.lengths() >= np.minimum(lengths, 2)).all()
    assert now.num_interactions == pytest.approx(was.num_interactions / 2, rel=0.05)
    assert (np.diff(now.popularity()) <= 0).all()
    for dropped, least in ((0.75, 2), (1.0, 2)):
        assert thin(full, dropped).split.train.lengths().min() >= least
    less = thin(full, 0.75).split.train
    split = thin(full, 0.75).split
    assert split.before_test.num_interactions == less.num_interactions + len(split.validation)
    newest = [split.everything.history_of(user)[-1] for user in split.test.users]
    assert newest == split.test.targets.tolist()
    for user in range(was.num_users):
        before, after, last = (
            [log.item_ids[row] for row in log.history_of(user)] for log in (was, now, less)
        )
        assert _is_subsequence(after, before)
        assert _is_subsequence(last, after)
    for whole, other in (
        (full.split.test, thinned.split.test),
        (full.split.validation, thinned.split.validation),
    ):
        assert [was.item_ids[row] for row in whole.rows] == [
            now.item_ids[row] for row in other.rows
        ]
        assert (whole.ends == other.ends).all()
    assert tuple(item.item_id for item in thinned.items) == now.item_ids
    assert thinned.embeddings is not None
    moved = now.item_ids.index(was.item_ids[7])
    assert (thinned.embeddings[moved] == full.embeddings[7]).all()


def test_stored_ranks_come_back_whole_or_not_at_all(tmp_path: Path) -> None:
    ranks = SystemRanks(
        np.array([1, 2], np.int32), sid=np.array([1, 1], np.int32), minutes=1.5, nfe=3, note="so"
    )
    made = []

    def make() -> SystemRanks:
        made.append(1)
        return ranks

    RanksStore(tmp_path, QUIET).ranks_of("x", ["data", "config"], make)
    found = RanksStore(tmp_path, QUIET).ranks_of("x", ["data", "config"], make)
    assert len(made) == 1
    assert found.other is None
    assert found.exclude_seen
    assert (found.minutes, found.nfe, found.note) == (1.5, 3, "so")
    assert found.sid is not None
    assert (found.item.tolist(), found.sid.tolist()) == ([1, 2], [1, 1])
    RanksStore(tmp_path, QUIET).ranks_of("x", ["data", "other config"], make)
    assert len(made) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["x.npz"]
    file = tmp_path / "x.npz"
    whole = file.read_bytes()
    changed = whole[: (place := whole.index(b"PK\x03\x04") + 80)] + b"?????" + whole[place + 5 :]
    for number, damage in enumerate((b"", whole[:-9], changed, None), 3):
        file.unlink()
        file.mkdir() if damage is None else file.write_bytes(damage)
        RanksStore(tmp_path, QUIET).ranks_of("x", ["data", "other config"], make)
        assert len(made) == number
        assert file.is_file()


def test_reseeding_changes_seeds_only() -> None:
    config = load_config("tiny")
    other = reseeded(config, 3)
    assert (other.embeddings.seed, other.codebook.seed, other.fit.seed) == (10, 10, 10)
    assert reseeded(other, -3) == config


def _with_default(run: FinishedRun, decoding: DecodingDefaults) -> FinishedRun:
    manifest = run.bundle.manifest.model_copy(update={"decoding": decoding})
    return replace(run, bundle=replace(run.bundle, manifest=manifest))


def _stored(out: Path, name: str) -> dict[str, Any]:
    """All figures but the ranks."""
    with np.load(out / "ranks" / f"{name.lower().replace(' ', '-')}.npz") as held:
        meta: dict[str, Any] = json.loads(str(held["meta"]))
    return meta


def _is_subsequence(short: list[str], long: list[str]) -> bool:
    left = iter(long)
    return all(item in left for item in short)
