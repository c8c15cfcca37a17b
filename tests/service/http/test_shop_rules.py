"""What shops say about an answer, over HTTP: candidates, caps, boosts and pins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
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
    message = error["message"].removesuffix(", timeout_ms")  # a batch has it once, for all
    assert (result["status"], result["error"]["message"]) == (422, message)
    return str(message)


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


# --- caps, boosts, pins ---------------------------------------------------------------------------


def all_ranked(shop: Service, **asked: Any) -> list[tuple[str, float]]:
    """Every item that is left, exactly scored, best first."""
    found: list[tuple[str, float]] = []
    while True:
        items = answered(
            shop, k=100, exclude_items=[one for one, _ in found], **{**EXACT, **asked}
        )["items"]  # scores of pages do not compare, their order does
        if not items:
            return found
        found += [(item["item_id"], item["score"]) for item in items]


def shelf_of(item_id: str) -> int:
    return int(item_id.removeprefix("item-")) % 10


def test_a_cap_takes_the_best_that_fit(shop: Service) -> None:
    """The bundle's categories are ten shelves; the added item has none."""
    ranked = [one for one, _ in all_ranked(shop)]
    shelves: dict[int, int] = {}
    expected = []
    for one in ranked:
        shelf = -1 if one == "new" else shelf_of(one)
        shelves[shelf] = shelves.get(shelf, 0) + 1
        if shelf < 0 or shelves[shelf] <= 1:
            expected.append(one)
    assert ranked[:10] != expected[:10], "else this shows nothing"
    for decoding in (EXACT, {"finish_rows": 1000}):
        capped = answered(shop, max_per={"category": 1}, k=10, **decoding)
        assert (ids(capped), capped["warnings"]) == (expected[:10], [])
    by_beams = answered(shop, max_per={"category": 2, "brand": 4}, k=10)
    assert by_beams["decoding"]["beam_width"] == 40
    assert len(ids(by_beams)) == 10
    rows = [int(one.removeprefix("item-")) for one in ids(by_beams) if one != "new"]
    assert max(sum(row % 10 == shelf for row in rows) for shelf in range(10)) <= 2
    assert max(sum(row % 3 == brand for row in rows) for brand in range(3)) <= 4
    for retrieval in ("dense", "fused"):
        found = ids(answered(shop, max_per={"category": 1}, k=10, retrieval=retrieval))
        shelves_found = {"none" if one == "new" else shelf_of(one) for one in found}
        assert (len(found), len(shelves_found)) == (10, 10)
        plain = ids(answered(shop, k=10, retrieval=retrieval))
        assert found != plain, "else this shows nothing"
        assert found[0] == plain[0], "the best one always fits"


def test_a_cap_that_leaves_an_answer_short_says_so(shop: Service) -> None:
    found = answered(shop, max_per={"brand": 2}, k=20, filter={"price": {"gte": 0}}, **EXACT)
    assert len(ids(found)) == 6
    assert found["warnings"] == ["max_per: 6 items, because no other of the 198 found fits"]
    wider = answered(shop, max_per={"brand": 1}, k=4, beam_width=4, filter={"price": {"gte": 0}})
    [said] = wider["warnings"]
    assert said.startswith(f"max_per: {len(ids(wider))} items, because no other of the ")
    assert said.endswith("fits; with a larger beam_width or finish_rows more are found")
    popular = answered(shop, user_id="nobody", history=[], max_per={"category": 1}, k=5)
    assert ids(popular) == ["item-0", "item-1", "item-2", "item-3", "item-4"]
    popular = answered(shop, user_id="nobody", history=[], max_per={"brand": 1}, k=5)
    assert ids(popular) == ["item-0", "item-1", "item-2", "new"]
    assert popular["warnings"] == ["max_per: 4 items, because no other of the 201 found fits"]


def test_a_boost_is_added_to_scores_inside_the_search(shop: Service) -> None:
    asked = {"filter": {"price": {"lt": 25}}, "exclude_seen": False}
    plain = dict(all_ranked(shop, **asked))
    boost = [
        {"filter": {"brand": ["Best"]}, "weight": 2},
        {"filter": {"brand": ["Best"], "price": {"gte": 10}}, "weight": -0.5},
    ]
    boosted = answered(shop, k=100, boost=boost, **EXACT, **asked)
    gains = {}
    for item in boosted["items"]:
        row = int(item["item_id"].removeprefix("item-"))
        gain = item["score"] - plain[item["item_id"]]
        gains.setdefault((row % 3 == 1, row >= 40), []).append(gain)
    none = np.mean(gains[False, False])
    for (is_best, is_dear), found in gains.items():
        expected = (2 - 0.5 * is_dear) * is_best
        assert np.subtract(found, none) == pytest.approx(expected, abs=1e-3)
    assert boosted["warnings"] == []


def test_boosts_of_one_item_add_up_to_the_most_that_one_may_be(shop: Service) -> None:
    asked = {"filter": {"price": {"lt": 25}}, "exclude_seen": False, "k": 100, **EXACT}

    def scores(*weights: float) -> dict[str, float]:
        boost = [{"filter": {"brand": ["Best"]}, "weight": weight} for weight in weights]
        items = answered(shop, boost=boost, **asked)["items"]
        return {item["item_id"]: item["score"] for item in items}

    assert scores(3, 3) == scores(5)
    assert scores(3, 5, -4) == scores(4)
    assert scores(-5, -5, -5) == scores(-5)
    assert scores(5) != scores(4)


@pytest.mark.parametrize("decoding", [{}, {"retrieval": "dense"}, {"retrieval": "fused"}])
def test_beams_and_the_dense_head_find_what_is_boosted(shop: Service, decoding: Any) -> None:
    boost = [{"filter": {"brand": ["Cosy"]}, "weight": 5}]
    plain = ids(answered(shop, **decoding))
    boosted = ids(answered(shop, boost=boost, **decoding))
    assert not set(boosted) <= set(plain)
    is_cosy = [int(one.removeprefix("item-")) % 3 == 2 for one in boosted if one != "new"]
    was_cosy = [int(one.removeprefix("item-")) % 3 == 2 for one in plain if one != "new"]
    assert sum(is_cosy) > sum(was_cosy)
    lowered = ids(answered(shop, boost=[{**boost[0], "weight": -5}], **decoding))
    assert sum(int(one.removeprefix("item-")) % 3 == 2 for one in lowered if one != "new") == 0


def test_boosts_go_with_several_items_and_never_bring_back_what_is_left_out(shop: Service) -> None:
    boost = [{"filter": {"price": {"lte": 2}}, "weight": 5}]
    plain = answered(shop, horizon=2, k=10)["sequences"]
    item_id = plain[-1]["items"][0]["item_id"]
    of_one = [{"filter": {"price": [int(item_id.removeprefix("item-")) / 4]}, "weight": 1.5}]
    boosted = {
        tuple(item["item_id"] for item in one["items"]): one["score"]
        for one in answered(shop, horizon=2, k=10, boost=of_one)["sequences"]
    }
    for one in plain:
        items = tuple(item["item_id"] for item in one["items"])
        score = one["score"] + 1.5 * (item_id in items)
        assert items not in boosted or boosted[items] == pytest.approx(score, abs=1e-3)
    assert any(item_id in items for items in boosted)
    left_out = answered(
        shop, boost=boost, exclude_items=["item-8"], candidates=["item-8", "item-9"]
    )
    assert ids(left_out) == ["item-9"]
    popular = answered(shop, user_id="nobody", history=[], boost=boost, k=2)
    assert popular["warnings"] == [
        "boost: these are popular items, in their own order; nothing was boosted"
    ]
    odd = answered(shop, boost=[{"filter": {"brand": ["acme"]}, "weight": 1}])
    assert odd["warnings"] == ["boost.0.filter.brand: no item has 'acme'; near it is 'Acme'"]


def test_pinned_items_have_their_ranks(shop: Service) -> None:
    plain = ids(answered(shop, k=5))
    found = answered(shop, k=5, pin={"item-150": 1, "new": 4}, max_per={"category": 5})
    assert ids(found) == ["item-150", *plain[:2], "new", plain[2]]
    pins = [(item["pinned"], item["score"] is None) for item in found["items"]]
    assert pins == [(one, one) for one in (True, False, False, True, False)]
    assert ids(answered(shop, k=5, pin={plain[3]: 2})) == [
        plain[0],
        plain[3],
        *plain[1:3],
        plain[4],
    ]
    popular = answered(shop, user_id="nobody", history=[], k=3, pin={"item-9": 2})
    assert ids(popular) == ["item-0", "item-9", "item-1"]
    few = answered(shop, k=10, candidates=["item-1", "item-2"], pin={"item-1": 9})
    assert ids(few) == ["item-2", "item-1"]
    explored = answered(shop, k=4, explore=0.25, pin={"item-5": 1})["items"]
    assert [item["explored"] for item in explored] == [False, False, False, True]
    assert explored[3]["item_id"] == "new"
    explained = answered(shop, k=3, pin={"item-5": 1}, explain=True)["items"]
    assert ["explanation" in item for item in explained] == [False, True, True]


def test_a_pin_brings_back_nothing_that_is_left_out(shop: Service) -> None:
    hidden = {"hide": [{"item_id": "item-33"}]}
    assert shop.client.post("/admin/items", json=hidden, headers=ADMIN).status_code == 200
    refuse(shop, "pinned", "item-60")
    shop.send("item-7", "item-80", user_id="pinned")
    pins = ("item-33", "item-60", "item-7", "item-9", "item-10", "gone")
    found = answered(
        shop,
        user_id="pinned",
        history=None,
        pin={one: rank for rank, one in enumerate(pins, start=1)},
        exclude_items=["item-9"],
        filter={"price": {"gte": 1, "not": [2.5]}},
    )
    assert not set(ids(found)) & set(pins)
    assert found["warnings"] == [
        f"pin: {one!r} is not in the answer: {reason}"
        for one, reason in zip(
            pins,
            (
                "it is hidden",
                "the user is not interested in it",
                "the history has it; exclude_seen: false would allow it",
                "exclude_items has it, or a page before",
                "the filter or the candidates leave it out",
                "this bundle has no such item",
            ),
            strict=True,
        )
    ]
    shown = {"unhide": ["item-33"]}
    assert shop.client.post("/admin/items", json=shown, headers=ADMIN).status_code == 200


@pytest.mark.parametrize(
    ("asked", "param", "said"),
    [
        ({"max_per": {"colour": 1}}, "max_per.colour", "cap by: category (text), brand (text)"),
        ({"max_per": {"price": 1}}, "max_per.price", "is a number; only attributes of texts"),
        ({"max_per": {"category": 0}}, "max_per.category", "greater than or equal to 1"),
        ({"max_per": 2}, "max_per", "valid dictionary"),
        ({"max_per": {"category": 2}, "horizon": 2}, "max_per", "sequences are not capped"),
        ({"pin": {"item-1": 1}, "horizon": 2}, "pin", "sequences have no pinned items"),
        ({"pin": {"item-1": 11}}, "pin", "ranks must be at most k"),
        ({"pin": {"item-1": 0}}, "pin.item-1", "greater than or equal to 1"),
        ({"pin": {"item-1": 2, "item-2": 2}}, "pin", "each item needs a rank of its own"),
        ({"boost": [{"filter": {}, "weight": 1}]}, "boost.0.filter", "at least 1 item"),
        (
            {"boost": [{"filter": {"brand": ["A"]}, "weight": 5.1}]},
            "boost.0.weight",
            "less than or equal to 5",
        ),
        ({"boost": [{"filter": {"brand": ["A"]}}]}, "boost.0.weight", "Field required"),
        (
            {"boost": [{"filter": {"colour": ["A"]}, "weight": 1}]},
            "boost.0.filter.colour",
            "no such attribute; filter by: category (text)",
        ),
        (
            {"boost": [{"filter": {"price": ["A"]}, "weight": 1}]},
            "boost.0.filter.price",
            "ask for numbers",
        ),
    ],
)
def test_wrong_rules_are_refused(shop: Service, asked: Any, param: str, said: str) -> None:
    assert said in refused(shop, param, **asked)


# --- sentences that say what to send --------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "param", "said"),
    [
        ({"filter": {"category": "Books"}}, "filter.category", 'must be a list such as ["A"]'),
        ({"filter": "Books"}, "filter", 'an object of attributes, such as {"category": ["A"]}'),
        ({"limit": 3}, "limit", "is no field here; there are user_id, k, horizon, "),
        ({"exclude_item": ["a"]}, "exclude_item", "did you mean exclude_items? There are user_id"),
        (
            {"boost": [{"filters": {"brand": ["A"]}, "filter": {"brand": ["A"]}, "weight": 1}]},
            "boost.0.filters",
            "did you mean filter? There are filter, weight",
        ),
        ({"filter": {"brand": {"none": ["A"]}}}, "filter.brand.none", "there are any, not, gt"),
    ],
)
def test_a_refusal_says_what_to_send_instead(
    shop: Service, asked: Any, param: str, said: str
) -> None:
    assert said in refused(shop, param, **asked)


def test_an_event_with_an_unknown_field_is_told_the_fields(shop: Service) -> None:
    event = {"event_id": "e", "user_id": "u", "item_id": "a", "event_type": "click", "price": 3}
    answer = shop.client.post("/events", json={"events": [event]})
    [rejected] = answer.json()["rejected"]
    assert rejected["message"] == (
        "price: is no field here; there are event_id, user_id, item_id, item_ids, event_type, "
        "timestamp, value, recommendation_id"
    )


def test_what_is_not_asked_for_is_not_there(shop: Service) -> None:
    [plain] = answered(shop, k=1)["items"]
    assert not {"categories", "attributes", "explanation"} & plain.keys()
    [told] = answered(shop, k=1, metadata=True, candidates=["new"])["items"]
    assert (told["categories"], told["attributes"]) == ([], {})
