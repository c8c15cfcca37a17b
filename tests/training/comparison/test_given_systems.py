"""Models of a user's own in a comparison: the documented one, and what is wrong with others."""

from __future__ import annotations

import csv
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import training.comparison
from training.__main__ import main
from training.baselines import BERT4RecConfig, SASRecConfig
from training.comparison.comparison import Plan, compare
from training.comparison.given_systems import find_system
from training.config import ComparisonTable
from training.data.interactions import load_dataset
from training.data.synthetic import make_world, write_world
from training.errors import ConfigError, TrainingError

ROOT = Path(__file__).resolve().parents[3]
NETWORK = {"width": 8, "num_layers": 1, "epochs": 1, "threads": 1}
PLAN = Plan((SASRecConfig(**NETWORK),), BERT4RecConfig(**NETWORK))
QUICK = ["fit.epochs=1", "fit.validation_users=20", "evaluation.schedule_users=20"]
QUICK += ["codebook.num_codes=16", "neighbours.weights=[0]", "evaluation.timing_users=1"]
QUICK += ["embeddings.content_dims=24"]  # so all files have networks of one shape: traced once
MODEL = """
import numpy as np
class Model:
    name = "a model"
    parameters = 3
    @classmethod
    def fit(cls, train):
        model = cls()
        model.num_items = train.num_items
        return model
    def scores(self, histories):
        return {scores}
"""
GOOD = "np.zeros((len(histories), self.num_items), np.float32)"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The current folder; nothing of it is left in what Python knows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(tmp_path)):
            del sys.modules[name]


def documented() -> str:
    """The block of docs/how-to/extend.md."""
    text = (ROOT / "docs" / "how-to" / "extend.md").read_text()
    [block] = re.findall(r"^<!-- system -->\n```python\n(.*?)^```$", text, re.M | re.S)
    return block


def test_the_documented_model_is_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_world(make_world(60, 60, 0.1, 7), tmp_path / "world")
    dataset = load_dataset(tmp_path / "world")
    (tmp_path / "often_next.py").write_text(documented())
    (tmp_path / "constant.py").write_text(MODEL.format(scores=GOOD))

    def with_small_baselines(*arguments: Any, plan: Plan, **named: Any) -> dict[str, Any]:
        return compare(*arguments, plan=replace(PLAN, given=plan.given), **named)

    monkeypatch.setattr(training.comparison, "compare", with_small_baselines)
    arguments = ["--data", "world", "--out", "out", "--preset", "tiny"]
    arguments += [word for setting in QUICK for word in ("--set", setting)]
    arguments += ["--system", "often_next:OftenNext", "--system", "constant:Model"]
    monkeypatch.setattr("sys.argv", ["training", "compare", *arguments])
    assert main() == 0
    recalls = json.loads(capsys.readouterr().out)["recall@10"]
    assert list(recalls)[-2:] == ["often next", "a model"]
    assert recalls["often next"] > 1.5 * recalls["popularity"]

    with Path("out/comparison.csv").open() as file:
        rows = {row["system"]: row for row in csv.DictReader(file) if row["table"] == "systems"}
    row = rows["often next"]
    train = dataset.split.train
    pairs = {
        pair
        for user in range(train.num_users)
        for pair in zip(train.history_of(user)[:-1], train.history_of(user)[1:], strict=True)
    }
    assert int(row["parameters"]) == len(pairs)
    assert row["users"] == "60"
    assert row["exclude_seen"] == "yes"
    assert row["difference"]
    assert row["other_difference"]
    assert row["note"] == "`often_next:OftenNext`"
    text = Path("out/comparison.md").read_text()
    assert "| often next |" in text
    assert "`often_next:OftenNext`" in text
    assert "--system often_next:OftenNext" in text
    # All scores are equal, so items are ranked by their row: by popularity.
    assert rows["a model"]["recall@10"] == rows["popularity"]["recall@10"]
    assert rows["a model"]["other_recall@10"] == rows["popularity"]["other_recall@10"]

    # A second call ranks nothing; another source ranks this system, and no other one.
    def written() -> dict[str, int]:
        return {file.stem: file.stat().st_mtime_ns for file in Path("out/ranks").glob("*.npz")}

    before = written()
    assert {"system-often_next.OftenNext", "system-constant.Model"} <= set(before)
    assert main() == 0
    assert written() == before
    del sys.modules["constant"]
    Path("constant.py").write_text(MODEL.format(scores=GOOD) + "# changed\n")
    assert main() == 0
    changed = {name for name, at in written().items() if before[name] != at}
    assert changed == {"system-constant.Model"}


@pytest.mark.parametrize(
    ("source", "reference", "sentence"),
    [
        ("", "model", "name a module and a class"),
        ("", "../model:Model", "name a module and a class"),
        ("", "model:Model.fit", "name a module and a class"),
        ("", "nowhere:Model", "there is no module nowhere"),
        ("", "model.deeper:Model", "there is no module model.deeper"),
        ("import nowhere", "model:Model", "cannot be imported: ModuleNotFoundError: No module"),
        ("1 +", "model:Model", "cannot be imported: SyntaxError"),
        ("Model = 3", "model:Model", "model has no class Model"),
        ("class Model:\n    pass", "model:Model", "has no method fit"),
        ("class Model:\n    fit = classmethod(print)", "model:Model", "has no method scores"),
        (
            "class Model:\n    def fit(self, train): ...\n    def scores(self, histories): ...",
            "model:Model",
            "fit must be a class method",
        ),
        (MODEL.replace('"a model"', "3"), "model:Model", "has no name"),
        (MODEL.replace("a model", "a|b"), "model:Model", "its name may have 60 printable"),
        (MODEL.replace("a model", "item kNN"), "model:Model", "the name 'item kNN' is taken"),
        (MODEL.replace("a model", "Unmask (4, 2)"), "model:Model", "is taken"),
    ],
)
def test_a_class_that_is_no_system_is_refused_before_anything_is_read(
    source: str,
    reference: str,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("model.py").write_text(source.replace("{scores}", GOOD))
    arguments = ["--data", "nowhere", "--out", "out", "--system", reference]
    monkeypatch.setattr("sys.argv", ["training", "compare", *arguments])
    assert main() == 2
    printed = capsys.readouterr()
    assert sentence in " ".join(printed.err.split())
    assert f"error: --system {reference}: " in printed.err
    assert len(printed.err.splitlines()) == 1
    assert not Path("out").exists()


def test_two_models_have_two_names_and_a_table() -> None:
    for module in ("one", "two"):
        Path(f"{module}.py").write_text(MODEL.format(scores=GOOD))
    one, two = find_system("one:Model"), find_system("two:Model")
    with pytest.raises(ConfigError, match="two:Model: the name 'a model' is taken"):
        replace(PLAN, given=(one, two))
    with pytest.raises(ConfigError, match="needs --table systems"):
        replace(PLAN, given=(one,), tables=frozenset({ComparisonTable.LENGTHS}))


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        ("None", "must return a numpy array, not NoneType"),
        ("np.zeros(self.num_items)", r"has shape \(60,\), but \(20, 60\) is wanted"),
        (f"{GOOD}.T", r"has shape \(60, 20\), but \(20, 60\)"),
        (f"{GOOD} + np.nan", "not finite"),
        (f"{GOOD} - np.inf", "not finite"),
        (f"{GOOD}.astype(str)", "must be numbers, not <U32"),
    ],
)
def test_wrong_scores_end_a_comparison_before_the_long_fits(
    scores: str, sentence: str, tmp_path: Path
) -> None:
    from training.comparison.document import Origin
    from training.preset import load_config

    Path("model.py").write_text(MODEL.format(scores=scores))
    write_world(make_world(20, 60, 0.1, 7), tmp_path / "world")
    plan = replace(PLAN, given=(find_system("model:Model"),))
    config, dataset = load_config("tiny", QUICK), load_dataset(tmp_path / "world")
    with pytest.raises(TrainingError, match=f"--system model:Model: scores .*{sentence}"):
        compare(
            config,
            dataset,
            tmp_path / "out",
            Console(quiet=True),
            plan=plan,
            origin=Origin("a tiny world", "tiny", "a command"),
        )
    assert not (tmp_path / "out" / "unmask").exists()


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (MODEL.replace("return model", "return None"), r"fit returns \(NoneType\) has no param"),
        (MODEL.replace("parameters = 3", ""), r"fit returns \(Model\) has no parameters"),
        (MODEL.replace("= 3", "= 'many'"), "parameters must be a whole number"),
    ],
)
def test_what_fit_returns_must_be_a_system(source: str, sentence: str, tmp_path: Path) -> None:
    Path("model.py").write_text(source.replace("{scores}", GOOD))
    write_world(make_world(20, 60, 0.1, 7), tmp_path / "world")
    with pytest.raises(TrainingError, match=sentence):
        find_system("model:Model").fit(load_dataset(tmp_path / "world").split.train)


def test_whole_numbers_are_scores_too(tmp_path: Path) -> None:
    Path("model.py").write_text(MODEL.format(scores=GOOD.replace("float32", "int64")))
    write_world(make_world(20, 60, 0.1, 7), tmp_path / "world")
    scorer = find_system("model:Model").fit(load_dataset(tmp_path / "world").split.train)
    assert scorer.scores([np.array([1], np.int32)]).dtype == np.float64
