"""Reads the file of items: their ids, titles and categories.

Warns about columns that look like one of these but were not read. Knows nothing of interactions.
"""

from __future__ import annotations

from pathlib import Path

from service.bundles import Item
from training.config import ItemsConfig
from training.data.files.categories import category_column
from training.data.files.columns import id_column, text_column
from training.data.files.table import shown
from training.data.files.table_files import read_table

# Columns with these names are not read, but their users may have meant a title or categories.
LIKE_TITLE = ("name", "item_name", "product_name", "product_title", "item_title", "movie_title")
LIKE_CATEGORIES = ("genres", "genre", "tags", "category_path", "category_name", "department")


def read_items(
    path: Path,
    config: ItemsConfig = ItemsConfig(),  # noqa: B008 (immutable)
    notes: list[str] | None = None,
    warnings: list[str] | None = None,
) -> tuple[Item, ...]:
    """Read a parquet, CSV or JSON-lines file with `item_id`, optionally `title`, `categories`.

    `categories` (or `category`) are lists in any spelling (see training.data.files.categories).
    Items stay in the order of the file. `notes` gets sentences about how the file was read,
    `warnings` gets sentences about columns that were perhaps meant. Raises DataError with the line
    for values that cannot be read, and for missing or repeated ids.
    """
    notes, warnings = [] if notes is None else notes, [] if warnings is None else warnings
    table = read_table(
        path, {"item_id": "id", "title": "text", "categories": "list", "category": "list"}
    )
    table.require(["item_id"])
    notes.extend(table.notes)
    item_ids = id_column(table, "item_id", notes)
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
    for name, alike in (("title", LIKE_TITLE), ("categories", LIKE_CATEGORIES)):
        lacks = name not in table.columns and not (name == "categories" and column)
        meant = [other for other in table.others if other.strip().lower() in alike]
        if lacks and meant:
            warnings.append(
                f"{path.name} has no column {name}, and {', '.join(map(shown, meant))} is not used;"
                f" rename it to {name} if that is what it holds"
            )
    columns = item_ids, text_column(table, "title", notes), categories
    return tuple(Item(*values) for values in zip(*columns, strict=True))
