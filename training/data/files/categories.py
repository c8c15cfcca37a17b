"""Reads the categories of items, in all spellings that lists have in files.

The file may hold lists or the text of lists (`['A', 'B']`, `["A", "B"]`, `['A' 'B']`, `[A, B]`,
`{A,B}`). A list inside a list is a path, `A > B`. Other text is split at bars, semicolons or
commas. A comma may be part of a name; then the whole column decides. A note says with an example
what was done, and `items.category_separator` changes it. Knows nothing of items.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache
from html.entities import html5

import polars as pl

from training.data.files.columns import without_null_words
from training.data.files.table import Table, shown
from training.errors import DataError

SETTING = "items.category_separator"
WHOLE = "none"  # the setting's value if each text is one category
# The text of a list whose first element is quoted, a list or a missing value, or of an empty list.
QUOTED_LIST = re.compile(
    r"""^[\[({]\s*(?:[uU]?["']|[\[({]|[\])}]$|(?:None|null|nan|NaN)\s*[,\]])"""
)
# The text of other objects of Python, such as array(['A', 'B'], dtype=object).
OBJECT = re.compile(
    r"^(?:(?:np|numpy|pd|pandas|collections)\.)?(?:array|list|set|frozenset|tuple|Index|Series|deque"
    r"|Counter|OrderedDict|defaultdict|dict(?:_\w+)?)\([\[({)]"
)
NUMBER_WITH_COMMA = re.compile(r"(?<!\d)\d{1,3},\d{3}(?!\d)")  # 1,000: this comma separates nothing
BARE_LIST = re.compile(r"^(?:\[.*\]|\{.*\})$", re.DOTALL)
TOKEN = re.compile(
    r"""(?P<text>[uU]?(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"))
    |(?P<open>[\[({])|(?P<close>[\])}])|(?P<comma>,)|(?P<space>\s+)
    |(?P<bare>[^\s,\[\](){}'"][^,\[\]{}]*)""",
    re.VERBOSE | re.DOTALL,
)
NOTHING = {"None", "null", "NULL", "nan", "NaN"}  # missing values in lists, without quotes
# NumPy writes no commas between quoted texts. All other neighbours need a comma.
NOT_NEIGHBOURS = {
    ("bare", "bare"), ("bare", "text"), ("bare", "open"), ("text", "bare"), ("text", "open")
}  # fmt: skip
UNREADABLE = "looks like a list but cannot be read as one"
# "Health, Beauty & Care" is one name: an "&" or "and" after the last comma ends an enumeration.
ENUMERATION = re.compile(r",[^,]*(?:\s&\s|\band\b)[^,]*$|,\s*(?:&|and)\s", re.IGNORECASE)
ENTITY = re.compile(r"&(#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|\w{1,31});")  # "&amp;" from web pages
PATH_SEPARATOR = " > "  # of service/bundles/items.py


class _Unclear(ValueError):
    """Commas separate in some texts and belong to names in others."""


def category_column(
    table: Table, name: str, separator: str | None, notes: list[str]
) -> list[tuple[str, ...]]:
    """A column of categories, () for an item without.

    separator: what separates the categories of a text; WHOLE if nothing does; None to tell it from
               the column
    Raises DataError with the line of a list that cannot be read, and for commas with two meanings.
    """
    column = table.columns[name]
    if isinstance(column.dtype, pl.List | pl.Array):
        values = column.to_list()
    elif column.dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null) or column.dtype.is_integer():
        values = without_null_words(table, name, column.cast(pl.String), notes).to_list()
    else:
        raise DataError(f"{table.path}: {name} must be lists or text, not {column.dtype}")
    texts = [value.strip() for value in values if isinstance(value, str) and value.strip()]
    for row, value in enumerate(values):
        if isinstance(value, str) and OBJECT.match(value.strip()):
            table.refuse(
                row, f"{name} {shown(value)} is the text of an object; write ['A', 'B'] or A|B"
            )
    bare = bool(texts) and all(BARE_LIST.match(text) for text in texts)
    plain = {
        text: None
        for text in texts
        if not (bare or QUOTED_LIST.match(text) or (BARE_LIST.match(text) and "," in text))
    }
    is_told = separator is None
    if separator is None:
        try:
            separator = _separator_of(plain)
        except _Unclear as unclear:
            raise DataError(
                f"{table.path}: {name}: {unclear}; say --set '{SETTING}=,' to split at every "
                f"comma, or --set {SETTING}={WHOLE} to split at none"
            ) from None
    split = _splitter(separator)
    found: list[tuple[str, ...]] = []
    example: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for row, value in enumerate(values):
        text = value.strip() if isinstance(value, str) else ""
        if value is None or value == "":
            categories: tuple[str, ...] = ()
        elif text in plain:
            categories = split(text)
            kind = "split" if len(categories) > 1 else "single"
        else:
            try:
                categories = _of_text(text) if isinstance(value, str) else flatten(value)
            except ValueError as error:
                table.refuse(row, f"{name} {shown(value)} {error}")
            kind = "list"
        if categories:
            counts[kind] += 1
            example.setdefault(kind, f"{shown(value)} is {_said(categories)}")
        found.append(categories)
    said = {"list": "as lists", "split": f"split at {separator!r}", "single": "as one category"}
    if counts:
        how = ", ".join(
            f"{counts[kind]:,} {words} ({example[kind]})"
            for kind, words in said.items()
            if counts[kind]
        )
        settle = f"; {SETTING} settles how text is split" if plain and is_told else ""
        notes.append(f"{table.path.name}: {name} read {how}{settle}")
    if tight := [text for text in plain if re.search(r"\w>\w", text)]:
        notes.append(
            f"{table.path.name}: {name} such as {shown(tight[0])} is no path; write 'A > B'"
        )
    return found


def flatten(values: Iterable[object]) -> tuple[str, ...]:
    """Categories of a list: a text is a category, a list inside it is a path, `A > B`.

    Raises ValueError with the end of a sentence for anything else, such as deeper lists.
    """
    return tuple(
        text
        for value in values
        if (text := _joined(value) if isinstance(value, list | tuple) else _text(value))
    )


def _joined(path: Sequence[object]) -> str:
    return PATH_SEPARATOR.join(filter(None, map(_text, path)))


def _text(value: object) -> str:
    match value:
        case None:
            return ""
        case str():
            return value.strip()
        case bool():
            pass
        case int():
            return str(value)
        case float() if value.is_integer():
            return str(int(value))
    raise ValueError("must be a list of text, or of lists of text")


@lru_cache(maxsize=10_000)
def _of_text(text: str) -> tuple[str, ...]:
    """Categories of the text of a list. Raises ValueError with the end of a sentence."""
    stack: list[tuple[str, list[object]]] = []
    done: list[object] | None = None
    position, before = 0, "comma"
    while position < len(text):
        token = TOKEN.match(text, position)
        kind = token.lastgroup if token else None
        if kind == "space" and token is not None:
            position = token.end()
            continue
        if token is None or (before, kind) in NOT_NEIGHBOURS or done is not None:
            raise ValueError(UNREADABLE)
        if before == kind == "text" and not text[position - 1].isspace():
            raise ValueError(UNREADABLE)  # 'A''s' is no two texts
        position, word = token.end(), token[0].strip()
        if kind == "open":
            stack.append((word, []))
            if len(stack) > 2:
                raise ValueError("has lists in lists in a list; at most two levels are read")
        elif not stack or word == "...":
            raise ValueError(UNREADABLE)
        elif kind == "close":
            bracket, last = stack.pop()
            if bracket + word not in ("[]", "()", "{}"):
                raise ValueError(UNREADABLE)
            if stack:
                stack[-1][1].append(last)
            else:
                done = last
        elif kind == "text":
            stack[-1][1].append(_unquoted(word))
        elif kind == "bare":
            stack[-1][1].append(None if word in NOTHING else word)
        before = kind or ""
    if done is None:
        raise ValueError("looks like a list but is cut off")
    return flatten(done)


def _unquoted(literal: str) -> str:
    """The text of a literal of JSON or Python."""
    if literal.startswith('"'):
        try:
            return str(json.loads(literal, strict=False))
        except ValueError:
            pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # text that looks like a wrong escape stays unchanged
            text = str(ast.literal_eval(literal))
            text.encode()
    except (ValueError, SyntaxError):
        raise ValueError("looks like a list but has text that cannot be read") from None
    return text


def _separator_of(texts: Collection[str]) -> str:
    """What separates the categories of these texts. Raises _Unclear."""
    if any("|" in text for text in texts):
        return "|"
    if any(";" in _without_entities(text) for text in texts):
        return ";"
    with_commas = [text for text in texts if "," in text]
    if not with_commas:
        return WHOLE
    names = [text for text in with_commas if _is_name(text)]
    lists = [text for text in with_commas if not _is_name(text)]
    if names and lists:
        raise _Unclear(
            f"the comma separates categories in {shown(lists[0])} but seems to belong to a name in "
            f"{shown(names[0])}"
        )
    return WHOLE if names else ","


def _is_name(text: str) -> bool:
    """Whether a comma of the text seems to belong to a name."""
    return bool(ENUMERATION.search(text) or NUMBER_WITH_COMMA.search(text))


def _splitter(separator: str) -> Callable[[str], tuple[str, ...]]:
    def split(text: str) -> tuple[str, ...]:
        if separator == WHOLE:
            parts = [text]
        elif separator == ";":
            parts = [part.replace("\0", ";") for part in _without_entities(text).split(";")]
        else:
            parts = text.split(separator)
        return tuple(part.strip() for part in parts if part.strip())

    return split


def _without_entities(text: str) -> str:
    """The text with another character for the semicolon of "&amp;" and the like."""

    def protected(entity: re.Match[str]) -> str:
        known = entity[1].startswith("#") or entity[1] + ";" in html5
        return f"&{entity[1]}\0" if known else entity[0]

    return ENTITY.sub(protected, text) if "&" in text else text


def _said(categories: Sequence[str]) -> str:
    said = " and ".join(shown(category) for category in categories[:2])
    return said + (f" and {len(categories) - 2} more" if len(categories) > 2 else "")
