"""Recommendations for all users of a file are those of the service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import polars as pl
import pytest
from alone import alone
from rich.console import Console
from running_service import service_process
from tiny_bundle import write_tiny_bundle

from service.bundles import Bundle
from training.__main__ import main
from training.data import read_interactions
from training.evaluation import Asked, answers_file, recommend_all, recommend_to_file
from training.evaluation.all_users import Histories

HISTORIES = {
    **{f"u{n}": [f"item-{(7 * n + 3 * i) % 199}" for i in range(1 + n % 6)] for n in range(70)},
    "half-known": ["item-4", "nowhere", "item-9"],
    "unknown": ["nowhere", "nothing"],
    "long": [f"item-{n % 150}" for n in range(450)],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle and a file of histories."""
    folder = tmp_path_factory.mktemp("all-users")
    write_tiny_bundle(folder / "bundles" / "tiny" / "1")
    lines = [
        {"user_id": user, "item_id": item, "position": place}
        for user, items in HISTORIES.items()
        for place, item in enumerate(items)
    ]
    (folder / "users.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> dict[str, object]:
    monkeypatch.setattr("sys.argv", ["training", "recommend", *map(str, words)])
    assert main() == 0
    said: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return said


def test_answers_are_those_of_the_service(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = folder / "new" / "answers.parquet"
    bundle = folder / "bundles" / "tiny" / "1"
    said = run(
        monkeypatch, capsys, "--bundle", bundle, "--users", folder / "users.jsonl", "--out", out,
        "--k", 12, "--workers", 2, "--set", "interactions.collapse_repeats=false",
    )  # fmt: skip
    assert said["users"] == len(HISTORIES)
    assert said["served_by_model"] == len(HISTORIES) - 1
    answers = pl.read_parquet(out)
    assert answers.columns == ["user_id", "rank", "item_id", "score", "served_by"]
    assert not list(out.parent.glob(".*"))
    with service_process(
        folder / "service", bundles_dir=folder / "bundles", bundle="tiny",
        history_dir=folder / "history",
    ) as service:  # fmt: skip
        for user_id, history in HISTORIES.items():
            online = service.recommend(user_id=user_id, history=history[-200:], k=12).json()
            of_user = answers.filter(pl.col("user_id") == user_id)
            assert of_user["item_id"].to_list() == [item["item_id"] for item in online["items"]]
            assert of_user["rank"].to_list() == list(range(1, 13))
            assert set(of_user["served_by"]) == {online["served_by"]}
            scores = [item["score"] for item in online["items"]]
            if online["served_by"] == "popular":
                assert of_user["score"].to_list() == scores == [None] * 12
            else:
                np.testing.assert_allclose(of_user["score"].to_numpy(), scores, atol=1e-4)


def test_batches_and_threads_change_nothing(folder: Path) -> None:
    bundle = Bundle.load(folder / "bundles" / "tiny" / "1")
    log = read_interactions(folder / "users.jsonl")
    done: list[int] = []
    one = recommend_all(bundle, log, k=5, batch=1, advance=done.append)
    many = recommend_all(bundle, log, k=5, batch=64, workers=3)
    assert one.drop("score").equals(many.drop("score"))
    np.testing.assert_allclose(one["score"].to_numpy(), many["score"].to_numpy(), atol=1e-5)
    assert sum(done) == len(HISTORIES)
    seen = recommend_all(bundle, log, k=5, exclude_seen=False)
    assert not seen.drop("score").equals(one.drop("score"))


def test_fewer_items_than_were_asked_for(folder: Path) -> None:
    bundle = Bundle.load(folder / "bundles" / "tiny" / "1")
    few = bundle.without_items([f"item-{row}" for row in range(4, 200)])
    answers = recommend_all(few, read_interactions(folder / "users.jsonl"), k=5)
    assert answers.filter(pl.col("user_id") == "unknown").height == 4
    assert answers["rank"].max() == 4
    assert not answers.filter(pl.col("item_id") == "").height


def test_what_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    users, bundle = folder / "users.jsonl", folder / "bundles" / "tiny" / "1"
    for out, users_file, bundle_path, engine, status, said in (
        ("answers.csv", users, bundle, "local", 2, "must end in .parquet"),
        ("answers.parquet", users, bundle, "spark", 2, "ray"),
        ("answers.parquet", folder / "none.csv", bundle, "local", 1, "none.csv"),
        ("answers.parquet", users, folder, "local", 1, "manifest.json"),
    ):
        words = ["--bundle", bundle_path, "--users", users_file, "--out", folder / out]
        words += ["--engine", engine]
        monkeypatch.setattr("sys.argv", ["training", "recommend", *map(str, words)])
        assert main() == status
        assert said in capsys.readouterr().err


def to_file(folder: Path, out: Path, k: int = 5, part_users: int = 16) -> list[range]:
    """Write the file in small parts, one by one; the parts that were answered."""
    answered: list[range] = []
    whole = answers_file.answer_users

    def noticing(bundle: Bundle, histories: Histories, users: range, *rest: Any, **kw: Any) -> Any:
        answered.append(users)
        return whole(bundle, histories, users, *rest, **kw)

    place = folder / "bundles" / "tiny" / "1"
    log = read_interactions(folder / "users.jsonl")
    with mock.patch.object(answers_file, "answer_users", noticing):
        said = recommend_to_file(
            place, Bundle.load(place), log, out, Console(quiet=True),
            asked=Asked(k), part_users=part_users,
        )  # fmt: skip
    assert said["users"] == len(HISTORIES) == pl.read_parquet(out)["user_id"].n_unique()
    assert said["rows"] == k * len(HISTORIES)
    return answered


def test_a_run_that_was_stopped_goes_on(folder: Path, tmp_path: Path) -> None:
    parts = to_file(folder, tmp_path / "whole.parquet")
    assert [len(part) for part in parts] == [16, 16, 16, 16, 9]
    out = tmp_path / "stopped.parquet"

    def stopped(*parts: object, **named: object) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        return answers_frame(*parts, **named)  # type: ignore[arg-type, return-value]

    left, answers_frame = 3, answers_file.answers_frame
    with (
        mock.patch.object(answers_file, "answers_frame", stopped),
        pytest.raises(KeyboardInterrupt),
    ):
        to_file(folder, out)
    assert not out.exists()
    assert to_file(folder, out) == parts[2:]
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["stopped.parquet", "whole.parquet"]


def test_parts_of_another_question_are_not_used(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    with (
        mock.patch.object(answers_file.shutil, "rmtree"),  # as if it had been stopped just before
        mock.patch.object(answers_file, "_write", _write_all_but(out)),
        pytest.raises(FileNotFoundError),
    ):
        to_file(folder, out, k=5)
    assert len(list(tmp_path.glob(".a.parquet.parts/*.parquet"))) == 5
    assert len(to_file(folder, out, k=6)) == 5
    assert pl.read_parquet(out)["rank"].max() == 6


def _write_all_but(out: Path) -> Callable[[Path, Callable[[Path], Any]], None]:
    write = answers_file._write
    return lambda file, writing: None if file == out else write(file, writing)


def test_ray_writes_the_same_file(folder: Path, tmp_path: Path) -> None:
    """In a network of its own if that may be: Ray's processes listen on every address."""
    asked = ("--bundle", folder / "bundles" / "tiny" / "1", "--users", folder / "users.jsonl")
    bytes_of = {}
    for engine, before in (("local", ()), ("ray", alone())):
        out = tmp_path / f"{engine}.parquet"
        command = (sys.executable, "-m", "training", "recommend", *asked, "--out", out)
        environment = {**os.environ, "RAY_worker_niceness": "0"}
        environment.pop("RAY_ADDRESS", None)
        done = subprocess.run(
            [*before, *map(str, command), "--engine", engine, "--workers", "1"],
            env=environment, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout.splitlines()[-1])
        assert said["users"] == len(HISTORIES)
        bytes_of[engine] = out.read_bytes()
    assert bytes_of["ray"] == bytes_of["local"]
    assert sorted(os.listdir(tmp_path)) == ["local.parquet", "ray.parquet"]


def test_without_ray_it_says_what_to_install(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["--bundle", folder / "bundles" / "tiny" / "1", "--users", folder / "users.jsonl"]
    words += ["--out", tmp_path / "a.parquet", "--engine", "ray"]
    monkeypatch.setattr("sys.argv", ["training", "recommend", *map(str, words)])
    assert main() == 2
    assert "pip install 'unmask[ray]'" in capsys.readouterr().err
