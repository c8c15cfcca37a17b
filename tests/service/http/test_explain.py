"""POST /explain beside POST /recommend: the same answer, and reasons that can be counted again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from running_service import Service, service_process
from started_lifecycle import tell
from tiny_bundle import DENSE, EMBEDDING_DIMS, NUM_ITEMS, write_tiny_bundle

from service.bundles.bundle import Bundle
from service.lifecycle import Lifecycle

ROOT = Path(__file__).resolve().parents[3]
ADMIN = {"Authorization": "Bearer an-admin-key"}
HISTORY = ["item-7", "item-80", "item-7"]
COLOURS = ("red", "green")
# Settings of a request, whether a bundle's network knows more than the next code or not.
SETTINGS: list[dict[str, Any]] = [
    {},
    {"r_warm": 0, "m_par": 4},
    {"r_warm": 4, "m_par": 1, "ranking": "path"},
    {"r_warm": 1, "m_par": 3, "ranking": "best", "beam_width": 12},
    {"r_warm": 2, "m_par": 1, "order": "entropy"},
    {"r_warm": 1, "m_par": 1, "order": "random", "ranking": "path"},
    {"r_warm": 4, "m_par": 1, "order": "left_to_right"},
    {"finish_rows": 60, "r_warm": 4, "m_par": 1},
    {"remask": 2, "r_warm": 2, "m_par": 2},
    {"remask": 1, "ranking": "path", "r_warm": 2, "m_par": 2},
    {"exclude_seen": False, "filter": {"category": ["Shelves > 7", "Shelves > 8", "rare"]}},
    {"boost": [{"filter": {"category": ["rare"]}, "weight": 2}], "k": 5},
    {"guidance": 1.5, "r_warm": 2, "m_par": 2},
    {"retrieval": "fused", "r_warm": 2, "m_par": 2},
    {"max_per": {"category": 1}, "k": 8},
    {"explore": 0.3, "pin": {"item-30": 2}},
    {"schedule": "auto"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """why@1: 200 items with a colour, a dense head, history dropout."""
    folder = tmp_path_factory.mktemp("why")
    return write_tiny_bundle(
        folder / "bundles" / "why" / "1",
        name="why",
        attributes=lambda row: {"colour": (COLOURS[row % 2],)},
        dense=DENSE,
        history_dropout=0.1,
        max_horizon=3,
    )


@pytest.fixture(scope="module")
def why(
    folder: Path, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Serves why@1; one item is added, one is hidden."""
    with service_process(
        tmp_path_factory.mktemp("why-served"),
        bundles_dir=folder.parents[1],
        bundle="why@1",
        redis_url=redis_url,
        admin_keys="an-admin-key",
    ) as service:
        new = {"item_id": "new", "title": "New", "embedding": [0.5] * EMBEDDING_DIMS}
        changes = {"add": [new], "hide": [{"item_id": "item-9"}]}
        answer = service.client.post("/admin/items", json=changes, headers=ADMIN)
        assert answer.json()["hidden"] == 1, answer.text
        yield service


def explained(service: Service, item_id: str, **asked: Any) -> dict[str, Any]:
    body = {"user_id": "u", "history": HISTORY, **asked, "item_id": item_id}
    answer = service.client.post("/explain", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert_sound(found)
    return found


def assert_sound(told: dict[str, Any]) -> None:
    """What every explanation must fulfil."""
    parts, steps = told["score_parts"], told["steps"]
    if parts is not None:
        assert sum(parts.values()) == pytest.approx(told["score"], abs=1e-6)
    assert (told["rank"] is None) == (told["in_answer_as"] is None)
    assert (told["rank"] is None) == (told["reason"] is not None)
    assert (told["died_at_call"] is not None) == (told["reason"] == "beam_died")
    sid = told["item"]["sid"]
    assert [code["code"] for code in told["codes"]] == sid
    before: list[int] = []
    for step in steps:
        assert step["survivors"] <= step["survivors_before"]
        for filled in step["filled"]:
            assert filled["code"] == sid[filled["position"]]
            assert 0 <= filled["probability"] <= 1
            assert filled["settled"] == (filled["num_codes"] == 1)
            if step["kind"] == "fill":
                assert filled["position"] not in before
                before.append(filled["position"])
        for dead in step["dead_beams"]:
            assert dead["place"] > step["kept"]
            assert dead["survivors"] >= 1
    if steps and steps[-1]["lived"]:
        assert sorted(before) == list(range(len(sid)))
    if told["because"] is not None:
        assert sum(one["share"] for one in told["because"]) == pytest.approx(1, abs=1e-3)
        assert told["because"][0]["title"] in told["sentences"][1]
    assert all(sentence.endswith((".", "!")) for sentence in told["sentences"])
    assert "nan" not in str(told["sentences"])


@pytest.mark.parametrize("asked", SETTINGS, ids=str)
def test_every_item_of_an_answer_has_its_rank(why: Service, asked: dict[str, Any]) -> None:
    asked = {"user_id": "u", "history": HISTORY, **asked}
    answer = why.recommend(**asked).json()
    assert answer["items"], answer
    for item in answer["items"]:
        told = explained(why, item["item_id"], **asked)
        assert (told["rank"], told["score"]) == (item["rank"], item["score"])
        assert told["decoding"] == answer["decoding"]
        assert told["item"]["sid"] == item["sid"]
        assert told["warnings"] == answer["warnings"]
        expected = "pinned" if item["pinned"] else "explored" if item["explored"] else "found"
        assert told["in_answer_as"] == expected
        assert (told["score_parts"] is None) == item["pinned"]
        if asked.get("ranking") == "path" and "remask" not in asked:
            assert told["score_parts"]["normalisation"] == 0
        if asked.get("retrieval") != "fused" and not item["pinned"]:
            assert told["steps"][-1]["lived"]
            if "max_per" not in asked and "explore" not in asked:
                assert told["steps"][-1]["place"] == item["rank"]
            assert told["score_parts"]["dense"] == 0


@pytest.mark.parametrize("asked", SETTINGS[:11], ids=str)
def test_what_is_not_in_the_answer_was_worse_or_died(why: Service, asked: dict[str, Any]) -> None:
    answer = why.recommend(**{"user_id": "u", "history": HISTORY, **asked}).json()
    inside = {item["item_id"] for item in answer["items"]}
    calls = len(answer["decoding"]["schedule"])
    reasons = set()
    for row in range(0, NUM_ITEMS, 13):
        if f"item-{row}" in inside:
            continue
        told = explained(why, f"item-{row}", **asked)
        reasons.add(told["reason"])
        if told["reason"] == "beam_died":
            last = told["steps"][-1]
            assert (last["lived"], last["call"]) == (False, told["died_at_call"])
            assert last["kept"] < last["place"]
            assert last["score"] <= last["last_kept_score"] + 1e-4
            assert told["score"] is None
            assert f"died at call {told['died_at_call']}" in told["sentences"][0]
            assert told["died_at_call"] < calls
        elif told["reason"] == "lower_score" and told["score"] is not None:
            assert told["score"] <= answer["items"][-1]["score"] + 1e-4
    assert reasons <= {"beam_died", "lower_score", "seen", "filtered", "hidden"}
    if asked == SETTINGS[1]:  # one call, which scores every item
        assert "beam_died" not in reasons


def test_it_says_what_leaves_an_item_out(why: Service) -> None:
    why.send("item-7", "item-80", user_id="no")
    no = {"event_id": "r", "user_id": "no", "item_id": "item-21", "event_type": "not_interested"}
    assert why.client.post("/events", json={"events": [no]}).json()["accepted"] == 1
    first = why.recommend(user_id="u", history=HISTORY).json()
    shown = [item["item_id"] for item in first["items"]]
    page = {"after": first["recommendation_id"]}
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("item-7", {}, "seen"),
        ("item-9", {}, "hidden"),
        ("item-21", {"user_id": "no", "history": None}, "refused"),
        (shown[0], {"exclude_items": [shown[0]]}, "excluded"),
        (shown[0], page, "excluded"),
        (shown[0], {"filter": {"colour": ["blue"]}}, "filtered"),
        (shown[0], {"candidates": ["item-3"]}, "filtered"),
        ("item-150", {"k": 1, "r_warm": 0, "m_par": 4}, "lower_score"),
    ]
    for item_id, asked, reason in cases:
        told = explained(why, item_id, **asked)
        assert (told["rank"], told["reason"]) == (None, reason), item_id
        assert told["sentences"][0].startswith("It is not in the answer")
        if reason != "lower_score":
            assert told["steps"] == []
            assert len(told["codes"]) == 4
    asked = {"max_per": {"colour": 1}, "r_warm": 0, "m_par": 4}
    answer = why.recommend(user_id="u", history=HISTORY, **asked).json()
    taken = {item["item_id"] for item in answer["items"]}
    for item in why.recommend(user_id="u", history=HISTORY, r_warm=0, m_par=4).json()["items"]:
        told = explained(why, item["item_id"], **asked)
        assert told["reason"] == (None if item["item_id"] in taken else "capped")


def test_only_what_a_cap_has_no_room_for_is_capped(why: Service) -> None:
    asked = {"max_per": {"colour": 3}, "k": 5, "r_warm": 0, "m_par": 4}
    answer = why.recommend(user_id="u", history=HISTORY, **asked).json()
    rows = [item["item_id"].partition("-")[2] for item in answer["items"]]
    counts = [sum(row.isdigit() and int(row) % 2 == colour for row in rows) for colour in (0, 1)]
    assert min(counts) < 3, "there is room for one colour"
    for item in why.recommend(user_id="u", history=HISTORY, k=40, r_warm=0, m_par=4).json()[
        "items"
    ]:
        row = item["item_id"].partition("-")[2]
        if item["item_id"] not in {one["item_id"] for one in answer["items"]} and row.isdigit():
            told = explained(why, item["item_id"], **asked)
            is_full = counts[int(row) % 2] >= 3
            assert told["reason"] == ("capped" if is_full else "lower_score")


def test_survivors_codes_and_shares_are_counted_again(why: Service, folder: Path) -> None:
    bundle = Bundle.load(folder)
    codes = bundle.catalogue.codes
    asked = {"r_warm": 4, "m_par": 1, "ranking": "path"}
    answer = why.recommend(user_id="u", history=HISTORY, **asked).json()
    gone = bundle.catalogue.rows_of([*HISTORY, "item-9"])
    allowed = np.setdiff1d(np.arange(NUM_ITEMS), gone)
    for item in answer["items"]:
        [row] = bundle.catalogue.rows_of([item["item_id"]]).tolist() or [None]
        if row is None:  # the item that was added
            continue
        told = explained(why, item["item_id"], **asked)
        left = allowed
        for step in told["steps"]:
            new = 1  # the item that was added may be there too
            assert 0 <= step["survivors_before"] - len(left) <= new
            for filled in step["filled"]:
                left = left[codes[left, filled["position"]] == filled["code"]]
            assert 0 <= step["survivors"] - len(left) <= new
        every = [filled for step in told["steps"] for filled in step["filled"]]
        assert told["score_parts"]["network"] == pytest.approx(
            sum(np.log(filled["network_probability"]) for filled in every),
            abs=1e-3,
        )
        for code in told["codes"]:
            position = code["position"]
            own = np.flatnonzero(codes[:, position] == code["code"])
            assert 0 <= code["num_items"] - len(own) <= 1
            first = [bundle.items[one].item_id for one in own if one != row][:3]
            assert [one["item_id"] for one in code["items"]][: len(first)] == first
            sharing = [one["item_id"] for one in code["history"]]
            history = bundle.catalogue.rows_of(["item-7", "item-80"])
            expected = [bundle.items[one].item_id for one in history if one in own]
            assert sharing == expected
            for typical in code["categories"]:
                has = [typical["category"] in _paths(bundle.items[one].categories) for one in own]
                assert typical["share"] == pytest.approx(np.mean(has), abs=0.1)
                assert typical["share"] > typical["share_of_all"]
                every = [typical["category"] in _paths(one.categories) for one in bundle.items]
                assert typical["share_of_all"] == pytest.approx(np.mean(every), abs=0.01)


def _paths(categories: tuple[str, ...]) -> set[str]:
    return {part for path in categories for part in (path, path.split(" > ")[0])}


def test_the_prior_names_the_history_items_it_comes_from(why: Service) -> None:
    """After an item comes the next row, half as often the one after it; each step back halves."""
    told = explained(why, "item-81", r_warm=0, m_par=4)
    assert [(one["item_id"], one["share"]) for one in told["because"]] == [("item-80", 1)]
    memory = 0.5**1 * 1.0
    expected = 0.5 * np.log1p(memory / 0.5)
    assert told["score_parts"]["neighbour_prior"] == pytest.approx(expected, abs=1e-3)
    told = explained(why, "item-8", history=["item-6", "item-7"])
    shares = {one["item_id"]: one["share"] for one in told["because"]}
    assert shares == pytest.approx({"item-7": 0.8, "item-6": 0.2}, abs=1e-3)
    assert explained(why, "item-150")["because"] is None
    seen = explained(why, "item-7", exclude_seen=False, r_warm=0, m_par=4)
    assert seen["score_parts"]["repeat_bias"] == -1


def test_without_a_history_popular_items_answer(why: Service) -> None:
    first = explained(why, "item-0", user_id="nobody", history=[])
    assert (first["rank"], first["in_answer_as"], first["score"]) == (1, "popular", None)
    assert first["served_by"] == "popular"
    assert (first["steps"], first["because"], first["score_parts"]) == ([], None, None)
    last = explained(why, "item-150", user_id="nobody", history=[])
    assert (last["reason"], last["steps"]) == ("lower_score", [])


def test_what_cannot_be_explained_is_refused(why: Service) -> None:
    body = {"user_id": "u", "history": HISTORY, "item_id": "item-3"}
    for asked, status, param in (
        ({"item_id": "none"}, 404, None),
        ({"item_id": ""}, 422, "item_id"),
        ({"horizon": 2}, 422, "horizon"),
        ({"retrieval": "dense"}, 422, "retrieval"),
        ({"r_warm": 5}, 422, "r_warm"),
        ({"colour": "red"}, 422, "colour"),
    ):
        answer = why.client.post("/explain", json={**body, **asked})
        assert answer.status_code == status, asked
        assert answer.json()["error"]["param"] == param
    del body["item_id"]
    assert why.client.post("/explain", json=body).json()["error"]["param"] == "item_id"


def test_it_is_not_counted_or_remembered_as_an_answer(why: Service) -> None:
    counted = ("unmask_recommend_requests_total", "unmask_nfe_count", "unmask_items_returned_count")

    def counts() -> dict[str, float]:
        return {name: value for name, value in why.samples().items() if name.startswith(counted)}

    before = counts()
    told = explained(why, "item-81")
    assert counts() == before
    assert "recommendation_id" not in told
    route = 'unmask_http_requests_total{method="POST",route="/explain",status="200"}'
    assert why.samples()[route] > 0
    answer = why.client.post("/explain", json={"user_id": "u", "item_id": "item-3"})
    assert answer.headers["X-Unmask-Bundle"] == "why@1"
    assert "total;dur=" in answer.headers["Server-Timing"]


@pytest.mark.parametrize("family", ["demo", "demo-maskgr", "demo-tiger", "demo-liger"])
def test_every_family_is_explained(family: str, redis_url: str) -> None:
    [path] = [one for one in (ROOT / "models_store" / family).iterdir() if one.is_dir()]
    bundle = Bundle.load(path)
    manifest, history = bundle.manifest, list(bundle.held_out[0].history[-6:])
    asked: list[dict[str, Any]] = [{"retrieval": "generate"}]
    if manifest.dense:
        asked.append({"retrieval": "fused"})
    if not manifest.autoregressive:
        asked.append({"r_warm": 2, "m_par": 2, "ranking": "path"})

    async def story(_: Lifecycle, client: httpx.AsyncClient) -> None:
        for one in asked:
            body = {"user_id": "u", "history": history, "retrieval": "generate", **one}
            answer = (await client.post("/recommend", json=body)).json()
            for item in [*answer["items"][:3], {"item_id": bundle.items[0].item_id}]:
                sent = {**body, "item_id": item["item_id"]}
                found = await client.post("/explain", json=sent)
                assert found.status_code == 200, found.text
                told = found.json()
                assert_sound(told)
                if "rank" in item:
                    assert (told["rank"], told["score"]) == (item["rank"], item["score"])
                assert any(code["categories"] for code in told["codes"])
                if manifest.autoregressive:
                    steps = told["steps"]
                    order = [filled["position"] for step in steps for filled in step["filled"]]
                    assert order == list(range(len(order)))

    tell(story, redis_url=redis_url, bundle=path)
