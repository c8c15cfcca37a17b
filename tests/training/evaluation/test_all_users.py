"""Recommendations for all users of a file are those of the service."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from running_service import service_process
from tiny_bundle import write_tiny_bundle

from service.bundles import Bundle
from training.__main__ import main
from training.data import read_interactions
from training.evaluation import recommend_all

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
        "--k", 12, "--threads", 2, "--set", "interactions.collapse_repeats=false",
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
    for out, users_file, bundle_path, status, said in (
        ("answers.csv", users, bundle, 2, "must end in .parquet"),
        ("answers.parquet", folder / "none.csv", bundle, 1, "none.csv"),
        ("answers.parquet", users, folder, 1, "manifest.json"),
    ):
        words = ["--bundle", bundle_path, "--users", users_file, "--out", folder / out]
        monkeypatch.setattr("sys.argv", ["training", "recommend", *map(str, words)])
        assert main() == status
        assert said in capsys.readouterr().err
