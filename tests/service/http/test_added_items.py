"""Items that are added while the service runs are recommended, and `explore` keeps places."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from running_service import Service, service_process, wait_until
from tiny_bundle import tiny_catalogue, tiny_codebook, write_tiny_bundle

ADMIN = {"Authorization": "Bearer an-admin-key"}
LIKE = {"item-20": "Books", "item-120": "Games"}  # items that new ones are like, and their shelf
NEW = {f"{row} {n}": row for row in LIKE for n in range(4)}


def embedding_like(row: int) -> list[float]:
    """An embedding whose content part points as that of a row does."""
    content = tiny_codebook().content
    assert content is not None
    direction = tiny_catalogue().vectors[row, : len(content.components)].astype(np.float64)
    found: list[float] = (content.mean + np.linalg.pinv(content.components) @ direction).tolist()
    return found


@pytest.fixture(scope="module")
def service(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """fresh@1, to which items like item-20 and like item-120 were added."""
    folder = tmp_path_factory.mktemp("fresh")
    write_tiny_bundle(folder / "bundles" / "fresh" / "1", name="fresh")
    with service_process(
        folder,
        bundles_dir=folder / "bundles",
        bundle="fresh@1",
        redis_url=redis_url,
        redis_timeout_ms=5000,
        admin_keys="an-admin-key",
    ) as service:
        before = recommended(service, k=50)
        add = [
            {
                "item_id": item_id,
                "title": item_id,
                "categories": [LIKE[row]],
                "embedding": embedding_like(int(row.removeprefix("item-"))),
            }
            for item_id, row in NEW.items()
        ]
        answer = service.client.post("/admin/items", json={"add": add}, headers=ADMIN)
        assert answer.json()["added"] == len(NEW)
        assert not NEW.keys() & before.keys()
        yield service


def asked(service: Service, **body: Any) -> dict[str, Any]:
    request = {"user_id": "u", "history": ["item-20"], "exclude_seen": True, **body}
    found: dict[str, Any] = service.client.post("/recommend", json=request).json()
    return found


def recommended(service: Service, **body: Any) -> dict[str, Any]:
    """The answer's items by item_id, in its order."""
    return {item["item_id"]: item for item in asked(service, **body)["items"]}


def ranks_after(service: Service, item_id: str, **decoding: int) -> dict[str, int]:
    """Ranks of the best hundred for a history of one item."""
    found = recommended(service, history=[item_id], k=100, **decoding)
    return {item_id: item["rank"] for item_id, item in found.items()}


def explored_lines(service: Service) -> list[dict[str, Any]]:
    """Lines of the log that say how many items were explored."""
    lines = service.stdout.splitlines()
    return [json.loads(one) for one in lines if '"n_explored"' in one and one.endswith("}")]


@pytest.mark.parametrize(("row", "other"), [("item-20", "item-120"), ("item-120", "item-20")])
@pytest.mark.parametrize("decoding", [{}, {"r_warm": 0, "m_par": 4}])
def test_who_had_what_a_new_item_is_like_gets_it(
    service: Service, row: str, other: str, decoding: dict[str, int]
) -> None:
    ranks = ranks_after(service, row, **decoding)
    of_row, of_other = (
        [ranks.get(item_id, 999) for item_id, like in NEW.items() if like == name]
        for name in (row, other)
    )
    assert max(of_row) <= 40
    assert max(of_row) < min(of_other)


@pytest.mark.parametrize(("row", "other"), [("item-20", "item-120"), ("item-120", "item-20")])
def test_who_had_a_new_item_gets_what_it_is_like(service: Service, row: str, other: str) -> None:
    with_own, with_other = (
        ranks_after(service, f"{name} 0").get(row, 999) for name in (row, other)
    )
    assert with_own < with_other


def test_places_are_kept_for_new_items(service: Service) -> None:
    without = recommended(service, history=["item-50"])
    assert not without.keys() & NEW.keys()
    assert not any(item["explored"] for item in without.values())
    answer = asked(service, history=["item-50"], explore=0.25)
    places = [item["explored"] for item in answer["items"]]
    assert [place for place, explored in enumerate(places, start=1) if explored] == [4, 7, 10]
    explored = [item for item in answer["items"] if item["explored"]]
    assert all(item["item_id"] in NEW for item in explored)
    scores = [item["score"] for item in explored]
    assert scores == sorted(scores, reverse=True)
    assert [item["rank"] for item in answer["items"]] == list(range(1, 11))
    others = [item["item_id"] for item in answer["items"] if not item["explored"]]
    assert others == list(without)[:7]
    wait_until(lambda: explored_lines(service) != [])  # it is written after the answer
    line = explored_lines(service)[-1]
    assert (line["event"], line["n_explored"], line["n_items"]) == ("request", 3, 10)


def test_exploring_obeys_filters_and_exclusions_and_is_counted(service: Service) -> None:
    counter = "unmask_explored_items_total"
    before = service.samples()[counter]
    games = [item_id for item_id, row in NEW.items() if LIKE[row] == "Games"]
    found = recommended(service, history=["item-50"], explore=1, filter={"category": ["Games"]})
    assert sorted(found) == sorted(games)
    few = recommended(service, history=["item-50"], explore=0.5, exclude_items=[*NEW][1:])
    assert [item_id for item_id, item in few.items() if item["explored"]] == [next(iter(NEW))]
    assert len(few) == 10
    none = recommended(service, explore=1, filter={"category": ["rare"]}, k=3)
    assert not any(item["explored"] for item in none.values())
    assert len(none) == 3
    popular = recommended(service, history=[], explore=1)
    assert not any(item["explored"] for item in popular.values())
    assert service.samples()[counter] == before + len(games) + 1


def test_exploring_in_a_batch_with_pages_and_explanations(service: Service) -> None:
    requests = [{"user_id": "paging", "history": ["item-50"], "explore": 0.2, "explain": True}]
    [result] = service.client.post("/recommend/batch", json={"requests": requests}).json()[
        "results"
    ]
    first = result["response"]
    assert sum(item["explored"] for item in first["items"]) == 2
    assert all(item["explanation"] for item in first["items"])
    after = {**requests[0], "after": first["recommendation_id"]}
    second = service.client.post("/recommend", json=after).json()
    shown = [item["item_id"] for page in (first, second) for item in page["items"]]
    assert len(set(shown)) == 20
    assert sum(item["explored"] for item in second["items"]) == 2


@pytest.mark.parametrize("explore", [-0.1, 1.1, "0.5", None, True, [0.1]])
def test_a_share_is_from_0_to_1(service: Service, explore: Any) -> None:
    answer = service.client.post("/recommend", json={"user_id": "u", "explore": explore})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "explore")


# --- hiding, undoing, and the list of changes -----------------------------------------------------


def change(service: Service, **body: Any) -> httpx.Response:
    return service.client.post("/admin/items", json=body, headers=ADMIN)


def changes(service: Service) -> dict[tuple[str, str], dict[str, Any]]:
    """All changes that are listed, by item and kind."""
    found, after = {}, 0
    while after is not None:
        answer = service.client.get("/admin/items", params={"after": after}, headers=ADMIN).json()
        found |= {(one["item_id"], one["change"]): one for one in answer["changes"]}
        after = answer["next"]
    return found


def test_hidden_items_are_not_recommended_until_they_come_back(service: Service) -> None:
    best = list(recommended(service, k=10))
    until = time.time() + 86400
    hide = [{"item_id": best[0], "until": until}, {"item_id": best[2]}, {"item_id": "item-120 0"}]
    assert change(service, hide=hide).json()["hidden"] == 3
    gone = {entry["item_id"] for entry in hide}
    left = [name for name in best if name not in gone]
    assert list(recommended(service, k=10))[: len(left)] == left
    for body in ({"history": []}, {"explore": 1.0}, {"k": 100}, {"r_warm": 0, "m_par": 4}):
        found = recommended(service, **body)
        assert found
        assert not gone & found.keys()
    assert recommended(service, history=[best[0], "item-20"]).keys()
    assert service.client.get(f"/items/{best[0]}").status_code == 200
    listed = changes(service)
    assert listed[best[0], "hidden"]["until"] == until
    assert listed[best[2], "hidden"]["until"] is None
    assert {item_id for item_id, kind in listed if kind == "added"} == NEW.keys()
    unhide = [entry["item_id"] for entry in hide]
    assert change(service, unhide=unhide).json()["hidden"] == 0
    assert list(recommended(service, k=10)) == best
    assert {kind for _, kind in changes(service)} == {"added"}


def test_a_removed_item_comes_back_as_it_was(service: Service) -> None:
    before = recommended(service, k=10)
    [item_id] = [name for name in before if name not in NEW][:1]
    assert change(service, remove=[item_id]).json()["removed"] == 1
    assert service.client.get(f"/items/{item_id}").status_code == 404
    assert changes(service)[item_id, "removed"]["in_effect"]
    num_items = change(service, undo=[item_id]).json()["num_items"]
    assert num_items == service.client.get("/info").json()["bundle"]["num_items"]
    assert recommended(service, k=10) == before
    assert {kind for _, kind in changes(service)} == {"added"}


def test_hiding_into_the_past_and_pages_out_of_bounds_are_refused(service: Service) -> None:
    answer = change(service, hide=[{"item_id": "item-1"}, {"item_id": "item-1", "until": 5}])
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "hide.1.until")
    for after in ("-1", "1.5", "x", str(2**53 + 1)):
        refused = service.client.get("/admin/items", params={"after": after}, headers=ADMIN)
        assert refused.status_code == 422
