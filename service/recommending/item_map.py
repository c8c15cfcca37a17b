"""The map of a catalogue: where its items are, and which of them belong together.

Training gives every item a place, near items that are like it. An item that is added while serving
is where the item is that it is most like by its content; an item without content has no place.
Arrays become base64 of unsigned 16-bit numbers, the low byte first. Knows no users and no requests
for recommendations.
"""

from __future__ import annotations

import base64
import hashlib

import numpy as np
from numpy.typing import NDArray

from service.bundles import Bundle
from service.errors import InvalidRequest, MapNotFound
from service.schemas import MapGroupsQuery, MapGroupsResponse, MapQuery, MapResponse

NO_PLACE = 65_535


def map_of(bundle: Bundle, query: MapQuery) -> MapResponse:
    """The places of the most popular items. Raises MapNotFound if the bundle has no map."""
    places = _places(bundle, query.limit)
    return MapResponse(
        bundle=bundle.manifest.ref,
        items_tag=_tag(bundle, len(places)),
        num_items=bundle.catalogue.num_items,
        item_ids=list(bundle.catalogue.item_ids[: len(places)]),
        places=_base64(places),
        positions=bundle.catalogue.num_subspaces,
        attributes=list(bundle.manifest.filters),
    )


def groups_on_map(bundle: Bundle, query: MapGroupsQuery) -> MapGroupsResponse:
    """The groups of the same items. Raises InvalidRequest, or MapNotFound as `map_of` does."""
    _check_map(bundle)
    num_rows = min(query.limit, bundle.catalogue.num_items)
    names: list[str] | None = None
    ordered = False
    if (query.position is None) == (query.attribute is None):
        raise InvalidRequest("give either position or attribute", param="position")
    if query.position is not None:
        num_positions = bundle.catalogue.num_subspaces
        if query.position >= num_positions:
            message = f"must be below {num_positions}, the bundle's num_subspaces"
            raise InvalidRequest(message, param="position")
        groups = bundle.catalogue.codes[:num_rows, query.position]
    else:
        assert query.attribute is not None
        if query.attribute not in bundle.manifest.filters:
            known = ", ".join(bundle.manifest.filters)
            raise InvalidRequest(f"the bundle has {known}", param="attribute")
        groups, names, ordered = bundle.attributes.groups(query.attribute, num_rows)
    return MapGroupsResponse(
        bundle=bundle.manifest.ref,
        items_tag=_tag(bundle, num_rows),
        groups=_base64(groups),
        names=names,
        ordered=ordered,
    )


def _check_map(bundle: Bundle) -> NDArray[np.uint16]:
    if bundle.places is None:
        raise MapNotFound(
            "the active bundle has no map: it is of an older release, or bundle.map was false; "
            "train it again, into a new folder"
        )
    return bundle.places


def _places(bundle: Bundle, limit: int) -> NDArray[np.uint16]:
    """(n, 2), of the first rows."""
    known = _check_map(bundle)
    num_rows = min(limit, bundle.catalogue.num_items)
    num_new = num_rows - len(known)
    if num_new <= 0:
        return known[:num_rows]
    added = np.full((num_new, 2), NO_PLACE, np.uint16)
    prior = bundle.decoder.prior
    if prior is not None and prior.new is not None:
        shares = prior.new.shares[:num_new]
        nearest = prior.new.rows[:num_new][np.arange(num_new), shares.argmax(axis=1)]
        has_place = shares.max(axis=1) > 0
        added[has_place] = known[nearest[has_place]]
    return np.concatenate((known, added))


def _tag(bundle: Bundle, num_rows: int) -> str:
    """Another one if the first rows are of other items, or of other codes."""
    ids = "\n".join(bundle.catalogue.item_ids[:num_rows])  # no id has a line break
    found = hashlib.blake2b(ids.encode(), digest_size=8)
    found.update(np.ascontiguousarray(bundle.catalogue.codes[:num_rows]).tobytes())
    return found.hexdigest()


def _base64(numbers: NDArray[np.uint16]) -> str:
    return base64.b64encode(numbers.astype("<u2").tobytes()).decode()
