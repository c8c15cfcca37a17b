"""Raw formats: the readers read small files that are written exactly like the public ones."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from raw_files import META_LINES, write_amazon, write_movielens_csv, write_movielens_dat

from service.bundles.bundle import Item
from training.data.interactions import load_dataset, read_interactions, read_items
from training.data.raw_formats import Prepared, prepare, read_amazon_2014, read_raw
from training.data.splits import Interactions
from training.errors import DataError


def histories(log: Interactions) -> dict[str, list[str]]:
    return {
        user_id: [log.item_ids[row] for row in log.history_of(user)]
        for user, user_id in enumerate(log.user_ids)
    }


def test_amazon_becomes_a_data_set(tmp_path: Path) -> None:
    prepared = prepare(read_raw(write_amazon(tmp_path)), tmp_path / "out")
    assert prepared == Prepared(str(tmp_path / "out"), 2, 3, 5, items_without_title=2)
    assert read_items(tmp_path / "out" / "items.parquet") == (
        Item("7806397051", "Wet & Wild", ("Beauty > Makeup > Face", "Gifts")),
        Item("B000000001", "", ("Beauty",)),
        Item("B000000003", "", ()),  # not in the meta file
    )
    frame = pl.read_parquet(tmp_path / "out" / "interactions.parquet")
    assert frame.columns == ["user_id", "item_id", "position", "timestamp"]
    assert frame.rows() == [
        ("A1", "7806397051", 0, 86_400),
        ("A1", "B000000003", 1, 172_800),
        ("A1", "B000000001", 2, 259_200),
        ("A2", "B000000001", 0, 86_400),  # the same day: the order of the file
        ("A2", "7806397051", 1, 86_400),
    ]
    dataset = load_dataset(tmp_path / "out")
    assert dataset.split.test.users.tolist() == [0]
    assert dataset.warnings == ()


def test_amazon_without_meta_has_no_titles(tmp_path: Path) -> None:
    reviews, _ = write_amazon(tmp_path)
    log = read_raw([reviews])
    assert log.items["title"].to_list() == ["", "", ""]
    assert log.items["item_id"].to_list() == ["7806397051", "B000000001", "B000000003"]


def test_a_meta_line_is_data_and_never_run(tmp_path: Path) -> None:
    reviews, meta = write_amazon(tmp_path)
    touched = tmp_path / "touched"
    with gzip.open(meta, "wt") as file:
        file.write(META_LINES[0] + "\n")
        file.write(f"{{'asin': 'B000000001', 'title': open({str(touched)!r}, 'w')}}\n")
    with pytest.raises(DataError, match=r"meta_Beauty\.json\.gz, line 2 cannot be read"):
        read_amazon_2014(reviews, meta)
    assert not touched.exists()


@pytest.mark.parametrize("write", [write_movielens_dat, write_movielens_csv])
def test_movielens_becomes_a_data_set(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    prepared = prepare(read_raw([write(tmp_path)]), tmp_path / "out")
    assert prepared == Prepared(str(tmp_path / "out"), 2, 4, 4, items_without_title=0)
    assert read_items(tmp_path / "out" / "items.parquet") == (
        Item("7", "Léon: The Professional (1994)", ("Crime", "Drama")),
        Item("10", 'The "Big" One, Part 2 (1998)', ("Comedy",)),
        Item("50", "Usual Suspects, The (1995)", ()),
        Item("51", "Nobody Rated This (2000)", ("Drama",)),
    )
    log = read_interactions(tmp_path / "out" / "interactions.parquet")
    assert histories(log) == {"1": ["7", "50", "10"], "2": ["10"]}


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    reviews, meta = write_amazon(tmp_path)
    archive = write_movielens_dat(tmp_path)
    for files in ([], [meta], [archive, reviews], [reviews, reviews], [tmp_path / "log.csv"]):
        with pytest.raises(DataError, match="cannot tell the format of"):
            read_raw(files)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'reviewerID': 'A1'}", "line 1 cannot be read"),  # Python, not JSON
        ('{"reviewerID": "A1", "asin": "B1"}', "a line has no unixReviewTime"),
        ('{"reviewerID": "", "asin": "B1", "unixReviewTime": 1}', "a line has no reviewerID"),
        ("[1]", "line 1: not an object"),
        ("", "has no reviews"),
    ],
)
def test_bad_reviews_are_refused(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "reviews_X_5.json.gz"
    path.write_bytes(gzip.compress(line.encode()))
    with pytest.raises(DataError, match=message):
        read_raw([path])


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    reviews, meta = write_amazon(tmp_path)
    meta.write_bytes(meta.read_bytes()[:-20])
    with pytest.raises(DataError, match="is damaged after line"):
        read_raw([reviews, meta])
    archive = write_movielens_csv(tmp_path)
    archive.write_bytes(archive.read_bytes()[:100])
    with pytest.raises(DataError, match="is not a whole MovieLens archive"):
        read_raw([archive])
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("ml-1m/README", "nothing else")
    with pytest.raises(DataError, match="holds no ratings and movies"):
        read_raw([archive])


@pytest.mark.parametrize("ratings", ["1::2::3\n", "1::2::3::noon\n", "1::2::3::4::5\n", ""])
def test_bad_ratings_are_refused(tmp_path: Path, ratings: str) -> None:
    archive = tmp_path / "ml-1m.zip"
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("ml-1m/ratings.dat", ratings)
        files.writestr("ml-1m/movies.dat", "2::Film::Drama\n")
    with pytest.raises(DataError):
        read_raw([archive])


def test_a_preparation_that_stops_leaves_no_half_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = read_raw([write_movielens_csv(tmp_path)])
    out = tmp_path / "out"
    prepare(log, out)

    def stop(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", stop)
    with pytest.raises(OSError, match="disk full"):
        prepare(log, out)
    with pytest.raises(DataError, match=r"has no interactions\.parquet"):
        load_dataset(out)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("'title': ['a']", "a line has something else as title"),
        ("'categories': 'Beauty'", "a line has something else as categories"),
        ("'categories': [[['Beauty']]]", "categories of item B000000001 must be a list of text"),
    ],
)
def test_meta_fields_of_another_kind_are_refused(tmp_path: Path, fields: str, message: str) -> None:
    reviews, meta = write_amazon(tmp_path)
    with gzip.open(meta, "wt") as file:
        file.write(f"{{'asin': 'B000000001', {fields}}}\n")
    with pytest.raises(DataError, match=message):
        read_amazon_2014(reviews, meta)


def test_flat_categories_are_no_paths_of_letters(tmp_path: Path) -> None:
    reviews, meta = write_amazon(tmp_path)
    with gzip.open(meta, "wt") as file:
        file.write("{'asin': 'B000000001', 'categories': ['Beauty', ['Gifts', 'Soap']]}\n")
    items = read_amazon_2014(reviews, meta).items
    assert items["categories"].to_list()[1] == ["Beauty", "Gifts > Soap"]
