"""Reads the file of items: their ids, titles, categories, attributes and further text.

Warns about columns that look like one of these but were not read. Knows nothing of interactions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from service.bundles import AttributeValue, Item, joined_text
from training.config import ItemsConfig
from training.data.files.attributes import KINDS, attribute_columns
from training.data.files.categories import category_column
from training.data.files.columns import id_column, text_column
from training.data.files.table import Kind, Table, plain_name, quoted, shown, words_of
from training.data.files.table_files import read_table
from training.errors import DataError

# Columns that say something about an item and are not read under these names.
LIKE_TITLE = re.compile(r"(^|_)(name|title|movie|headline)$|^(product|item|movie)_desc(ription)?$")
LIKE_CATEGORIES = re.compile(
    r"(^|_)(genres?|tags?|department|product_(type|group)\w*|\w*categor(y|ies)\w*)$"
)


def read_items(
    path: Path,
    config: ItemsConfig = ItemsConfig(),  # noqa: B008 (immutable)
    notes: list[str] | None = None,
    warnings: list[str] | None = None,
    texts: list[str] | None = None,
) -> tuple[Item, ...]:
    """Read a table with `item_id`, optionally `title`, `categories`, or as `config.columns` says.

    The columns of `config.attributes` are read too, and those of `config.text_columns`: `texts`
    gets, for each item, what is embedded behind title and categories, "" if there is nothing.

    `categories` (or `category`) are lists in any spelling (see training.data.files.categories).
    Items stay in the order of the file. `notes` gets sentences about how the file was read,
    `warnings` gets sentences about columns that were perhaps meant. Raises DataError with the line
    for values that cannot be read, and for missing or repeated ids.
    """
    notes, warnings = [] if notes is None else notes, [] if warnings is None else warnings
    kinds: dict[str, Kind] = {"item_id": "id", "title": "text", "categories": "list"}
    if "categories" not in config.columns:
        kinds["category"] = "list"
    kinds |= {plain_name(name): "text" for name in config.text_columns}
    kinds |= {plain_name(name): KINDS[kind] for name, kind in config.attributes.items()}
    table = read_table(path, kinds, config.columns, "items")
    table.require(["item_id"], "items")
    notes.extend(table.notes)
    item_ids = id_column(table, "item_id", notes).cast(pl.String)
    repeated = item_ids.is_duplicated()
    if repeated.any():
        first, second = (item_ids == item_ids.filter(repeated)[0]).arg_true()[:2]
        table.refuse(
            second,
            f"item {shown(item_ids[first])} is there more than once, as in "
            f"{table.place(first)}; keep one",
        )
    categories: list[tuple[str, ...]] = [()] * len(table)
    if column := next((name for name in ("categories", "category") if name in table.columns), None):
        categories = category_column(table, column, config.category_separator, notes)
    if "categories" in table.columns and "category" in table.columns:
        warnings.append(f"{path.name}: the column category is not used, because of categories")
    titles = text_column(table, "title", notes)
    for name, alike in (("title", LIKE_TITLE), ("categories", LIKE_CATEGORIES)):
        lacks = name not in table.columns and not (name == "categories" and column)
        if name == "title" and not lacks:
            lacks = not any(titles)
        meant = [other for other in table.others if alike.search(words_of(other))]
        if lacks and meant:
            where = "nothing in its column" if name in table.columns else "no column"
            warnings.append(
                f"{path.name} has {where} {name}, and {', '.join(map(shown, meant))} is not used;"
                f" rename it to {name} if that is what it holds, or say --set "
                f"items.columns.{name}={quoted(meant[0])}"
            )
    attributes = attribute_columns(table, config.attributes, notes)
    if texts is not None:
        texts.extend(_further_text(table, config, attributes, notes))
    return tuple(Item(*each) for each in zip(item_ids, titles, categories, attributes, strict=True))


def _further_text(
    table: Table,
    config: ItemsConfig,
    attributes: Sequence[Mapping[str, AttributeValue] | None],
    notes: list[str],
) -> list[str]:
    """What the columns of `config.text_columns` say of each item, joined by `joined_text`."""
    absent = [name for name in config.text_columns if plain_name(name) not in table.columns]
    if absent:
        raise DataError(
            f"{table.path} has no column {' or '.join(absent)} for items.text_columns; it has "
            f"{table.listed()}"
        )
    read_already = {plain_name(name): name for name in config.attributes}
    columns: list[list[str]] = []
    for name in map(plain_name, config.text_columns):
        if name in read_already:  # an item may have several texts
            values = [(of_item or {}).get(read_already[name], ()) for of_item in attributes]
            columns.append([", ".join(map(str, each)) for each in values])  # type: ignore[arg-type]
        else:
            columns.append([text.strip() for text in text_column(table, name, notes)])
    return [joined_text(texts) for texts in zip(*columns, strict=True)] or [""] * len(table)
