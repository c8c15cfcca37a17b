"""Files from practice: read as they were meant, or refused with the line; never a traceback.

The property at the end writes one table in many spellings and reads it back.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.__main__ import main
from training.config import InteractionsConfig
from training.data.files.columns import MAX_ID_CHARS
from training.data.files.vectors import read_vectors
from training.data.interactions import load_dataset, read_interactions, read_items
from training.data.synthetic import make_world, write_world
from training.errors import DataError

MOST = 450  # characters of a message, its path left out


def items_of(path: Path, content: str | bytes) -> list[tuple[str, str]]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(item.item_id, item.title) for item in read_items(path)]


def refused(path: Path, content: str | bytes) -> str:
    with pytest.raises(DataError) as error:
        items_of(path, content)
    message = str(error.value)
    assert str(path) in message
    message = message.replace(str(path), path.name)
    assert len(message) < MOST
    assert "\n" not in message
    return message


# --- text files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "item_id,title\n1,a\n2,b\n",
        "\ufeffitem_id,title\r\n1,a\r\n2,b",
        "item_id;title\n1;a\n2;b\n",
        "title\titem_id\n\na\t1\nb\t2\n",
        'Item_ID , TITLE,"other, one"\n1,a,"x\ny"\n"2",b,"""" \n'.replace('"""" ', '""""'),
        gzip.compress(b"item_id,title\n1,a\n2,b\n", mtime=0),
    ],
)
def test_usual_forms_of_csv_are_read(tmp_path: Path, content: str | bytes) -> None:
    assert items_of(tmp_path / "items.csv", content) == [("1", "a"), ("2", "b")]


@pytest.mark.parametrize(
    "content",
    [
        '{"item_id": 1, "title": "a"}\n\n{"title": "b", "item_id": "2"}',
        '\ufeff{"Item_ID": 1.0, "title": "a", "x": NaN}\r\n{"item_id": 2, "title": "b"}\r\n',
        gzip.compress(b'{"item_id": 1, "title": "a"}\n{"item_id": 2, "title": "b"}\n', mtime=0),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".jsonl.gz"])
def test_usual_forms_of_json_lines_are_read(
    tmp_path: Path, content: str | bytes, suffix: str
) -> None:
    assert items_of(tmp_path / f"items{suffix}", content) == [("1", "a"), ("2", "b")]


def test_other_separators_and_names_are_said(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("Item_ID;title\n1;a\n")
    notes: list[str] = []
    read_items(tmp_path / "items.csv", notes=notes)
    assert notes == [
        "items.csv: the column 'Item_ID' is read as item_id",
        "items.csv: fields are separated by semicolons",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty: it has 0 bytes"),
        ("item_id,title\n", "has no lines of data"),
        ("1,a\n2,b\n", "needs a column item_id; it has 1, a (the first line must hold the names"),
        ("item_id,Item_ID\n1,2\n", "has two columns item_id"),
        ("item_id,title\n1,a\n2,b,c\n", "line 3: 3 fields, but the first line names 2"),
        ("item_id,title\n\n1\n", "line 3: 1 fields"),
        ('item_id,title\n1,a\n2,"b\n3,c\n', "line 3: cannot be read as CSV from here"),
        ('item_id,title\n1,a\n2,"b\n3,"c"\n', "line 3: cannot be read as CSV from here"),
        ('item_id,title\n1,"a"b\n', "line 2: cannot be read as CSV from here"),
        ('item_id,title\n1,"' + "secret \n" * 500_000, "line 2: cannot be read as CSV from here"),
        ('item_id,title\n1,"a\nb"\n2,\n,c\n', "1 of 3 lines have no item_id, the first is line 5"),
        (b"item_id,title\n1,a\n2,caf\xe9\n", "line 3: byte 0xe9 after '2,caf' is not UTF-8"),
        ("item_id,title\n1,a\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("item_id,title\r1,a\r", "line 1: holds a carriage return without a line feed"),
        (b"PK\x03\x04 and more", "is a zip archive or an Excel file; save its sheet as CSV"),
        (b"PAR1 and more", "is a parquet file; give it the suffix .parquet"),
        (gzip.compress(b"item_id,title\n" + b"1,a\n" * 99, mtime=0)[:-12], "is damaged after line"),
        (b"x" * (17 * 2**20), "line 1: longer than 16 MiB"),
    ],
)
def test_csv_files_that_cannot_be_read_are_refused(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    said = refused(tmp_path / "items.csv", content)
    assert message in said
    assert "secret" not in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty: it has 0 bytes"),
        ("\n\n", "has no lines of data"),
        ('{"item_id": 1}\n{"item_id": 2,\n', "line 2: not JSON (Expecting property name"),
        ('[{"item_id": 1}]', "line 1: not an object; write one JSON object a line"),
        ("[" * 200_000, "line 1: not JSON (too large or too deep)"),
        ('{"item_id": ' + "9" * 5000 + "}", "line 1: not JSON (too large or too deep)"),
        ('{"item_id": 1, "item_id ": 2}', "line 1: there are two fields item_id"),
        ('{"x": 0, "x": 1, "item_id": 1, "item_id": 2}', "line 1: there are two fields item_id"),
        ('{"item_id": true}', "line 1: item_id is true, not text"),
        ('{"item_id": [1]}', "line 1: item_id is a list, not text"),
        ('{"item_id": 1.5}', "line 1: item_id '1.5' is neither text nor a whole number"),
        ('{"item_id": 1e400}', "line 1: item_id '1e400' is neither text nor a whole number"),
        ('{"item_id": 1, "title": ["a"]}', "line 1: title is a list, not text"),
        ('{"item_id": 1, "title": {"en": "a"}}', "line 1: title is an object, not text"),
        ('\n{"item_id": 1, "title": "\\ud800"}', "line 2: title '\\ud800' holds half of a"),
        (b'{"item_id": 1, "title": "caf\xe9"}', "line 1: byte 0xe9 after"),
        ('{"title": "a"}', "needs a column item_id; it has title"),
    ],
)
def test_json_lines_that_cannot_be_read_are_refused(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    assert message in refused(tmp_path / "items.jsonl", content)


def test_other_kinds_of_files_are_named(tmp_path: Path) -> None:
    assert "Excel file: save the sheet as CSV" in refused(tmp_path / "items.xlsx", b"PK\x03\x04")
    assert "must end in" in refused(tmp_path / "items.txt", "item_id\n1\n")
    assert "is empty" in refused(tmp_path / "items.parquet", b"")
    assert "cannot be read" in refused(tmp_path / "items.parquet", b"PAR1PAR1")
    (tmp_path / "log.parquet").mkdir()
    with pytest.raises(DataError, match="is a folder without files that end in"):
        read_items(tmp_path / "log.parquet")


@pytest.mark.parametrize("title", [[["a"]], [b"caf\xe9"], [datetime(2014, 5, 1)]])
def test_stored_titles_that_are_no_text_are_refused(tmp_path: Path, title: list[object]) -> None:
    pl.DataFrame({"item_id": [1], "title": title}).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(DataError, match=r"items\.parquet: title must be text, not"):
        read_items(tmp_path / "items.parquet")


def test_a_line_break_in_a_title_is_said(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text('item_id,title\n1,a\n2,"12 inch\n3,c"\n4,d\n')
    notes: list[str] = []
    read_items(tmp_path / "items.csv", notes=notes)
    assert notes[0].startswith("items.csv: 1 of 3 have a line break in their title, the first in l")
    assert "line 3" in notes[0]


# --- ids ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item_id", "message"),
    [
        ("x" * (MAX_ID_CHARS + 1), "is longer than 256 characters"),
        ("a\nb", "holds a control character"),
        ("a\x00", "holds a control character"),
        ("..", "cannot be written into an address"),
        (" a", "begins or ends with a space"),
        ("a\u00a0", "begins or ends with a space"),
        ("", "1 of 2 lines have no item_id, the first is"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_item_ids_that_the_service_does_not_take_are_refused(
    tmp_path: Path, item_id: str, message: str, suffix: str
) -> None:
    path = tmp_path / f"log{suffix}"
    frame = pl.DataFrame({"user_id": ["u", "u"], "item_id": ["a/b", item_id], "timestamp": [1, 2]})
    match suffix:
        case ".csv":
            frame.write_csv(path)
        case ".jsonl":
            frame.write_ndjson(path)
        case ".parquet":
            frame.write_parquet(path)
    with pytest.raises(DataError, match=message) as error:
        read_interactions(path)
    assert {".csv": "line 3", ".jsonl": "line 2", ".parquet": "row 2"}[suffix] in str(error.value)
    assert len(str(error.value).replace(str(path), "")) < MOST


def test_the_longest_id_is_that_of_the_service(tmp_path: Path) -> None:
    assert items_of(tmp_path / "i.csv", f"item_id,title\n{'é' * MAX_ID_CHARS},a\n")[0][1] == "a"


def shop(folder: Path, item_ids: list[object], logged: list[object]) -> Path:
    """A folder with two files that write their ids in their own ways."""
    users = [user for user in "uvw" for _ in logged]
    frame = pl.DataFrame(
        {"user_id": users, "item_id": logged * 3, "position": list(range(len(logged))) * 3},
        strict=False,
    )
    frame.write_parquet(folder / "interactions.parquet")
    pl.DataFrame(
        {"item_id": item_ids, "title": [f"title of {item_id}" for item_id in item_ids]}
    ).write_parquet(folder / "items.parquet")
    return folder


@pytest.mark.parametrize(
    ("item_ids", "logged"),
    [
        ([1, 2, 3, 4], [1.0, 2.0, 3.0, 4.0]),
        (["1", "2", "3", "4"], [1.0, 2.0, 3.0, 4.0]),
        ([1, 2, 3, 4], ["1.0", "2.0", "3.0", "4.0"]),
        (["1.0", "2.0", "3.0", "4.0"], ["1", "2", "3", "4"]),
    ],
)
def test_whole_numbers_are_equal_however_they_are_written(
    tmp_path: Path, item_ids: list[object], logged: list[object]
) -> None:
    dataset = load_dataset(shop(tmp_path, item_ids, logged))
    assert dataset.warnings == ()
    assert [item.item_id for item in dataset.items] == ["1", "2", "3", "4"]
    assert all(item.title for item in dataset.items)


def test_versions_stay_as_they_are_written(tmp_path: Path) -> None:
    content = "item_id,title\n1.0,a\n1.5,b\n"
    assert items_of(tmp_path / "items.csv", content) == [("1.0", "a"), ("1.5", "b")]


def test_files_whose_ids_never_meet_are_refused(tmp_path: Path) -> None:
    folder = shop(tmp_path, ["001", "002", "003", "004"], [1, 2, 3, 4])
    with pytest.raises(
        DataError, match=r"has none of the items .* '001' where the other writes '1'"
    ):
        load_dataset(folder)


def test_ids_that_look_like_no_value_are_said(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\nu,i,1\nnan,i,1\nnan,j,2\n")
    notes: list[str] = []
    read_interactions(path, notes=notes)
    assert notes[0].startswith(
        "log.csv: lines whose user_id is 'nan' or the like: 2, the first is "
    )


def test_columns_that_seem_to_weigh_lines_are_said(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp,Event_Type\nu,i,1,view\n")
    notes: list[str] = []
    read_interactions(tmp_path / "log.csv", notes=notes)
    assert notes[0].startswith("log.csv: 'Event_Type' is not used; every line counts alike")


# --- folders ------------------------------------------------------------------------------------


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    shop(tmp_path, [1, 2, 3, 4], [1, 2, 3, 4])
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\n")
    with pytest.raises(
        DataError, match=r"interactions\.csv and interactions\.parquet; give --inter"
    ):
        load_dataset(tmp_path)
    dataset = load_dataset(tmp_path, interactions=tmp_path / "interactions.parquet")
    assert dataset.split.train.num_users == 3


def test_vectors_in_another_format_are_named(tmp_path: Path) -> None:
    shop(tmp_path, [1, 2, 3, 4], [1, 2, 3, 4])
    np.savez(tmp_path / "item_embeddings.npz", np.ones((4, 2)))
    (warning,) = load_dataset(tmp_path).warnings
    assert "item_embeddings.npz is not used, because it is no .npy file; write one with" in warning
    (tmp_path / "item_embeddings.npz").unlink()
    (tmp_path / "items.parquet").unlink()
    np.save(tmp_path / "item_embeddings.npy", np.ones((4, 2)))
    (warning,) = load_dataset(tmp_path).warnings
    assert warning.endswith("has no items file")


# --- vectors ------------------------------------------------------------------------------------


def archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as files:
        for name, content in members.items():
            files.writestr(name, content)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.npz", archive(a=npy(np.ones((2, 2)))), r"is an archive \(\.npz\), not an \.npy file"),
        ("v.npy", archive(a=npy(np.ones((2, 2)))), r"is an archive \(\.npz\), not an \.npy file"),
        ("v.pt", archive(data=b"x"), "is a file of PyTorch, not an .npy file"),
        ("v.npy", b"", "is empty: it has 0 bytes"),
        ("v.npy", b"1.0,2.0\n", "is something else, not an .npy file"),
        ("v.npy", pickle.dumps([1.0]), "is something else, not an .npy file"),
        ("v.npy", npy(np.ones((2, 2)))[:-8], "cannot be read as a NumPy array"),
        ("v.npy", npy(np.ones((2, 2)))[:8], "cannot be read as a NumPy array"),
        ("v.npy", npy(np.ones((2, 2), complex)), r"it is complex128 of shape \(2, 2\)"),
        ("v.npy", npy(np.ones((2, 2, 1))), r"it is float64 of shape \(2, 2, 1\)"),
        ("v.npy", npy(np.array([[0.0, 1.0], [1e300, 0.0]])), "for instance in row 1"),
    ],
)
def test_vectors_that_cannot_be_read_are_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_vectors(tmp_path / name, 2, np.array([0, 1]))
    assert len(str(error.value).replace(str(tmp_path), "")) < MOST


# --- the command line ---------------------------------------------------------------------------


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["training", "run", "--until", "codebook", *arguments])
    return main()


def test_an_empty_file_of_vectors_is_named_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shop(tmp_path, [1, 2, 3, 4], [1, 2, 3, 4])
    (tmp_path / "item_embeddings.npy").touch()
    assert command(monkeypatch, "--data", str(tmp_path), "--out", str(tmp_path / "run")) == 1
    said = capsys.readouterr().err
    assert "item_embeddings.npy is empty: it has 0 bytes" in said
    assert "run the same command again" not in said


def test_a_file_that_ends_too_early_is_no_interruption(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(*_: object) -> None:
        raise EOFError("after 3 bytes")

    monkeypatch.setattr("training.__main__.load_config", end)
    assert command(monkeypatch, "--out", "run") == 1
    assert "error: a file ends too early: after 3 bytes" in capsys.readouterr().err


def test_a_run_says_how_its_files_were_read_and_what_settles_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_world(make_world(60, 200, noise=0.1, seed=1), tmp_path / "world")
    log = pl.read_parquet(tmp_path / "world" / "interactions.parquet")
    month, date = pl.col("position") // 12 + 1, pl.col("position") % 12 + 1
    day = pl.format("{}/{}/2014", date, month)
    log.select("user_id", "item_id", timestamp=day).write_csv(tmp_path / "interactions.csv")
    items = pl.read_parquet(tmp_path / "world" / "items.parquet")
    items.select(
        "item_id", pl.col("title").alias("name"), categories=pl.format("Women, {} & Co", "title")
    ).write_csv(tmp_path / "items.csv")
    options = ["--data", str(tmp_path), "--out", str(tmp_path / "run")]
    options += ["--preset", "tiny", "--set", "codebook.num_codes=8"]
    assert command(monkeypatch, *options) == 1
    said = capsys.readouterr().err
    assert "interactions.csv, line 3: timestamp '2/1/2014' has the day first" in said
    options += ["--set", "interactions.time_format=%d/%m/%Y"]
    options += ["--set", "items.category_separator=,"]
    assert command(monkeypatch, *options) == 0
    said = capsys.readouterr().err
    assert "categories read 200 split at ',' ('Women, " in said
    assert "items.csv has no column title, and 'name' is not used; rename it to title" in said


# --- only what is used --------------------------------------------------------------------------

MEMORY = """
import resource, sys
from pathlib import Path
from training.data.interactions import read_items
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
items = read_items(Path(sys.argv[1]))
print(len(items), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_columns_that_nobody_asked_for_cost_nothing(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    with path.open("w") as file:
        for item in range(1000):
            keys = {f"key {item} {place}": [place] for place in range(300)}
            file.write(json.dumps({"item_id": item, "title": f"t{item}", **keys}) + "\n")
    found = subprocess.run(
        [sys.executable, "-c", MEMORY, str(path)], capture_output=True, text=True, check=True
    )
    num_items, megabytes = map(int, found.stdout.split())
    assert num_items == 1000
    assert megabytes < 60  # columns of all keys take many times as much


# --- any table in many spellings ----------------------------------------------------------------

IDS = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"],
                  exclude_characters="/{}"),
    min_size=1, max_size=6,
).filter(lambda text: text not in (".", ".."))  # fmt: skip
EVERY_LINE = InteractionsConfig(collapse_repeats=False)
START = datetime(2014, 1, 1)
ROWS = st.lists(
    st.tuples(st.sampled_from(range(3)), st.sampled_from(range(5)), st.integers(0, 10**8)),
    min_size=1,
    max_size=12,
)
TIMES: dict[str, Callable[[datetime], object]] = {
    "seconds": lambda t: int(t.replace(tzinfo=UTC).timestamp()),
    "milliseconds": lambda t: int(t.replace(tzinfo=UTC).timestamp()) * 1000,
    "ISO": lambda t: t.isoformat(),
    "UTC": lambda t: f"{t:%Y-%m-%d %H:%M:%S} UTC",
    "day first": lambda t: f"{t:%d/%m/%Y %H:%M:%S}",
    "month first": lambda t: f"{t:%m/%d/%Y %I:%M:%S %p}",
}


def spelt(rows: list[dict[str, object]], form: str) -> bytes:
    """Write the rows as a file of this form."""
    buffer = io.StringIO()
    if form.startswith("jsonl"):
        buffer.writelines(json.dumps(row, ensure_ascii="ascii" in form) + "\n" for row in rows)
    elif form == "parquet":
        file = io.BytesIO()
        pl.DataFrame(rows).write_parquet(file)
        return file.getvalue()
    else:
        dialect = {"delimiter": ";"} if "semicolon" in form else {}
        quoting = csv.QUOTE_ALL if "quoted" in form else csv.QUOTE_MINIMAL
        ends = "\r\n" if "windows" in form else "\n"
        writer = csv.DictWriter(
            buffer, list(rows[0]), quoting=quoting, lineterminator=ends, **dialect
        )
        writer.writeheader()
        writer.writerows(rows)
    data = buffer.getvalue().encode()
    data = b"\xef\xbb\xbf" + data if "bom" in form else data
    return gzip.compress(data) if "gzip" in form else data


@pytest.mark.parametrize("form", ["csv", "csv semicolon bom", "csv quoted windows gzip",
                                  "jsonl", "jsonl ascii gzip", "parquet"])  # fmt: skip
@settings(max_examples=30, deadline=None)
@given(
    users=st.lists(IDS, min_size=3, max_size=3, unique=True),
    items=st.lists(IDS, min_size=5, max_size=5, unique=True),
    rows=ROWS,
    time=st.sampled_from(sorted(TIMES)),
    # csv.writer leaves a carriage return without quotes, which is refused.
    other=st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=8),
)
def test_any_table_is_read_as_it_was_meant_or_refused(
    form: str,
    users: list[str],
    items: list[str],
    rows: list[tuple[int, int, int]],
    time: str,
    other: str,
) -> None:
    lines = [
        {
            "other": other,
            "user_id": users[user],
            "item_id": items[item],
            "timestamp": TIMES[time](START + timedelta(seconds=seconds)),
        }
        for user, item, seconds in rows
    ]
    meant = {
        users[user]: [items[item] for of, item, _ in sorted(rows, key=lambda r: r[2]) if of == user]
        for user in {user for user, _, _ in rows}
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"log.{form.split()[0]}"
        path.write_bytes(spelt(lines, form))
        try:
            log, said = read_interactions(path, EVERY_LINE), ""
        except DataError as error:
            log, said = None, str(error)
    if log is None:
        assert time.endswith("first"), said
        assert "line " in said or "row " in said
        return
    found = {
        user_id: [log.item_ids[row] for row in log.history_of(user)]
        for user, user_id in enumerate(log.user_ids)
    }
    whole = all(text.endswith(".0") for text in meant)  # all are written like 7.0
    assert whole or found == meant


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl", "log.parquet"])
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_file_ends_in_a_traceback(name: str, data: st.DataObject) -> None:
    rows: list[dict[str, object]] = [
        {"user_id": "u", "item_id": f"i{place}", "timestamp": 1398844800 + place, "title": '"a"'}
        for place in range(3)
    ]
    good = bytearray(spelt(rows, name.rpartition(".")[2]))
    for place in data.draw(st.lists(st.integers(0, len(good) - 1), min_size=1, max_size=4)):
        good[place] = data.draw(st.integers(0, 255))
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(good[: data.draw(st.integers(0, len(good)))])
        for read in (read_interactions, read_items):
            try:
                read(path)
            except DataError as error:
                message = str(error).replace(folder, "")
                assert len(message) < MOST
                assert "\n" not in message


# --- other examples -----------------------------------------------------------------------------


def test_a_header_in_the_middle_is_refused(tmp_path: Path) -> None:
    message = refused(tmp_path / "items.csv", "item_id,title\n1,a\nitem_id,title\n2,b\n")
    assert message.startswith("items.csv, line 3: the first line, the names of the columns, is")


def test_text_of_two_bytes_a_letter_is_named(tmp_path: Path) -> None:
    message = refused(tmp_path / "items.csv", "item_id,title\n1,a\n".encode("utf-16-le"))
    assert "perhaps UTF-16; save it as UTF-8" in message


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["7", "7.0"], r"line 3: item_id '7.0' and '7' in line 2 seem to be one"),
        (["1.23457E+12", "x"], r"line 2: item_id '1.23457E\+12' is what a spreadsheet"),
        (["1", "1.2345678901234568e+17"], r"line 3: item_id .* export the column as text"),
        (["9007199254740993.0", "1.0"], r"line 2: item_id .* was a float, in which several"),
    ],
)
def test_ids_that_a_program_has_changed_are_refused(
    tmp_path: Path, ids: list[str], message: str
) -> None:
    path = tmp_path / "items.csv"
    assert re.search(message, refused(path, "item_id\n" + "".join(f"{each}\n" for each in ids)))


@pytest.mark.parametrize(
    ("dtype", "largest"), [(pl.Float32, 2**24), (pl.Float64, 2**53)], ids=["32 bits", "64 bits"]
)
def test_ids_beyond_what_a_float_counts_are_refused(
    tmp_path: Path, dtype: type[pl.DataType], largest: int
) -> None:
    path = tmp_path / "items.parquet"
    pl.DataFrame({"item_id": pl.Series([largest - 1.0], dtype=dtype)}).write_parquet(path)
    assert [item.item_id for item in read_items(path)] == [str(largest - 1)]
    pl.DataFrame({"item_id": pl.Series([1.0, largest], dtype=dtype)}).write_parquet(path)
    with pytest.raises(DataError, match=r"row 2: .* several whole numbers of this size are one"):
        read_items(path)


def test_decimal_ids_are_exact(tmp_path: Path) -> None:
    path, ids = tmp_path / "items.parquet", [2**53 + 1, 2**53 + 2, 10**37]
    column = pl.Series([str(each) for each in ids]).cast(pl.Decimal(38, 0))
    pl.DataFrame({"item_id": column}).write_parquet(path)
    assert [item.item_id for item in read_items(path)] == [str(each) for each in ids]


def test_titles_that_are_numbers_with_a_gap_are_read(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    titles = [1984.0, float("nan"), None]
    pl.DataFrame({"item_id": ["a", "b", "c"], "title": titles}).write_parquet(path)
    assert [item.title for item in read_items(path)] == ["1984", "", ""]


def test_titles_that_say_that_there_is_none_are_none_and_said(tmp_path: Path) -> None:
    path, notes = tmp_path / "items.csv", []
    path.write_text("item_id,title\n1,a\n2,NULL\n3,\\N\n4,Nana\n")
    assert [item.title for item in read_items(path, notes=notes)] == ["a", "", "", "Nana"]
    assert notes[0].startswith(
        "items.csv: lines whose title is 'NULL' or the like: 2, the first is line 3"
    )


@pytest.mark.parametrize(
    ("listed", "logged"),
    [("007", "7"), ("AB", "ab"), ("caf\u00e9", "cafe\u0301"), ("a\u200b", "a"), ("x.0", "x")],
)
def test_one_id_in_two_spellings_is_refused(tmp_path: Path, listed: str, logged: str) -> None:
    """Though the other ids meet: this item would lose its title behind a warning."""
    folder = shop(tmp_path, [listed, "i2", "i3", "i4"], [logged, "i2", "i3", "i4"])
    with pytest.raises(DataError, match="write the same ids in both"):
        load_dataset(folder)


def test_two_items_of_like_ids_stay_two(tmp_path: Path) -> None:
    ids = ["007", "7", "07", "0"]
    dataset = load_dataset(shop(tmp_path, ids, ids))
    assert sorted(item.item_id for item in dataset.items) == sorted(ids)


@pytest.mark.parametrize("name", ["items.xlsx", "item.csv", "Products.csv", "embeddings.npy"])
def test_files_beside_the_data_that_are_not_used_are_named(tmp_path: Path, name: str) -> None:
    folder = shop(tmp_path, ["1", "2", "3", "4"], ["1", "2", "3", "4"])
    (folder / name).write_bytes(b"PK")
    assert f"{name}' not used" in load_dataset(folder).warnings[0]


def test_vectors_of_nothing_are_said_or_refused(tmp_path: Path) -> None:
    folder = shop(tmp_path, ["1", "2", "3", "4"], ["1", "2", "3", "4"])
    vectors = np.ones((4, 2))
    vectors[1] = 0
    path = folder / "item_embeddings.npy"
    np.save(path, vectors)
    assert "vector is all zeros: 1 of 4" in load_dataset(folder).warnings[0]
    np.save(path, np.ones((4, 0)))
    with pytest.raises(DataError, match="two dimensions"):
        load_dataset(folder)
    np.save(path, vectors * 1e30)
    with pytest.raises(DataError, match=r"above 1e\+15.*row 0"):
        load_dataset(folder)


def test_columns_of_other_names_are_named(tmp_path: Path) -> None:
    path, warnings = tmp_path / "items.csv", []
    path.write_text("item_id,title,productName,Main Category,price,stage\n1,,a,b,2,x\n")
    read_items(path, warnings=warnings)
    assert warnings == [
        "items.csv has nothing in its column title, and 'productName' is not used; rename it to "
        "title if that is what it holds, or say --set items.columns.title=productName",
        "items.csv has no column categories, and 'Main Category' is not used; rename it to "
        "categories if that is what it holds, or say --set "
        'items.columns.categories="Main Category"',
    ]
