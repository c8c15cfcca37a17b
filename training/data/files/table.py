"""A table a person hands in: the wanted columns of a file, each value with its line.

Every complaint names the file, the line and the first characters of the value, never more. Knows
neither how files are read (training.data.files.table_files, training.data.files.text_files) nor
what columns mean (training.data.files.columns, training.data.files.times,
training.data.files.categories).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import polars as pl

from training.errors import DataError

# id, number: text that other spellings of the same number become equal to
# list: text, or a list that becomes JSON text
Kind = Literal["id", "order", "text", "list"]
MAX_SHOWN_CHARS = 60
MAX_SHOWN_COLUMNS = 20
MAX_REASON_CHARS = 200


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of a file, those that were wanted and are there.

    columns: by the name that was wanted; of text files all are text
    others:  names of the columns that were not wanted, as written; of very many the first
    lines:   line of each row; None for parquet, whose rows are counted from 1
    notes:   sentences about how the file was read
    """

    path: Path
    columns: Mapping[str, pl.Series]
    others: tuple[str, ...]
    lines: pl.Series | None
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ())) if self.lines is None else len(self.lines)

    def at(self, rows: pl.Series) -> Table:
        """The rows that a mask marks, with their lines."""
        lines = self.lines
        if lines is None:
            lines = pl.int_range(1, len(self) + 1, eager=True)
        columns = {name: column.filter(rows) for name, column in self.columns.items()}
        return Table(self.path, columns, self.others, lines.filter(rows), ())

    def place(self, row: int) -> str:
        """ "line 7", or "row 7" of a parquet file."""
        return f"row {row + 1}" if self.lines is None else f"line {self.lines[row]}"

    def refuse(self, row: int, what: str) -> NoReturn:
        """Raise a DataError that names the file and the line."""
        raise DataError(f"{self.path}, {self.place(row)}: {what}")

    def refuse_any(self, name: str, bad: pl.Series, what: str) -> None:
        """Refuse the first value of a column that `bad` marks, if there is one."""
        row = bad.arg_max() if bad.any() else None
        if row is not None:
            self.refuse(row, f"{name} {shown(self.columns[name][row])} {what}")

    def require(self, names: Sequence[str]) -> None:
        """Raise a DataError that names the columns that are absent and those that are there."""
        absent = [name for name in names if name not in self.columns]
        if absent:
            there = [*self.columns, *self.others]
            listed = ", ".join(cut(name) for name in there[:MAX_SHOWN_COLUMNS])
            listed += ", ..." if len(there) > MAX_SHOWN_COLUMNS else ""
            is_csv = re.search(r"\.[ct]sv(\.gz)?$", self.path.name.lower())
            hint = " (the first line must hold the names of the columns)"
            hint = hint if is_csv and not self.columns else ""
            needed = " and ".join(absent)
            raise DataError(f"{self.path} needs a column {needed}; it has {listed}{hint}")


def shown(value: object) -> str:
    """A value for a message: quoted, without control characters, cut."""
    text = str(value)
    return repr(text[:MAX_SHOWN_CHARS] + "..." if len(text) > MAX_SHOWN_CHARS else text)


def cut(text: str, most: int = MAX_SHOWN_CHARS) -> str:
    """One line of at most so many characters."""
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return line[:most] + "..." if len(line) > most else line


def reason_of(error: BaseException) -> str:
    """What another library says was wrong, short enough for a message."""
    return cut(str(error), MAX_REASON_CHARS) or type(error).__name__


def match_names(
    names: Sequence[str], wanted: Mapping[str, Kind], path: Path
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Index of each wanted column among the names of a file; sentences about other spellings."""
    found: dict[str, int] = {}
    notes = []
    for index, name in enumerate(names):
        plain = plain_name(name)
        if plain not in wanted:
            continue
        if plain in found:
            raise DataError(f"{path} has two columns {plain}; rename or remove one")
        found[plain] = index
        if name != plain:
            notes.append(f"{path.name}: the column {shown(name)} is read as {plain}")
    return found, tuple(notes)


def plain_name(name: str) -> str:
    return name.strip().lower()


def words_of(name: str) -> str:
    """A name such as `productTitle` or `Product Title` as `product_title`."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[^a-z0-9]+", "_", parted.lower()).strip("_")
