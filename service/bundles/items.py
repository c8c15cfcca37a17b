"""Items as people know them: titles, categories, and a shop's own attributes.

This module also decides which text of an item is embedded, for training and for items that are
added later. Knows nothing of SIDs, scores or HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
)

Rows = NDArray[np.int32]
AttributeType = Literal["text", "number", "date"]
CATEGORY = "category"  # the attribute that every bundle has
PATH_SEPARATOR = " > "
MAX_ITEM_ID_CHARS = 256
MAX_ATTRIBUTES = 50
MAX_DEPTH = 50  # of a path of categories; each step is a value of its own


def _check_depth(path: str) -> str:
    if path.count(PATH_SEPARATOR) >= MAX_DEPTH:
        raise ValueError(f"a path of categories may have {MAX_DEPTH} steps")
    return path


def _check_name(name: str) -> str:
    if name == CATEGORY:
        raise ValueError("category is what categories are filtered by; name it otherwise")
    return name


def _check_date(date: str) -> str:
    datetime.fromisoformat(date)  # raises ValueError
    return date


# A client could not ask for other names and values: see service/schemas/filters.py.
AttributeName = Annotated[
    str, StringConstraints(strict=True, min_length=1, max_length=64), AfterValidator(_check_name)
]
AttributeText = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=500)]
AttributeDate = Annotated[
    str, StringConstraints(strict=True, max_length=40), AfterValidator(_check_date)
]
# Several texts, a number, or a date in ISO 8601. In JSON several texts are a list.
AttributeValue = (
    Annotated[tuple[AttributeText, ...], Field(max_length=1000)]
    | Annotated[float, Field(strict=True, allow_inf_nan=False)]
    | AttributeDate
)

# A client could not ask for other ids: see `ItemId` in service/schemas/fields.py.
StoredItemId = Annotated[
    str,
    StringConstraints(
        strict=True, min_length=1, max_length=MAX_ITEM_ID_CHARS, pattern=r"^[^\x00-\x1f\x7f]+$"
    ),
]


@dataclass(frozen=True, slots=True)
class Item:
    """What is shown of an item. The rest of the system knows only its row.

    attributes: by name; None = it has none

    `ITEM` checks the bounds of an item that is read. A program that makes an Item need not check
    them.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    item_id: StoredItemId
    title: Annotated[str, StringConstraints(strict=True, max_length=10_000)]
    categories: Annotated[
        tuple[
            Annotated[
                str, StringConstraints(strict=True, max_length=10_000), AfterValidator(_check_depth)
            ],
            ...,
        ],
        Field(max_length=1000),  # in JSON it is a list
    ]
    attributes: (
        Annotated[Mapping[AttributeName, AttributeValue], Field(max_length=MAX_ATTRIBUTES)] | None
    ) = None


ITEM = TypeAdapter(Item)


@dataclass(frozen=True, eq=False)
class HiddenItems:
    """Items of a catalogue that are not recommended for a while. They keep their rows.

    rows:    (n,) int32, ascending
    until_s: (n,) float64, Unix seconds at which each comes back; inf = when somebody says so
    version: which changes of hidden items this has, see `service.loading.hiding`
    """

    rows: Rows = field(default_factory=lambda: np.empty(0, np.int32))
    until_s: NDArray[np.float64] = field(default_factory=lambda: np.empty(0, np.float64))
    version: int = 0

    def rows_at(self, now_s: float) -> Rows:
        """Ascending rows of the items that are hidden at that time."""
        return self.rows[self.until_s > now_s] if len(self.rows) else self.rows


def text_of(item: Item, further: str = "") -> str:
    """The text of an item that is embedded: "title. categories"; "" when it has neither.

    The manifest calls it CONTENT_TEXT. Another text would need another name.
    further: what the columns say that the manifest calls `text_columns`, see `joined_text`
    """
    return joined_text((item.title, ", ".join(item.categories), further))


def joined_text(parts: Iterable[str]) -> str:
    """Parts of a text that is embedded, without the empty ones, with ". " between them."""
    return ". ".join(filter(None, parts))


def with_ancestors(paths: Iterable[str]) -> Iterator[str]:
    """`Books` and `Books > Poetry` for `Books > Poetry`. Some may occur twice."""
    for path in paths:
        parts = path.split(PATH_SEPARATOR)
        for depth in range(1, len(parts) + 1):
            yield PATH_SEPARATOR.join(parts[:depth])
