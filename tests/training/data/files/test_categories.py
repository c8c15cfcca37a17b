"""Categories: lists in every spelling, commas with two meanings, and the notes about both."""

from __future__ import annotations

import csv
import json
from html.entities import html5
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundles.items import PATH_SEPARATOR as SERVED_SEPARATOR
from training.config import ItemsConfig
from training.data.files.categories import PATH_SEPARATOR, category_column
from training.data.files.table import Table
from training.data.interactions import read_items
from training.errors import DataError

Names = list[tuple[str, ...]]


def read(
    folder: Path, texts: list[str], separator: str | None = None, name: str = "categories"
) -> tuple[Names, list[str], list[str]]:
    """Categories, notes and warnings of a CSV with these texts."""
    path, notes, warnings = folder / "items.csv", [], []
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("item_id", name), *enumerate(texts)])
    items = read_items(path, ItemsConfig(category_separator=separator), notes, warnings)
    return [item.categories for item in items], notes, warnings


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["['A', 'B']", "[]", ""], [("A", "B"), (), ()]),
        (['["A", "B"]', '["A \\u00e9"]'], [("A", "B"), ("A é",)]),
        (["['A' 'B']", "['A'\n 'B']"], [("A", "B"), ("A", "B")]),  # as NumPy writes them
        (["('A', 'B')", "{'A', 'B'}"], [("A", "B"), ("A", "B")]),
        (["[[\"A\", \"B's\"], ['C']]"], [("A > B's", "C")]),
        (["[('A', 'B'), 'C']"], [("A > B", "C")]),
        (["[A, B & C]", "[Men's]"], [("A", "B & C"), ("Men's",)]),  # as Spark writes them
        (['{A,"B, C"}', "{}"], [("A", "B, C"), ()]),  # as PostgreSQL writes them
        (["[None, 'A', nan]"], [("A",)]),
        (["[1, 2]", "x"], [("1", "2"), ("x",)]),
        (["A|B, C", "D"], [("A", "B, C"), ("D",)]),
        (["A; B", "R&B;Soul", "C &amp; D"], [("A", "B"), ("R&B", "Soul"), ("C &amp; D",)]),
        (["C &amp; D"], [("C &amp; D",)]),
        (["A, B"], [("A", "B")]),
        (["A,B", "B", "['C, D']"], [("A", "B"), ("B",), ("C, D",)]),
        (["Books > Mystery|Gifts"], [("Books > Mystery", "Gifts")]),
        (["Health, Beauty & Care", "Home, Garden and Tools", "Toys"],
         [("Health, Beauty & Care",), ("Home, Garden and Tools",), ("Toys",)]),
        (["[Sale", "Shoes]"], [("[Sale",), ("Shoes]",)]),
    ],
)  # fmt: skip
def test_lists_are_read_in_all_spellings(tmp_path: Path, texts: list[str], expected: Names) -> None:
    assert read(tmp_path, texts)[0] == expected


def test_what_was_done_is_said_with_an_example(tmp_path: Path) -> None:
    _, (note,), _ = read(tmp_path, ["A, B", "C", "['D', 'E', 'F']"])
    assert note == (
        "items.csv: categories read 1 as lists (\"['D', 'E', 'F']\" is 'D' and 'E' and 1 more), "
        "1 split at ',' ('A, B' is 'A' and 'B'), 1 as one category ('C' is 'C'); "
        "items.category_separator settles how text is split"
    )
    _, notes, _ = read(tmp_path, ["A>B"])
    assert notes[1] == "items.csv: categories such as 'A>B' is no path; write 'A > B'"


def test_a_comma_of_two_meanings_is_refused_until_it_is_settled(tmp_path: Path) -> None:
    texts = ["Women, Shoes", "Health, Beauty & Care"]
    with pytest.raises(DataError, match=r"in 'Women, Shoes' but .* in 'Health, Beauty & Care'"):
        read(tmp_path, texts)
    assert read(tmp_path, texts, "none")[0] == [(text,) for text in texts]
    assert read(tmp_path, texts, ",")[0] == [("Women", "Shoes"), ("Health", "Beauty & Care")]
    assert read(tmp_path, ["A/B, C"], "/")[0] == [("A", "B, C")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("['A', 'B'", "is cut off"),
        ("['A', [['B']]]", "at most two levels"),
        ("[{'id': 1, 'name': 'x'}]", "cannot be read as one"),
        ("['A' ... 'B']", "cannot be read as one"),  # as NumPy shortens them
        ("['A')", "cannot be read as one"),
        ("['A'] and ['B']", "cannot be read as one"),
        ("[" * 10_000, "two levels"),
        ("['\\ud800']", "text that cannot be read"),
    ],
)
def test_a_broken_list_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"items\.csv, line 3: categories .*{message}") as error:
        read(tmp_path, ["['A']", text])
    assert len(str(error.value).replace(str(tmp_path), "")) < 300


def test_stored_lists_are_read_and_paths_flattened(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    for stored, expected in (
        ([["A, B", None, " C "], None], ("A, B", "C")),
        ([[["A", "B"], ["C"]], []], ("A > B", "C")),
        ([[1, 2], []], ("1", "2")),
    ):
        pl.DataFrame({"item_id": [1, 2], "categories": stored}).write_parquet(path)
        assert [item.categories for item in read_items(path)] == [expected, ()]
    pl.DataFrame({"item_id": [1], "categories": [[{"a": 1}]]}).write_parquet(path)
    with pytest.raises(DataError, match=r"row 1: categories .* must be a list of text"):
        read_items(path)


def test_spellings_of_one_json_column_are_each_read_right(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    values: list[object] = [["A", "B, C"], "D|E, F", [["A", "B"], ["C"]], "['X', 'Y']", None, [1.0]]
    lines = [{"item_id": place, "categories": value} for place, value in enumerate(values)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [item.categories for item in read_items(path)] == [
        ("A", "B, C"), ("D", "E, F"), ("A > B", "C"), ("X", "Y"), (), ("1",)
    ]  # fmt: skip
    path.write_text('{"item_id": 1, "categories": "A"}\n{"item_id": 2, "categories": {"a": 1}}\n')
    with pytest.raises(DataError, match=r"line 2: categories is an object, not text"):
        read_items(path)


def test_a_column_category_is_read_and_others_are_named(tmp_path: Path) -> None:
    found, (note,), warnings = read(tmp_path, ["A|B"], name="category")
    assert found == [("A", "B")]
    assert note.startswith("items.csv: category read 1 split at '|'")
    assert warnings == []
    _, _, warnings = read(tmp_path, ["A|B"], name="genres")
    assert warnings == [
        "items.csv has no column categories, and 'genres' is not used; rename it to categories if "
        "that is what it holds, or say --set items.columns.categories=genres"
    ]
    (tmp_path / "items.csv").write_text("item_id,name,category,categories\n1,n,A,B\n")
    said: list[str] = []
    assert read_items(tmp_path / "items.csv", warnings=said)[0].categories == ("B",)
    assert [warning.split("; ")[0] for warning in said] == [
        "items.csv: the column category is not used, because of categories",
        "items.csv has no column title, and 'name' is not used",
    ]


def test_a_path_is_written_as_the_service_reads_it() -> None:
    assert PATH_SEPARATOR == SERVED_SEPARATOR


NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"]), min_size=1
)
SPELLINGS = {
    "Python": repr,
    "JSON": json.dumps,
    "JSON in Unicode": lambda names: json.dumps(names, ensure_ascii=False),
    "NumPy": lambda names: str(np.array(names, dtype=object)),
    "tuples": lambda names: repr((*names,)),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(NAMES, min_size=1, max_size=4), min_size=1, max_size=4))
def test_any_lists_are_read_as_they_were_meant(spelling: str, lists: list[list[str]]) -> None:
    texts = pl.Series([SPELLINGS[spelling](names) for names in lists])
    table = Table(Path("items.csv"), {"categories": texts}, (), pl.Series(range(len(texts))), ())
    assert category_column(table, "categories", None, []) == [tuple(names) for names in lists]


# "&ac;" is a character in HTML, so what ends with "&ac" cannot stand before a semicolon.
PLAIN = (
    st.text(st.sampled_from("abcXYZé&'- "), min_size=1, max_size=6)
    .map(str.strip)
    .filter(lambda name: name and name.rpartition("&")[2] + ";" not in html5)
)


@pytest.mark.parametrize("separator", ["|", ";", ",", ", ", "; "])
@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(PLAIN, min_size=1, max_size=4), min_size=1, max_size=4))
def test_any_texts_are_split_as_they_were_meant_or_refused(
    separator: str, lists: list[list[str]]
) -> None:
    texts = pl.Series([separator.join(names) for names in lists])
    table = Table(Path("items.csv"), {"categories": texts}, (), pl.Series(range(len(texts))), ())
    meant = [tuple(names) for names in lists]
    notes: list[str] = []
    try:
        found = category_column(table, "categories", None, notes)
    except DataError as error:
        found, notes = [], [str(error)]
    if found != meant:  # names such as "b & c" made commas look like parts of names
        assert separator.strip() == ","
        assert any("& " in text for text in texts)
        assert "items.category_separator" in notes[0]
        found = category_column(table, "categories", ",", [])
    assert found == meant


def test_the_spellings_in_the_documentation_are_read_as_it_says(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[4] / "docs" / "reference" / "data.md").read_text()
    rows = [line for line in page.split("## Categories")[1].splitlines() if line.startswith("| `")]
    assert len(rows) >= 9
    for row in rows:
        text = row.split("`")[1].replace("\\|", "|")
        expected = [("A", "B")] if "A and B" in row else [(text,)]
        assert read(tmp_path, [text])[0] == expected


@pytest.mark.parametrize(
    "text",
    ["array(['A', 'B'], dtype=object)", "set()", "frozenset({'A', 'B'})", "['Women''s', 'A']"],
)
def test_the_text_of_other_objects_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="line 3: categories"):
        read(tmp_path, ["A", text])


def test_text_that_says_that_there_is_none_is_no_category(tmp_path: Path) -> None:
    found, notes, _ = read(tmp_path, ["A", "NULL", "\\N", "nan", "['B']"])
    assert found == [("A",), (), (), (), ("B",)]
    assert notes[0].startswith("items.csv: lines whose categories is 'NULL' or the like: 3, the")


def test_the_comma_of_a_number_separates_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, ["1,000 pieces", "Toys"])[0] == [("1,000 pieces",), ("Toys",)]
    with pytest.raises(DataError, match="'1,000 pieces'; say --set"):
        read(tmp_path, ["1,000 pieces", "Toys,Games"])
