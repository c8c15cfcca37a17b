"""The lines of a bundle: items and held-out users as JSON, each checked when it is read.

items.jsonl has one line for each item, in catalogue order. held_out.jsonl has one line for each
user.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, TypeVar

from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from pydantic_core import from_json

from service.bundles.items import ITEM, Item, StoredItemId
from service.bundles.manifest import (
    MAX_HELD_OUT_USERS,
    MAX_ITEM_BYTES,
    MAX_USER_BYTES,
    first_of,
    one_line,
)

ITEMS, HELD_OUT = "items.jsonl", "held_out.jsonl"

T = TypeVar("T")


@dataclass(frozen=True)
class HeldOutUser:
    """A test user: history (item_ids, oldest first), and the item that came next."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    user_id: Annotated[str, StringConstraints(strict=True, min_length=1, max_length=10_000)]
    history: Annotated[tuple[StoredItemId, ...], Field(max_length=10_000)]
    target: StoredItemId


HELD_OUT_USER = TypeAdapter(HeldOutUser)


def read_items(data: bytes, num_items: int) -> list[Item]:
    """`num_items` distinct items. Raises ValueError, which names the line."""
    lines = data.splitlines()
    if len(lines) != num_items:
        raise ValueError(f"{ITEMS} has {len(lines)} lines, the manifest says {num_items}")
    items = list(_entries(ITEMS, lines, ITEM, MAX_ITEM_BYTES))
    line_of: dict[str, int] = {}
    for line, item in enumerate(items, start=1):
        if (first := line_of.setdefault(item.item_id, line)) != line:
            raise ValueError(
                f"{ITEMS}, line {line}: item_ids must be distinct, and line {first} has the same"
            )
    return items


def read_held_out(data: bytes) -> tuple[HeldOutUser, ...]:
    """All held-out users. Raises ValueError, which names the line."""
    lines = data.splitlines()
    if len(lines) > MAX_HELD_OUT_USERS:
        raise ValueError(f"{HELD_OUT} has {len(lines)} lines, it may have {MAX_HELD_OUT_USERS}")
    return tuple(_entries(HELD_OUT, lines, HELD_OUT_USER, MAX_USER_BYTES))


def check_items(items: Iterable[Item]) -> None:
    """Raise ValueError for the first item that a bundle cannot hold. Use it before a run."""
    for row, item in enumerate(items):
        try:
            ITEM.validate_python(asdict(item))
        except ValidationError as error:
            raise ValueError(f"item {row}: {first_of(error)}") from error


def lines_of(entries: Iterable[Item | HeldOutUser]) -> bytes:
    """The bytes of the lines, as `read_items` and `read_held_out` read them."""
    text = "".join(json.dumps(_fields(entry), ensure_ascii=False) + "\n" for entry in entries)
    return text.encode()


def _fields(entry: Item | HeldOutUser) -> dict[str, object]:
    """What is written of an entry; attributes only if there are any."""
    fields = asdict(entry)
    if isinstance(entry, Item) and not entry.attributes:
        del fields["attributes"]
    return fields


def _entries(
    file: str, lines: Sequence[bytes], kind: TypeAdapter[T], most_bytes: int
) -> Iterator[T]:
    for number, line in enumerate(lines, start=1):
        if len(line) > most_bytes:
            raise ValueError(f"{file}, line {number} is of more than {most_bytes} bytes")
        try:
            # A cache of values would keep some of them between others that go with a bundle, and so
            # hold the bundle's memory.
            yield kind.validate_python(from_json(line, cache_strings="keys"))
        except ValidationError as error:
            raise ValueError(f"{file}, line {number}: {first_of(error)}") from error
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {one_line(error)}") from error
