"""A table from a user's file: the wanted columns, and the line of each value.

Every error names the file, the line and the first characters of the value, never more. Knows
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

# id: text; different spellings of the same number become the same text
# order: numbers or dates to sort by
# text: text
# list: text, or a list that becomes JSON text
Kind = Literal["id", "order", "text", "list"]
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
    """

    path: Path
    columns: Mapping[str, pl.Series]
    others: tuple[str, ...]
    lines: pl.Series | None
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ())) if self.lines is None else len(self.lines)

    def at(self, rows: pl.Series) -> Table:
        """The rows that the mask `rows` marks, with their lines."""
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
        """Raise a DataError about the first value of a column that `bad` marks, if there is one."""
        row = bad.arg_max() if bad.any() else None
        if row is not None:
            self.refuse(row, f"{name} {shown(self.columns[name][row])} {what}")

    def require(self, names: Sequence[str]) -> None:
        """If columns are missing, raise a DataError that names them and the columns there are."""
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


def match_names(
    names: Sequence[str], wanted: Mapping[str, Kind], path: Path
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Index of each wanted column among the names of a file, and sentences about other spellings.

    Raises DataError if two columns have the same name.
    """
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
