"""Files as other programs write them: RecBole's, folders of parts, zstd, columns of other names."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from shop_files import INTER, ITEM, SHOP_COLUMNS, write_recbole, write_zstd

from service.bundles import Item
from training.config import InteractionsConfig, ItemsConfig, RunConfig
from training.data.interactions import load_dataset, read_interactions, read_items
from training.errors import ConfigError, DataError
from training.preset import load_config

LOG = "user_id,item_id,timestamp\nu,a,1\nu,b,2\nv,a,3\n"
FILMS = ItemsConfig(columns={"title": "movie_title", "categories": "class"})


def histories(path: Path, config: InteractionsConfig | None = None) -> dict[str, str]:
    log = read_interactions(path, config or InteractionsConfig())
    return {
        user_id: " ".join(log.item_ids[row] for row in log.history_of(user))
        for user, user_id in enumerate(log.user_ids)
    }


# --- RecBole ------------------------------------------------------------------------------------


def test_atomic_files_of_recbole_are_read(tmp_path: Path) -> None:
    folder = write_recbole(tmp_path / "ml")
    # 881250949 and 8.81250950E8 are a second apart, which a float of 32 bits does not tell
    assert histories(folder / "ml.inter") == {"186": "242 302", "196": "302 242 51"}
    notes: list[str] = []
    found = read_items(folder / "ml.item", FILMS, notes)
    assert found[:2] == (
        Item("242", "Kolya", ("Comedy",)),
        Item("302", "L.A. Confidential", ("Crime", "Film-Noir", "Mystery", "Thriller")),
    )
    assert found[2].categories == ("Animation", "Children's", "Comedy")
    assert "ml.item: the column 'class' is read as categories" in notes


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_folder_of_recbole_is_a_data_folder(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "ml"
    folder.mkdir()
    more = "9\t242\t1\t5\n9\t302\t1\t6\n9\t51\t1\t7\n9\t242\t1\t8\n"
    for name, text in (("ml.inter", INTER + more), ("ml.item", ITEM)):
        data = text.encode()
        (folder / (name + suffix)).write_bytes(gzip.compress(data) if suffix else data)
    dataset = load_dataset(folder, items_config=FILMS)
    titles = {"Kolya", "L.A. Confidential", "Legends of the Fall"}
    assert {item.title for item in dataset.items} == titles
    (folder / "ml.test.inter").write_text(INTER)
    with pytest.raises(DataError, match=r"has ml\.inter.* and ml\.test\.inter; give --interact"):
        load_dataset(folder)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("user_id\titem_id\ttimestamp", "line 1: 'user_id' is no column of a RecBole file"),
        ("user_id:token\titem_id:text\ttimestamp:float", "line 1: 'item_id:text' is no column"),
        ("user_id:token\titem_id:token_seq\ttimestamp:float", "is a list; item_id must be one v"),
        ("user_id:token\titem_id_list:token_seq\ttimestamp:float", "needs a column item_id; it h"),
    ],
)
def test_atomic_files_without_the_right_types_are_refused(
    tmp_path: Path, header: str, message: str
) -> None:
    (tmp_path / "x.inter").write_text(f"{header}\n1\t2\t3\n")
    with pytest.raises(DataError, match=message):
        read_interactions(tmp_path / "x.inter")


def test_a_list_of_floats_is_no_title(tmp_path: Path) -> None:
    folder = write_recbole(tmp_path / "ml")
    with pytest.raises(DataError, match="'vec:float_seq' is a list; title must be one value"):
        read_items(folder / "ml.item", ItemsConfig(columns={"title": "vec"}))


# --- zstd ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["log.csv.zst", "log.csv", "log.csv.gz"])
def test_what_zstd_has_packed_is_known_by_its_first_bytes(tmp_path: Path, name: str) -> None:
    assert histories(write_zstd(tmp_path / name, LOG)) == {"u": "a b", "v": "a"}
    bad = write_zstd(tmp_path / name, LOG.replace("u,b,2", "u,b,noon"))
    with pytest.raises(DataError, match="line 3: timestamp 'noon' is no number"):
        read_interactions(bad)


def test_json_lines_and_items_may_be_packed_too(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl.zst"
    write_zstd(path, '\ufeff{"item_id": 1, "title": "a\\nb"}\n\n{"item_id": "2"}\n')
    assert read_items(path) == (Item("1", "a\nb", ()), Item("2", "", ()))


def test_a_field_of_several_lines_survives_zstd(tmp_path: Path) -> None:
    path = write_zstd(tmp_path / "items.csv.zst", 'item_id,title\n1,"a\n\nb"\n2,c\n')
    assert [item.title for item in read_items(path)] == ["a\n\nb", "c"]


def test_a_damaged_zstd_file_is_refused(tmp_path: Path) -> None:
    path = write_zstd(tmp_path / "log.csv.zst", LOG * 99)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"log\.csv\.zst is damaged after line"):
        read_interactions(path)


def test_an_asterisk_in_a_name_stands_for_itself(tmp_path: Path) -> None:
    write_zstd(tmp_path / "log-1.csv.zst", LOG)
    write_zstd(tmp_path / "log-*.csv.zst", LOG.replace("b", "c"))
    assert histories(tmp_path / "log-*.csv.zst")["u"] == "a c"


# --- folders of parts ---------------------------------------------------------------------------


def parts(folder: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def as_csv(path: Path, frame: pl.DataFrame) -> None:
    frame.write_csv(path)


def as_gzip(path: Path, frame: pl.DataFrame) -> None:
    path.write_bytes(gzip.compress(frame.write_csv().encode()))


def as_json(path: Path, frame: pl.DataFrame) -> None:
    frame.write_ndjson(path)


def as_parquet(path: Path, frame: pl.DataFrame) -> None:
    frame.write_parquet(path)


@pytest.mark.parametrize(
    ("suffix", "write"),
    [(".csv", as_csv), (".csv.gz", as_gzip), (".jsonl", as_json), (".parquet", as_parquet)],
)
def test_a_folder_of_parts_is_one_table(
    tmp_path: Path, suffix: str, write: Callable[[Path, pl.DataFrame], None]
) -> None:
    folder = tmp_path / "clicks"
    days = {"day=2": [("u", "b", 2), ("v", "a", 3)], "day=1": [("u", "a", 2), ("v", "c", 1)]}
    for day, rows in days.items():
        (folder / day).mkdir(parents=True)
        frame = pl.DataFrame(rows, ["user_id", "item_id", "timestamp"], orient="row")
        write(folder / day / f"part-0{suffix}", frame)
    (folder / "_SUCCESS").touch()
    (folder / ".part-0.crc").write_bytes(b"crc")
    notes: list[str] = []
    log = read_interactions(folder, notes=notes)
    # u has equal times, so the order of the parts decides
    assert histories(folder) == {"u": "a b", "v": "c a"}
    assert log.num_interactions == 4
    assert f"clicks: 2 files are read as one, from day=1/part-0{suffix} to" in notes[0]


def test_a_line_of_a_part_is_named(tmp_path: Path) -> None:
    folder = parts(tmp_path / "log", {"1.csv": LOG, "2.csv": LOG.replace("u,b,2", "u,,2")})
    with pytest.raises(DataError, match=r"1 of 6 lines have no item_id, the first is line 3 of 2"):
        read_interactions(folder)
    parts(folder, {"2.csv": LOG.replace("u,b,2", "u,b,noon")})
    with pytest.raises(DataError, match=r"log, line 3 of 2\.csv: timestamp 'noon' is no number"):
        read_interactions(folder)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            {"1.csv": LOG, "2.csv": "user_id,item_id,position\nu,a,1\n"},
            r"1\.csv has a column timestamp, and 2\.csv has none",
        ),
        (
            {"1.csv": LOG, "2.csv": "user_id,item_id,timestamp,position\nu,a,1,1\n"},
            r"2\.csv has a column position, and 1\.csv has none",
        ),
        (
            {"1.csv": LOG, "2.jsonl": '{"user_id": "u"}\n'},
            r"has 1\.csv and 2\.jsonl, which are of two formats",
        ),
        ({"notes.txt": "x"}, "is a folder without files that end in"),
        ({"1.csv": "user_id,item_id,timestamp\n"}, "its files have no lines of data"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(
    tmp_path: Path, texts: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_interactions(parts(tmp_path / "log", texts))


def test_parts_of_other_types_are_refused(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": [1], "item_id": [1], "timestamp": [1]})
    frame.write_parquet(tmp_path / "1.parquet")
    frame.cast({"item_id": pl.String}).write_parquet(tmp_path / "2.parquet")
    with pytest.raises(DataError, match=r"item_id is Int64 in 1\.parquet and String in 2\.parquet"):
        read_interactions(tmp_path)


def test_a_data_folder_may_hold_folders_of_parts(tmp_path: Path) -> None:
    rows = "".join(f"{user},{item},{n}\n" for user in "uvw" for n, item in enumerate("abcd"))
    header = "user_id,item_id,timestamp\n"
    parts(tmp_path / "interactions", {"1.csv": header + rows, "2.csv": header + "x,a,1\n"})
    (tmp_path / "README").write_text("of the data")
    parts(tmp_path / "items", {"1.csv": "item_id\na\nb\n", "2.csv": "item_id\nc\nd\n"})
    dataset = load_dataset(tmp_path)
    assert (dataset.split.train.num_users, len(dataset.items)) == (4, 4)
    assert dataset.warnings == ()


def test_files_that_are_no_parts_are_named(tmp_path: Path) -> None:
    parts(tmp_path / "log", {"1.csv": LOG, "readme.md": "x", "schema.txt": "y"})
    notes: list[str] = []
    read_interactions(tmp_path / "log", notes=notes)
    assert "log: 'readme.md' is not read, nor 1 more files" in notes


# --- columns of other names ---------------------------------------------------------------------


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    path = tmp_path / "log.tsv"
    path.write_text("visitorid\titemid\tts\nu\ta\t2\nu\tb\t1\n")
    with pytest.raises(
        DataError,
        match=r"has visitorid, itemid, ts; perhaps --set interactions\.columns\.user_id=visitorid "
        r"--set interactions\.columns\.item_id=itemid --set interactions\.columns\.timestamp=ts",
    ):
        read_interactions(path)
    overrides = [f"interactions.columns.{each}" for each in (*SHOP_COLUMNS, "timestamp=TS")]
    config = load_config("tiny", overrides).interactions
    assert histories(path, config) == {"u": "b a"}


def test_a_name_that_is_said_wins_over_our_own(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"user_id": "u", "item_id": "order-1", "sku": "a", "timestamp": 1}\n')
    assert histories(path, InteractionsConfig(columns={"item_id": "sku"})) == {"u": "a"}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_named_column_that_is_not_there_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"log{suffix}"
    frame = pl.DataFrame({"user_id": ["u"], "product_id": ["a"], "timestamp": [1]})
    {".csv": frame.write_csv, ".jsonl": frame.write_ndjson}.get(suffix, frame.write_parquet)(path)
    with pytest.raises(ConfigError) as error:
        read_interactions(path, InteractionsConfig(columns={"item_id": "prodct_id"}))
    assert str(error.value) == (
        f"interactions.columns.item_id=prodct_id: {path} has no such column; did you mean "
        "product_id? It has user_id, product_id, timestamp"
    )
    with pytest.raises(ConfigError, match=r"items\.columns\.title=nam: .* no such column"):
        read_items(path, ItemsConfig(columns={"item_id": "product_id", "title": "nam"}))


def test_one_column_cannot_be_two(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    config = InteractionsConfig(columns={"user_id": "item_id", "item_id": "item_id"})
    with pytest.raises(ConfigError, match="name another column for each of user_id, item_id"):
        read_interactions(tmp_path / "log.csv", config)


def test_settings_of_columns_are_checked_and_not_written_unless_they_are_used() -> None:
    for wrong in ("interactions.columns.itemid=x", "interactions.columns.item_id.x=y"):
        with pytest.raises(ConfigError, match="--set"):
            load_config("tiny", [wrong])
    before = RunConfig().model_dump(mode="json")
    assert not {"columns", "events", "targets"} & before["interactions"].keys()
    assert "columns" not in before["items"]
    config = load_config("tiny", ["items.columns.title=name", "interactions.events.view=1"])
    assert config.model_dump(mode="json")["items"]["columns"] == {"title": "name"}
    assert config.interactions.events == {"view": 1}
