"""The stages: skipped if done, done again if their inputs change; and the command line."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import SecretStr
from rich.console import Console
from text_embedder import embedding_of, text_embedder
from tiny_bundle import write_tiny_bundle

from service.bundles.bundle import Bundle, DecodingDefaults, Item, text_of, verify
from service.decoding import Schedule
from service.errors import BundleInvalid
from service.loading.embedder import Embedder
from training.__main__ import main
from training.bundling.promotion import promote
from training.config import STAGES
from training.data.interactions import load_dataset
from training.data.synthetic import make_world, write_world
from training.errors import ConfigError, DataError
from training.evaluation.decoding_grid import schedules_of
from training.pipeline import run
from training.preset import load_config, preset_names

QUICK = ["fit.epochs=1", "fit.validation_users=20", "evaluation.invalid_sid_users=5"]
QUICK += ["refit.share=0"]  # what the network learns then: test_refit
QUICK += ["embeddings.content_dims=24"]  # so all files have networks of one shape: traced once


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(make_world(120, 60, 0.1, 7), folder)
    return folder


def test_stages_are_skipped_or_done_again_as_their_inputs_say(world: Path, tmp_path: Path) -> None:
    out, console, dataset = tmp_path / "run", Console(quiet=True), load_dataset(world)
    overrides = [*QUICK, "codebook.num_codes=16"]
    first = run(load_config("tiny", overrides), dataset, out, console)
    assert first["evaluation"]["users"] == 120
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["invalid_sid_share"] == 0 == evaluation["repeated_items"]
    assert "give --embeddings" in evaluation["new_items"]["not_measured"]
    written = {stage: (out / f"{stage}.json").stat().st_mtime_ns for stage in STAGES}

    run(load_config("tiny", overrides), dataset, out, console)
    assert written == {stage: (out / f"{stage}.json").stat().st_mtime_ns for stage in STAGES}

    other = load_config("tiny", [*overrides, 'bundle.name="other"'])
    run(other, dataset, out, console)
    changed = {s for s in STAGES if (out / f"{s}.json").stat().st_mtime_ns != written[s]}
    assert changed == {"trial", "evaluation", "refit", "bundle"}
    assert Bundle.load(out / "bundle").manifest.name == "other"
    lines = (out / "evaluation" / "ranks.jsonl").read_text().splitlines()
    assert len(lines) == 120
    assert set(json.loads(lines[0])) == {"user_id", "rank", "exclude_seen"}
    assert json.loads(lines[0])["exclude_seen"] is True

    manifest, target = promote(out / "bundle", tmp_path / "store")
    assert target == tmp_path / "store" / "other" / manifest.version
    assert verify(target) == manifest
    with pytest.raises(FileExistsError, match="never overwritten"):
        promote(out / "bundle", tmp_path / "store")

    # a redone stage ends what was made from it, though every key is the same
    (out / "codebook.json").unlink()
    run(other, dataset, out, console, until="codebook")
    assert not (out / "fit.json").exists()
    assert not (out / "bundle.json").exists()
    run(other, dataset, out, console, until="bundle")

    # cut off after the bundle was renamed, before its record was written
    (out / "bundle.json").unlink()
    run(other, dataset, out, console, until="bundle")
    assert Bundle.load(out / "bundle").manifest.name == "other"


def test_evaluate_measures_the_settings_and_sets_the_default_only_when_told(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = load_config("tiny", [*QUICK, "codebook.num_codes=16"])
    run(config, load_dataset(world), tmp_path / "run", Console(quiet=True), until="trial")
    bundle = tmp_path / "run" / "trial"
    before, manifest = verify(bundle), (bundle / "manifest.json").read_bytes()
    grid = before.facts["grid"]
    assert isinstance(grid, dict)
    assert len(grid["points"]) == 1 + 1 * 2 * 2  # the tiny preset's axes; 60 items end at once
    point = grid["points"][grid["chosen"]]
    named = {name: value for name, value in point.items() if name in DecodingDefaults.model_fields}
    assert before.decoding == DecodingDefaults(**named)

    def evaluate(*arguments: str, bundle: Path = bundle) -> int:
        said = ["--bundle", str(bundle), "--data", str(world), "--out", str(tmp_path / "out")]
        monkeypatch.setattr("sys.argv", ["training", "evaluate", *said, *arguments])
        return main()

    axes = ["schedules=[{r_warm = 3, m_par = 3}]", "beam_widths=[20]", "rankings=['best']"]
    axes += ["finish_rows=[40]", "orders=['margin']"]
    narrow = [word for axis in axes for word in ("--set", f"evaluation.{axis}")]
    assert evaluate(*narrow) == 0
    assert (bundle / "manifest.json").read_bytes() == manifest
    assert json.loads(capsys.readouterr().out)["default"]["ranking"] == before.decoding.ranking
    text = (tmp_path / "out" / "report.md").read_text()
    assert "120 validation users" in text
    assert "the newest 200 items" in text
    assert "Figures @40 are of requests for 40 items" in text
    assert "| (3, 3) | 20 | best | 40 | margin |" in text

    assert evaluate(*narrow, "--set-default") == 0
    loaded = Bundle.load(bundle)
    expected = DecodingDefaults(
        r_warm=3, m_par=3, beam_width=20, ranking="best", finish_rows=40, order="margin"
    )
    assert loaded.manifest.decoding == expected
    assert loaded.manifest.ref == before.ref
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert expected.model_dump().items() <= report["default"].items()
    assert loaded.manifest.facts == {**before.facts, "grid": report["grid"]}
    of_default = report["schedules"][-1]
    assert of_default["finish_rows"] == 40
    assert 1 < of_default["nfe"] <= len(of_default["steps"]) == 4
    assert {line["beam_width"] for line in report["schedules"]} == {20}

    _, target = promote(bundle, tmp_path / "store")
    capsys.readouterr()
    assert evaluate("--set-default", bundle=target) == 1
    assert "promoted bundle, which never changes" in " ".join(capsys.readouterr().err.split())


def test_a_new_item_is_encoded_as_a_cold_one_was(world: Path, tmp_path: Path) -> None:
    """The codebook of a bundle gives the codes and vectors that training gave."""
    random, num_cold = np.random.default_rng(2), 20
    items = pl.read_parquet(world / "items.parquet")
    cold = items.head(num_cold).with_columns(item_id="cold-" + pl.col("item_id"))
    pl.concat([items, cold]).write_parquet(tmp_path / "items.parquet")
    embeddings = random.normal(0.3, 1, (len(items) + num_cold, 40)).astype(np.float32)
    embeddings[-1] = 0  # without content
    np.save(tmp_path / "item_embeddings.npy", embeddings)
    shutil.copy(world / "interactions.parquet", tmp_path)
    dataset = load_dataset(tmp_path)
    config = load_config("tiny", [*QUICK, "codebook.num_codes=16"])
    run(config, dataset, tmp_path / "run", Console(quiet=True), until="trial")

    bundle = Bundle.load(tmp_path / "run" / "trial")
    rows = bundle.catalogue.rows_of(item_id for item_id in cold["item_id"])
    assert len(rows) == num_cold
    assert not bundle.catalogue.popularity[rows].any()
    known = bundle.catalogue.vectors[bundle.catalogue.popularity > 0]
    vectors, alike = bundle.codebook.vectors_of(embeddings[-num_cold:], known)
    content_dims = bundle.codebook.content_of(embeddings[:1]).shape[1]
    assert vectors[:, content_dims:].any(axis=1).tolist() == [True] * (num_cold - 1) + [False]
    affinities = bundle.decoder.prior.affinities[rows] if bundle.decoder.prior else []
    assert len(affinities)
    assert affinities.any(axis=1).tolist() == alike.shares.any(axis=1).tolist()
    np.testing.assert_array_equal(bundle.codebook.codes_of(vectors), bundle.catalogue.codes[rows])
    np.testing.assert_array_equal(vectors.astype(np.float16), bundle.catalogue.vectors[rows])
    assert bundle.manifest.content is not None
    assert bundle.manifest.content.embedding_dims == 40
    assert str(bundle.manifest.facts["vectors"]).startswith("content: the given embeddings, 40")

    new = [Item("again-" + item_id, "", ()) for item_id in cold["item_id"]]
    grown = bundle.with_items(new, embeddings[-num_cold:])
    np.testing.assert_array_equal(grown.catalogue.codes[-num_cold:], bundle.catalogue.codes[rows])
    np.testing.assert_array_equal(
        grown.catalogue.vectors[-num_cold:], bundle.catalogue.vectors[rows]
    )


def test_content_is_kept_as_directions_however_long_it_is(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world, tmp_path / "world")
    num_items = len(pl.read_parquet(world / "items.parquet"))
    embeddings = np.random.default_rng(2).normal(0, 1e6, (num_items, 40)).astype(np.float32)
    embeddings[3] = 0
    np.save(tmp_path / "world" / "item_embeddings.npy", embeddings)
    dataset = load_dataset(tmp_path / "world")
    config = load_config("tiny", ["codebook.num_codes=16", "embeddings.content_dims=24"])
    run(config, dataset, tmp_path, Console(quiet=True), until="codebook")
    content = np.load(tmp_path / "codebook" / "content.npy")
    assert dataset.embeddings is not None
    norms = np.linalg.norm(dataset.embeddings, axis=1, keepdims=True)
    expected = dataset.embeddings / np.where(norms, norms, 1)
    np.testing.assert_allclose(content, expected, atol=1e-3)
    assert (~content.any(axis=1)).sum() == 1


def test_a_stage_that_was_cut_off_is_done_again(world: Path, tmp_path: Path) -> None:
    config = load_config("tiny", [*QUICK, "codebook.num_codes=16"])
    console, dataset = Console(quiet=True), load_dataset(world)
    run(config, dataset, tmp_path, console, until="codebook")
    record = tmp_path / "codebook.json"
    codes = (tmp_path / "codebook" / "codes.npy").read_bytes()
    record.unlink()
    (tmp_path / "codebook" / "codes.npy").write_bytes(b"half")
    run(config, dataset, tmp_path, console, until="codebook")
    assert (tmp_path / "codebook" / "codes.npy").read_bytes() == codes


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["--preset", "nope"], 2, "no preset 'nope'; there are: beauty, default"),
        (
            ["--preset", "tiny", "--set", "fit.epoch=3"],
            2,
            "--set: fit.epoch: there is no such setting; did you mean fit.epochs?",
        ),
        (["--preset", "tiny", "--set", "epochs"], 2, "wants section.key=value"),
        (["--preset", "tiny", "--until", "lunch"], 2, "Invalid value for '--until'"),
        (["--epochs", "3"], 2, "No such option: --epochs"),
        ([], 1, "no data given; name a data folder or an interactions file"),
        (["--data", "/nonexistent"], 1, "/nonexistent"),
    ],
)
def test_the_command_line_says_what_is_wrong_in_one_sentence(
    arguments: list[str],
    status: int,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["training", "run", "--out", str(tmp_path / "x"), *arguments])
    assert main() == status
    printed = capsys.readouterr()
    assert sentence in " ".join(printed.err.split())
    assert printed.out == ""
    assert not (tmp_path / "x").exists()


def test_the_last_line_of_a_command_is_one_json_document(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training", "synthesize", "--out", str(tmp_path)]
    command += ["--users", "50", "--items", "60"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["users"] == 50


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_and_its_schedules_fill_its_sids(name: str) -> None:
    config = load_config(name)
    num_subspaces = config.codebook.num_subspaces
    schedules = schedules_of(config.evaluation, num_subspaces)
    assert (0, num_subspaces) in schedules
    for r_warm, m_par in schedules:
        Schedule.from_params(num_subspaces=num_subspaces, r_warm=r_warm, m_par=m_par)


def test_overrides_are_typed_and_presets_are_files_too(tmp_path: Path) -> None:
    preset = tmp_path / "mine.toml"
    preset.write_text("[fit]\nepochs = 3\n")
    config = load_config(str(preset), ["fit.learning_rate=0.5", "bundle.name=mine"])
    assert (config.fit.epochs, config.fit.learning_rate) == (3, 0.5)
    assert config.bundle.name == "mine"
    preset.write_text("fit = 3\n")
    with pytest.raises(ConfigError, match="fit must be a table"):
        load_config(str(preset), ["fit.epochs=3"])
    preset.write_text("")
    with pytest.raises(ConfigError, match="no preset file"):
        load_config(str(tmp_path / "absent.toml"))
    with pytest.raises(ConfigError, match="num_codes"):
        load_config(str(preset), ["codebook.num_codes=1"])
    for axis in ("schedules", "beam_widths", "rankings", "finish_rows", "orders"):
        with pytest.raises(ConfigError, match=f"evaluation.{axis}: Tuple should have at least 1"):
            load_config(str(preset), [f"evaluation.{axis}=[]"])


def test_an_item_gets_the_same_sid_from_training_and_from_the_service(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cold item, embedded by one model in both: its text is the same, and so is its SID."""

    class SentenceTransformer:
        def __init__(self, model: str) -> None:
            assert model == "org/a-model"

        def encode(self, texts: list[str], normalize_embeddings: bool) -> np.ndarray:
            assert normalize_embeddings
            return np.array([embedding_of(text, 24) for text in texts])

    module = types.ModuleType("sentence_transformers")
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    module.SentenceTransformer = SentenceTransformer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    data = tmp_path / "data"
    shutil.copytree(world, data)
    [items] = data.glob("items.*")
    assert items.suffix == ".parquet"
    frame = pl.read_parquet(items)
    cold = frame[:1].with_columns(item_id=pl.lit("cold"), title=pl.lit("Blue kettle of copper"))
    pl.concat([frame, cold]).write_parquet(items)

    overrides = [*QUICK, "codebook.num_codes=16", 'embeddings.text_model="org/a-model"']
    dataset = load_dataset(data)
    out = tmp_path / "run"
    run(load_config("tiny", overrides), dataset, out, Console(quiet=True), until="trial")
    bundle = Bundle.load(out / "trial")
    content = bundle.manifest.content
    assert content is not None
    assert (content.text, content.model) == ("title. categories", "org/a-model")

    [row] = bundle.catalogue.rows_of(["cold"])
    item = bundle.items[row]
    assert item.categories
    with text_embedder(dims=24) as server:
        texts = [text_of(Item("online", item.title, item.categories))]
        embedded = asyncio.run(Embedder(SecretStr(server.url)).embed(texts))
    grown = bundle.with_items(
        [Item("online", item.title, item.categories)], np.array(embedded.embeddings)
    )
    [online] = grown.catalogue.rows_of(["online"])
    codes, vectors = grown.catalogue.codes, grown.catalogue.vectors
    assert codes[online].tolist() == codes[row].tolist()
    assert vectors[online].tolist() == vectors[row].tolist()


def test_who_promotes_with_a_key_signs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, key = write_tiny_bundle(tmp_path / "bundle"), "k" * 32
    for name, value, signed in (("bare", None, False), ("signed", key, True)):
        monkeypatch.delenv("UNMASK_BUNDLE_KEY", raising=False)
        if value:
            monkeypatch.setenv("UNMASK_BUNDLE_KEY", value)
        store = tmp_path / name
        monkeypatch.setattr("sys.argv", ["x", "promote", str(bundle), "--store", str(store)])
        assert main() == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["signed"], len(said["digest"])) == (signed, 64)
    assert verify(tmp_path / "signed" / "tiny" / "1", key).digest == said["digest"]
    for name, other in (("bare", key), ("signed", "l" * 32)):
        with pytest.raises(BundleInvalid, match="sign"):
            verify(tmp_path / name / "tiny" / "1", other)


def test_an_item_that_a_bundle_cannot_hold_ends_a_run_before_it_begins(
    world: Path, tmp_path: Path
) -> None:
    dataset = load_dataset(world)
    odd = replace(dataset.items[3], title="x" * 10_001)
    items = (*dataset.items[:3], odd, *dataset.items[4:])
    dataset = replace(dataset, items=items)
    with pytest.raises(DataError, match=r"item 3: title: .* at most 10000 characters; a bundle"):
        run(load_config("tiny", QUICK), dataset, tmp_path, Console(quiet=True))
    assert not list(tmp_path.iterdir())
