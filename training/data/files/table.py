"""A table from a user's file: the wanted columns, and the line of each value.

Every error names the file, the line and the first characters of the value, never more. Knows
neither how files are read (training.data.files.table_files, training.data.files.text_files) nor
what columns mean (training.data.files.columns, training.data.files.times,
training.data.files.categories).
"""

from __future__ import annotations

import difflib
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, NoReturn

import polars as pl

from training.errors import ConfigError, DataError

# id: text; different spellings of the same number become the same text
# order: numbers or dates to sort by
# text: text
# list: text, or a list that becomes JSON text
# label: text where it is text or a number, else nothing; such a column may mean something else
Kind = Literal["id", "order", "text", "list", "label"]
# Many ids are each in memory once, and 4 bytes a row say which: text would take 16 to 60.
IDS = pl.Categorical(pl.Categories("ids of logs and catalogues"))
Format = Literal["parquet", "csv", "json", "atomic"]
FORMATS: Mapping[str, Format] = {
    ".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".ndjson": "json",
    ".json": "json", ".inter": "atomic", ".item": "atomic",
}  # fmt: skip
COMPRESSED = (".gz", ".zst")  # text files only
# What others call a column, as `words_of` writes it without "_": for a hint, never to guess.
OTHER_NAMES = {
    "user_id": "user userid uid visitorid visitor customerid customer clientid accountid memberid "
    "reviewerid profileid authorid",
    "item_id": "item itemid iid productid product sku asin parentasin movieid articleid bookid "
    "trackid songid gameid appid contentid newsid stockcode offerid",
    "timestamp": "time ts date datetime eventtime unixtimestamp unixreviewtime createdat eventdate "
    "timestampms datetimestamp visittime eventtimestamp",
}
ROWS_AT_ONCE = 4_000_000  # of what takes several times the memory of its rows
MAX_SHOWN_CHARS = 60
MAX_SHOWN_COLUMNS = 20
MAX_REASON_CHARS = 200


@dataclass(frozen=True, eq=False)
class Table:
    """The wanted columns that a file has.

    columns: by the wanted name; columns of text files are all text
    others:  names of the other columns as they are written; only the first if there are very many
    lines:   line of each row; None for parquet, whose rows are counted from 1
    notes:   sentences about how the file was read
    names:   how the file writes the name of each column
    format:  of the file
    parts:   of a folder, the tables of its files
    whole, kept: of some rows of a table, where that table has its lines, and (len(self),) which
             of its rows they are
    """

    path: Path
    columns: Mapping[str, pl.Series]
    others: tuple[str, ...]
    lines: pl.Series | None
    notes: tuple[str, ...]
    names: Mapping[str, str] = field(default_factory=dict)
    format: Format = "csv"
    parts: tuple[Table, ...] = ()
    whole: Table | None = None
    kept: pl.Series | None = None

    def __len__(self) -> int:
        if self.parts:
            return sum(map(len, self.parts))
        return len(next(iter(self.columns.values()), ())) if self.lines is None else len(self.lines)

    def at(self, rows: pl.Series) -> Table:
        """The rows that the mask `rows` marks, with their lines."""
        return Table(
            self.path,
            {name: column.filter(rows) for name, column in self.columns.items()},
            self.others,
            None,
            (),
            self.names,
            self.format,
            whole=replace(self, columns={}),
            kept=rows.arg_true(),
        )

    def place(self, row: int) -> str:
        """ "line 7", or "row 7" of a parquet file; of a folder, with the name of the file."""
        if self.whole is not None and self.kept is not None:
            return self.whole.place(self.kept[row])
        if self.parts:
            starts = [0]
            for part in self.parts[:-1]:
                starts.append(starts[-1] + len(part))
            which = bisect_right(starts, row) - 1
            part = self.parts[which]
            return f"{part.place(row - starts[which])} of {part.path.relative_to(self.path)}"
        return f"row {row + 1}" if self.lines is None else f"line {self.lines[row]}"

    def refuse(self, row: int, what: str) -> NoReturn:
        """Raise a DataError that names the file and the line."""
        raise DataError(f"{self.path}, {self.place(row)}: {what}")

    def refuse_any(self, name: str, bad: pl.Series, what: str) -> None:
        """Raise a DataError about the first value of a column that `bad` marks, if there is one."""
        row = bad.arg_max() if bad.any() else None
        if row is not None:
            self.refuse(row, f"{name} {shown(self.columns[name][row])} {what}")

    def require(self, names: Sequence[str], section: str = "interactions") -> None:
        """If columns are missing, raise a DataError that names them and the columns there are.

        section: of the settings that say which column is meant
        """
        absent = [name for name in names if name not in self.columns]
        if absent:
            say = [
                f"--set {section}.columns.{name}={quoted(meant)}"
                for name in " or ".join(absent).split(" or ")
                if (meant := meant_by(name, self.others)) is not None
            ]
            hint = f"; perhaps {' '.join(say)}" if say else ""
            if self.format == "csv" and not self.columns and not say:
                hint = " (the first line must hold the names of the columns)"
            needed = " and ".join(absent)
            raise DataError(f"{self.path} needs a column {needed}; it has {self.listed()}{hint}")

    def listed(self) -> str:
        """The names of all columns, for a sentence."""
        there = [*(self.names.get(name, name) for name in self.columns), *self.others]
        more = ", ..." if len(there) > MAX_SHOWN_COLUMNS else ""
        return ", ".join(cut(name) for name in there[:MAX_SHOWN_COLUMNS]) + more


def shown(value: object) -> str:
    """A value for a message: in quotes, without control characters, cut if it is long."""
    text = str(value)
    return repr(text[:MAX_SHOWN_CHARS] + "..." if len(text) > MAX_SHOWN_CHARS else text)


def cut(text: str, most: int = MAX_SHOWN_CHARS) -> str:
    """The text as one line of at most `most` characters."""
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return line[:most] + "..." if len(line) > most else line


def reason_of(error: BaseException) -> str:
    """The message of another library's error, short enough for our own message."""
    return cut(str(error), MAX_REASON_CHARS) or type(error).__name__


def format_of(path: Path) -> Format | None:
    """What the name of a file says about its format; None if nothing."""
    name = path.name.lower()
    plain = next((name.removesuffix(each) for each in COMPRESSED if name.endswith(each)), name)
    found = next((each for suffix, each in FORMATS.items() if plain.endswith(suffix)), None)
    return None if found == "parquet" and plain != name else found


@dataclass(frozen=True)
class Wanted:
    """The columns that are wanted of a file, and how the file calls them.

    kinds:   of the columns, by our names
    mapped:  the file's names of some of them, by ours; others have our names
    section: of the settings that say so
    """

    kinds: Mapping[str, Kind]
    mapped: Mapping[str, str]
    section: str

    def __post_init__(self) -> None:
        theirs = [plain_name(name) for name in self.mapped.values()]
        for ours, name in self.mapped.items():
            if not plain_name(name) or theirs.count(plain_name(name)) > 1:
                raise ConfigError(
                    f"{self.section}.columns.{ours}={name}: name another column for each of "
                    f"{', '.join(self.mapped)}"
                )

    @cached_property
    def _ours(self) -> dict[str, str]:
        """Our name of each name that a file may have, without capitals and spaces."""
        given = {plain_name(theirs): ours for ours, theirs in self.mapped.items()}
        own = {plain_name(name): name for name in self.kinds if name not in self.mapped}
        return own | given  # of one name in both, what was said counts

    def of(self, name: str) -> str | None:
        """Our name of a column of the file; None if it is not wanted."""
        return self._ours.get(plain_name(name))

    def match(self, names: Sequence[str], path: Path) -> tuple[dict[str, int], tuple[str, ...]]:
        """Index of each wanted column among the names of a file; sentences about other spellings.

        Raises DataError if two columns have the same name, ConfigError if one that is mapped is
        not there.
        """
        found: dict[str, int] = {}
        notes = []
        for index, name in enumerate(names):
            ours = self.of(name)
            if ours is None:
                continue
            if ours in found:
                raise DataError(f"{path} has two columns {plain_name(name)}; rename or remove one")
            found[ours] = index
            if self.is_said(name):
                notes.append(f"{path.name}: the column {shown(name)} is read as {ours}")
        self.check_mapped(found, names, path)
        return found, tuple(notes)

    def is_said(self, name: str) -> bool:
        """Whether a person should know which of our columns is read from this one."""
        ours = self.of(name)
        return ours not in (None, name) and (ours in self.mapped or self.kinds[ours] != "label")

    def check_mapped(self, found: Mapping[str, object], names: Sequence[str], path: Path) -> None:
        """Raise ConfigError if a column that is mapped is not among the names of the file."""
        for ours, theirs in self.mapped.items():
            if ours in found:
                continue
            by_plain = {plain_name(name): name for name in names}
            close = difflib.get_close_matches(plain_name(theirs), by_plain, n=3)
            meant = " or ".join(by_plain[each] for each in close)
            more = ", ..." if len(names) > MAX_SHOWN_COLUMNS else ""
            there = ", ".join(cut(name) for name in names[:MAX_SHOWN_COLUMNS]) + more
            raise ConfigError(
                f"{self.section}.columns.{ours}={cut(theirs)}: {path} has no such column"
                + (f"; did you mean {cut(meant)}?" if meant else "." * bool(names))
                + f" It has {there}" * bool(names)
            )


def meant_by(name: str, others: Sequence[str]) -> str | None:
    """Which of the other columns may hold what ours of this name would: for a hint."""
    known = [name.replace("_", ""), *OTHER_NAMES.get(name, "").split()]
    squeezed = {words_of(other).replace("_", ""): other for other in reversed(others)}
    return next((squeezed[each] for each in known if each in squeezed), None)


def quoted(name: str) -> str:
    """The name of a column, as a shell wants it."""
    return name if re.fullmatch(r"[\w.:-]+", name) else f'"{name}"'


def plain_name(name: str) -> str:
    return name.strip().lower()


def words_of(name: str) -> str:
    """A name such as `productTitle` or `Product Title` as `product_title`."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[^a-z0-9]+", "_", parted.lower()).strip("_")
