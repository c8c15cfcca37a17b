"""Families side by side: from the command to the document, statistics by hand, claims by a rule."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from service.bundles import Bundle
from service.decoding import Schedule
from training.__main__ import main
from training.baselines import BERT4RecConfig
from training.comparison import comparison, ranked_systems
from training.comparison.comparison import Plan, compare
from training.comparison.document import Comparison, Origin
from training.comparison.families import claims, row_name, runs, schedule_of_calls
from training.comparison.families.seeds import difference, growth, kept, kept_more
from training.comparison.families.tables import (
    families_table,
    family_density_table,
    nfe_table,
    several_items_table,
)
from training.comparison.finished_run import FinishedRun
from training.comparison.table import FamilyFacts, Row, csv_text
from training.config import ComparisonTable
from training.data.interactions import Dataset, load_dataset
from training.data.synthetic import make_world, write_world
from training.errors import TrainingError
from training.evaluation import NOT_FOUND, Difference, SystemRanks
from training.fitting import training_loop
from training.preset import load_config

ROOT = Path(__file__).resolve().parents[3]
QUIET = Console(quiet=True)
USERS = 60
TINY = """
[embeddings]
content_dims = 8
collaborative_dims = 8
[codebook]
num_subspaces = 3
num_codes = 16
opq_iterations = 2
kmeans_iterations = 5
KIND
[model]
width = 16
num_heads = 2
encoder_layers = 1
history_length = 6
FAMILY
[fit]
minibatch = 64
bf16 = false
validation_users = 20
threads = 1
LOSS
[neighbours]
num_neighbours = 8
[evaluation]
schedules = [{ r_warm = 1, m_par = 1 }, { r_warm = 0 }]
beam_widths = [10]
rankings = ["rows", "path"]
finish_rows = [0]
schedule_users = 20
timing_users = 2
[bundle]
name = "tiny"
"""
KIND = 'kind = "residual"\ncollisions = "digit"'
NEXT_CODE = "position_weight = 1.0\ncatalogue_weight = 0.0\nepochs = 3"
PRESETS = {
    "first": TINY.replace("KIND", "").replace("FAMILY", "").replace("LOSS", "epochs = 5"),
    "tiger": TINY.replace("KIND", KIND)
    .replace("FAMILY", 'family = "tiger"\ndecoder_layers = 1')
    .replace("LOSS", NEXT_CODE),
}
FAMILIES = frozenset({ComparisonTable.FAMILIES, ComparisonTable.NFE})
MORE_TABLES = ["--table", "nfe", "--table", "several-items"]


@dataclass(frozen=True)
class Compared:
    """A finished command: its folder, the data's, the presets', and what it printed."""

    out: Path
    world: Path
    presets: dict[str, Path]
    said: dict[str, Any]

    @property
    def dataset(self) -> Dataset:
        return load_dataset(self.world)

    def rows(self) -> list[dict[str, str]]:
        with (self.out / "comparison.csv").open() as file:
            return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """By a clock that goes on as if every step took a tenth of a second of CPU time."""
    folder = tmp_path_factory.mktemp("families")
    write_world(make_world(USERS, 60, 0.1, 7), folder / "world")
    presets = {}
    for name, text in PRESETS.items():
        presets[name] = folder / f"{name}.toml"
        presets[name].write_text(text)
    ticks = iter(range(1_000_000))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training_loop.time, "process_time", lambda: next(ticks) / 10)
        said = commanded(folder / "out", folder / "world", presets, patched, MORE_TABLES)
    return Compared(folder / "out", folder / "world", presets, said)


def commanded(
    out: Path,
    world: Path,
    presets: dict[str, Path],
    patched: pytest.MonkeyPatch,
    more: list[str],
) -> dict[str, Any]:
    """What `compare` prints, with one family beside the first: an export takes seconds."""
    command = ["training", "compare", "--data", str(world), "--out", str(out)]
    command += ["--preset", str(presets["first"]), "--set", "fit.minutes=0.05"]
    command += ["--family", str(presets["tiger"])]
    patched.setattr("sys.argv", [*command, "--table", "families", *more])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main() == 0
    found: dict[str, Any] = json.loads(printed.getvalue())
    return found


def test_the_command_compares_families_that_learnt_for_as_long(compared: Compared) -> None:
    assert compared.said["rows"] == {"families": 2, "nfe": 3 + 2 + 1, "several-items": 2}
    rows = [row for row in compared.rows() if row["table"] == "families"]
    assert [row["system"] for row in rows] == ["Unmask", "tiger"]
    assert [row["family"] for row in rows] == ["mdgr", "tiger"]
    # three seconds of steps that take a tenth of one, however many epochs their presets have
    assert {row["steps"] for row in rows} <= {"30", "31"}  # tenths add up to not quite three
    assert [float(row["cpu_minutes"]) for row in rows] == pytest.approx([0.05] * 2, rel=0.04)
    assert [row["difference"] == "" for row in rows] == [True, False]
    assert all(float(row["milliseconds_alone"]) > 0 for row in rows)
    assert all(float(row["milliseconds_of_8"]) > 0 for row in rows)
    assert rows[1]["setting"] == "(4, 1), seed 7"
    assert float(rows[1]["nfe"]) <= 4
    trials = {
        name: Bundle.load(compared.out / "families" / name / "trial")
        for name in ("unmask", "tiger")
    }
    vectors = {bundle.manifest.files["vectors.npy"].sha256 for bundle in trials.values()}
    assert len(vectors) == 1
    assert {bundle.manifest.prior.weight for bundle in trials.values()} == {0}
    kinds = [bundle.manifest.codebook.kind for bundle in trials.values()]
    assert kinds == ["opq", "residual"]
    assert not (compared.out / "unmask").exists(), "no table needs the run that would ship"


def test_the_sweep_has_every_number_of_calls_once(compared: Compared) -> None:
    rows = [row for row in compared.rows() if row["table"] == "nfe"]
    asked = [(row["system"], int(row["calls"]), row["order"]) for row in rows]
    orders = ["random", "left_to_right"]
    assert asked == [
        *(("Unmask", calls, "") for calls in (3, 2, 1)),
        *(("Unmask", 3, order) for order in orders),
        ("tiger", 4, ""),
    ]
    for row in rows:
        assert float(row["nfe"]) <= int(row["calls"])
        is_most = row["setting"] in ("(0, 1), seed 7", "(4, 1), seed 7")
        assert (row["difference"] == "") == is_most
        assert (row["milliseconds_alone"] == "") == bool(row["order"])
    assert (compared.out / "families.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (compared.out / "families.svg").read_text()


def test_the_document_has_tables_and_claims_and_nothing_of_the_run_that_ships(
    compared: Compared,
) -> None:
    text = (compared.out / "comparison.md").read_text()
    titles = ("Families", "Families by denoiser calls", "The next items at once", "Claims")
    for title in titles:
        assert f"\n## {title}\n" in text
    assert "full system" not in text
    assert "fit.minutes=0.05" in text
    assert "All answer through the production decoder." in text
    assert "| MDGR | finds more than TIGER |" in text
    for line in text.splitlines():  # nothing here is of a paper: SIDs have three codes
        if line.startswith(("| MDGR | ", "| MaskGR | ")):
            assert line.endswith("| - | - | - | not run |")
    for table in text.split("\n\n"):  # tables are rectangles
        if table.startswith("| "):
            assert len({line.count("|") for line in table.splitlines()}) == 1
    assert compared.said["claims"] == {}


def test_a_second_call_fits_ranks_and_times_nothing(
    compared: Compared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object, **named: object) -> None:
        raise AssertionError("this was done before")

    monkeypatch.setattr(Comparison, "draw_families", lambda self, out: None)
    monkeypatch.setattr(ranked_systems, "ranks_as_served", never)
    monkeypatch.setattr(runs, "milliseconds_by_turns", never)
    table = (compared.out / "comparison.csv").read_text()
    monkeypatch.setattr(ranked_systems, "one_after_another", never)
    said = commanded(compared.out, compared.world, compared.presets, monkeypatch, MORE_TABLES)
    assert said == compared.said
    assert (compared.out / "comparison.csv").read_text() == table


def test_seeds_and_thinned_data_are_runs_of_their_own(
    compared: Compared, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The runs that are there stand in for the others."""
    made: dict[str, tuple[Any, Dataset]] = {}

    def of(config: Any, dataset: Dataset, folder: Path, console: Console) -> FinishedRun:
        made[folder.name] = (config, dataset)
        folder.mkdir(parents=True)
        there = compared.out / "families" / folder.name.rsplit("-", 1)[-1]
        for stage in ("fit", "codebook"):
            (folder / f"{stage}.json").write_text((there / f"{stage}.json").read_text())
        return stand_ins[there.name]

    overrides = ["fit.minutes=0.05"]
    first = load_config(str(compared.presets["first"]), overrides)
    others = {"tiger": load_config(str(compared.presets["tiger"]), overrides)}
    tables = runs.FamilyTables(
        first,
        others,
        ranked_systems.RankedSystems(
            compared.dataset, comparison.RanksStore(compared.out / "ranks", QUIET), 32
        ),
        compared.out,
        seeds=1,
        swept=False,
    )
    stand_ins = {name.lower(): tables.run(name).finished for name in tables.configs}
    monkeypatch.setattr(FinishedRun, "of", of)
    plan = Plan(
        (),
        BERT4RecConfig(),
        seeds=2,
        tables=frozenset({ComparisonTable.FAMILIES, ComparisonTable.FAMILY_DENSITY}),
        families=others,
    )
    origin = Origin("a tiny world", "tiny", "python -m training compare")
    said = compare(first, compared.dataset, tmp_path, QUIET, plan=plan, origin=origin)
    assert said["rows"] == {"families": 2 * 2, "family-density": 2 * 4 * 2}
    shares = ("", "density-25-", "density-50-", "density-75-")
    assert set(made) == {
        f"{seed}{share}{name}"
        for seed in ("", "seed-8-")
        for share in shares
        for name in ("unmask", "tiger")
    }
    assert (
        made["seed-8-tiger"][0].fit.seed == made["seed-8-density-50-unmask"][0].codebook.seed == 8
    )
    train, thinned = (made[name][1].split.train for name in ("tiger", "density-75-tiger"))
    assert thinned.num_interactions < 0.5 * train.num_interactions
    text = (tmp_path / "comparison.md").read_text()
    assert "2 seeds" in text
    assert "## Families on less training data" in text
    of_tiger = [line for line in text.splitlines() if line.startswith("| tiger | 75 % |")]
    assert len(of_tiger) == 1
    assert of_tiger[0].count(" ± ") == 4


def test_what_cannot_be_compared_is_refused_before_anything_is_fitted(
    compared: Compared,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def error_of(*more: str) -> str:
        command = ["training", "compare", "--data", str(compared.world), "--out", str(tmp_path)]
        monkeypatch.setattr("sys.argv", [*command, *more])
        assert main() == 2
        return " ".join(capsys.readouterr().err.split())

    tiger = str(compared.presets["tiger"])
    assert "so it needs --table families" in error_of("--family", tiger)
    assert "use --table families, or run and evaluate" in error_of("--preset", tiger)
    assert "no preset 'liga'" in error_of("--table", "families", "--family", "liga")
    said = error_of("--table", "nfe", "--family", tiger, "--set", "fit.catalogue_weight=1")
    assert "family tiger: fit.catalogue_weight: family tiger has no probability of a row" in said
    (tmp_path / "tiger.toml").write_text("")
    said = error_of(
        "--table", "families", "--family", tiger, "--family", str(tmp_path / "tiger.toml")
    )
    assert "two presets have the same name" in said
    (tmp_path / "unmask.toml").write_text("")
    said = error_of("--table", "families", "--family", str(tmp_path / "unmask.toml"))
    assert "unmask is no name for a row" in said
    assert not (tmp_path / "families").exists()


def test_other_vectors_are_refused(compared: Compared, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(str(compared.presets["first"]))
    store = comparison.RanksStore(compared.out / "ranks", QUIET)
    ranked = ranked_systems.RankedSystems(compared.dataset, store, 32)
    tables = runs.FamilyTables(
        config, {"tiger": config}, ranked, compared.out, seeds=1, swept=False
    )
    of = {
        name: runs.FamilyRun(name, None, ranked, 7, 0.0, 1, None, 1.0, vectors=name)  # type: ignore[arg-type]
        for name in tables.configs
    }
    monkeypatch.setattr(tables, "_made", lambda name, number, dropped: of[name])
    with pytest.raises(TrainingError, match="family tiger learnt from other item vectors"):
        tables.run("tiger")


@pytest.mark.parametrize("num_subspaces", [1, 2, 3, 5, 8, 13])
def test_there_is_one_schedule_for_every_number_of_calls(num_subspaces: int) -> None:
    found = []
    for calls in range(1, num_subspaces + 1):
        r_warm, m_par = schedule_of_calls(num_subspaces, calls).params(num_subspaces)
        schedule = Schedule.from_params(num_subspaces=num_subspaces, r_warm=r_warm, m_par=m_par)
        assert schedule.nfe == calls
        assert max(schedule.steps) == math.ceil(num_subspaces / calls), "none is narrower"
        found.append((r_warm, m_par))
    if num_subspaces == 8:
        assert found == [(0, 8), (0, 4), (0, 3), (0, 2), (2, 2), (4, 2), (6, 2), (0, 1)]


# --- statistics, by hand --------------------------------------------------------------------------


def row(ranks: list[int], name: str = "x", reference: Row | None = None, **facts: Any) -> Row:
    """A row of these ranks; recall@40 is of the same lists."""
    known = {"seed": 7, "family": "mdgr", "schedule": (0, 1), "calls": 3, **facts}
    of = None if reference is None else reference.ranks
    found = SystemRanks(np.array(ranks, np.int32), parameters=5, nfe=3, search_share=0.12)
    return Row(name, "", found, of, facts=FamilyFacts(**known))


FEW, MANY = [1, 30, 50, 3, NOT_FOUND, 10, 20, 40], [1, 9, 10, 3, NOT_FOUND, 11, 2, 4]


def test_a_difference_of_one_seed_is_the_paired_one() -> None:
    found = difference([row(MANY)], [row(FEW)], 10)
    assert found.mean == pytest.approx(3 / 8)
    assert found.standard_error == pytest.approx(math.sqrt(31 / 64 / 8))


def test_seeds_are_averaged_user_by_user_and_their_variance_is_in_the_error() -> None:
    """Differences @10 are 3/8 and 0; users' means of both 0 .5 .5 0 0 -.5 .5 .5."""
    found = difference([row(MANY), row(FEW)], [row(FEW), row(FEW)], 10)
    assert found.mean == pytest.approx(3 / 16)
    of_users = (5 * 0.25 / 8 - (3 / 16) ** 2) / 8
    of_seeds = 2 * (3 / 16) ** 2 / 2  # n - 1, then divided by 2 seeds
    assert found.standard_error == pytest.approx(math.sqrt(of_users + of_seeds))


def test_a_gap_that_grows() -> None:
    """@5 hits are 4 and 2 of 8, @40 7 and 6: the gap shrinks by an eighth."""
    found = growth([row(MANY)], [row(FEW)], 5, 40)
    assert found.mean == pytest.approx(1 / 8 - 2 / 8)
    hits = {k: (np.array(MANY) <= k).astype(float) - (np.array(FEW) <= k) for k in (5, 40)}
    assert found.standard_error == pytest.approx((hits[40] - hits[5]).std() / math.sqrt(8))


def test_shares_kept_have_the_error_of_a_ratio() -> None:
    """Against the spread of the ratio when users are drawn again and again."""
    random = np.random.default_rng(0)
    whole = np.where(random.random(4000) < 0.3, 1, NOT_FOUND)
    less = np.where((random.random(4000) < 0.6) & (whole == 1), 1, NOT_FOUND)
    other = np.where((random.random(4000) < 0.5) & (whole == 1), 1, NOT_FOUND)
    reference = row(whole.tolist())
    mine, others = ([row(ranks.tolist(), reference=reference)] for ranks in (less, other))
    found, more = kept(mine, 5), kept_more(mine, others, 5)
    assert found is not None
    assert more is not None
    assert found.mean == pytest.approx((less == 1).sum() / (whole == 1).sum())
    assert more.mean == pytest.approx(((less == 1).sum() - (other == 1).sum()) / (whole == 1).sum())
    ratios = []
    for _ in range(2000):
        drawn = random.integers(0, 4000, 4000)
        base = (whole[drawn] == 1).sum()
        ratios.append([(of[drawn] == 1).sum() / base for of in (less, other)])
    one, two = np.array(ratios).T
    assert found.standard_error == pytest.approx(one.std(), rel=0.1)
    assert more.standard_error == pytest.approx((one - two).std(), rel=0.1)
    nothing = row([NOT_FOUND] * 8)
    assert kept([row(FEW, reference=nothing)], 5) is None


def test_tables_by_hand() -> None:
    facts = {"steps": 1000, "cpu_minutes": 2.0, "clock_minutes": 3.0, "milliseconds": (1.5, 0.5)}
    first = row(FEW, "Unmask", **facts)
    other = row(MANY, "tiger", first, **{**facts, "family": "tiger", "milliseconds": None})
    lines = families_table([first, other]).splitlines()[2:]
    assert lines == [
        "| Unmask | mdgr | 0.2500 | 0.3750 | 0.7500 | 0.2236 | - | (0, 1) | 3 | 5 | 1,000 | 2.0 "
        "| 3.0 | 1.50 | 0.50 | 12 % | - | - |",
        "| tiger | tiger | 0.5000 | 0.7500 | 0.8750 | 0.3940 | - | (0, 1) | 3 | 5 | 1,000 | 2.0 "
        "| 3.0 | - | - | 12 % | +0.3750 ± 0.2461 | tie |",
    ]
    again = [replace(one, facts=replace(one.facts, seed=8)) for one in (first, other)]
    both = families_table([first, other, *again]).splitlines()[2:]
    assert len(both) == 2
    assert "| 0.0000 (2) |" in both[0]
    less = row(FEW, "Unmask", first, dropped=0.5)
    density = family_density_table([first, less]).splitlines()[2:]
    assert density[0] == "| Unmask | 0 % | 0.2500 | - | - | - | 0.3750 | - | - | - |"
    assert "| 100.0 ± 0.0 % | - | - |" in density[1]
    fewer = row(MANY, "Unmask", first, calls=1, schedule=(0, 8))
    swept = nfe_table([first, fewer]).splitlines()[2:]
    assert swept[1].startswith("| Unmask | 1 | (0, 8) | its own | 3 | - | - | 12 % | 0.5000 |")
    unknown = families_table([row(FEW, steps=None)]).splitlines()[2]
    assert "| 5 | - | - | - | - | - | 12 % |" in unknown
    figures = next(csv.DictReader(csv_text({"families": [less]}).splitlines()))
    assert (figures["dropped"], figures["family"], figures["steps"]) == ("0.5", "mdgr", "")


def test_several_items_by_hand() -> None:
    """Four users of two slots: a user's mean over both is what is paired."""
    together = row(FEW, "maskgr", horizon=2, schedule=(0, 2), calls=4)
    chained = row(MANY, "tiger", horizon=2, chained=True, calls=8)
    lines = several_items_table([together, chained]).splitlines()[2:]
    assert (
        lines[0]
        == "| maskgr | together | (0, 2) | 4 | 3 | 0.2500 | 0.5000 | 0.2500 | 0.3750 | - | - |"
    )
    of_users = np.array([0.5, 0.5, -0.5, 1.0])  # hits 1 1, 1 1, 0 0, 1 1 minus 1 0, 0 1, 0 1, 0 0
    error = of_users.std() / 2
    assert f"| 0.7500 | 0.7500 | 0.5000 | 0.7500 | +0.3750 ± {error:.4f} |" in lines[1]
    assert lines[1].startswith("| tiger | one after another | (0, 1) | 8 |")
    figures = next(csv.DictReader(csv_text({"several-items": [chained]}).splitlines()))
    assert (figures["users"], figures["horizon"], figures["chained"]) == ("4", "2", "yes")
    assert (figures["recall@10"], figures["search_share"]) == ("0.75000", "0.1200")
    hits = (np.array(MANY) <= 10).reshape(4, 2).mean(axis=1)
    assert float(figures["recall@10_standard_error"]) == pytest.approx(hits.std() / 2, abs=1e-5)


def test_a_network_with_a_dense_head_is_asked_for_each_retrieval(compared: Compared) -> None:
    """What its bundle chose comes first. The committed bundle of LIGER has such a head."""
    [folder] = (ROOT / "models_store" / "demo-liger").glob("*/manifest.json")
    bundle = Bundle.load(folder.parent)
    finished = FinishedRun(
        load_config("liger"), bundle, np.empty((0, 0)), 1.0, bundle.manifest.decoding
    )
    ranked = ranked_systems.RankedSystems(
        compared.dataset, comparison.RanksStore(compared.out / "ranks", QUIET), 32
    )
    run = runs.FamilyRun("liger", finished, ranked, 7, 0.0, 1, None, 1.0, vectors="")
    assert run.retrievals == ("generate", "dense", "fused")
    point = runs.Point(finished.default, shipped=True)
    for retrieval in run.retrievals:
        asked = run.decoding(replace(point, retrieval=retrieval))
        assert asked == bundle.manifest.decoding.model_copy(update={"retrieval": retrieval})
    assert run.widths(2) == [None]
    assert run.facts(point).calls == bundle.catalogue.num_subspaces


def test_the_first_row_has_the_name_of_a_papers_system() -> None:
    assert [row_name(preset) for preset in ("maskgr-dense", "tiger", "beauty", "mine")] == [
        "maskgr-dense",
        "tiger",
        "Unmask",
        "Unmask",
    ]


# --- claims ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "error", "verdict"),
    [
        (0.02, 0.009, "reproduced"),
        (0.02, 0.011, "not decided"),
        (-0.02, 0.011, "not decided"),
        (-0.02, 0.009, "not reproduced"),
        (0.0, 0.0, "not decided"),
    ],
)
def test_the_rule(mean: float, error: float, verdict: str) -> None:
    claim = claims.Claim("p", "s", "f", lambda tables: claims.Found("x", Difference(mean, error)))
    assert claim.judged({})[1] == verdict


def test_claims_without_rows_are_not_run() -> None:
    table = claims.claims_table({})
    assert claims.verdicts({}) == {}
    assert table.count("| not run |") == len(claims.CLAIMS)
    assert len({(claim.paper, claim.says) for claim in claims.CLAIMS}) == len(claims.CLAIMS)


def rows_of_everything() -> dict[str, list[Row]]:
    """MaskGR finds what MANY does and all others what FEW does, 40 times each."""
    many, few = 40 * MANY, 40 * FEW
    whole = {name: row(many, name) for name in ("maskgr", "tiger")}
    lost = [NOT_FOUND, *MANY[1:]]
    return {
        "families": [
            row(few, "Unmask"),
            row(many, "maskgr", family="maskgr"),
            row(few, "tiger", family="tiger"),
            row(few, "mdgr-paper"),
            row(few, "liger"),
            row(few, "maskgr-dense, fused", retrieval="fused"),
        ],
        "nfe": [
            *(
                row(few, "Unmask", schedule=schedule, calls=calls)
                for schedule, calls in (((0, 1), 8), ((6, 2), 7), ((4, 2), 6), ((2, 2), 5))
            ),
            row(many, "Unmask", schedule=(0, 2), calls=4),
            row(many, "maskgr", calls=4),
            row(many, "maskgr", row(many), calls=3),
            row(few, "maskgr", row(many), calls=4, order="random"),
        ],
        "several-items": [
            row(few, "maskgr", horizon=2, calls=8),
            row(many, "maskgr", horizon=2, calls=4),
            row(few, "maskgr", horizon=2, calls=2),
            row(many, "maskgr", horizon=2, calls=16, chained=True),
            row(few, "tiger", horizon=2, calls=8, chained=True),
        ],
        "family-density": [
            *whole.values(),
            row(many, "maskgr", whole["maskgr"], dropped=0.25),
            row(40 * lost, "tiger", whole["tiger"], dropped=0.25),
        ],
        "ablations": [
            Row("as it is", setting, SystemRanks(np.array(many, np.int32)))
            for setting in ("one call", "(4, 2)")
        ]
        + [
            Row("random mask count", setting, SystemRanks(np.array(ranks, np.int32)))
            for setting, ranks in (("one call", many), ("(4, 2)", few))
        ],
    }


def test_every_claim_finds_its_rows() -> None:
    found = claims.verdicts(rows_of_everything())
    assert found == {
        "MDGR: finds more than TIGER": "not decided",
        "MDGR: schedule (0, 1) finds more than (4, 2)": "not decided",
        "MDGR: schedule (6, 2) finds more than (4, 2)": "not decided",
        "MDGR: schedule (4, 2) finds more than (2, 2)": "not decided",
        "MDGR: schedule (4, 2) finds more than (0, 2)": "not reproduced",
        "MDGR: finds more than with random mask count": "reproduced",
        "MaskGR: finds more than TIGER, @5": "reproduced",
        "MaskGR: finds more than TIGER, @10": "reproduced",
        "MaskGR: gains more over TIGER @40 than @5": "not reproduced",
        "MaskGR: finds more in 3 calls than TIGER": "reproduced",
        "MaskGR: finds more in 3 calls than LIGER": "reproduced",
        "MaskGR: finds more with dense retrieval than without": "not reproduced",
        "MaskGR: finds more in its own order than in order random": "reproduced",
        "MaskGR: keeps more of its recall than TIGER when 25 % are dropped": "reproduced",
        "MaskGR: finds more of two items at once than TIGER, in half the calls": "reproduced",
    }
    line = next(
        line
        for line in claims.claims_table(rows_of_everything()).splitlines()
        if "| finds more than TIGER, @10 |" in line
    )
    assert "| maskgr against tiger, recall@10 | +0.3750 ± 0.0389 | +100.0 % | reproduced |" in line
    assert "maskgr in 4 calls against tiger in 8, recall@10" in claims.claims_table(
        rows_of_everything()
    )


def test_parts_of_mdgr_are_not_measured_on_another_family() -> None:
    tables = rows_of_everything()
    other = [replace(one, facts=replace(one.facts, family="maskgr")) for one in tables["nfe"]]
    assert not any("schedule" in claim for claim in claims.verdicts({**tables, "nfe": other}))
