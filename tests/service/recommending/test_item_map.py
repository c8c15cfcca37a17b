"""The map as it is answered: places, groups, and what becomes of them as items come and go."""

from __future__ import annotations

import base64
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_bundle import (
    EMBEDDING_DIMS,
    NUM_ITEMS,
    replace_file,
    tiny_catalogue,
    tiny_codebook,
    tiny_places,
    write_tiny_bundle,
)

from service.bundles import Bundle, Item
from service.bundles.arrays import npy_of
from service.errors import BundleInvalid, InvalidRequest, MapNotFound
from service.recommending.item_map import NO_PLACE, groups_on_map, map_of
from service.schemas import MapGroupsQuery, MapQuery


def attributes_of(row: int) -> dict[str, Any]:
    """A text that every item has, one that few have, a number, a date; some have nothing."""
    if row % 7 == 0:
        return {}
    return {
        "brand": ("all", f"brand {row % 20}"),
        "price": float(row % 40),
        "released": f"20{row % 30:02}-01-01",
    }


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("mapped") / "tiny"
    return Bundle.load(write_tiny_bundle(path, has_map=True, attributes=attributes_of))


def numbers(text: str) -> NDArray[np.uint16]:
    return np.frombuffer(base64.b64decode(text), "<u2")


def places_of(bundle: Bundle, limit: int = 20_000) -> dict[str, tuple[int, int]]:
    answer = map_of(bundle, MapQuery(limit=limit))
    places = numbers(answer.places).reshape(-1, 2).tolist()
    return {one: (x, y) for one, (x, y) in zip(answer.item_ids, places, strict=True)}


def groups_of(bundle: Bundle, **query: Any) -> tuple[list[int], list[str] | None, bool]:
    answer = groups_on_map(bundle, MapGroupsQuery(**query))
    return numbers(answer.groups).tolist(), answer.names, answer.ordered


def test_places_are_those_of_the_bundle_and_the_most_popular_come_first(mapped: Bundle) -> None:
    expected = {f"item-{row}": tuple(place) for row, place in enumerate(tiny_places().tolist())}
    assert places_of(mapped) == expected
    first = places_of(mapped, limit=3)
    assert list(first) == ["item-0", "item-1", "item-2"]
    assert first.items() <= expected.items()
    answer = map_of(mapped, MapQuery(limit=3))
    assert (answer.num_items, answer.positions) == (NUM_ITEMS, 4)
    assert answer.attributes == ["category", "brand", "price", "released"]


def test_an_added_item_is_where_the_item_is_that_it_is_most_like(mapped: Bundle) -> None:
    content = tiny_codebook().content
    assert content is not None
    direction = tiny_catalogue().vectors[20, : len(content.components)].astype(np.float64)
    like = content.mean + np.linalg.pinv(content.components) @ direction
    embeddings = np.stack((like, np.zeros(EMBEDDING_DIMS))).astype(np.float32)
    grown = mapped.with_items([Item("like 20", "", ()), Item("like nothing", "", ())], embeddings)
    places = places_of(grown)
    assert places["like 20"] == places["item-20"]
    assert places["like nothing"] == (NO_PLACE, NO_PLACE)
    assert len(places) == NUM_ITEMS + 2

    shrunk = grown.without_items(["item-3", "like nothing", "item-150"])
    left = {one: place for one, place in places.items() if one in set(shrunk.catalogue.item_ids)}
    assert len(left) == NUM_ITEMS - 1
    assert places_of(shrunk) == left
    assert places_of(shrunk.as_loaded) == places_of(mapped)


def test_groups_are_codes_values_or_ranges(mapped: Bundle) -> None:
    for position in range(4):
        groups, names, _ = groups_of(mapped, position=position, limit=50)
        assert groups == mapped.catalogue.codes[:50, position].tolist()
        assert names is None

    groups, names, ordered = groups_of(mapped, attribute="brand")
    assert names is not None
    assert not ordered
    having = Counter(v for row in range(NUM_ITEMS) for v in attributes_of(row).get("brand", ()))
    assert "all" not in names  # nearly every item has it
    assert len(names) == 12
    assert {having[name] for name in names} == {having.most_common(13)[k][1] for k in range(1, 13)}
    for row, group in enumerate(groups):
        own = set(attributes_of(row).get("brand", ())) & set(names)
        assert (group == 65_535) == (not own)
        assert not own or names[group] in own

    groups, names, ordered = groups_of(mapped, attribute="price")
    assert ordered
    assert names is not None
    assert len(names) == 8
    for row, group in enumerate(groups):
        price = attributes_of(row).get("price")
        assert (group == 65_535) == (price is None)
        if price is not None:
            least, _, most = names[group].partition(" to ")
            assert float(least) <= price <= float(most or least)
    assert max(Counter(groups).values()) < NUM_ITEMS / 4  # about as many in each
    _, names, _ = groups_of(mapped, attribute="released")
    assert names is not None
    assert names[0].startswith("2000-01-01T00:00:00Z to ")


def test_categories_are_the_most_common_and_of_several_the_rarest(mapped: Bundle) -> None:
    groups, names, _ = groups_of(mapped, attribute="category")
    assert names is not None
    assert "Shelves" not in names  # every item is below it
    assert names[groups[0]] == "rare"  # it is also on a shelf
    assert names[groups[1]] == "Shelves > 1"


def test_what_cannot_be_answered_is_refused(mapped: Bundle, bundle: Bundle) -> None:
    for query in (MapGroupsQuery(), MapGroupsQuery(position=0, attribute="brand")):
        with pytest.raises(InvalidRequest, match="either position or attribute"):
            groups_on_map(mapped, query)
    with pytest.raises(InvalidRequest, match="must be below 4, the bundle's num_subspaces"):
        groups_on_map(mapped, MapGroupsQuery(position=4))
    with pytest.raises(InvalidRequest, match="the bundle has category, brand, price, released"):
        groups_on_map(mapped, MapGroupsQuery(attribute="colour"))
    assert bundle.places is None  # as of an older release
    with pytest.raises(MapNotFound, match="has no map"):
        map_of(bundle, MapQuery())
    with pytest.raises(MapNotFound, match="has no map"):
        groups_on_map(bundle, MapGroupsQuery(position=0))


def test_a_map_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """Lost, altered, or of another shape."""
    path = write_tiny_bundle(tmp_path / "tiny", has_map=True)
    good = (path / "map.npy").read_bytes()
    (path / "map.npy").write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(BundleInvalid, match=r"map\.npy does not match its SHA-256"):
        Bundle.load(path)
    for wrong, message in (
        (tiny_places()[:-1], r"map\.npy has shape \(199, 2\), the manifest says \(200, 2\)"),
        (tiny_places()[:, :1], r"map\.npy has shape \(200, 1\)"),
        (tiny_places().astype(np.int16), r"map\.npy must be a \(200, 2\) array of uint16"),
    ):
        replace_file(path, "map.npy", npy_of(wrong))
        with pytest.raises(BundleInvalid, match=message):
            Bundle.load(path)
    (path / "map.npy").unlink()
    with pytest.raises(BundleInvalid, match=r"map\.npy is missing"):
        Bundle.load(path)
