"""Which of the rows that were found are in an answer: places for new items, caps, pins.

What a cap leaves out cannot be found by searching for k rows: so the search finds more, and this
takes the best that fit. Knows no scores and no users.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from service.bundles import CATEGORY, Bundle

Place = int  # in a list of rows, from 0


class Caps:
    """At most so many items with the same value of an attribute.

    most: by attribute; of `category`, an item has the paths that it names, not those above them
    """

    def __init__(self, bundle: Bundle, most: Mapping[str, int]) -> None:
        self._items = bundle.items
        self._most = most
        self._counts: Counter[tuple[str, str]] = Counter()

    def count(self, row: int) -> None:
        """The answer has this row."""
        self._counts.update(self._values_of(row))

    def admits(self, row: int) -> bool:
        """Whether the answer may have this row too."""
        return all(
            self._counts[name, value] < self._most[name] for name, value in self._values_of(row)
        )

    def _values_of(self, row: int) -> set[tuple[str, str]]:
        if not self._most:
            return set()
        item = self._items[row]
        named: Mapping[str, object] = {**(item.attributes or {}), CATEGORY: item.categories}
        values = {name: named.get(name) for name in self._most}
        return {
            (name, value) for name, own in values.items() if isinstance(own, tuple) for value in own
        }


def chosen(
    k: int,
    best: Sequence[int],
    new: Sequence[int],
    num_new: int,
    pinned: Collection[int],
    caps: Caps,
) -> tuple[list[Place], list[Place]]:
    """The places in `best` and in `new` of the rows that fill an answer of k items.

    best, new: rows of all items and of new ones, best first; new ones get at most num_new places
    pinned: rows that the answer has anyway. They count for caps, and no cap leaves them out
    No row is there twice. Places that no new item takes go to the best.
    """
    taken = set(pinned)
    for row in taken:
        caps.count(row)

    def take(rows: Iterator[tuple[Place, int]], most: int) -> list[Place]:
        places: list[Place] = []
        while len(places) < most:
            place, row = next(rows, (-1, -1))
            if place < 0:
                break
            if row not in taken and caps.admits(row):
                places.append(place)
                taken.add(row)
                caps.count(row)
        return places

    num_others = sum(row not in taken for row in best)
    size = min(k - len(taken), max(num_others, min(len(new), num_new)))
    rest = enumerate(best)
    others = take(rest, size - num_new)
    explored = take(enumerate(new), min(num_new, size))
    others += take(rest, size - len(others) - len(explored))
    return others, explored
