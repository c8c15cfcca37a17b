"""Reads the column that orders a user's items: numbers or dates in any usual spelling.

Numbers and dates become whole numbers or exact decimals, so times that differ by a nanosecond keep
their order. Nothing is guessed: 01/05/2014 may be in May or in January. Then the other lines
decide, or the column is refused. Knows nothing of users and items.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta

import polars as pl

from training.data.files.columns import NO_VALUE, without_gaps
from training.data.files.table import Table, shown
from training.errors import ConfigError, DataError

SETTING = "interactions.time_format"
NAMED_FORMATS = ("iso8601", "rfc2822", "epoch_s", "epoch_ms", "epoch_us", "epoch_ns")
# A number of this size or more is in the next smaller unit: 10^11 s is in 5138, 10^11 ms in 1973.
UNITS = ((10**11, "seconds"), (10**14, "milliseconds"), (10**17, "microseconds"))
NUMBER = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,2})?$"
EXACT = pl.Decimal(38, 18)
LARGEST_OF_32_BITS = 2**24  # from here on floats of 32 bits do not tell whole numbers apart
LEAST_SAID, MOST_SAID = 10**8, 10**11  # seconds, of the years 1973 and 5138
SECOND = 10**9  # in nanoseconds
YEARS = (1678, 2261)  # what 64 bits of nanoseconds hold

MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
MONTH_NAME = (
    r"(?P<name>(?i:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
    r"|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?))\.?"
)
DAY_NAME = r"(?:(?i:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,?\s+)?"
CLOCK = (
    r"(?P<hour>[0-9]{1,2}):(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2})(?:[.,](?P<fraction>[0-9]{1,9}))?)?"
    r"(?:\s*(?P<half>[AaPp])\.?[Mm]\.?)?"
)
# The names that RFC 2822 gives to zones of the United States, in hours behind UTC.
US_ZONES = {"EDT": 4, "EST": 5, "CDT": 5, "CST": 6, "MDT": 6, "MST": 7, "PDT": 7, "PST": 8}
ZONE = (
    r"(?P<zone>[Zz]|UTC|GMT|UT|(?:UTC|GMT)?[+-][0-9]{2}(?::?[0-9]{2})?|" + "|".join(US_ZONES) + ")"
    r"(?:\s*\([A-Za-z ]*\))?"
)
TIME = rf"(?:(?:[Tt]|,?\s+|:){CLOCK}(?:\s*{ZONE})?)?"
YEAR_FIRST = rf"^(?P<year>[0-9]{{4}})[-/.](?P<month>[0-9]{{1,2}})[-/.](?P<day>[0-9]{{1,2}}){TIME}$"
BASIC = (
    r"^(?P<year>[0-9]{4})(?P<month>[0-9]{2})(?P<day>[0-9]{2})T(?P<hour>[0-9]{2})(?P<minute>[0-9]{2})"
    rf"(?P<second>[0-9]{{2}})(?:[.,](?P<fraction>[0-9]{{1,9}}))?(?:{ZONE})?$"
)
DAY_NAME_YEAR = (
    rf"^{DAY_NAME}(?P<day>[0-9]{{1,2}})[ /-]{MONTH_NAME}[ /,-]+(?P<year>[0-9]{{4}}){TIME}$"
)
NAME_DAY_YEAR = (
    rf"^{DAY_NAME}{MONTH_NAME}\s+(?P<day>[0-9]{{1,2}})(?:st|nd|rd|th)?(?:,\s*|\s+)(?P<year>[0-9]{{4}})"
    rf"{TIME}$"
)
C_TIME = (
    rf"^{DAY_NAME}{MONTH_NAME}\s+(?P<day>[0-9]{{1,2}})\s+{CLOCK}(?:\s+{ZONE})?"
    r"\s+(?P<year>[0-9]{4})$"
)
NUMBERS_ONLY = rf"^(?P<one>[0-9]{{1,2}})[/.-](?P<two>[0-9]{{1,2}})[/.-](?P<year>[0-9]{{4}}){TIME}$"
SHORT_YEAR = r"^[0-9]{1,2}[/.-][0-9]{1,2}[/.-][0-9]{2}(?:\D|$)"
FAMILIES = (YEAR_FIRST, BASIC, DAY_NAME_YEAR, NAME_DAY_YEAR, C_TIME, NUMBERS_ONLY)
# Directives of strptime, with the parts they stand for.
DIRECTIVES = {
    "Y": r"(?P<year>[0-9]{4})",
    "y": r"(?P<short>[0-9]{2})",
    "m": r"(?P<month>[0-9]{1,2})",
    "b": MONTH_NAME,
    "B": MONTH_NAME,
    "d": r"(?P<day>[0-9]{1,2})",
    "e": r"(?P<day>[0-9]{1,2})",
    "H": r"(?P<hour>[0-9]{1,2})",
    "I": r"(?P<hour>[0-9]{1,2})",
    "M": r"(?P<minute>[0-9]{1,2})",
    "S": r"(?P<second>[0-9]{1,2})",
    "f": r"(?P<fraction>[0-9]{1,9})",
    "p": r"(?P<half>[AaPp])\.?[Mm]\.?",
    "z": ZONE,
    "Z": ZONE,
    "a": r"[A-Za-z]+\.?",
    "A": r"[A-Za-z]+\.?",
    "%": "%",
}
TOUCHING = set("YymdeHIMS")  # directives of digits, which have all of them where two touch
# 30042014 is a date without separators, whose order is not that of the number.
DATE_OF_DIGITS = (
    r"^(?:(?:0?[1-9]|[12][0-9]|3[01])(?:0[1-9]|1[0-2])"
    r"|(?:0?[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01]))(?:19|20)[0-9]{2}$"
)
DIGITS_ONLY = ("%d%m%Y", "%m%d%Y")
SHORTHANDS = {"T": "%H:%M:%S", "F": "%Y-%m-%d", "R": "%H:%M"}


def position_column(table: Table) -> pl.Series:
    """The column `position` as numbers. Raises DataError with the line of a value that is none."""
    column = table.columns["position"]
    without_gaps(table, "position", column.fill_nan(None) if column.dtype.is_float() else column)
    if column.dtype == pl.String:
        return _numbers(table, "position", _text(table, "position"))
    if not column.dtype.is_numeric():
        raise DataError(f"{table.path}: position must be numbers, not {column.dtype}")
    return column


def time_column(table: Table, time_format: str | None, notes: list[str]) -> pl.Series:
    """The column `timestamp` as values to sort by.

    time_format: one of NAMED_FORMATS, a format of strptime, or None to tell it from the values
    Raises DataError with the line of the first value that cannot be read, or has two readings.
    """
    column = table.columns["timestamp"]
    if column.dtype.is_float():
        column = column.fill_nan(None)
    without_gaps(table, "timestamp", column)
    if column.dtype in (pl.Date, pl.Datetime):
        return column
    has_pattern = time_format is not None and not time_format.startswith("epoch_")
    if column.dtype.is_numeric() and not (has_pattern and column.dtype.is_integer()):
        if column.dtype.is_float():
            table.refuse_any("timestamp", column.is_infinite(), "is no time")
        return _of_one_unit(table, column, time_format, notes)
    if not (column.dtype.is_integer() or column.dtype in (pl.String, pl.Categorical, pl.Enum)):
        raise DataError(f"{table.path}: timestamp must be numbers or dates, not {column.dtype}")
    text = _text(table, "timestamp")
    if time_format in DIGITS_ONLY:  # as a number it has lost the 0 it begins with
        text = text.str.zfill(8)
    match time_format:
        case None if re.match(NUMBER, text[0]):
            return _of_one_unit(table, _numbers(table, "timestamp", text), None, notes)
        case None:
            return _dates_told(table, text, notes)
        case "epoch_s" | "epoch_ms" | "epoch_us" | "epoch_ns":
            return _numbers(table, "timestamp", text)
        case "iso8601":
            family = YEAR_FIRST if re.match(YEAR_FIRST, text[0]) else BASIC
            return _dates(table, text, family, "is no ISO 8601 date")
        case "rfc2822":
            return _dates(table, text, DAY_NAME_YEAR, "is no date of RFC 2822")
    return _dates(table, text, _pattern_of(time_format), f"is not like {shown(time_format)}")


def _text(table: Table, name: str) -> pl.Series:
    """A column as text without spaces around. Raises DataError if any value is missing."""
    text = table.columns[name].cast(pl.String).str.strip_chars()
    without_gaps(
        table, name, pl.select(pl.when(~text.is_in(["", "NaT", *NO_VALUE])).then(text)).to_series()
    )
    return text


def _numbers(table: Table, name: str, text: pl.Series) -> pl.Series:
    table.refuse_any(name, ~text.str.contains(NUMBER), "is no number")
    whole = text.cast(pl.Int64, strict=False)
    if not whole.null_count():
        return whole
    exact = text.cast(EXACT, strict=False)
    table.refuse_any(name, exact.is_null(), "is too large a number")
    return exact


def _of_one_unit(
    table: Table, numbers: pl.Series, time_format: str | None, notes: list[str]
) -> pl.Series:
    """The numbers. Raises DataError if some look like seconds and others like milliseconds.

    Also if all of them look like dates such as 30042014.
    """
    unit = units_by_size(numbers)
    names = [name for _, name in UNITS] + ["nanoseconds"]
    if time_format is None and (other := unit != unit[0]).any():
        row = other.arg_max()
        table.refuse(
            row,
            f"timestamp {shown(table.columns['timestamp'][row])} looks like {names[unit[row]]}, "
            f"but {shown(table.columns['timestamp'][0])} in {table.place(0)} like "
            f"{names[unit[0]]}; write one unit throughout, or, if they are of one, say so: "
            f"--set {SETTING}=epoch_s, epoch_ms, epoch_us or epoch_ns",
        )
    if time_format is None and numbers.dtype.is_integer():
        texts = (chunk.cast(pl.String) for chunk in numbers.get_chunks())  # one at a time
        if all(digits.str.contains(DATE_OF_DIGITS).all() for digits in texts):
            first, second = (f"--set {SETTING}={each}" for each in DIGITS_ONLY)
            table.refuse(
                0,
                f"timestamp {shown(table.columns['timestamp'][0])}, as all others, looks like a "
                f"day, a month and a year; say {first} or {second}, or, if they are seconds, "
                f"--set {SETTING}=epoch_s",
            )
    early = numbers <= 0
    if early.any() and not early.all():
        row = early.arg_max()
        notes.append(
            f"{table.path.name}: lines whose timestamp is 0 or less: {early.sum():,}, the first is "
            f"{table.place(row)}; a missing time is often written so, but here they come first"
        )
    if numbers.dtype == pl.Float32 and (too_large := numbers.abs() >= LARGEST_OF_32_BITS).any():
        row = too_large.arg_max()
        notes.append(
            f"{table.path.name}: timestamps are floats of 32 bits, in which times near each other, "
            f"such as {numbers[row]:.0f} in {table.place(row)}, become equal; store 64 bits"
        )
    _say_range(table, numbers, unit, time_format, notes)
    return numbers


def _say_range(
    table: Table, numbers: pl.Series, unit: pl.Series, time_format: str | None, notes: list[str]
) -> None:
    """A sentence about unit and years, in which a person sees what was misread."""
    divisor, name = unit_of(unit, time_format)
    least, most = (int(each) // divisor for each in (numbers.min(), numbers.max()))
    if not LEAST_SAID <= most < MOST_SAID or least < -MOST_SAID:
        return  # a counter
    first, last = (datetime(1970, 1, 1) + timedelta(seconds=each) for each in (least, most))
    notes.append(
        f"{table.path.name}: timestamps are read as {name} since 1970: from "
        f"{first:%Y-%m-%d} to {last:%Y-%m-%d}"
    )


def unit_of(units: pl.Series, time_format: str | None) -> tuple[int, str]:
    """How many of the unit make a second, and its name; units: as of `units_by_size`."""
    named = ["epoch_s", "epoch_ms", "epoch_us", "epoch_ns"]
    power = named.index(time_format) if time_format in named else int(units[0])
    return 1000**power, ("seconds", "milliseconds", "microseconds", "nanoseconds")[power]


def units_by_size(numbers: pl.Series) -> pl.Series:
    """0 to 3 for each number since 1970: seconds, milliseconds, microseconds, nanoseconds."""
    size = numbers.cast(pl.Float64).abs()
    return sum((size >= least).cast(pl.Int8) for least, _ in UNITS)


def _dates_told(table: Table, text: pl.Series, notes: list[str]) -> pl.Series:
    """Dates that are all spelt like the first one."""
    first = text[0]
    family = next((each for each in FAMILIES if re.match(each, first)), None)
    if family is None:
        years = " with a year of four digits" if re.match(SHORT_YEAR, first) else ""
        table.refuse(
            0,
            f"timestamp {shown(first)} is neither a number nor a date{years} in a known spelling; "
            f"name its format, for instance --set {SETTING}=%d/%m/%y, or write "
            "2014-05-31T23:59:59Z",
        )
    unlike = f"is no date like {shown(first)} in {table.place(0)}; write all alike"
    if family == NUMBERS_ONLY:
        family = _day_or_month_first(table, text, unlike, notes)
    return _dates(table, text, family, unlike)


def _day_or_month_first(table: Table, text: pl.Series, unlike: str, notes: list[str]) -> str:
    """The pattern of dates such as 13/05/2014: is the day the first number or the second?"""
    parts = text.str.extract_groups(NUMBERS_ONLY).struct.unnest()
    one, two = parts["one"].cast(pl.Int8), parts["two"].cast(pl.Int8)
    table.refuse_any("timestamp", one.is_null() | two.is_null(), unlike)
    by_day, by_month = one > 12, two > 12
    if by_day.any() and by_month.any():
        day, month = by_day.arg_max(), by_month.arg_max()
        table.refuse(
            max(day, month),
            f"timestamp {shown(text[max(day, month)])} cannot be read with "
            f"{shown(text[min(day, month)])} in {table.place(min(day, month))}: one has the day "
            "first, the other the month",
        )
    if not by_day.any() and not by_month.any() and (one != two).any():
        row = (one != two).arg_max()
        day_first = _format_of(text[row])
        table.refuse(
            row,
            f"timestamp {shown(text[row])} has the day first or the month, and no line says which; "
            f"say --set '{SETTING}={day_first}' or --set '{SETTING}={_month_first(day_first)}'",
        )
    if by_day.any() or by_month.any():
        row = (by_day if by_day.any() else by_month).arg_max()
        order = "day, month, year" if by_day.any() else "month, day, year"
        notes.append(
            f"{table.path.name}: dates are read as {order}, because {table.place(row)} has "
            f"{shown(text[row])}"
        )
    names = ("day", "month") if by_day.any() else ("month", "day")
    return NUMBERS_ONLY.replace("<one>", f"<{names[0]}>").replace("<two>", f"<{names[1]}>")


def _format_of(date: str) -> str:
    """The strptime format of a date such as 01/05/2014 10:30 PM, day first."""
    date = re.sub(r"^[0-9]+(\D)[0-9]+(\D)[0-9]{4}", r"%d\1%m\2%Y", date)
    is_half = re.search(r"[AaPp]\.?[Mm]\.?", date)
    date = re.sub(r"\s*[AaPp]\.?[Mm]\.?", " %p", date) if is_half else date
    date = re.sub(ZONE + "$", "%z", date)
    date = re.sub(r"[0-9]{1,2}:[0-9]{2}", "%I:%M" if is_half else "%H:%M", date, count=1)
    return re.sub(r"%M:[0-9]{2}([.,][0-9]+)?", lambda m: "%M:%S" + (".%f" if m[1] else ""), date)


def _month_first(day_first: str) -> str:
    return day_first.replace("%d", "%_").replace("%m", "%d").replace("%_", "%m")


def _pattern_of(time_format: str) -> str:
    """A regular expression for a format of strptime. Raises ConfigError for a wrong format."""
    pattern, seen = "", set()
    for short, long in SHORTHANDS.items():
        time_format = time_format.replace(f"%{short}", long)
    parts = re.findall(r"%(.?)|([^%]+)", time_format)
    for place, (directive, literal) in enumerate(parts):
        if literal:
            pattern += re.sub(r"(?:\\\s|\s)+", r"\\s+", re.escape(literal))
        elif directive in DIRECTIVES:
            seen.add(directive)
            beside = {part for part, _ in parts[place - 1 : place] + parts[place + 1 : place + 2]}
            touches = directive in TOUCHING and beside & TOUCHING
            pattern += DIRECTIVES[directive].replace("{1,2}", "{2}" if touches else "{1,2}")
        else:
            raise ConfigError(
                f"{SETTING}: there is no %{directive}; write one of {', '.join(NAMED_FORMATS)}, or "
                f"a format of {' '.join('%' + each for each in DIRECTIVES)}"
            )
    if not (seen & {"Y", "y"} and seen & {"m", "b", "B"} and seen & {"d", "e"}):
        raise ConfigError(f"{SETTING}={time_format} must name year, month and day: %Y, %m, %d")
    if "I" in seen and "p" not in seen:
        raise ConfigError(f"{SETTING}={time_format} has %I, hours to 12, but no %p; %H is to 24")
    if len(re.findall(r"\?P<(\w+)>", pattern)) != len(set(re.findall(r"\?P<(\w+)>", pattern))):
        raise ConfigError(f"{SETTING}={time_format} names a part of a date twice")
    return f"^{pattern}$"


def _dates(table: Table, text: pl.Series, pattern: str, unlike: str) -> pl.Series:
    """Nanoseconds since 1970, in UTC if the dates have a zone."""
    parts = text.str.extract_groups(pattern).struct.unnest()
    table.refuse_any("timestamp", ~text.str.contains(pattern), unlike)
    for part, which in (("zone", "a zone, such as Z or +02:00"), ("half", "AM or PM")):
        if part not in parts.columns:
            continue
        has, lacks = parts[part].is_not_null(), parts[part].is_null()
        if part == "half":  # a day without a time begins at midnight
            lacks &= parts["hour"].is_not_null()
        if has.any() and lacks.any():
            earlier, later = sorted([has.arg_max() or 0, lacks.arg_max() or 0])
            table.refuse(
                later,
                f"timestamp {shown(text[later])} and {shown(text[earlier])} in "
                f"{table.place(earlier)}: one has {which}, the other has not",
            )
    nanoseconds = parts.select(_nanoseconds(parts.columns)).to_series()
    table.refuse_any(
        "timestamp",
        nanoseconds.is_null(),
        f"is no time between {YEARS[0]} and {YEARS[1]} that exists",
    )
    return nanoseconds


def _nanoseconds(parts: list[str]) -> pl.Expr:
    """Nanoseconds since 1970 from the parts of a date, which are text; null for no real time."""

    def number(name: str) -> pl.Expr:
        if name not in parts:
            return pl.lit(0, pl.Int64)
        return pl.col(name).cast(pl.Int64).fill_null(0)

    year = number("year")
    if "short" in parts:  # as in POSIX: 69 is 1969, 68 is 2068
        year = number("short") + pl.when(number("short") < 69).then(2000).otherwise(1900)
    month = number("month")
    if "name" in parts:
        names = {name: str(place) for place, name in enumerate(MONTHS.split("|"), 1)}
        month = pl.col("name").str.head(3).str.to_lowercase().replace_strict(names).cast(pl.Int64)
    days = pl.date(
        pl.when(year.is_between(*YEARS)).then(year).otherwise(2000),
        pl.when(month.is_between(1, 12)).then(month).otherwise(1),
        pl.lit(1),
    )
    day = number("day")
    date_exists = (
        year.is_between(*YEARS)
        & month.is_between(1, 12)
        & day.is_between(1, days.dt.days_in_month())
    )
    hour, clock_exists = number("hour"), pl.lit(True)
    if "half" in parts:
        is_half = pl.col("half").is_not_null()
        is_pm = pl.col("half").str.to_lowercase() == "p"
        clock_exists = ~is_half | hour.is_between(1, 12)
        hour = pl.when(is_half).then(hour % 12 + 12 * is_pm.cast(pl.Int64)).otherwise(hour)
    minute, second = number("minute"), number("second")
    clock_exists &= hour.is_between(0, 23) & minute.is_between(0, 59) & second.is_between(0, 59)
    fraction = pl.lit(0, pl.Int64)
    if "fraction" in parts:
        fraction = pl.col("fraction").str.pad_end(9, "0").cast(pl.Int64).fill_null(0)
    seconds = (days.to_physical().cast(pl.Int64) + day - 1) * 86_400
    seconds += hour * 3600 + minute * 60 + second
    if "zone" in parts:
        seconds -= _offset(pl.col("zone"))
    return pl.when(date_exists & clock_exists).then(seconds * SECOND + fraction)


def _offset(zone: pl.Expr) -> pl.Expr:
    """Seconds that a zone is ahead of UTC."""
    digits = zone.str.replace_all(r"[^0-9]", "").str.pad_end(4, "0")
    offset = digits.str.head(2).cast(pl.Int64, strict=False) * 3600
    offset += digits.str.tail(2).cast(pl.Int64, strict=False) * 60
    offset = pl.when(zone.str.contains("-", literal=True)).then(-offset).otherwise(offset)
    american = {name: str(-3600 * hours) for name, hours in US_ZONES.items()}
    return (
        pl.when(zone.is_in(list(american)))
        .then(zone.replace(american).cast(pl.Int64, strict=False))
        .otherwise(offset)
        .fill_null(0)
    )
