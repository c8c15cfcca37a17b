"""A split by time: by hand, against plain Python, its refusals, and a whole run on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

from service.bundles.bundle import verify
from training.config import InteractionsConfig
from training.data.interactions import k_core, load_dataset, read_interactions
from training.data.splits import Interactions, split_by_time
from training.data.subsample import thin
from training.data.synthetic import make_world, write_world
from training.errors import DataError
from training.pipeline import dataset_key, run
from training.preset import load_config

BY_TIME = InteractionsConfig(split="time", test_share=0.2, validation_share=0.2)
#        time  0    1    2    3    4    5    6    7    8    9
LOG = {
    "user_id": ["a", "b", "a", "a", "b", "a", "c", "a", "b", "c"],
    "item_id": ["x", "x", "y", "z", "y", "v", "x", "w", "v", "w"],
    "timestamp": list(range(10)),
}


def write(path: Path, columns: dict[str, list[Any]]) -> Path:
    pl.DataFrame(columns).write_csv(path)
    return path


def histories(log: Interactions) -> dict[str, str]:
    return {
        user_id: "".join(log.item_ids[row] for row in log.history_of(user))
        for user, user_id in enumerate(log.user_ids)
    }


def test_a_split_by_time_by_hand(tmp_path: Path) -> None:
    """Validation is from 6 on, the test from 8 on; c begins in the period of validation."""
    write(tmp_path / "interactions.csv", LOG)
    dataset = load_dataset(tmp_path, config=BY_TIME)
    split = dataset.split
    assert histories(split.train) == {"a": "xyzv", "b": "xy", "c": ""}
    assert histories(split.before_test) == {"a": "xyzvw", "b": "xy", "c": "x"}
    assert histories(split.everything) == {"a": "xyzvw", "b": "xyv", "c": "xw"}
    assert (np.diff(split.train.popularity()) <= 0).all()

    def shown(name: str) -> list[tuple[str, str, str]]:
        windows, ids = getattr(split, name), split.train.item_ids
        return [
            (
                split.train.user_ids[windows.users[n]],
                "".join(ids[row] for row in windows.history_of(n)),
                ids[windows.targets[n]],
            )
            for n in range(len(windows))
        ]

    assert shown("validation") == [("a", "xyzv", "w")]
    assert shown("test") == [("b", "xy", "v"), ("c", "x", "w")]
    assert split.name == "time"
    assert "first item from 8 on is the target, the first from 6 until then" in split.sentence
    assert "1 of 3 users have no target" in split.sentence
    assert any(split.sentence in note for note in dataset.notes)
    other = load_dataset(tmp_path)
    assert other.split.name == "leave_last_out"
    assert dataset_key(other) != dataset_key(dataset)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=7), max_size=6),
    st.sampled_from([0.1, 0.25, 0.4]),
)
def test_every_split_by_time_against_plain_python(
    users: list[list[tuple[int, int]]], share: float
) -> None:
    users = [sorted(user, key=lambda event: event[0]) for user in users]
    times = [time for user in users for time, _ in user]
    log = Interactions(
        tuple(f"u{n}" for n in range(len(users))),
        tuple(f"i{n}" for n in range(5)),
        np.cumsum([0, *map(len, users)]).astype(np.int64),
        np.array([row for user in users for _, row in user], np.int32),
        np.array(times, np.int64),
    )
    if not times:
        return
    ordered = sorted(times)
    test_from = ordered[int((1 - share) * len(ordered))]
    validation_from = ordered[int((1 - 2 * share) * len(ordered))]
    if not ordered[0] < validation_from < test_from:
        with pytest.raises(DataError, match="have the same time"):
            split_by_time(log, share, share)
        return
    split = split_by_time(log, share, share)
    for name, start, until in (
        ("validation", validation_from, test_from),
        ("test", test_from, 99),
    ):
        expected = {}
        for user, events in enumerate(users):
            before = [row for time, row in events if time < start]
            later = [row for time, row in events if start <= time < until]
            if before and later:
                expected[user] = (before, later[0])
        windows = getattr(split, name)
        found = {
            int(user): (windows.history_of(n).tolist(), int(windows.targets[n]))
            for n, user in enumerate(windows.users)
        }
        assert found == expected
    assert split.train.num_interactions == sum(time < validation_from for time in times)
    assert split.before_test.num_interactions == sum(time < test_from for time in times)


def test_times_follow_their_interactions_through_every_filter(tmp_path: Path) -> None:
    log = read_interactions(
        write(
            tmp_path / "log.csv",
            {
                "user_id": ["a", "a", "a", "b", "b", "c", "a"],
                "item_id": ["x", "x", "y", "y", "x", "q", "x"],
                "timestamp": ["2024-01-0" + day for day in "1234567"],
            },
        ),
        BY_TIME,
    )
    days = [np.datetime_as_string(time, "D")[-1] for time in log.times]
    assert days == ["1", "3", "7", "4", "5", "6"]  # the second x of a is a repeat
    kept = k_core(log, 2)
    assert kept.item_ids == ("x", "y")
    assert [np.datetime_as_string(time, "D")[-1] for time in kept.times] == days[:-1]
    assert kept.oldest(np.array([1, 2])).times.tolist() == kept.times[[0, 3, 4]].tolist()


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"position": [0, 1, 2]}, "split=time needs a column timestamp, and there is none"),
        ({"timestamp": [5, 5, 5]}, "too many interactions have the same time"),
        (
            {"position": [0, 1, 2], "timestamp": [1, None, 3]},
            "have no timestamp.*or say interactions.split=leave",
        ),
        ({"timestamp": [1, 2, 3]}, "so there is nobody to test or validate with"),
    ],
)
def test_a_log_that_cannot_be_split_by_time_is_refused(
    tmp_path: Path, columns: dict[str, list[Any]], sentence: str
) -> None:
    users = ["a", "b", "c"] if columns == {"timestamp": [1, 2, 3]} else ["a", "a", "a"]
    write(tmp_path / "interactions.csv", {"user_id": users, "item_id": list("xyz"), **columns})
    config = BY_TIME.model_copy(update={"test_share": 0.3, "validation_share": 0.3})
    with pytest.raises(DataError, match=sentence):
        load_dataset(tmp_path, config=config)


def test_times_against_the_order_are_refused_with_their_line(tmp_path: Path) -> None:
    columns = {"user_id": ["a"] * 3, "item_id": list("xyz"), "position": [0, 1, 2]}
    write(tmp_path / "interactions.csv", {**columns, "timestamp": [1, 3, 2]})
    config = BY_TIME.model_copy(update={"order_by": "position"})
    with pytest.raises(DataError, match=r"line 4: .* a later timestamp"):
        load_dataset(tmp_path, config=config)


def test_the_shares_leave_something(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="must leave something to train on"):
        InteractionsConfig(test_share=0.6, validation_share=0.4)


def test_a_run_by_time_says_so_and_thinned_data_stays_split_by_time(tmp_path: Path) -> None:
    """All of it is made again on one split: the trial, its report, and what ships."""
    world = tmp_path / "world"
    write_world(make_world(150, 60, 0.1, 7), world)
    log = pl.read_parquet(world / "interactions.parquet")
    log = log.with_columns(  # users come and go
        timestamp=pl.int_range(pl.len()).over("user_id") * 7
        + pl.col("user_id").rank("dense").cast(pl.Int64) % 40
    ).select("user_id", "item_id", "timestamp")
    log.write_parquet(world / "interactions.parquet")
    quick = ["fit.epochs=1", "fit.validation_users=20", "evaluation.invalid_sid_users=5"]
    quick += ["codebook.num_codes=16", "evaluation.timing_users=1", "evaluation.schedule_users=20"]
    quick += ["embeddings.content_dims=24"]  # so all files have networks of one shape: traced once
    quick += ["evaluation.rankings=['rows']", "evaluation.beam_widths=[10]", "evaluation.users=20"]
    quick += ["neighbours.weights=[1]", "neighbours.scales=[0.3]", "neighbours.decays=[0.7]"]
    config = load_config("tiny", [*quick, "interactions.split='time'", "refit.share=0"])
    dataset = load_dataset(world, config=config.interactions)
    split = dataset.split
    assert 0 < len(split.test) < split.train.num_users
    run(config, dataset, tmp_path / "run", Console(quiet=True))
    report = (tmp_path / "run" / "evaluation" / "report.md").read_text()
    assert split.sentence in report
    for name in ("trial", "bundle"):
        assert verify(tmp_path / "run" / name).facts["split"] == {
            "name": "time",
            "sentence": split.sentence,
        }

    thinned = thin(dataset, 0.5).split
    assert (thinned.name, thinned.sentence) == ("time", split.sentence)
    assert thinned.train.num_interactions < 0.7 * split.train.num_interactions
    later = split.before_test.num_interactions - split.train.num_interactions
    assert thinned.before_test.num_interactions == thinned.train.num_interactions + later
    assert len(thinned.test) == len(split.test)
    assert histories(thinned.everything).keys() == histories(split.everything).keys()
