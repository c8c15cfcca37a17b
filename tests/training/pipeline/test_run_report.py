"""report.html of a run: whole, alone, the same again, and no text of the data is markup."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from service.bundles import Bundle
from training.config import RunConfig
from training.data import Dataset
from training.data.interactions import load_dataset
from training.data.synthetic import make_world, write_world
from training.pipeline import run
from training.pipeline.run_report import new_items_section
from training.preset import load_config

HOSTILE = (
    "</td><script>document.title='broken'</script><img src='http://x.test/y'> $x^2$ \u202eolleh"
)
SETTINGS = ["fit.epochs=1", "fit.validation_users=20", "evaluation.invalid_sid_users=5"]
SETTINGS += ["codebook.num_codes=16", "refit.enabled=true", "refit.share=0"]
SETTINGS += ["embeddings.content_dims=24"]  # so all files have networks of one shape: traced once
CHARTS = {"fit", "codes", "settings", "lengths", "map"}


class Page(HTMLParser):
    """Tags, and every address that something is loaded from."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.charts: set[str] = set()
        self.section = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        if tag == "section":
            self.section = str(given["id"])
        if tag == "svg":
            self.charts.add(self.section)
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            if name in given:
                self.addresses.append(str(given[name]))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("world")
    write_world(make_world(120, 60, 0.1, 7), folder)
    items = pl.read_parquet(folder / "items.parquet")
    title = pl.lit(HOSTILE) + pl.col("title")
    items.with_columns(title=title).write_parquet(folder / "items.parquet")
    return load_dataset(folder)


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load_config("tiny", SETTINGS)


@pytest.fixture(scope="module")
def done(dataset: Dataset, config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    run(config, dataset, out, Console(quiet=True))
    return out


def test_everything_is_there_and_nothing_is_loaded(done: Path) -> None:
    text = (done / "report.html").read_text()
    page = Page(text)
    assert page.charts == CHARTS
    assert not {"script", "link", "iframe", "img", "object", "embed"} & set(page.tags)
    assert [one for one in page.addresses if not one.startswith(("#", "data:image/png"))] == []
    assert [one for one in re.findall(r"url\(([^)]*)", text) if not one.startswith("#")] == []
    assert "@import" not in text
    assert "default-src &#x27;none&#x27;" in text or "default-src 'none'" in text
    report = json.loads((done / "evaluation" / "report.json").read_text())
    assert f"<b>{report['default']['recall@10']:.4f}</b>" in text
    for line in report["grid"]["points"]:
        assert f"{line['behind']:.4f} ± {line['error']:.4f}" in text
    assert "&lt;/td&gt;&lt;script&gt;document.title" in text
    assert '"num_codes": 16' in text.replace("&quot;", '"')
    assert "Not measured: new items cannot be measured" in text


def test_a_run_whose_stages_are_done_writes_the_same_again(
    done: Path, dataset: Dataset, config: RunConfig
) -> None:
    written = (done / "report.html").read_bytes()
    (done / "report.html").unlink()
    run(config, dataset, done, Console(quiet=True))
    assert (done / "report.html").read_bytes() == written


def test_a_report_that_cannot_be_written_fails_no_run(
    done: Path, dataset: Dataset, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(sys.modules["training.pipeline.run"], "write_run_report", full)
    console = Console(record=True, width=200)
    assert run(config, dataset, done, console)["stage"] == "bundle"
    assert "report.html was not written: OSError: no space left" in console.export_text()


def test_new_items_have_a_chart() -> None:
    systems = [
        {"system": f"<b>{name}</b>", "users": 90, "recall@10": recall, "recall@10_error": 0.02}
        for name, recall in (("as trained", 0.3), ("added", 0.2))
    ]
    page = Page(new_items_section({"items": 12, "systems": systems}))
    assert page.charts == {"new-items"}
    assert "b" not in page.tags
    assert new_items_section(None) == ""


def test_a_browser_shows_it_without_complaint(done: Path, tmp_path: Path) -> None:
    if (program := shutil.which("chromium")) is None:
        pytest.skip("install chromium to open the report in it")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    options += ["--enable-logging=stderr", f"--user-data-dir={tmp_path}"]
    shown = subprocess.run(
        [program, *options, (done / "report.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in shown.stderr
    page = Page(shown.stdout)
    assert page.charts == CHARTS
    assert "script" not in page.tags
    assert re.search(r"<title>Run of tiny@", shown.stdout)


def test_the_map_goes_with_its_items_into_what_ships(done: Path, dataset: Dataset) -> None:
    trial, shipped = Bundle.load(done / "trial"), Bundle.load(done / "bundle")
    assert trial.places is not None
    assert shipped.places is not None
    assert trial.catalogue.item_ids != shipped.catalogue.item_ids  # the refit has counted more
    of_trial = dict(zip(trial.catalogue.item_ids, trial.places.tolist(), strict=True))
    of_shipped = dict(zip(shipped.catalogue.item_ids, shipped.places.tolist(), strict=True))
    assert of_trial == of_shipped
    assert len(np.unique(trial.places, axis=0)) > 50


def test_a_run_without_a_map_has_none_and_says_nothing_of_it(
    done: Path, dataset: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(done, out)
    config = load_config("tiny", [*SETTINGS, "bundle.map=false"])
    run(config, dataset, out, Console(quiet=True))
    assert Page((out / "report.html").read_text()).charts == CHARTS - {"map"}
    for name in ("trial", "bundle"):
        assert Bundle.load(out / name).places is None
        assert not (out / name / "map.npy").exists()
        assert '"map.npy"' not in (out / name / "manifest.json").read_text()
