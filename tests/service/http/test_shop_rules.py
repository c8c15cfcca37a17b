"""What shops say about an answer, over HTTP: candidates, caps, boosts and pins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from running_service import Service, service_process
from tiny_bundle import DENSE, EMBEDDING_DIMS, NUM_ITEMS, write_tiny_bundle

ADMIN = {"Authorization": "Bearer an-admin-key"}
BRANDS = ("Acme", "Best", "Cosy")
EXACT = {"r_warm": 0, "m_par": 4}  # one call that scores every allowed row
HISTORY = ["item-7", "item-80"]


def attributes(row: int) -> dict[str, Any]:
    return {"brand": (BRANDS[row % 3],), "price": row / 4, "released": f"2026-{row % 12 + 1:02}-01"}


@pytest.fixture(scope="module")
def shop(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """rules@1: 200 items with attributes, a dense head, up to three items at once, one added."""
    folder = tmp_path_factory.mktemp("rules")
    write_tiny_bundle(
        folder / "bundles" / "rules" / "1",
        name="rules",
        attributes=attributes,
        dense=DENSE,
        max_horizon=3,
    )
    with service_process(
        folder,
        bundles_dir=folder / "bundles",
        bundle="rules@1",
        redis_url=redis_url,
        admin_keys="an-admin-key",
    ) as service:
        new = {"item_id": "new", "title": "New", "embedding": [0.5] * EMBEDDING_DIMS}
        added = service.client.post("/admin/items", json={"add": [new]}, headers=ADMIN)
        assert added.json()["added"] == 1, added.text
        yield service


def answered(shop: Service, **asked: Any) -> dict[str, Any]:
    """The answer, which a batch gives too."""
    asked = {"user_id": "u", "history": HISTORY, **asked}
    answer = shop.recommend(**asked)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    body = {"requests": [asked]}
    [result] = shop.client.post("/recommend/batch", json=body).json()["results"]
    for part in ("items", "warnings", "served_by"):
        assert result["response"][part] == found[part]
    return found


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def refused(shop: Service, param: str, **asked: Any) -> str:
    """Why a request is refused, alone and in a batch."""
    asked = {"user_id": "u", "history": HISTORY, **asked}
    answer = shop.recommend(**asked)
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    body = {"requests": [asked]}
    [result] = shop.client.post("/recommend/batch", json=body).json()["results"]
    assert (result["status"], result["error"]["message"]) == (422, error["message"])
    message: str = error["message"]
    return message


CANDIDATES = [f"item-{row}" for row in (150, 8, 9, 7, 42, 81, 3, 120, 33, 199, 60)]


@pytest.mark.parametrize("decoding", [EXACT, {"finish_rows": 1000}, {"retrieval": "dense"}])
def test_candidates_are_ranked_as_they_are_among_all(shop: Service, decoding: Any) -> None:
    everything: list[str] = []
    while len(everything) < NUM_ITEMS + 1:  # in pages
        page = ids(answered(shop, k=100, exclude_seen=False, exclude_items=everything, **decoding))
        assert page
        everything += page
    ranked = [one for one in everything if one in CANDIDATES]
    found = answered(shop, k=100, candidates=CANDIDATES, exclude_seen=False, **decoding)
    assert ids(found) == ranked
    assert found["warnings"] == []
    assert (
        ids(answered(shop, k=4, candidates=CANDIDATES, **decoding))
        == [one for one in ranked if one != "item-7"][:4]
    ), "what the user has seen is left out, as always"


def test_beams_and_both_retrievals_return_all_candidates(shop: Service) -> None:
    for retrieval in ("generate", "dense", "fused"):
        found = answered(shop, candidates=CANDIDATES, k=11, retrieval=retrieval, exclude_seen=False)
        assert sorted(ids(found)) == sorted(CANDIDATES)


def test_candidates_go_with_everything_else(shop: Service) -> None:
    acme = {one for one in CANDIDATES if int(one.removeprefix("item-")) % 3 == 0}
    found = answered(
        shop, candidates=CANDIDATES, filter={"brand": ["Acme"]}, exclude_items=["item-9"], k=20
    )
    assert set(ids(found)) == acme - {"item-9"}
    explored = answered(shop, candidates=[*CANDIDATES, "new"], explore=0.1, k=5)
    assert [item["item_id"] for item in explored["items"] if item["explored"]] == ["new"]
    several = answered(shop, candidates=CANDIDATES[:4], horizon=2, k=20)
    pairs = {tuple(item["item_id"] for item in one["items"]) for one in several["sequences"]}
    left = {"item-150", "item-8", "item-9"}
    assert pairs == {(one, other) for one in left for other in left if one != other}
    popular = answered(shop, user_id="nobody", history=[], candidates=CANDIDATES, k=3)
    assert (popular["served_by"], ids(popular)) == ("popular", ["item-3", "item-7", "item-8"])
    first = answered(shop, candidates=CANDIDATES, k=4, exclude_seen=False)
    rest = shop.recommend(
        user_id="u", history=HISTORY, candidates=CANDIDATES, k=20, exclude_seen=False,
        after=first["recommendation_id"],
    ).json()  # fmt: skip
    assert set(ids(rest)) == set(CANDIDATES) - set(ids(first))


def test_unknown_candidates_are_said(shop: Service) -> None:
    found = answered(shop, candidates=["item-3", "it-4", "item-4", "it-4"])
    assert set(ids(found)) == {"item-3", "item-4"}
    assert found["warnings"] == ["candidates: 1 are no items of this bundle: 'it-4'"]
    found = answered(shop, candidates=[f"x{n}" for n in range(1000)])
    assert (ids(found), found["served_by"]) == ([], "model")
    assert found["warnings"] == [
        "candidates: 1000 are no items of this bundle: 'x0', 'x1', 'x2', 'x3', 'x4', ..."
    ]


def test_wrong_candidates_are_refused(shop: Service) -> None:
    assert "at least 1 item" in refused(shop, "candidates", candidates=[])
    too_many = [f"item-{n}" for n in range(1001)]
    assert "at most 1000 items" in refused(shop, "candidates", candidates=too_many)
    refused(shop, "candidates.0", candidates=[7])


def refuse(shop: Service, user_id: str, *item_ids: str, how: str = "") -> None:
    events = [
        {
            "event_id": f"{how}{item_id}",
            "user_id": user_id,
            "item_id": item_id,
            "event_type": f"{how}not_interested",
        }
        for item_id in item_ids
    ]
    answer = shop.client.post("/events", json={"events": events}).json()
    assert (answer["accepted"], answer["rejected"]) == (len(item_ids), [])


def test_a_refused_item_is_not_recommended_until_that_is_undone(shop: Service) -> None:
    shop.send("item-7", "item-80", user_id="picky")
    first = ids(answered(shop, user_id="picky", history=None))
    refuse(shop, "picky", first[0], first[3], "no-such-item")
    second = ids(answered(shop, user_id="picky", history=None))
    assert second[:8] == [one for one in first if one not in (first[0], first[3])]
    stored = shop.client.get("/users/picky/history").json()
    assert stored["history"] == ["item-7", "item-80"], "the network does not read it"
    assert stored["refused"] == [first[0], first[3], "no-such-item"]
    asked = {"user_id": "picky", "history": None, "candidates": first}
    assert first[0] not in ids(answered(shop, **asked))
    refuse(shop, "picky", first[0], how="undo_")
    third = ids(answered(shop, user_id="picky", history=None))
    assert first[0] in third
    assert first[3] not in third
    page = shop.recommend(
        user_id="picky", after=shop.recommend(user_id="picky").json()["recommendation_id"]
    )
    assert first[3] not in ids(page.json())
    assert shop.client.delete("/users/picky/history").status_code == 204
    assert shop.client.get("/users/picky/history").json()["refused"] == []


def test_popular_items_leave_out_what_is_refused(shop: Service) -> None:
    refuse(shop, "new-here", "item-0", "item-2")
    found = answered(shop, user_id="new-here", history=None, k=3)
    assert (found["served_by"], ids(found)) == ("popular", ["item-1", "item-3", "item-4"])


def test_what_is_no_refusal_is_rejected(shop: Service) -> None:
    event = {"event_id": "e", "user_id": "picky", "event_type": "not_interested"}
    events = [
        {**event, "item_ids": ["a", "b"]},
        {**event, "item_id": "a", "event_type": "undo_click"},
    ]
    rejected = shop.client.post("/events", json={"events": events}).json()["rejected"]
    assert [one["code"] for one in rejected] == ["invalid_event", "unknown_event_type"]
    assert rejected[0]["message"] == "item_ids: an event of this type has one item_id"
    assert rejected[1]["message"].startswith("event_type must be one of click, add_to_cart, ")
    assert "not_interested, undo_not_interested, impression" in rejected[1]["message"]
