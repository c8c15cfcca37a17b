"""A night ends once: resumed, repeated, undecided, forced; and where a network begins."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nights import QUICK, SPOILED, write_log, write_part
from rich.console import Console

from service.bundles import reference_at
from service.bundles.bundle import Bundle, verify
from service.errors import BundleInvalid
from training.__main__ import main
from training.bundling import promote
from training.data import Dataset, load_dataset
from training.errors import ConfigError, DataError
from training.pipeline import NightPlan, night_to_do, nightly, run
from training.pipeline.night_folders import MARK, alone
from training.pipeline.night_log import Entry, NightLog
from training.pipeline.warm_start import warm_start
from training.preset import load_config

CONFIG = load_config("tiny", QUICK)
MARGIN = 0.4


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_log(folder)
    return folder


@pytest.fixture(scope="module")
def dataset(world: Path) -> Dataset:
    return load_dataset(world)


@pytest.fixture(scope="module")
def first(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store and the first night, which is promoted."""
    folder = tmp_path_factory.mktemp("first")
    entry, said = a_night(folder, dataset, "2026-11-28")
    assert (entry.verdict, entry.in_service, entry.compared) == ("promoted", None, None)
    assert "nothing to compare" in entry.why
    assert "promoted shop@" in said
    return folder


@pytest.fixture
def folder(first: Path, tmp_path: Path) -> Path:
    """A copy of it. Codebook and fit of the next night are there too, so it soon ends."""
    copy = tmp_path / "copy"
    shutil.copytree(first, copy)
    for stage in ("codebook", "fit", "export"):
        source, target = copy / "nights" / "2026-11-28", copy / "nights" / "2026-11-29"
        shutil.copytree(source / stage, target / stage)
        shutil.copy(source / f"{stage}.json", target)
    return copy


def a_night(
    folder: Path, dataset: Dataset, night: str, *overrides: str, **plan: object
) -> tuple[Entry, str]:
    """Do a night; what became of it, and what it said."""
    said = io.StringIO()
    wanted = NightPlan(night, folder / "nights", folder / "store", MARGIN, 2)
    config = load_config("tiny", [*QUICK, *overrides])
    entry = nightly(config, dataset, replace(wanted, **plan), Console(file=said, width=10_000))
    return entry, said.getvalue()


def state(folder: Path) -> dict[str, int]:
    """Every file and when it was written."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


def log_of(folder: Path) -> NightLog:
    return NightLog(folder / "store" / "shop" / "nights.jsonl")


def test_a_night_that_has_promoted_does_nothing_again(folder: Path, dataset: Dataset) -> None:
    before = state(folder)
    [_, promoted] = log_of(folder).read()
    entry, said = a_night(folder, dataset, "2026-11-28", "fit.epochs=1", force=True)
    assert entry == promoted
    assert "nothing to do" in said
    assert state(folder) == before


def test_a_night_that_was_cut_off_before_it_said_so_says_so(folder: Path, dataset: Dataset) -> None:
    """Killed between the copy into the store and the line in the log."""
    [begun, promoted] = log_of(folder).read()
    lines = log_of(folder).path.read_text().splitlines()
    log_of(folder).path.write_text(lines[0] + '\n{"night": "2026-11-2')  # a line that was cut off
    assert log_of(folder).read() == [begun]
    before = state(folder / "nights")
    assert night_to_do(folder / "nights", folder / "store", "shop") == "2026-11-28"
    entry, _ = a_night(folder, dataset, "2026-11-28")
    assert entry == promoted
    assert log_of(folder).read() == [begun, promoted]
    assert state(folder / "nights") == before
    assert night_to_do(folder / "nights", folder / "store", "shop") != "2026-11-28"
    (folder / "nights" / "2099-01-01").mkdir()  # no night has begun here
    assert night_to_do(folder / "nights", folder / "store", "shop") != "2099-01-01"
    (folder / "nights" / "2099-01-01" / MARK).touch()
    assert night_to_do(folder / "nights", folder / "store", "shop") == "2099-01-01"


def test_a_whole_line_of_the_log_counts_without_its_end(folder: Path) -> None:
    log = log_of(folder)
    before = log.read()
    log.path.write_text(log.path.read_text().rstrip("\n"))
    assert log.read() == before
    log.append(before[-1])
    assert log.read() == [*before, before[-1]]


def test_a_bundle_that_somebody_promoted_by_hand_is_not_the_nights(
    folder: Path, dataset: Dataset
) -> None:
    few = ("evaluation.users=10", "bundle.held_out_users=19")
    a_night(folder, dataset, "2026-11-29", *few, margin=0.01)
    promote(folder / "nights" / "2026-11-29" / "bundle", folder / "store")
    entry, _ = a_night(folder, dataset, "2026-11-29", *few, margin=0.01)
    assert entry.verdict == "undecided"
    assert "promoted by hand" in entry.why
    assert "promoted" not in {one.verdict for one in log_of(folder).read()[2:]}


def test_undecided_is_not_promoted_unless_forced(folder: Path, dataset: Dataset) -> None:
    """The same fit again, for few users: nothing is ruled out."""
    few = ("evaluation.users=10", "bundle.held_out_users=19")
    entry, said = a_night(folder, dataset, "2026-11-29", *few, margin=0.01)
    assert entry.verdict == "undecided"
    assert entry.compared is not None
    assert entry.compared["users"] == 10
    assert entry.compared["difference"] == 0
    assert entry.compared["smallest_loss"] > 0.01
    assert "cannot be seen with so many users" in said
    assert "--force" in said
    store = folder / "store" / "shop"
    assert len(list(store.glob("*/manifest.json"))) == 1

    before = state(folder)
    again, said = a_night(folder, dataset, "2026-11-29", *few, margin=0.01)
    assert again == entry
    assert "compared before" in said
    assert state(folder) == before

    forced, _ = a_night(folder, dataset, "2026-11-29", *few, margin=0.01, force=True)
    assert (forced.verdict, forced.forced, forced.candidate) == ("promoted", True, entry.candidate)
    verdicts = [one.verdict for one in log_of(folder).read() if one.is_verdict]
    assert verdicts == ["promoted", "undecided", "promoted"]
    assert verify(store / forced.version).ref == entry.candidate
    assert len(list(store.glob("*/manifest.json"))) == 2


def test_what_learns_nothing_is_refused_and_force_does_not_help(
    folder: Path, dataset: Dataset
) -> None:
    entry, _ = a_night(folder, dataset, "2026-11-29", *SPOILED, force=True)
    assert entry.verdict == "refused"
    assert len(list((folder / "store" / "shop").glob("*/manifest.json"))) == 1


def test_a_bundle_that_lost_what_its_trial_knew_is_refused(
    folder: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small the loss is: what ships has learnt the answers."""
    asked: list[str] = []

    def found_by(bundle: Bundle, *arguments: object, **options: object) -> object:
        asked.append(bundle.manifest.ref)
        return np.arange(10_000) < (2000 if asked[-1].endswith("-trial") else 1950)

    monkeypatch.setattr("training.pipeline.night.found_by", found_by)
    entry, _ = a_night(folder, dataset, "2026-11-29", "bundle.held_out_users=19")
    assert [ref.endswith("-trial") for ref in asked] == [True, True, False]
    assert entry.verdict == "refused"
    assert "less than its own trial" in entry.why


def test_small_losses_do_not_add_up(
    folder: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each night is as good as the one before, within the margin; the third is not as good as the
    first."""
    [_, first] = log_of(folder).read()
    found = {"2026-11-28": 1200, "2026-11-29": 900, "2026-11-30": 600}

    def found_by(bundle: Bundle, *arguments: object, **options: object) -> object:
        [night] = [
            night
            for night in found
            for path in (folder / "nights" / night).glob("*/manifest.json")
            if reference_at(path.parent) == bundle.manifest.ref
        ]
        return np.arange(1200) < found[night]

    monkeypatch.setattr("training.pipeline.night.found_by", found_by)
    second, _ = a_night(folder, dataset, "2026-11-29", "bundle.held_out_users=19")
    assert (second.verdict, second.best) == ("promoted", first.candidate)
    third, _ = a_night(folder, dataset, "2026-11-30", "bundle.held_out_users=18")
    assert (third.verdict, third.best) == ("refused", first.candidate)
    assert "beside the best night so far" in third.why
    assert third.in_service == second.candidate
    assert third.compared is not None
    assert third.compared["low"] > -MARGIN

    shutil.rmtree(folder / "nights" / "2026-11-28")  # the operator accepts the loss
    accepted, _ = a_night(folder, dataset, "2026-11-30", "bundle.held_out_users=18")
    assert (accepted.verdict, accepted.best) == ("promoted", second.candidate)


def test_the_best_so_far_changes_with_a_certain_gain_only(folder: Path) -> None:
    [_, first] = log_of(folder).read()
    second = replace(first, candidate="shop@2", best=first.candidate)
    for low, best in ((-0.01, first.candidate), (0.01, "shop@2")):
        log_of(folder).append(replace(second, compared_with_best={"low": low}))
        assert log_of(folder).best() == best


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda nights: shutil.rmtree(nights / "2026-11-28"), "is not in"),
        (lambda nights: (nights / "2026-11-28/trial/codes.npy").unlink(), "cannot be compared"),
    ],
)
def test_what_cannot_be_compared_is_undecided(
    folder: Path, dataset: Dataset, spoil: Callable[[Path], None], why: str
) -> None:
    spoil(folder / "nights")
    entry, said = a_night(folder, dataset, "2026-11-29", "bundle.held_out_users=19", warm_share=0.1)
    assert (entry.verdict, entry.compared) == ("undecided", None)
    assert why in entry.why
    assert "no warm start, all is fitted anew" in said


def test_old_nights_leave_but_not_that_of_the_bundle_in_service(
    folder: Path, dataset: Dataset
) -> None:
    nights = folder / "nights"
    for night in ("2026-11-20", "2026-11-27", "2026-11-28b", "2026-11-28c", "2026-11-01-sweep"):
        (nights / night).mkdir()
        if "sweep" not in night:  # which is no night, whatever its name is
            (nights / night / MARK).touch()
    # Its bundle is in the store, so it may be in service again.
    shutil.copytree(nights / "2026-11-28", nights / "2026-11-19")
    for name in ("bundle", "trial"):
        manifest = nights / "2026-11-19" / name / "manifest.json"
        fields = json.loads(manifest.read_text())
        del fields["digest"]
        manifest.write_text(json.dumps(fields | {"version": "by-hand"}))
    promote(nights / "2026-11-19" / "bundle", folder / "store")
    [_, promoted] = log_of(folder).read()
    (folder / "store" / "shop" / "current").write_text(promoted.version)
    a_night(folder, dataset, "2026-11-29", "bundle.held_out_users=19")
    left = {path.name for path in nights.iterdir()} - {".lock"}
    kept = {"2026-11-19", "2026-11-28", "2026-11-28b", "2026-11-28c"}
    assert left == {*kept, "2026-11-29", "2026-11-01-sweep"}


def test_what_cannot_become_anything_is_said_before_anything_is_done(
    folder: Path, dataset: Dataset
) -> None:
    with pytest.raises(ConfigError, match=r"leave bundle\.version out"):
        a_night(folder, dataset, "2026-11-29", "bundle.version='1'")
    (folder / "store" / "shop" / "current").write_text("gone\n")
    before = state(folder)
    with pytest.raises(BundleInvalid, match="shop/current names gone"):
        a_night(folder, dataset, "2026-11-29")
    assert state(folder) == before


def test_two_nights_at_a_time_are_refused(folder: Path, dataset: Dataset) -> None:
    with alone(folder / "nights"), pytest.raises(DataError, match="another night is at work"):
        a_night(folder, dataset, "2026-11-29")
    with pytest.raises(ConfigError, match="write a date"):
        a_night(folder, dataset, "tonight")
    with pytest.raises(ConfigError, match="write a date"):
        a_night(folder, dataset, "2026-99-99")


def test_a_log_of_nights_that_is_damaged_is_named(folder: Path, dataset: Dataset) -> None:
    log_of(folder).path.write_text("{}\n")
    with pytest.raises(DataError, match=r"nights\.jsonl has a line that no night wrote"):
        a_night(folder, dataset, "2026-11-29")


def test_the_exit_status_says_what_became_of_it(
    folder: Path, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def status(verdict: str) -> int:
        [_, promoted] = log_of(folder).read()
        entry = replace(promoted, verdict=verdict)
        monkeypatch.setattr("training.pipeline.nightly", lambda *_: entry)
        out, store = str(folder / "nights"), str(folder / "store")
        command = ["training", "nightly", "--data", str(world), "--out", out, "--store", store]
        monkeypatch.setattr("sys.argv", command)
        found = main()
        assert json.loads(capsys.readouterr().out)["verdict"] == verdict
        return found

    assert [status(one) for one in ("promoted", "refused", "undecided")] == [0, 3, 4]


# --- warm start -----------------------------------------------------------------------------------


def first_loss(run_folder: Path) -> float:
    line = (run_folder / "fit" / "scalars.jsonl").read_text().splitlines()[0]
    return float(json.loads(line)["loss"])


def test_a_warm_start_keeps_codes_and_begins_with_the_weights(
    first: Path, dataset: Dataset, tmp_path: Path
) -> None:
    """Its first loss is lower than that of a fit anew, in half of the steps."""
    cold = first / "nights" / "2026-11-28"
    after, _ = warm_start(cold, dataset, CONFIG, 0.5)
    assert after is not None
    said = io.StringIO()
    console = Console(file=said, width=10_000)
    out = tmp_path / "warm"
    run(CONFIG, dataset, out, console, until="fit", after=after)
    assert first_loss(out) < first_loss(cold)
    fits = [json.loads((each / "fit.json").read_text()) for each in (cold, out)]
    assert fits[1]["step"] == round(0.5 * fits[0]["step"])
    assert fits[1]["whole_steps"] == fits[0]["step"]
    codes = [np.load(each / "codebook" / "codes.npy") for each in (cold, out)]
    np.testing.assert_array_equal(codes[0], codes[1])
    assert "codes and vectors of shop@" in said.getvalue()

    written = (out / "fit.json").stat().st_mtime_ns
    run(CONFIG, dataset, out, console, until="fit", after=after)  # resumed
    assert (out / "fit.json").stat().st_mtime_ns == written
    run(CONFIG, dataset, out, console, until="codebook")  # another beginning is another run
    assert not (out / "fit.json").exists()


def test_a_warm_start_never_takes_weights_that_know_what_is_held_out(
    first: Path, dataset: Dataset, tmp_path: Path
) -> None:
    """The network that shipped has learnt it; that of the trial has not."""
    out = tmp_path / "refitted"
    shutil.copytree(first / "nights" / "2026-11-28", out)
    config = load_config("tiny", [*QUICK, "refit.share=0.5"])
    run(config, dataset, out, Console(quiet=True))
    after, _ = warm_start(out, dataset, config, 0.5)
    assert after is not None
    assert after.key.startswith(str(verify(out / "trial").digest))
    of_fit = torch.load(out / "fit" / "checkpoint.pt", weights_only=True)["best"]
    assert after.continuation.weights.keys() == of_fit.keys()
    for name, weights in of_fit.items():
        torch.testing.assert_close(after.continuation.weights[name], weights, rtol=0, atol=0)
    shipped = torch.load(out / "refit" / "checkpoint.pt", weights_only=True)["best"]
    assert any(not torch.equal(shipped[name], weights) for name, weights in of_fit.items())


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("model.width=32", "its network has another shape"),
        ("interactions.split=time", "its settings of interactions are others"),
        ("codebook.num_codes=8", "its settings of codebook are others"),
        ("embeddings.collaborative_dims=16", "its settings of embeddings are others"),
        ("fit.minutes=1", "fit.minutes says how long"),
    ],
)
def test_where_a_warm_start_is_impossible_it_says_why(
    first: Path, dataset: Dataset, override: str, why: str
) -> None:
    config = load_config("tiny", [*QUICK, override])
    after, reason = warm_start(first / "nights" / "2026-11-28", dataset, config, 0.5)
    assert after is None
    assert why in reason
    after, reason = warm_start(first, dataset, CONFIG, 0.5)
    assert after is None
    assert "its files cannot be used" in reason


def test_new_items_need_content_that_the_codebook_knows(
    first: Path, world: Path, tmp_path: Path
) -> None:
    """Without embeddings there is nothing to encode them by; with them they get what they would
    get in the service."""
    shutil.copytree(world, tmp_path / "grown")
    write_part(
        tmp_path / "grown",
        "2026-11-28",
        [
            {"user_id": f"new-{user}", "item_id": item, "timestamp": 1_800_000_000 + place}
            for user in range(3)
            for place, item in enumerate(("item-01", "item-02", "new", "item-03"))
        ],
    )
    night = first / "nights" / "2026-11-28"
    after, reason = warm_start(night, load_dataset(tmp_path / "grown"), CONFIG, 0.5)
    assert after is None
    assert "1 items are new, and without --embeddings" in reason

    dataset = load_dataset(world)
    random = np.random.default_rng(1)
    content = random.normal(size=(dataset.split.train.num_items, 40)).astype(np.float32)
    dataset = replace(dataset, embeddings=content)
    config = load_config("tiny", QUICK)
    run(config, dataset, tmp_path / "cold", Console(quiet=True), until="trial")
    grown = load_dataset(tmp_path / "grown")
    of_item = dict(zip(dataset.split.train.item_ids, content, strict=True))
    of_new = content[:1] + 0.1
    rows = [of_item.get(item_id, of_new[0]) for item_id in grown.split.train.item_ids]
    grown = replace(grown, embeddings=np.stack(rows))
    after, reason = warm_start(tmp_path / "cold", grown, config, 0.5)
    assert after is not None, reason
    served = Bundle.load(tmp_path / "cold" / "trial")
    row = grown.split.train.item_ids.index("new")
    served = served.with_items([grown.items[row]], of_new)
    np.testing.assert_array_equal(after.codes[row], served.catalogue.codes[-1])
    assert "1 new items" in after.source
    other = replace(grown, embeddings=random.normal(size=(len(rows), 40)).astype(np.float32))
    after, reason = warm_start(tmp_path / "cold", other, config, 0.5)
    assert after is None
    assert "another embedding" in reason
