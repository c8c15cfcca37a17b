"""Puts an answer together: from what the search found, a request's caps and pins, to its items.

found: what the search found among all items, None = popular items answer; new: among new items.
Knows nothing of how or when it was found.
"""

from __future__ import annotations

import numpy as np

from service.bundles import Bundle
from service.decoding import Decoded
from service.recommending.item_mapping import (
    arranged,
    decoded_items,
    decoded_sequences,
    items_of,
    popular_rows,
    popular_sequences,
)
from service.recommending.jobs import Inputs
from service.recommending.planning import MOST_ROWS, explored_places
from service.recommending.selection import Caps, chosen
from service.schemas import RecommendedItem, RecommendedSequence, RecommendRequest

NOTHING_FOUND = Decoded(np.empty(0, np.int32), np.empty(0, np.float32), 0)


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
