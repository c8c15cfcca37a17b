"""Reading, filtering and splitting of interactions, compared with plain Python and by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import log_of
from pydantic import ValidationError

from service.bundles.bundle import Item
from service.schemas.events import Event
from training.config import InteractionsConfig
from training.data.files.columns import SERVED_USER_ID
from training.data.interactions import k_core, load_dataset, read_interactions, read_items
from training.data.splits import Interactions, leave_last_out
from training.errors import DataError

HISTORIES = st.lists(st.lists(st.integers(0, 6), max_size=8), min_size=1, max_size=8)
EVERY_LINE = InteractionsConfig(collapse_repeats=False)


def named(log: Interactions) -> dict[str, list[str]]:
    """Histories with ids instead of indices; users without interactions are left out."""
    return {
        user_id: [log.item_ids[row] for row in log.history_of(user)]
        for user, user_id in enumerate(log.user_ids)
        if len(log.history_of(user))
    }


def write(path: Path, columns: dict[str, list[Any]]) -> Path:
    frame = pl.DataFrame(columns, strict=False)
    match path.suffix:
        case ".csv":
            frame.write_csv(path)
        case ".parquet":
            frame.write_parquet(path)
        case ".jsonl":
            frame.write_ndjson(path)
    return path


LOG = {
    "user_id": ["b", "a", "b", "a", "b"],
    "item_id": ["007", "1e5", "12", "007", "007"],
    "timestamp": [30, 5, 10, 5, 20],
}


# --- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_every_format_reads_the_same(tmp_path: Path, suffix: str) -> None:
    log = read_interactions(write(tmp_path / f"log{suffix}", LOG))
    assert log.user_ids == ("a", "b")
    assert log.item_ids == ("007", "12", "1e5")  # text, as written
    # b by time; a has equal timestamps, so the order of the file; b's repeat in a row is one
    assert named(log) == {"a": ["1e5", "007"], "b": ["12", "007"]}
    assert log.rows.dtype == np.int32
    assert log.indptr.tolist() == [0, 2, 4]


def test_whole_number_ids_of_parquet_become_text(tmp_path: Path) -> None:
    columns = {"user_id": [2, 10], "item_id": [7, 7], "position": [0, 0]}
    log = read_interactions(write(tmp_path / "log.parquet", columns))
    assert named(log) == {"2": ["7"], "10": ["7"]}


def test_position_orders_and_says_so(tmp_path: Path) -> None:
    notes: list[str] = []
    path = write(tmp_path / "log.csv", {**LOG, "position": [9, 1, -1, 0, 0]})
    log = read_interactions(path, EVERY_LINE, notes)
    assert named(log) == {"a": ["007", "1e5"], "b": ["12", "007", "007"]}
    assert notes[:-1] == ["log.csv: ordered by position; the column timestamp is not used"]


def test_position_against_timestamp_is_refused_until_one_is_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", {**LOG, "position": [0, 1, 1, 0, 10]})
    with pytest.raises(DataError, match=r"line 4: position 1 of user 'b' .* in line 2, .*order_by"):
        read_interactions(path)
    log = read_interactions(path, InteractionsConfig(order_by="position"))
    assert named(log) == {"a": ["007", "1e5"], "b": ["007", "12", "007"]}
    log = read_interactions(path, InteractionsConfig(order_by="timestamp"))
    assert named(log) == {"a": ["1e5", "007"], "b": ["12", "007"]}  # the second 007 is a repeat


@pytest.mark.parametrize(
    "times",
    [
        ["9", "10", "11"],  # as text, 9 would come last
        ["1.5", "1.75", "1e3"],
        ["2024-01-31", "2024-02-01", "2025-01-01"],
        ["2024-01-31T23:59:59", "2024-02-01T00:00:00", "2024-02-01T00:00:01"],
        ["9007199254740992", "9007199254740993", "9007199254740994"],  # a float would tie these
    ],
)
def test_timestamps_of_csv_are_ordered_as_what_they_are(tmp_path: Path, times: list[str]) -> None:
    columns = {"user_id": ["u"] * 3, "item_id": ["c", "b", "a"], "timestamp": times[::-1]}
    assert named(read_interactions(write(tmp_path / "log.csv", columns))) == {"u": ["a", "b", "c"]}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": ["u"], "item_id": ["i"], "timestamp": [1]}, "needs a column user_id; it has"),
        ({"user_id": ["u"], "item_id": ["i"]}, "needs a column position or timestamp"),
        ({"user_id": ["u", None], "item_id": ["i", "j"], "timestamp": [1, 2]}, "1 of 2 .* user_id"),
        ({"user_id": ["u"], "item_id": [""], "timestamp": [1]}, "1 of 1 lines have no item_id"),
        ({"user_id": ["u"], "item_id": ["i"], "timestamp": [None]}, "have no timestamp"),
        ({"user_id": ["u"], "item_id": ["i"], "timestamp": [float("nan")]}, "have no timestamp"),
        (
            {"user_id": ["u"], "item_id": ["i"], "timestamp": ["noon"]},
            "neither a number nor a date",
        ),
        ({"user_id": ["u"] * 2, "item_id": ["i"] * 2, "position": [3, 3]}, "u has position 3 more"),
        ({"user_id": [], "item_id": [], "timestamp": []}, "has no lines of data"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_bad_logs_are_refused(
    tmp_path: Path, columns: dict[str, list[Any]], message: str, suffix: str
) -> None:
    path = write(tmp_path / f"log{suffix}", columns)
    with pytest.raises(DataError, match=message) as error:
        read_interactions(path)
    assert str(path) in str(error.value)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "log.parquet").write_text("no parquet")
    (tmp_path / "log.csv").touch()
    for name, message in [
        ("log.parquet", "cannot be read"),
        ("log.csv", "is empty"),
        ("absent.csv", "cannot be read"),
        ("log.txt", "must end in"),
    ]:
        with pytest.raises(DataError, match=message):
            read_interactions(tmp_path / name)


def test_fractional_ids_are_refused(tmp_path: Path) -> None:
    columns = {"user_id": [1.0, 1.5], "item_id": ["i"] * 2, "timestamp": [1, 1]}
    with pytest.raises(DataError, match=r"row 2: user_id '1\.5' is neither text nor a whole"):
        read_interactions(write(tmp_path / "log.parquet", columns))


def test_items_of_every_format(tmp_path: Path) -> None:
    expected = (Item("02", "Nail, red", ("Beauty > Nails", "Gifts")), Item("1", "", ()))
    frame = pl.DataFrame(
        {
            "item_id": ["02", "1"],
            "title": ["Nail, red", None],
            "categories": [["Beauty > Nails", "Gifts"], None],
        }
    )
    frame.write_parquet(tmp_path / "items.parquet")
    (tmp_path / "items.csv").write_text(
        'item_id,title,categories\n02,"Nail, red",Beauty > Nails|Gifts\n1,,\n'
    )
    (tmp_path / "items.jsonl").write_text(
        '{"item_id": "02", "title": "Nail, red", "categories": ["Beauty > Nails", "Gifts"]}\n'
        '{"item_id": "1"}\n'
    )
    for suffix in (".parquet", ".csv", ".jsonl"):
        assert read_items(tmp_path / f"items{suffix}") == expected


def test_items_need_distinct_ids(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 3: item '5' is there more than once, as in row 1"):
        read_items(write(tmp_path / "items.parquet", {"item_id": [5, 6, 5]}))
    with pytest.raises(DataError, match="1 of 2 lines have no item_id"):
        read_items(write(tmp_path / "items.parquet", {"item_id": ["5", None]}))
    with pytest.raises(DataError, match="needs a column item_id; it has title"):
        read_items(write(tmp_path / "items.csv", {"title": ["t"]}))


# --- the type -----------------------------------------------------------------------------------


def test_arrays_that_do_not_fit_are_refused() -> None:
    indptr, rows = np.array([0, 2]), np.array([0, 1], dtype=np.int32)
    with pytest.raises(DataError, match="one entry more"):
        Interactions(("u", "v"), ("a", "b"), indptr, rows)
    with pytest.raises(DataError, match="end at the number of interactions"):
        Interactions(("u",), ("a", "b"), indptr, rows[:1])
    with pytest.raises(DataError, match="below the number of items"):
        Interactions(("u",), ("a",), indptr, rows)


@settings(max_examples=50, deadline=None)
@given(HISTORIES)
def test_windows_are_all_prefixes(histories: list[list[int]]) -> None:
    windows = log_of(histories).windows()
    expected = [
        (user, history[:end], history[end])
        for user, history in enumerate(histories)
        for end in range(1, len(history))
    ]
    found = [
        (int(windows.users[w]), windows.history_of(w).tolist(), int(windows.targets[w]))
        for w in range(len(windows))
    ]
    assert found == expected


def test_popularity_counts_repeats_and_histories_are_views() -> None:
    log = log_of([[1, 1, 2], [], [1]], num_items=4)
    assert log.popularity().tolist() == [0, 3, 1, 0]
    assert log.lengths().tolist() == [3, 0, 1]
    assert np.shares_memory(log.history_of(0), log.rows)


# --- k-core -------------------------------------------------------------------------------------


def k_core_by_hand(histories: dict[str, list[str]], core: int) -> dict[str, list[str]]:
    while True:
        counts: dict[str, int] = {}
        for history in histories.values():
            for item_id in history:
                counts[item_id] = counts.get(item_id, 0) + 1
        kept = {
            user_id: [item_id for item_id in history if counts[item_id] >= core]
            for user_id, history in histories.items()
            if len(history) >= core
        }
        if kept == histories:
            return kept
        histories = kept


@settings(max_examples=50, deadline=None)
@given(HISTORIES, st.integers(1, 4))
def test_k_core_against_plain_python(histories: list[list[int]], core: int) -> None:
    log = log_of(histories)
    expected = k_core_by_hand(named(log), core)
    if not expected:
        with pytest.raises(DataError, match="choose a smaller core"):
            k_core(log, core)
        return
    found = k_core(log, core)
    assert named(found) == expected
    assert found.popularity().min() >= core
    assert found.lengths().min() >= core
    assert set(found.item_ids) == {i for history in expected.values() for i in history}


# --- the split ----------------------------------------------------------------------------------


def test_rows_are_renumbered_everywhere(tmp_path: Path) -> None:
    write(tmp_path / "interactions.csv", {
        "user_id": list("aaaabbbbc"),
        "item_id": list("xyxzxyzwx"),
        "position": [0, 1, 2, 3, 0, 1, 2, 3, 0],
    })  # fmt: skip
    write(tmp_path / "items.csv", {"item_id": list("xyzwv"), "title": list("XYZWV")})
    dataset = load_dataset(tmp_path)
    known = dataset.split.everything
    order = known.popular_first()
    again = dataset.reordered(order)
    assert again.split.everything.item_ids == ("x", "y", "z", "w", "v")  # 4, 2, 2, 1, 0
    assert again.split.everything.popularity().tolist() == [4, 2, 2, 1, 0]
    assert [item.item_id for item in again.items] == list("xyzwv")
    for name in ("train", "before_test", "everything"):
        assert named(getattr(again.split, name)) == named(getattr(dataset.split, name))
    for name in ("validation", "test"):
        old, new = getattr(dataset.split, name), getattr(again.split, name)
        assert [known.item_ids[row] for row in old.targets] == [
            again.split.everything.item_ids[row] for row in new.targets
        ]


def test_leave_last_out_by_hand() -> None:
    split = leave_last_out(log_of([[0, 1, 2, 3, 4], [5, 6], [], [6, 6, 5]]))
    assert named(split.train) == {"u0": ["i0", "i1", "i2"], "u1": ["i5", "i6"], "u3": ["i6"]}
    assert named(split.before_test) == {
        "u0": ["i0", "i1", "i2", "i3"],
        "u1": ["i5", "i6"],
        "u3": ["i6", "i6"],
    }
    assert named(split.everything)["u0"] == ["i0", "i1", "i2", "i3", "i4"]
    assert split.validation.users.tolist() == split.test.users.tolist() == [0, 3]
    assert [split.validation.history_of(w).tolist() for w in (0, 1)] == [[0, 1, 2], [6]]
    assert split.validation.targets.tolist() == [3, 6]
    assert [split.test.history_of(w).tolist() for w in (0, 1)] == [[0, 1, 2, 3], [6, 6]]
    assert split.test.targets.tolist() == [4, 5]
    assert [
        (split.train.windows().history_of(w).tolist(), int(split.train.windows().targets[w]))
        for w in range(len(split.train.windows()))
    ] == [([0], 1), ([0, 1], 2), ([5], 6)]


# --- the data set -------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Training items: c twice, a and b once; d and e are held out; x has no interaction."""
    histories = {"u": "abcde", "v": "cde"}
    lines = [(u, i, p) for u, items in histories.items() for p, i in enumerate(items)]
    users, items, positions = (list(column) for column in zip(*lines, strict=True))
    columns = {"user_id": users, "item_id": items, "position": positions}
    write(tmp_path / "interactions.csv", columns)
    listed = ["x", "e", "d", "c", "b", "a"]
    columns = {"item_id": listed, "title": [name.upper() for name in listed]}
    write(tmp_path / "items.csv", columns)
    embeddings = np.arange(1, 7, dtype=np.float16)[:, None] * np.ones(3, dtype=np.float16)
    np.save(tmp_path / "item_embeddings.f16.npy", embeddings)
    return tmp_path


def test_rows_are_in_order_of_training_popularity(folder: Path) -> None:
    dataset = load_dataset(folder)
    train = dataset.split.train
    assert train.item_ids == ("c", "a", "b", "d", "e", "x")  # ties by id, cold items last
    assert train.popularity().tolist() == [2, 1, 1, 0, 0, 0]
    assert named(train) == {"u": ["a", "b", "c"], "v": ["c"]}
    assert [train.item_ids[row] for row in dataset.split.test.targets] == ["e", "e"]


def test_items_and_embeddings_follow_the_rows(folder: Path) -> None:
    dataset = load_dataset(folder)
    assert [item.title for item in dataset.items] == ["C", "A", "B", "D", "E", "X"]
    assert dataset.embeddings is not None
    assert dataset.embeddings.dtype == np.float32
    assert dataset.embeddings[:, 0].tolist() == [4, 6, 5, 3, 2, 1]


def test_cold_items_are_kept_or_left_out(folder: Path) -> None:
    assert "without any interaction, kept in the catalogue: 1;" in load_dataset(folder).warnings[0]
    dataset = load_dataset(folder, config=InteractionsConfig(cold_items=False))
    assert dataset.split.train.item_ids == ("c", "a", "b", "d", "e")
    assert dataset.warnings == ()
    # the core filter makes cold items of items that fall out of it
    with (folder / "interactions.csv").open("a") as file:
        file.write("w,c,0\nw,d,1\n")
    dataset = load_dataset(folder, config=InteractionsConfig(core=2))
    assert dataset.split.train.item_ids == ("c", "d", "a", "b", "e", "x")
    assert named(dataset.split.train) == {"u": ["c"], "v": ["c"], "w": ["c", "d"]}
    assert "kept in the catalogue: 3;" in dataset.warnings[0]


def test_items_absent_from_the_items_file_are_kept(folder: Path) -> None:
    write(folder / "items.csv", {"item_id": ["c", "d", "e"], "title": ["C", "D", "E"]})
    np.save(folder / "item_embeddings.f16.npy", np.ones((3, 2), dtype=np.float32))
    dataset = load_dataset(folder)
    assert dataset.items[1] == Item("a", "", ())
    assert dataset.embeddings is not None
    assert dataset.embeddings.any(axis=1).tolist() == [True, False, False, True, True]
    assert dataset.warnings[0].startswith("items with interactions that items.csv lacks: 2 of 5")


def test_a_log_alone_is_a_data_set(folder: Path) -> None:
    dataset = load_dataset(interactions=folder / "interactions.csv")
    assert [item.item_id for item in dataset.items] == ["c", "a", "b", "d", "e"]
    assert dataset.embeddings is None
    assert dataset.warnings == ()


def test_files_given_by_name_win_over_the_folder(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "mine.jsonl"
    other.write_text("".join(json.dumps({"item_id": i, "title": "mine"}) + "\n" for i in "edcba"))
    dataset = load_dataset(folder, items=other)
    assert {item.title for item in dataset.items} == {"mine"}
    assert dataset.embeddings is None  # those of the folder belong to its own items file
    assert "item_embeddings.f16.npy is not used" in dataset.warnings[0]
    np.save(tmp_path / "mine.npy", np.eye(5))
    dataset = load_dataset(folder, items=other, embeddings=tmp_path / "mine.npy")
    assert dataset.embeddings is not None
    assert dataset.embeddings.argmax(axis=1).tolist() == [2, 4, 3, 1, 0]
    assert dataset.warnings == ()


def test_data_that_is_not_there_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data given; name a data folder"):
        load_dataset()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no interactions\.parquet or \.csv"):
        load_dataset(tmp_path / "empty")
    with pytest.raises(DataError, match=r"there is no folder .*nowhere; name a data folder"):
        load_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match="needs an items file"):
        load_dataset(
            interactions=folder / "interactions.csv", embeddings=folder / "item_embeddings.f16.npy"
        )
    np.save(folder / "item_embeddings.other.npy", np.eye(6))
    with pytest.raises(DataError, match="more than one item_embeddings"):
        load_dataset(folder)


def test_a_log_with_nobody_to_hold_out_is_refused(tmp_path: Path) -> None:
    columns = {"user_id": ["u", "u", "v"], "item_id": ["a", "b", "a"], "position": [0, 1, 0]}
    with pytest.raises(DataError, match="no user has three interactions"):
        load_dataset(interactions=write(tmp_path / "log.csv", columns))


def test_a_log_with_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    lines = [(user, item, place) for user in "uvw" for place, item in enumerate("abc")]
    lines.append(("x", "a", 0))
    users, items, positions = (list(column) for column in zip(*lines, strict=True))
    columns = {"user_id": users, "item_id": items, "position": positions}
    path = write(tmp_path / "log.csv", columns)
    with pytest.raises(DataError, match=r"log\.csv: nothing is left to train on"):
        load_dataset(interactions=path)
    one_more = {"user_id": [*users, "x"], "item_id": [*items, "b"], "position": [*positions, 1]}
    dataset = load_dataset(interactions=write(path, one_more))
    assert len(dataset.split.train.windows()) == 1


USER_IDS = ["Zoë 7:a@b.c", "a/b", "{a", "a}", "a\tb", "a\n", "\x7f", "é" * 256, "é" * 257]


@pytest.mark.parametrize("user_id", USER_IDS)
def test_user_ids_that_the_service_refuses_are_refused(tmp_path: Path, user_id: str) -> None:
    columns = {"user_id": ["a", user_id], "item_id": ["i"] * 2, "timestamp": [1, 2]}
    path = write(tmp_path / "log.parquet", columns)
    if SERVED_USER_ID.fullmatch(user_id):
        assert set(read_interactions(path).user_ids) == {"a", user_id}
    else:
        with pytest.raises(DataError, match=r"row 2: user_id .* the service does not take it"):
            read_interactions(path)


@pytest.mark.parametrize("user_id", ["", *USER_IDS])
def test_the_rule_for_user_ids_is_that_of_the_service(user_id: str) -> None:
    try:
        Event(event_id="e", user_id=user_id, item_id="i", event_type="click")
        served = True
    except ValidationError:
        served = False
    assert (SERVED_USER_ID.fullmatch(user_id) is not None) == served


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((5, 2)), "has 5 rows, but the items file has 6 items"),
        (np.ones(6), "float array of two dimensions"),
        (np.ones((6, 2), dtype=np.int64), "float array of two dimensions"),
        (np.full((6, 2), np.nan), "not finite"),
        (np.array([[{}]]), "cannot be read as a NumPy array"),  # a pickle is never opened
    ],
)
def test_bad_embeddings_are_refused(folder: Path, array: np.ndarray, message: str) -> None:
    np.save(folder / "item_embeddings.f16.npy", array)
    with pytest.raises(DataError, match=message):
        load_dataset(folder)


# --- real data ----------------------------------------------------------------------------------


@pytest.mark.data
def test_beauty_has_the_counts_of_the_literature(data_dir: Path) -> None:
    dataset = load_dataset(data_dir / "amazon2014-beauty", config=InteractionsConfig(core=5))
    split = dataset.split
    assert (split.train.num_users, split.train.num_items) == (22_363, 12_101)
    assert split.train.num_interactions + len(split.validation) + len(split.test) == 198_502
    assert len(split.train.windows()) == 131_413
    assert len(split.validation) == len(split.test) == 22_363
    assert np.all(np.diff(split.train.popularity()) <= 0)
    assert dataset.embeddings is not None
    assert dataset.embeddings.shape == (12_101, 384)
    assert dataset.warnings == ()
    # row and embedding still belong to the same item
    folder = data_dir / "amazon2014-beauty"
    listed = pl.read_parquet(folder / "items.parquet")["item_id"].cast(pl.String).to_list()
    stored = np.load(folder / "item_embeddings.f16.npy")
    for row in (0, 6_000, 12_100):
        line = listed.index(split.train.item_ids[row])
        np.testing.assert_array_equal(dataset.embeddings[row], stored[line].astype(np.float32))
