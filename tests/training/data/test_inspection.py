"""`python -m training inspect`: what it says of good and of refused files, and what it guesses."""

from __future__ import annotations

import json
import re
import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from shop_files import write_recbole, write_retailrocket

from training.__main__ import main
from training.config import InteractionsConfig, ItemsConfig
from training.data import inspect, load_dataset, said
from training.data.inspection import Inspection
from training.data.synthetic import make_world, write_world
from training.errors import DataError

PAGE = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "train.md"
HEADER = "user_id,item_id,timestamp\n"


def looked_at(path: Path, items: Path | None = None, **settings: object) -> Inspection:
    return inspect(path, items, InteractionsConfig(**settings), ItemsConfig())


def guessed(tmp_path: Path, rows: list[tuple[object, ...]], items: str = "") -> str:
    """The guesses about a log, without the one that it is small."""
    log, listed = tmp_path / "log.csv", tmp_path / "items.csv"
    log.write_text(HEADER + "".join(",".join(map(str, row)) + "\n" for row in rows))
    if items:
        listed.write_text("item_id\n" + items)
    told = looked_at(log, listed if items else None)
    return " / ".join(guess for guess in told.guesses if "small log" not in guess)


def usual(users: int = 60, items: int = 12, length: int = 6) -> list[tuple[object, ...]]:
    """A log in which nothing is odd."""
    return [
        (f"u{user}", (user + 5 * n) % items + 100, 1_600_000_000 + 1000 * n + user)
        for user in range(users)
        for n in range(length)
    ]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["training", "inspect", *map(str, arguments)])
    return main()


# --- what is said -------------------------------------------------------------------------------


def test_the_figures_are_those_of_a_run(tmp_path: Path) -> None:
    write_world(make_world(80, 60, 0.1, 7), tmp_path)
    told = inspect(tmp_path, None, InteractionsConfig(core=3), ItemsConfig())
    dataset = load_dataset(tmp_path, config=InteractionsConfig(core=3))
    split = dataset.split
    assert told.refused is None
    assert told.split == {
        "samples": len(split.train.windows()),
        "validation_users": len(split.validation),
        "test_users": len(split.test),
    }
    assert told.left["users"] == split.train.num_users
    assert told.left["interactions"] == split.everything.num_interactions
    assert told.items_file["with_title"] == 60
    titles = {item.item_id: item.title for item in dataset.items}
    assert len(told.examples) == 3
    for user in told.examples:
        assert all(titles[each["item_id"]] == each["title"] for each in user["newest"])
    assert set(dataset.notes) <= {*told.notes, *dataset.notes}


def test_a_person_reads_columns_counts_times_and_examples(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    days = [("u", "a", "1"), ("u", "b", "2"), ("u", "b", "2"), ("u", "b", "3"), ("u", "c", "3")]
    days += [("v", item, f"{n}") for n, item in enumerate("abca", 4)]
    rows = "".join(f"{user},{item},2024-01-0{day},9\n" for user, item, day in days)
    path.write_text("user_id,item_id,timestamp,price\n" + rows)
    (tmp_path / "items.jsonl").write_text('{"item_id": "a", "title": "Anise tea"}\n')
    lines = list(said(looked_at(path, tmp_path / "items.jsonl")))
    text = "\n".join(lines)
    assert lines[0] == f"{path}: csv, 9 lines"
    for fact in (
        "columns read  user_id, item_id, timestamp",
        "not read      'price'",
        "time          2024-01-01 00:00:00 to 2024-01-07 00:00:00 UTC (dates)",
        "repeats       1 lines twice, 1 of the item just before",
        "ties          1 lines at the time of the line before, of the same user",
        "interactions  7 of 2 users and 3 items",
        "for training  1 samples; 2 users for validation, 2 for the test",
        "items file    1 items, 1 with a title, 0 with categories; it has 1 of 3 items of the log",
        "v (4): a 'Anise tea', b, c, a 'Anise tea'",
    ):
        assert fact in text
    assert lines[-1] == "training takes it"


def test_a_refused_log_is_told_as_far_as_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_retailrocket(tmp_path / "events.csv")
    assert run(monkeypatch, path) == 1
    assert "perhaps --set interactions.columns.user_id=visitorid" in capsys.readouterr().err
    columns = ["--set", "interactions.columns.user_id=visitorid"]
    columns += ["--set", "interactions.columns.item_id=itemid"]
    assert run(monkeypatch, path, *columns) == 1
    printed = capsys.readouterr()
    assert "event types   'view' 720, 'addtocart'" in printed.out
    assert "three users" in printed.out
    assert "training takes it" not in printed.out
    assert "these are steps of a shop" in printed.err
    events = ["--set", "interactions.events={view = 1, transaction = 3}"]
    assert run(monkeypatch, path, *columns, *events) == 0
    out = capsys.readouterr().out
    assert "views are held out as purchases are" in out
    assert "interactions.targets=['transaction']" in out


def test_one_json_document_for_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_recbole(tmp_path / "ml")
    with (folder / "ml.inter").open("a") as file:
        file.writelines(f"9\t{item}\t1\t{n}\n" for n, item in enumerate([51, 302, 242, 51]))
    options = [
        "--set",
        "items.columns.title=movie_title",
        "--set",
        "items.columns.categories=class",
    ]
    assert run(monkeypatch, folder, "--json", *options) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["columns"]["timestamp"] == "timestamp"
    assert told["ignored"] == ["rating"]
    assert (told["users"], told["items"], told["interactions"]) == (3, 3, 9)
    assert told["items_file"]["with_categories"] == 3
    assert told["refused"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + "u,a,noon\n", "line 2: timestamp 'noon' is neither a number nor a date"),
        (HEADER + "u,a,1\n", "no user has three interactions"),
        ("nothing\n1\n", "needs a column user_id and item_id and position or timestamp"),
        ("", "is empty: it has 0 bytes"),
    ],
)
def test_what_training_refuses_is_refused_in_the_same_words(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        load_dataset(interactions=path)
    assert message in str(error.value)
    assert looked_at(path).refused == str(error.value)


def test_the_page_inspects_a_log_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of the how-to, on a log of that format."""
    write_retailrocket(tmp_path / "events.csv")
    listed = "".join(f"{item},Item {item}\n" for item in range(40))
    (tmp_path / "products.csv").write_text("item_id,name\n" + listed)
    section = PAGE.read_text().partition("## From your log to")[2].partition("\n## ")[0]
    commands = re.findall(r"^python -m training (inspect .*?[^\\])$", section, re.M | re.S)
    *commands, exported = commands
    assert len(commands) == 2
    assert exported.endswith("--preset shop.toml")  # of what a service exports
    monkeypatch.chdir(tmp_path)
    statuses = []
    for command in commands:
        statuses.append(run(monkeypatch, *shlex.split(command.replace("\\\n", " "))[1:]))
        printed = capsys.readouterr()
    assert statuses == [1, 0]
    assert "training takes it" in printed.out
    assert "'Item 1" in printed.out
    training = re.findall(r"^python -m training run (.*?[^\\])$", section, re.M | re.S)
    for option in re.findall(r"--set (?:\"[^\"]*\"|\S+)", commands[1]):
        assert option in training[0]


# --- guesses ------------------------------------------------------------------------------------


def test_nothing_is_guessed_about_a_usual_log(tmp_path: Path) -> None:
    assert guessed(tmp_path, usual(), "".join(f"{n}\n" for n in range(100, 112))) == ""


def test_swapped_columns_are_guessed(tmp_path: Path) -> None:
    rows = [(item, user, time) for user, item, time in usual()]
    items = "".join(f"{n}\n" for n in range(100, 112))
    assert "the two are swapped" in guessed(tmp_path, rows, items)
    rows = [(user % 7, f"i{user}", 1_600_000_000 + user) for user in range(150)]
    assert "150 items and 7 users: are the two columns swapped?" in guessed(tmp_path, rows)


def test_a_robot_is_guessed(tmp_path: Path) -> None:
    rows = [*usual(), *[("null", n % 12 + 100, 1_600_000_000 + n) for n in range(60)]]
    assert "user 'null' has 14% of all lines: a robot" in guessed(tmp_path, rows)


def test_sessions_instead_of_users_are_guessed(tmp_path: Path) -> None:
    rows = [(f"s{n}", n % 12, 1_600_000_000 + n) for n in range(120)]
    assert "every user has one line" in guessed(tmp_path, rows)
    rows += [("u", n, 1_600_000_000 + n) for n in range(5)]
    assert "99% of the users have one line" in guessed(tmp_path, rows)
    rows = [(f"u{n % 30}", f"o{n}", 1_600_000_000 + n) for n in range(120)]
    assert "nearly every line has an item of its own" in guessed(tmp_path, rows)


def test_odd_times_are_guessed(tmp_path: Path) -> None:
    same = [(user, item, 1_600_000_000) for user, item, _ in usual()]
    told = guessed(tmp_path, same)
    assert "all lines have the same time" in told
    assert "% of the lines have the same time as the one before" in told
    late = datetime.now(UTC) + timedelta(days=400)
    rows = [*usual(), ("u1", 100, int(late.timestamp()))]
    assert f"1 lines are of the future, up to {late:%Y-%m-%d}" in guessed(tmp_path, rows)
    rows = [*usual(), ("u1", 100, 0), ("u2", 100, 0)]
    assert "2 lines are from before 1995, the first of 1970-01-01" in guessed(tmp_path, rows)


@pytest.mark.parametrize(
    ("spelt", "cause"),
    [
        ("00{}", "with zeros in front: '100' here, '00100' there, and 12 in all"),
        ("{}.5", "is it the file of another shop or another column?"),
        ("SKU-{}", "with something in front of the number: '100' here, 'SKU-100' there"),
        ("{}-EU", "with something after the number: '100' here, '100-EU' there"),
    ],
)
def test_ids_that_do_not_match_are_explained(tmp_path: Path, spelt: str, cause: str) -> None:
    items = "".join(spelt.format(n) + "\n" for n in range(100, 112))
    if spelt == "{}.5":
        items = items.replace("1", "x")
    told = guessed(tmp_path, usual(), items)
    assert "100% of the items of the log are not in the items file" in told
    assert cause in told


def test_ids_with_a_point_or_other_capitals_are_explained(tmp_path: Path) -> None:
    rows = [(user, f"ab{item}", time) for user, item, time in usual()]
    items = "".join(f"AB{n}\n" for n in range(100, 112))
    assert "with other capitals: 'ab100' here, 'AB100' there" in guessed(tmp_path, rows, items)
    items = "x\n" + "".join(f"{n}.0\n" for n in range(100, 112))  # x: else it is read as numbers
    assert "as a number with a point, 123.0: '100' here" in guessed(tmp_path, usual(), items)
