"""Families: one of a folder of its own enters a run by its name; which names and options are none.

The family below has the network of MDGR and an objective of its own: every position is masked, and
each is learnt by itself. It also has an option.
"""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from running_service import service_process

import training.families
from service.bundles import Bundle
from training.__main__ import main
from training.comparison.paper_tables import ABLATIONS
from training.config import ModelConfig
from training.data.interactions import load_dataset
from training.data.synthetic import make_world, write_world
from training.errors import ConfigError
from training.families import Family, family_of
from training.families.family import family_names
from training.pipeline import run
from training.preset import load_config, recorded_config, validate_config

ROOT = Path(__file__).resolve().parents[3]
QUICK = ["fit.epochs=2", "fit.validation_users=20", "codebook.num_codes=16"]
ONE_CALL = '''
from dataclasses import replace

import torch
from pydantic import Field
from torch.nn import functional as F

from training.config import Section
from training.families.mdgr import FAMILY as MDGR
from training.families.mdgr.objective import MDGRObjective


class Options(Section):
    smoothing: float = Field(0.1, ge=0, lt=1)


class AllAtOnce(MDGRObjective):
    """The mean cross-entropy of all codes of the next item."""

    def loss(self, minibatch, progress, generator):
        filler = len(self.codes) - 1
        rows, is_target = map(torch.from_numpy, self.segments.arrays(minibatch, filler))
        segment, place = is_target.nonzero().unbind(dim=1)
        codes = self.codes[rows[segment, place + 1]]
        masked = torch.ones_like(codes, dtype=torch.bool)
        logits = self._logits(rows[:, :-1], segment, place, codes, masked)
        smoothing = Options(**self.model.config.options).smoothing
        return F.cross_entropy(logits.flatten(0, 1), codes.flatten(), label_smoothing=smoothing)


FAMILY = replace(MDGR, objective=AllAtOnce, options=Options)
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose folders are families, too."""
    families = tmp_path / "families"
    families.mkdir()
    monkeypatch.setattr(training.families, "__path__", [*training.families.__path__, str(families)])
    known = set(sys.modules)
    yield families
    for name in set(sys.modules) - known:
        module = sys.modules[name]
        if (getattr(module, "__file__", None) or "").startswith(str(families)):
            del sys.modules[name]


def add(families: Path, name: str, source: str) -> None:
    (families / name).mkdir()
    (families / name / "__init__.py").write_text(source)


def test_a_family_of_its_own_enters_a_run_and_its_bundle_serves(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(folder, "all_at_once", ONE_CALL)
    assert {"all_at_once", "maskgr", "mdgr"} <= set(family_names())
    world, out = tmp_path / "world", tmp_path / "run"
    write_world(make_world(120, 60, 0.1, 7), world)
    arguments = ["run", "--data", str(world), "--out", str(out), "--preset", "tiny"]
    settings = [*QUICK, "model.family=all_at_once", "model.options={smoothing = 0.2}"]
    arguments += [word for setting in settings for word in ("--set", setting)]
    monkeypatch.setattr("sys.argv", ["training", *arguments, "--until", "trial"])
    assert main() == 0

    bundle = Bundle.load(out / "trial")
    recorded = bundle.manifest.facts["config"]
    assert isinstance(recorded, dict)
    assert recorded["model"]["family"] == "all_at_once"
    assert recorded["model"]["options"] == {"smoothing": 0.2}
    scalars = (out / "fit" / "scalars.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in scalars]
    assert losses[-1] < np.log(16)  # of one code: what a network that knows nothing has
    items = [bundle.catalogue.item_ids[row] for row in (3, 5, 8)]
    with service_process(tmp_path / "service", bundle=out / "trial") as service:
        answer = service.recommend(user_id="u", history=items, k=10).json()
    assert answer["served_by"] == "model"
    assert len({item["item_id"] for item in answer["items"]} - set(items)) == 10


@pytest.mark.parametrize("name", ["nowhere", "family", "", "MDGR", "mdgr.model", "../mdgr", "a b"])
def test_a_family_that_is_not_there_is_said_with_those_that_are(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"no family {name!r}; there are: ")) as error:
        family_of(name)
    assert {"maskgr", "mdgr"} <= set(re.findall(r"\w+", str(error.value).partition("are: ")[2]))
    write_world(make_world(20, 60, 0.1, 7), tmp_path / "world")
    arguments = ["run", "--data", str(tmp_path / "world"), "--out", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", ["training", *arguments, "--set", f'model.family="{name}"'])
    assert main() == 2
    assert f"error: model.family: no family {name!r}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_family_is_none(folder: Path) -> None:
    add(folder, "half", "FAMILY = 'of two'")
    with pytest.raises(ConfigError, match=r"training\.families\.half has no FAMILY"):
        family_of("half")


def test_a_family_checks_its_options(folder: Path, tmp_path: Path) -> None:
    mdgr = family_of("mdgr")
    assert isinstance(mdgr, Family)
    mdgr.check(ModelConfig())
    with pytest.raises(ConfigError, match=r"model\.options\.width: family mdgr has no such option"):
        mdgr.check(ModelConfig(options={"width": 3}))
    add(folder, "all_at_once", ONE_CALL)
    write_world(make_world(20, 60, 0.1, 7), tmp_path / "world")
    config = load_config("tiny", ["model.family=all_at_once", "model.options={smoothing = 2}"])
    with pytest.raises(ConfigError, match=r"model\.options\.smoothing: .* less than 1"):
        run(config, load_dataset(tmp_path / "world"), tmp_path / "run", Console(quiet=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model.family=tiger"], r"fit\.catalogue_weight: .* set fit\.catalogue_weight=0"),
        (["model.family=maskgr", "model.width=12"], r"must be a multiple of 2 \* num_heads"),
    ],
)
def test_what_a_family_cannot_learn_by_is_refused_before_a_run(
    overrides: list[str], told: str, tmp_path: Path
) -> None:
    write_world(make_world(20, 60, 0.1, 7), tmp_path / "world")
    config = load_config("tiny", overrides)
    with pytest.raises(ConfigError, match=told):
        run(config, load_dataset(tmp_path / "world"), tmp_path / "run", Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_what_a_family_does_not_read_is_no_ablation_of_it() -> None:
    def left(family: str) -> set[str]:
        base = load_config("tiny", [f"model.family={family}"])
        return {one.name for one in ABLATIONS if one.config(base) is not None}

    unread = {"random mask count", "random positions", "random count and positions"}
    unread |= {"no difficulty embedding"}
    assert left("mdgr") - left("maskgr") == unread
    assert "no item vectors" in left("maskgr")


def test_a_run_says_which_settings_its_family_does_not_use(tmp_path: Path) -> None:
    write_world(make_world(20, 60, 0.1, 7), tmp_path / "world")
    settings = [
        "model.family=maskgr",
        "model.decoder_layers=2",
        "masking.gamma=3",
        "model.width=64",
    ]
    dataset, said = load_dataset(tmp_path / "world"), io.StringIO()
    console = Console(file=said, width=200)
    run(load_config("tiny", settings), dataset, tmp_path / "run", console, until="codebook")
    assert "family maskgr does not use model.decoder_layers, masking.gamma\n" in said.getvalue()
    assert family_of("mdgr").ignored(load_config("tiny", settings)) == []


def test_a_configuration_from_before_there_were_families_is_read() -> None:
    """As `evaluate` reads the one that a bundle records."""
    bundle = Bundle.load(next((ROOT / "models_store" / "demo").glob("*/manifest.json")).parent)
    recorded = recorded_config(bundle.manifest.facts["config"])
    for newer in ("family", "options"):
        recorded["model"].pop(newer, None)
    assert "transition_weight" in bundle.manifest.facts["config"]["neighbours"]
    config = validate_config(recorded, source="a bundle")
    assert (config.model.family, config.model.options) == ("mdgr", {})
