"""Puts an answer together: which of the rows that were found are in it, and their items.

A request's caps and pins, and places for new items, say which rows. What a cap leaves out cannot be
found by searching for k rows: so the search finds more, and this takes the best that fit.

found: what the search found among all items, None = popular items answer; new: among new items.
Knows nothing of how or when it was found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from service.batching import Answer
from service.bundles import CATEGORY, Bundle
from service.decoding import Decoded
from service.recommending.item_mapping import (
    arranged,
    decoded_items,
    decoded_sequences,
    items_of,
    popular_rows,
    popular_sequences,
)
from service.recommending.jobs import Inputs, UserHistory
from service.recommending.planning import MOST_ROWS, Plan, explored_places
from service.schemas import DegradedReason, RecommendedItem, RecommendedSequence, RecommendRequest

Place = int  # in a list of rows, from 0
NOTHING_FOUND = Decoded(np.empty(0, np.int32), np.empty(0, np.float32), 0)


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


def assembled(
    request: RecommendRequest,
    bundle: Bundle,
    inputs: Inputs,
    found: Decoded | None,
    new: Decoded | None,
) -> list[RecommendedItem]:
    """The items of an answer, at most k, with their ranks."""
    metadata = request.metadata
    pinned, caps = inputs.pinned, Caps(bundle, request.max_per)
    front = dict(
        zip(pinned, items_of(bundle, pinned.values(), metadata=metadata, pinned=True), strict=True)
    )
    if found is None:
        most = MOST_ROWS if request.max_per else request.k + len(pinned)
        rows = popular_rows(bundle, most, inputs.excluded, inputs.allowed).tolist()
        places, _ = chosen(request.k, rows, [], 0, pinned.values(), caps)
        popular = items_of(bundle, [rows[place] for place in places], metadata=metadata)
        return arranged(popular, [], front)
    places_of_new = explored_places(request) if new else 0
    new = new or NOTHING_FOUND
    places, new_places = chosen(
        request.k,
        found.rows.tolist(),
        new.rows.tolist(),
        places_of_new,
        pinned.values(),
        caps,
    )
    return arranged(
        decoded_items(bundle, found, places, inputs.history, metadata=metadata),
        decoded_items(bundle, new, new_places, inputs.history, metadata=metadata),
        front,
    )


def shortfalls(
    request: RecommendRequest,
    bundle: Bundle,
    inputs: Inputs,
    found: Decoded | None,
    num_items: int,
) -> list[str]:
    """What the rules could not do, in sentences."""
    said = []
    if request.boost and found is None:
        said.append("boost: these are popular items, in their own order; nothing was boosted")
    if not request.max_per:
        return said
    num_left = inputs.num_left(bundle.catalogue.num_items)
    if num_items < min(request.k, num_left):
        looked_at = min(num_left, MOST_ROWS) if found is None else len(found.rows)
        fit = f"max_per: {num_items} items, because no other of the {looked_at} found fits"
        more = "; with a larger beam_width or finish_rows more are found"
        said.append(fit + more * (looked_at < min(num_left, MOST_ROWS)))
    return said


def assembled_sequences(
    request: RecommendRequest, bundle: Bundle, inputs: Inputs, found: Decoded | None
) -> list[RecommendedSequence]:
    """The sequences of an answer to a request with a horizon above 1."""
    metadata = request.metadata
    if found is not None:
        return decoded_sequences(bundle, found, metadata=metadata)
    rows = inputs.excluded, inputs.allowed
    return popular_sequences(bundle, request.k, request.horizon, *rows, metadata=metadata)


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


def degraded_reasons(
    history: UserHistory, inputs: Inputs, plan: Plan, answer: Answer | None
) -> list[DegradedReason]:
    """Why the answer is worse than it could be."""
    if history.source == "unavailable":
        return ["history_unavailable"]
    if history.item_ids and not len(inputs.history):
        return ["history_unknown"]
    return ["schedule_reduced"] if answer and plan.adjusted else []


def timings_ms(
    stages: Mapping[str, float], answer: Answer | None, total: float
) -> dict[str, float]:
    """Where the time of an answer went, in milliseconds. stages, total: in seconds"""
    batch = {}
    if answer:
        batch = {
            "queue": answer.queue_s,
            "encode": answer.timings.encode_s,
            "denoise": answer.timings.denoise_s,
            "search": answer.timings.search_s,
        }
    seconds = {"history": stages["history"], **batch, "map": stages["map"], "total": total}
    return {stage: round(1000 * value, 3) for stage, value in seconds.items()}
