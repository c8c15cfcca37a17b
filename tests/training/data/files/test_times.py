"""Timestamps: every usual spelling is read in order, and what has two readings is refused."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.config import InteractionsConfig
from training.data.files.table import Table
from training.data.files.times import DIRECTIVES, NAMED_FORMATS, time_column
from training.data.interactions import read_interactions
from training.errors import ConfigError, DataError


def order(
    folder: Path, times: list[object], time_format: str | None = None, suffix: str = ".csv"
) -> tuple[str, list[str]]:
    """The items a, b, c, ... of one user with these times, in the order read, and the notes."""
    path, notes = folder / f"log{suffix}", []
    rows = [("u", "abcdefgh"[place], time) for place, time in enumerate(times)]
    if suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("user_id", "item_id", "timestamp"), *rows])
    else:
        lines = [dict(zip(("user_id", "item_id", "timestamp"), row, strict=True)) for row in rows]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = read_interactions(path, InteractionsConfig(time_format=time_format), notes)
    return "".join(log.item_ids[row] for row in log.rows), notes


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (["13/05/2014", "02/06/2014", "01/05/2014"], "cab"),
        (["05/13/2014", "06/02/2014", "05/01/2014"], "cab"),
        (["13.05.2014 10:00", "13.05.2014 09:59"], "ba"),
        (["5/1/2014 3:04 PM", "5/13/2014 1:00 a.m.", "5/1/2014 11:04 AM"], "cab"),
        (["5/13/2014 12:00 AM", "5/12/2014 12:00 PM", "5/12/2014 11:59 PM"], "bca"),
        (["5/13/2014, 3:04:05 PM", "5/13/2014, 3:04:04 PM"], "ba"),
        (["04/04/2014", "03/03/2014"], "ba"),  # day and month are equal: one reading
        (["2014-05-01 10:00:00 UTC", "2014-05-01 09:00:00 UTC"], "ba"),
        (["2014-05-01T10:00:00Z", "2014-05-01T11:30:00+02:00", "2014-05-01T09:45-0015"], "bac"),
        (["2014/05/01", "2014/04/30"], "ba"),
        (["20140501T103000Z", "20140430T103000Z"], "ba"),
        (
            [
                "Thu, 01 May 2014 10:30:00 +0000",
                "Thu, 1 May 2014 10:30:00 EST",
                "1 May 2014 11:30 +0200",
                "Thu, 01 May 2014 10:31:00 GMT",
            ],
            "cadb",
        ),
        (["01-May-2014", "30-Apr-2014"], "ba"),
        (["01/May/2014:10:30:00 +0000", "01/May/2014:10:29:00 +0000"], "ba"),
        (["May 1, 2014 10:30 AM", "April 30th, 2014"], "ba"),
        (["Thu May  1 10:30:00 2014", "Thu May  1 09:30:00 2014"], "ba"),
        (["Thu May 01 10:30:00 +0000 2014", "Thu May 01 10:30:00 +0100 2014"], "ba"),
        (
            [
                "Thu May 01 2014 10:30:00 GMT+0200 (CEST)",
                "Thu May 01 2014 10:30:00 GMT+0300 (EEST)",
            ],
            "ba",
        ),
        (["1398844800", "1398844799"], "ba"),
        (["1398844800123", "1398844800122"], "ba"),
        (["1398844800000000001", "1398844800000000000"], "ba"),
        (["1398844800.000000002", "1398844800.000000001", "1398844800"], "cba"),
        (["2014-05-01T10:00:00.000000002Z", "2014-05-01T10:00:00.000000001Z"], "ba"),
        (["2014-05-01T10:00:00,5", "2014-05-01T10:00:00.49"], "ba"),
        (["1e9", "1e10", "5"], "cab"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_usual_spellings_are_read(
    tmp_path: Path, times: list[object], expected: str, suffix: str
) -> None:
    assert order(tmp_path, times, suffix=suffix)[0] == expected


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (["01/05/2014", "02/03/2014"], r"line 2: timestamp '01/05/2014' has the day first or"),
        (["04/04/2014", "01-05-2014 10:00"], r"line 3: timestamp '01-05-2014 10:00' has the day"),
        (["13/05/2014", "03/13/2014"], r"line 3: .*'03/13/2014'.*'13/05/2014' in line 2"),
        (["1398844800", "1398844799000"], r"line 3: .*'1398844799000'.*like milliseconds, but "),
        (["1398844799000", "1398844799000000000"], r"line 3: .*like nanoseconds, but"),
        (["2014-05-01T10:00:00Z", "2014-05-01T11:30:00"], r"line 3: .*zone"),
        (["5/1/2014 3:04 PM", "5/13/2014 11:04"], r"line 3: .*AM or PM"),
        (["5/13/2014 13:04 PM"], r"line 2: .*'5/13/2014 13:04 PM' is no time"),
        (["2014-05-01", "noon"], r"line 3: timestamp 'noon' is no date like '2014-05-01' in line"),
        (["1398844800", "2014-05-01"], r"line 3: timestamp '2014-05-01' is no number"),
        (["noon"], r"line 2: timestamp 'noon' is neither a number nor a date"),
        (["01/05/14"], r"line 2: .*year of four digits.*time_format"),
        (["2014-02-30"], r"line 2: .*exists"),
        (["2014-05-01 24:30"], r"line 2: .*exists"),
        (["9999-12-31"], r"line 2: .*exists"),
        (["2014-05-01T10:00:00.1234567890Z"], r"line 2"),
        (["2014-05-01 10:00 Europe/Berlin"], r"line 2"),
        (["1398844800", ""], r"1 of 2 lines have no timestamp, the first is line 3"),
        (["1398844800", "NaT"], r"1 of 2 lines have no timestamp, the first is line 3"),
        (["x" * 100_000], r"line 2"),
    ],
)
def test_what_cannot_be_read_in_one_way_is_refused(
    tmp_path: Path, times: list[object], message: str
) -> None:
    with pytest.raises(DataError, match=message) as error:
        order(tmp_path, times)
    assert len(str(error.value).replace(str(tmp_path), "")) < 400


def test_an_ambiguous_date_is_settled_as_the_message_says(tmp_path: Path) -> None:
    times = ["01/05/2014 10:30:05.5 PM", "02/03/2014 10:30:05.5 AM"]
    with pytest.raises(DataError) as error:
        order(tmp_path, times)
    first, second = (part.split("=", 1)[1] for part in str(error.value).split("'")[3::2])
    assert first == "%d/%m/%Y %I:%M:%S.%f %p"
    assert second == "%m/%d/%Y %I:%M:%S.%f %p"
    assert order(tmp_path, times, first)[0] == "ba"
    assert order(tmp_path, times, second)[0] == "ab"


def test_what_decided_is_said(tmp_path: Path) -> None:
    _, notes = order(tmp_path, ["01/05/2014", "13/05/2014"])
    assert notes == ["log.csv: dates are read as day, month, year, because line 3 has '13/05/2014'"]
    _, notes = order(tmp_path, ["1398844800", "0", "1398844801"])
    assert notes[0].startswith(
        "log.csv: lines whose timestamp is 0 or less: 1, the first is line 3;"
    )


@pytest.mark.parametrize(
    ("time_format", "times", "expected"),
    [
        ("%d/%m/%Y", ["01/05/2014", "02/03/2014"], "ba"),
        ("%m/%d/%Y", ["01/05/2014", "02/03/2014"], "ab"),
        ("%d.%m.%y %H:%M", ["01.05.14 10:00", "01.05.99 09:00"], "ba"),
        ("%Y%m%d", ["20140501", "20140430"], "ba"),
        ("%d %B %Y %I:%M %p", ["1 May 2014 1:00 PM", "1 May 2014 11:00 AM"], "ba"),
        ("%Y-%m-%dT%T.%f%z", ["2014-05-01T10:00:00.50Z", "2014-05-01T10:00:00.5+01:00"], "ba"),
        ("iso8601", ["2014-05-02", "2014-05-01"], "ba"),
        ("rfc2822", ["2 May 2014 10:00:00 +0000", "Thu, 1 May 2014 10:00:00 +0000"], "ba"),
        ("epoch_s", ["1398844800", "1398844799000"], "ab"),
        ("epoch_ns", ["5", "4"], "ba"),
    ],
)  # fmt: skip
def test_a_format_settles_it(
    tmp_path: Path, time_format: str, times: list[object], expected: str
) -> None:
    assert order(tmp_path, times, time_format)[0] == expected


def test_a_format_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no %Q; write one of iso8601, rfc2822"):
        order(tmp_path, ["x"], "%Q")
    with pytest.raises(ConfigError, match="must name year, month and day"):
        order(tmp_path, ["x"], "epoch")
    with pytest.raises(ConfigError, match="twice"):
        order(tmp_path, ["x"], "%Y-%m-%d %Y")
    with pytest.raises(DataError, match=r"line 2: timestamp '1\.5\.2014' is not like '%Y-%m-%d'"):
        order(tmp_path, ["1.5.2014"], "%Y-%m-%d")


def test_stored_times_keep_their_order(tmp_path: Path) -> None:
    start = datetime(2014, 5, 1)
    for times in (
        pl.Series([2, 1]).cast(pl.Datetime("ns")),
        pl.Series([start + timedelta(microseconds=1), start]),
        pl.Series([start.date() + timedelta(1), start.date()]),
        pl.Series([1398844800.5, 1398844800.25]),
        pl.Series([1398844800000000001, 1398844800000000000]),
        pl.Series(["2.5", "2.25"]).cast(pl.Decimal(10, 3)),
    ):
        frame = pl.DataFrame({"user_id": ["u", "u"], "item_id": ["a", "b"], "timestamp": times})
        frame.write_parquet(tmp_path / "log.parquet")
        log = read_interactions(tmp_path / "log.parquet")
        assert [log.item_ids[row] for row in log.rows] == ["b", "a"], times.dtype
    frame = pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [start.time()]})
    frame.write_parquet(tmp_path / "log.parquet")
    with pytest.raises(DataError, match="timestamp must be numbers or dates, not Time"):
        read_interactions(tmp_path / "log.parquet")


SPELLINGS = {
    "iso": lambda t: t.isoformat(),
    "iso with a zone": lambda t: t.replace(tzinfo=UTC).isoformat(),
    "iso elsewhere": lambda t: (
        t.replace(tzinfo=UTC)
        .astimezone(timezone(timedelta(hours=t.second % 12 - 5, minutes=30)))
        .isoformat(" ")
    ),
    "rfc2822": lambda t: format_datetime(t.replace(tzinfo=UTC)),
    "ctime": lambda t: t.ctime(),
    "seconds": lambda t: str(int(t.replace(tzinfo=UTC).timestamp())),
    "%d/%m/%Y %H:%M:%S": lambda t: t.strftime("%d/%m/%Y %H:%M:%S"),
    "%m-%d-%Y %I:%M:%S %p": lambda t: t.strftime("%m-%d-%Y %I:%M:%S %p"),
    "%d %b %Y %H:%M:%S": lambda t: t.strftime("%d %b %Y %H:%M:%S"),
}
MOMENTS = st.datetimes(datetime(1975, 1, 1), datetime(2200, 1, 1))
TIMES = st.lists(MOMENTS.map(lambda t: t.replace(microsecond=0)), min_size=1, max_size=8)


@pytest.mark.parametrize("spelling", SPELLINGS)
@settings(max_examples=40, deadline=None)
@given(TIMES)
def test_any_times_are_read_as_they_were_meant_or_refused(
    spelling: str, times: list[datetime]
) -> None:
    text = pl.Series("timestamp", [SPELLINGS[spelling](time) for time in times])
    table = Table(Path("log.csv"), {"timestamp": text}, (), pl.Series(range(2, len(times) + 2)), ())
    try:
        found = time_column(table, None, [])
    except DataError as error:
        found, said = None, str(error)
    if found is None:
        assert "line " in said
        assert spelling.startswith(("%d/", "%m-"))  # only these have two readings
        found = time_column(table, spelling, [])
    start = datetime(1970, 1, 1)
    unit = 1 if spelling == "seconds" else 10**9
    assert found.to_list() == [(t - start) // timedelta(seconds=1) * unit for t in times]
    if "%" in spelling:
        assert time_column(table, spelling, []).to_list() == found.to_list()


def test_the_spellings_in_the_documentation_are_read_as_it_says() -> None:
    page = (Path(__file__).resolve().parents[4] / "docs" / "reference" / "data.md").read_text()
    read, refused = (
        [line.split("`")[1] for line in part.splitlines() if line.startswith("| `")]
        for part in page.split("## Order")[1].split("## Categories")[0].split("Refused, with line")
    )
    assert len(read) >= 8
    assert len(refused) >= 4
    meant = datetime(2014, 4, 30)
    for spelling in read:
        column = pl.Series([spelling])
        table = Table(Path("log.csv"), {"timestamp": column}, (), pl.Series([2]), ())
        (found,) = time_column(table, None, [])
        seconds = int(found) // (1 if spelling.startswith("139") else 10**9)
        assert abs(datetime(1970, 1, 1) + timedelta(seconds=seconds) - meant) < timedelta(1)
    for spelling in refused:
        column = pl.Series([spelling])
        table = Table(Path("log.csv"), {"timestamp": column}, (), pl.Series([2]), ())
        with pytest.raises(DataError, match="line 2"):
            time_column(table, None, [])
    for named in (
        *NAMED_FORMATS,
        *(f"%{directive}" for directive in DIRECTIVES if directive != "%"),
    ):
        assert named in page


def test_dates_of_digits_are_no_seconds(tmp_path: Path) -> None:
    """As numbers they have another order."""
    times = ["30042014", "01052014", "15062014"]
    with pytest.raises(DataError, match=r"line 2: timestamp '30042014'.*a day, a month") as error:
        order(tmp_path, times)
    assert "--set interactions.time_format=%d%m%Y or" in str(error.value)
    assert order(tmp_path, times, "%d%m%Y")[0] == "abc"
    assert order(tmp_path, [int(each) for each in times], "%d%m%Y", suffix=".jsonl")[0] == "abc"
    assert order(tmp_path, times, "epoch_s")[0] == "bca"
    assert order(tmp_path, ["20140501", "20140430"])[0] == "ba"  # the same order either way


def test_numbers_that_touch_have_all_their_digits(tmp_path: Path) -> None:
    """2014111 may be 11 January or 1 November."""
    with pytest.raises(DataError, match=r"line 2: timestamp '2014111' is not like '%Y%m%d'"):
        order(tmp_path, ["2014111"], "%Y%m%d")
    assert order(tmp_path, ["20141101103000", "20140111103000"], "%Y%m%d%H%M%S")[0] == "ba"


def test_hours_to_twelve_need_their_half(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="%I, hours to 12, but no %p"):
        order(tmp_path, ["1.5.2014 1:00"], "%d.%m.%Y %I:%M")


def test_unit_and_years_of_numbers_are_said(tmp_path: Path) -> None:
    _, notes = order(tmp_path, ["1398844800000", "4102444800000"])
    assert notes == [
        "log.csv: timestamps are read as milliseconds since 1970: from 2014-04-30 to 2100-01-01"
    ]
    assert order(tmp_path, ["5", "3"])[1] == []  # a counter


def test_equal_times_are_said(tmp_path: Path) -> None:
    found, notes = order(tmp_path, ["2014-05-01", "2014-05-01", "2014-04-30"])
    assert found == "cab"
    assert notes == [
        "log.csv: lines with the timestamp of the line before, of the same user: 1 of 3, for "
        "instance line 3; these keep the order of the file"
    ]


def test_times_that_32_bits_make_equal_are_said(tmp_path: Path) -> None:
    times = pl.Series([1398844830.0, 1398844820.0], dtype=pl.Float32)
    frame = pl.DataFrame({"user_id": ["u", "u"], "item_id": ["a", "b"], "timestamp": times})
    frame.write_parquet(tmp_path / "log.parquet")
    notes: list[str] = []
    read_interactions(tmp_path / "log.parquet", notes=notes)
    assert "floats of 32 bits" in notes[0]
