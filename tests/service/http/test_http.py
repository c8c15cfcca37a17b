"""The service over real HTTP: answers, and every status with its error body."""

from __future__ import annotations

import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from running_service import Service, wait_until
from stores import shown, with_store
from tiny_bundle import NUM_ITEMS, POISON

from service.bundles.bundle import Bundle
from service.decoding import Job, Schedule

JSON = {"Content-Type": "application/json"}


def item_ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]


# Answers


def test_an_unknown_user_gets_popular_items(served: Service) -> None:
    answer = served.recommend(user_id="nobody", k=3)
    body = answer.json()
    assert item_ids(answer) == ["item-0", "item-1", "item-2"]
    assert body["served_by"] == "popular"
    assert body["degraded"] is False
    assert body["decoding"] is None
    assert body["history"] == {"source": "store", "length": 0, "unknown_items": 0}
    assert {item["score"] for item in body["items"]} == {None}
    assert "X-Unmask-Degraded" not in answer.headers


def test_a_history_is_posted_and_answered_by_the_model(served: Service, bundle: Bundle) -> None:
    history = [f"item-{n}" for n in (60, 90, 120)]
    served.send(*history, user_id="reader")
    answer = served.recommend(user_id="reader", k=5, r_warm=1, m_par=3, beam_width=20)
    body = answer.json()

    rows = bundle.catalogue.rows_of(history)
    job = Job(rows, 5, Schedule((1, 3)), 20, excluded=rows)
    [decoded], _ = bundle.decoder.decode([job])
    assert item_ids(answer) == [bundle.items[row].item_id for row in decoded.rows]
    assert [item["rank"] for item in body["items"]] == [1, 2, 3, 4, 5]
    first = body["items"][0]
    assert first["title"] == f"Title of {first['item_id']}"
    assert first["score"] == pytest.approx(decoded.scores[0], abs=1e-3)
    assert first["sid"] == bundle.catalogue.codes[decoded.rows[0]].tolist()
    assert body["served_by"] == "model"
    assert body["bundle"] == answer.headers["X-Unmask-Bundle"] == "tiny@1"
    assert body["decoding"] == {
        "r_warm": 1,
        "m_par": 3,
        "beam_width": 20,
        "ranking": "rows",
        "finish_rows": 0,
        "order": "confidence",
        "remask": 0,
        "guidance": 0.0,
        "retrieval": "generate",
        "adjusted": False,
        "schedule": [1, 3],
        "nfe": 2,
    }
    assert body["history"] == {"source": "store", "length": 3, "unknown_items": 0}
    assert list(body["timings_ms"]) == [
        "history",
        "queue",
        "encode",
        "denoise",
        "search",
        "map",
        "total",
    ]
    assert sum(body["timings_ms"].values()) <= 2 * body["timings_ms"]["total"] + 0.01
    assert uuid.UUID(body["recommendation_id"]).version == 7
    assert answer.headers["Server-Timing"].startswith("history;dur=")


def test_the_bundle_says_how_to_decode_unless_the_request_does(served: Service) -> None:
    default = served.recommend(user_id="x", history=["item-1"]).json()["decoding"]
    assert default == {
        "r_warm": 2,
        "m_par": 2,
        "beam_width": 10,
        "ranking": "rows",
        "finish_rows": 0,
        "order": "confidence",
        "remask": 0,
        "guidance": 0.0,
        "retrieval": "generate",
        "adjusted": False,
        "schedule": [1, 1, 2],
        "nfe": 3,
    }
    more = served.recommend(user_id="x", history=["item-1"], k=30, r_warm=0).json()
    assert more["decoding"]["beam_width"] == len(more["items"]) == 30
    assert more["decoding"]["schedule"] == [2, 2]


@pytest.mark.parametrize("ranking", ["rows", "best", "path"])
def test_a_request_chooses_its_ranking(served: Service, bundle: Bundle, ranking: Any) -> None:
    rows = bundle.catalogue.rows_of(["item-7", "item-80"])
    job = Job(rows, 10, Schedule((1, 1, 1, 1)), 10, excluded=rows, ranking=ranking)
    [decoded], _ = bundle.decoder.decode([job])
    body = {"history": ["item-7", "item-80"], "r_warm": 4, "ranking": ranking}
    answer = served.recommend(user_id="x", **body)
    assert item_ids(answer) == [bundle.items[row].item_id for row in decoded.rows]
    assert answer.json()["decoding"]["ranking"] == ranking
    scores = [item["score"] for item in answer.json()["items"]]
    assert scores == pytest.approx(decoded.scores.tolist(), abs=1e-3)


def test_few_rows_end_the_search_with_fewer_denoiser_calls(served: Service) -> None:
    def asked(**fields: Any) -> dict[str, Any]:
        # By path: ranked by rows the search may end by itself.
        fields |= {"history": ["item-7", "item-80"], "r_warm": 4, "ranking": "path"}
        answer = served.recommend(user_id="x", **fields)
        assert len(item_ids(answer)) == 10
        return dict(answer.json()["decoding"])

    assert asked()["nfe"] == asked(finish_rows=0)["nfe"] == 4
    assert asked(finish_rows=NUM_ITEMS)["nfe"] == 1
    early = asked(finish_rows=NUM_ITEMS - 20)
    assert 1 < early["nfe"] < 4
    assert (early["schedule"], early["finish_rows"]) == ([1, 1, 1, 1], NUM_ITEMS - 20)


def test_a_history_in_the_request_replaces_the_stored_one(served: Service) -> None:
    served.send("item-5", user_id="guest")
    with_history = served.recommend(user_id="guest", history=["item-60", "nonsense"]).json()
    assert with_history["history"] == {"source": "request", "length": 2, "unknown_items": 1}
    nobody = served.recommend(user_id="nobody-else", history=["item-60"]).json()
    assert nobody["items"] == with_history["items"]
    empty = served.recommend(user_id="guest", history=[]).json()
    assert empty["served_by"] == "popular"
    assert empty["degraded"] is False


def test_seen_and_excluded_items_stay_away(served: Service) -> None:
    history = [f"item-{n}" for n in range(40, 60)]  # longer than the model's window of 8
    served.send(*history, user_id="seen")
    everything = served.recommend(user_id="seen", k=100, exclude_seen=False)
    assert set(item_ids(everything)) & set(history)
    assert not set(item_ids(served.recommend(user_id="seen", k=100))) & set(history)
    best = item_ids(served.recommend(user_id="seen"))[:2]
    without = item_ids(served.recommend(user_id="seen", exclude_items=[*best, "nonsense"]))
    assert not set(without) & set(best)
    assert len(without) == 10
    popular = item_ids(served.recommend(user_id="nobody", k=2, exclude_items=["item-0"]))
    assert popular == ["item-1", "item-2"]


def test_a_list_is_short_only_when_no_more_items_qualify(served: Service) -> None:
    all_but_two = [f"item-{n}" for n in range(NUM_ITEMS - 2)]
    answer = served.recommend(user_id="x", history=["item-0"], exclude_items=all_but_two)
    assert sorted(item_ids(answer)) == ["item-198", "item-199"]
    everything = [*all_but_two, "item-198", "item-199"]
    assert item_ids(served.recommend(user_id="x", exclude_items=everything)) == []
    nothing_left = served.recommend(user_id="x", history=["item-0"], exclude_items=everything)
    assert item_ids(nothing_left) == []


def shelf(*numbers: int) -> dict[str, list[str]]:
    return {"category": [f"Shelves > {number}" for number in numbers]}


@pytest.mark.parametrize("decoding", [{}, {"r_warm": 0, "m_par": 4}, {"r_warm": 4}])
@pytest.mark.parametrize(
    ("wanted", "digits"),
    [
        (shelf(3), "3"),
        (shelf(1, 2, 3, 4, 5, 6, 7), "1234567"),
        ({"category": ["Shelves"]}, "0123456789"),
        ({}, "0123456789"),
    ],
)
def test_a_filter_is_obeyed_inside_the_search(
    served: Service, bundle: Bundle, decoding: dict[str, int], wanted: dict[str, Any], digits: str
) -> None:
    asked = {"user_id": "x", "history": ["item-60", "item-90"], "k": 15, **decoding}
    answer = served.recommend(**asked, filter=wanted)
    found = item_ids(answer)
    assert answer.json()["served_by"] == "model"
    assert len(found) == 15
    assert {item_id[-1] for item_id in found} <= set(digits)
    others = [item.item_id for item in bundle.items if item.item_id[-1] not in digits]
    assert found == item_ids(served.recommend(**asked, exclude_items=others))


def test_a_filter_and_exclusions_together(served: Service) -> None:
    rare = {"category": ["rare", "no item has this"]}
    asked = {"user_id": "x", "history": ["item-50"], "filter": rare}
    assert sorted(item_ids(served.recommend(**asked))) == ["item-0", "item-100", "item-150"]
    excluding = served.recommend(**asked, exclude_items=["item-100", "item-1"])
    assert sorted(item_ids(excluding)) == ["item-0", "item-150"]
    nothing_left = served.recommend(**asked, exclude_items=["item-0", "item-100", "item-150"])
    assert item_ids(nothing_left) == []
    unheard_of = served.recommend(user_id="x", history=["item-1"], filter={"category": ["Hats"]})
    assert item_ids(unheard_of) == []
    assert unheard_of.json()["degraded"] is False


def test_popular_items_obey_the_filter(served: Service) -> None:
    answer = served.recommend(user_id="nobody", k=3, filter=shelf(7, 4))
    assert answer.json()["served_by"] == "popular"
    assert item_ids(answer) == ["item-4", "item-7", "item-14"]
    excluded = [f"item-{n}" for n in range(0, 200, 10)]
    answer = served.recommend(user_id="nobody", k=50, filter=shelf(0, 1), exclude_items=excluded)
    assert item_ids(answer) == [f"item-{n}" for n in range(1, 200, 10)]
    assert item_ids(served.recommend(user_id="nobody", filter={"category": ["Hats"]})) == []


def test_an_unknown_attribute_is_refused_and_the_known_ones_named(served: Service) -> None:
    answer = served.recommend(user_id="nobody", filter={"colour": ["red"], "category": ["rare"]})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_request", "filter.colour")
    assert error["message"] == "items have no such attribute; filter by: category (text)"
    assert "red" not in answer.text


def test_a_history_the_bundle_does_not_know_is_flagged(served: Service) -> None:
    answer = served.recommend(user_id="x", history=["from-another-shop"], k=1)
    assert item_ids(answer) == ["item-0"]
    assert answer.json()["degraded_reasons"] == ["history_unknown"]
    assert answer.headers["X-Unmask-Degraded"] == "history_unknown"


def test_the_same_request_has_the_same_answer_in_company(served: Service) -> None:
    alone = served.recommend(user_id="x", history=["item-9", "item-70"]).json()["items"]

    def ask(n: int) -> httpx.Response:
        history = [POISON] if n % 4 == 0 else ["item-9", "item-70"]
        return served.recommend(user_id="x", history=history, beam_width=10 + n % 3)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(32)))
    for n, answer in enumerate(answers):
        if n % 4 == 0:
            assert answer.status_code == 500
        else:
            assert answer.status_code == 200
            same = answer.json()["items"]
            assert [item["item_id"] for item in same] == [item["item_id"] for item in alone]


# Events and histories


def test_a_wrong_event_does_not_stop_the_others(served: Service) -> None:
    good = {"event_id": "1", "user_id": "ev", "item_id": "item-1", "event_type": "purchase"}
    events = [
        good,
        {**good, "event_id": "2", "event_type": "stare"},
        {**good, "event_id": 3},
        "nonsense",
        {**good, "event_id": "4", "colour": "red"},
        good,
        {**good, "event_id": "5", "item_id": "item-2"},
    ]
    answer = served.client.post("/events", json={"events": events})
    body = answer.json()
    assert answer.status_code == 200
    assert (body["accepted"], body["duplicates"]) == (2, 1)
    assert [(entry["index"], entry["code"]) for entry in body["rejected"]] == [
        (1, "unknown_event_type"),
        (2, "invalid_event"),
        (3, "invalid_event"),
        (4, "invalid_event"),
    ]
    assert "stare" not in answer.text
    assert "colour" in body["rejected"][3]["message"]
    again = served.client.post("/events", json={"events": events}).json()
    assert (again["accepted"], again["duplicates"]) == (0, 3)
    history = served.client.get("/users/ev/history").json()
    assert history == {"user_id": "ev", "history": ["item-1", "item-2"], "refused": []}


def test_the_optional_fields_of_an_event_are_accepted_and_checked(served: Service) -> None:
    good = {"user_id": "extra", "item_id": "item-1", "event_type": "rating"}
    later = {"timestamp": 1_700_000_000.5, "value": 4.5, "recommendation_id": "r-1"}
    sooner = {"timestamp": 1_600_000_000, "value": -1}
    wrong: list[dict[str, Any]] = [
        {"timestamp": -1},
        {"timestamp": 1_700_000_000_000},  # milliseconds
        {"timestamp": "2026-01-01"},
        {"timestamp": 10**400},
        {"value": float("nan")},
        {"value": float("inf")},
        {"value": "4"},
        {"recommendation_id": ""},
        {"recommendation_id": "x" * 129},
        {"recommendation_id": 7},
    ]
    events = [
        {**good, "event_id": "1", **later},
        {**good, "event_id": "2", "item_id": "item-2", **sooner},
        *({**good, "event_id": "3", **fields} for fields in wrong),
    ]
    # Python's JSON writes NaN and Infinity, and reads them.
    answer = served.client.post("/events", content=json.dumps({"events": events}), headers=JSON)
    body = answer.json()
    assert body["accepted"] == 2
    named = [entry["message"].partition(":")[0] for entry in body["rejected"]]
    assert named == [next(iter(fields)) for fields in wrong]
    history = served.client.get("/users/extra/history").json()["history"]
    assert history == ["item-1", "item-2"]  # in order of arrival


def test_an_event_is_attributed_to_the_answer_it_names(served: Service, redis_url: str) -> None:
    answers = [("hit", shown("r-1", "item-1", "item-2"))]
    with_store(redis_url, lambda store: store.remember(answers))
    named = {"user_id": "hit", "recommendation_id": "r-1"}
    events = [
        {**named, "event_id": "1", "event_type": "impression", "item_ids": ["item-1", "item-2"]},
        {**named, "event_id": "2", "event_type": "click", "item_id": "item-2"},
        {**named, "event_id": "3", "event_type": "click", "item_id": "item-3"},
    ]
    body = served.client.post("/events", json={"events": events}).json()
    assert (body["accepted"], body["attributed"], body["rejected"]) == (3, 2, [])
    hits = 'unmask_hit_recommendations_total{bundle="tiny@1",event_type="click",variant="b"}'
    assert served.samples()[hits] == 1
    history = served.client.get("/users/hit/history").json()["history"]
    assert history == ["item-2", "item-3"]


def test_a_history_is_read_and_erased(served: Service) -> None:
    served.send("item-1", "item-2", "item-3", user_id="a b?")
    path = "/users/a%20b%3F/history"
    assert served.client.get(path).json()["history"] == ["item-1", "item-2", "item-3"]
    assert served.client.get(path, params={"limit": 2}).json()["history"] == ["item-2", "item-3"]
    for _ in range(2):
        erased = served.client.delete(path)
        assert (erased.status_code, erased.content) == (204, b"")
        assert served.client.get(path).json()["history"] == []


# Errors


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "code", "param"),
    [
        ("POST", "/recommend", {"content": "{", "headers": JSON}, 400, "malformed_json", None),
        ("POST", "/recommend", {"content": b"\xff", "headers": JSON}, 400, "malformed_json", None),
        ("POST", "/events", {"content": "[" * 99, "headers": JSON}, 400, "malformed_json", None),
        ("GET", "/nothing", {}, 404, "route_not_found", None),
        ("GET", "/users/a/b/history", {}, 404, "route_not_found", None),
        ("POST", "/recommend/", {"json": {"user_id": "x"}}, 404, "route_not_found", None),
        ("GET", "/recommend", {}, 405, "method_not_allowed", None),
        ("POST", "/recommend", {"content": b" " * (1 << 20) + b"{}", "headers": JSON}, 413,
         "body_too_large", None),
        ("POST", "/recommend", {"content": (b" " * (1 << 16) for _ in range(17)),
         "headers": JSON}, 413, "body_too_large", None),
        ("POST", "/recommend", {"data": {"user_id": "x"}}, 415, "unsupported_media_type", None),
        ("POST", "/events", {"content": '{"events": []}'}, 415, "unsupported_media_type", None),
        ("POST", "/recommend", {"json": {}}, 422, "invalid_request", "user_id"),
        ("POST", "/recommend", {"json": []}, 422, "invalid_request", "body"),
        ("POST", "/recommend", {"headers": JSON}, 422, "invalid_request", "body"),
        ("POST", "/events", {"json": {"events": []}}, 422, "invalid_request", "events"),
        ("POST", "/events", {"json": {"events": [{}] * 101}}, 422, "invalid_request", "events"),
        ("GET", "/users/%7Ba%7D/history", {}, 422, "invalid_request", "user_id"),
        ("GET", "/users/a/history?limit=0", {}, 422, "invalid_request", "limit"),
        ("GET", f"/users/a/history?limit={'9' * 20}", {}, 422, "invalid_request", "limit"),
        ("DELETE", "/users/%00/history", {}, 422, "invalid_request", "user_id"),
    ],
)  # fmt: skip
def test_every_refusal_has_the_same_body(
    served: Service,
    method: str,
    path: str,
    sent: dict[str, Any],
    status: int,
    code: str,
    param: str | None,
) -> None:
    answer = served.client.request(method, path, **sent)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "param", "retryable", "request_id", "details"}
    assert (error["code"], error["param"], error["retryable"]) == (code, param, False)
    assert error["request_id"] == answer.headers["X-Request-ID"]
    assert bool(error["details"]) == (status == 422)


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("user_id", ""),
        ("user_id", "x" * 257),
        ("user_id", "a/b"),
        ("user_id", "{a}"),
        ("user_id", "a\x00b"),
        ("user_id", "\ud800"),
        ("user_id", 7),
        ("k", 0),
        ("k", 101),
        ("k", "10"),
        ("k", True),
        ("k", 2.5),
        ("k", None),
        ("r_warm", -1),
        ("r_warm", 5),  # the bundle has four subspaces
        ("m_par", 0),
        ("m_par", 5),
        ("beam_width", 0),
        ("beam_width", 201),
        ("ranking", "worst"),
        ("ranking", ["rows"]),
        ("finish_rows", -1),
        ("finish_rows", 1_000_001),
        ("finish_rows", 2.5),
        ("order", "legal"),
        ("order", ["entropy"]),
        ("remask", -1),
        ("remask", 4),
        ("remask", 1.5),
        ("guidance", -0.1),
        ("guidance", 11),
        ("guidance", 1),  # the bundle's network was not trained for it
        ("history", ["item-1"] * 501),
        ("history.1", ["item-1", ""]),
        ("exclude_items", ["item-1"] * 1001),
        ("exclude_items", "item-1"),
        ("exclude_seen", "yes"),
        ("filter", ["rare"]),
        ("filter", {f"a{n}": ["x"] for n in range(9)}),
        ("filter.category", {"category": []}),
        ("filter.category", {"category": ["x"] * 51}),
        ("filter.category", {"category": "x"}),
        ("filter.category.1", {"category": ["x", ""]}),
        ("filter.category.0", {"category": ["x" * 501]}),
        ("filter.category.0", {"category": [True]}),
        ("filter.category", {"category": [1]}),
        ("filter.category", {"category": {"gte": 1}}),
        ("filter.category", {"category": {}}),
        ("filter.category", {"category": {"gte": None}}),
        ("filter.category.not.0", {"category": {"not": [None]}}),
        ("filter.category.like", {"category": {"like": "x"}}),
        ("filter.category.lt", {"category": {"lt": "x" * 41}}),
        ("timeout_ms", 0),
        ("timeout_ms", 10_001),
        ("limit", 3),
    ],
)
def test_a_value_out_of_bounds_names_its_parameter(served: Service, param: str, value: Any) -> None:
    body = {"user_id": "x", param.partition(".")[0]: value}
    answer = served.client.post("/recommend", content=json.dumps(body), headers=JSON)
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert error["code"] == "invalid_request"
    assert error["param"] == param
    assert "input" not in answer.json()["error"]


def test_beams_must_hold_k_items(served: Service) -> None:
    error = served.recommend(user_id="x", k=10, beam_width=9).json()["error"]
    assert error["code"] == "invalid_request"
    assert (error["param"], error["message"]) == ("beam_width", "beam_width: must be at least k")


def test_a_refusal_never_repeats_the_value(served: Service) -> None:
    secret = "hunter2/"
    answer = served.recommend(user_id=secret, k=secret, history=secret, exclude_seen=secret)
    assert answer.status_code == 422
    assert "hunter2" not in answer.text


def test_a_made_up_name_is_cut(served: Service) -> None:
    name = "x" * 100_000
    for path, body in (
        ("/recommend", {"user_id": "x", name: 1}),
        ("/events", {"events": [{name: 1, "event_id": "1", "user_id": "x", "item_id": "a",
                                 "event_type": "click"}]}),
    ):  # fmt: skip
        answer = served.client.post(path, content=json.dumps(body), headers=JSON)
        assert answer.status_code in (200, 422)
        assert "is no field here; " in answer.text
        assert len(answer.text) < 2000


def test_a_bug_is_a_500_with_the_same_body(served: Service) -> None:
    answer = served.recommend(user_id="x", history=[POISON])
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert (error["code"], error["retryable"]) == ("internal_error", False)
    assert answer.headers["X-Request-ID"] == error["request_id"]
    assert "ONNX" not in answer.text
    wait_until(lambda: error["request_id"] in served.stdout)
    [logged] = [line for line in served.stdout.splitlines() if "decode_failed" in line
                and error["request_id"] in line]  # fmt: skip
    assert "out of data bounds" in json.loads(logged)["exception"]


# Headers, documents, metrics, log


def test_a_request_id_is_kept_when_it_is_harmless(served: Service) -> None:
    kept = served.client.get("/info", headers={"X-Request-ID": "order-66.a_B"})
    assert kept.headers["X-Request-ID"] == "order-66.a_B"
    for bad in ("two words", "x" * 129, "<script>", ""):
        replaced = served.client.get("/info", headers={"X-Request-ID": bad})
        assert len(replaced.headers["X-Request-ID"]) == 32


def test_info_says_what_runs(served: Service) -> None:
    info = served.client.get("/info").json()
    assert info["bundle"]["name"] == "tiny"
    assert info["bundle"]["num_items"] == NUM_ITEMS
    assert info["bundle"]["decoding"] == {
        "r_warm": 2,
        "m_par": 2,
        "beam_width": 10,
        "ranking": "rows",
        "finish_rows": 0,
        "order": "confidence",
        "remask": 0,
        "guidance": 0.0,
        "retrieval": "generate",
    }
    assert info["bundle"]["knows_held_out"] is False
    assert info["bundle"]["family"] == "mdgr"
    assert info["bundle"]["autoregressive"] is False
    assert info["bundle"]["history_dropout"] == 0
    assert info["bundle"]["dense"] is False
    assert info["limits"]["max_k"] == 100
    assert info["history_store"] == "redis"
    assert "unix:" not in json.dumps(info)
    assert "pepper" not in json.dumps(info)


def test_health_has_two_names(served: Service) -> None:
    for path in ("/health/live", "/livez"):
        assert served.client.get(path).json()["status"] == "live"
    for path in ("/health/ready", "/readyz"):
        assert served.client.get(path).json() == {"status": "ready", "reasons": []}
    for path in ("/health/live", "/livez", "/health/ready", "/readyz"):
        head = served.client.head(path)
        assert (head.status_code, head.content) == (200, b"")


def test_the_openapi_document_declares_the_error_body(served: Service) -> None:
    document = served.client.get("/openapi.json").json()
    declared = {
        (path, status): answer["content"]["application/json"]["schema"]["$ref"].split("/")[-1]
        for path, methods in document["paths"].items()
        for operation in methods.values()
        for status, answer in operation["responses"].items()
        if int(status) >= 400
    }
    health = {path for path, _ in declared if path.startswith("/health/")}
    assert health == {"/health/live", "/health/ready"}
    errors = {key: body for key, body in declared.items() if key[0] not in health}
    assert set(errors.values()) == {"ErrorResponse"}
    statuses = {status for path, status in errors if path == "/recommend"}
    assert statuses == {"400", "404", "408", "413", "415", "422", "429", "500", "503", "504"}
    event = document["components"]["schemas"]["EventsRequest"]["properties"]["events"]
    assert event["items"]["$ref"].endswith("/Event")


def test_metrics_count_and_stay_few(served: Service) -> None:
    before = served.samples()
    served.recommend(
        user_id="x", history=["item-1", "nonsense"], k=7, filter={"category": ["Shelves"]}
    )
    served.client.get("/no/such/route")
    assert served.client.request("PROPFIND", "/recommend").status_code == 405
    after = served.samples()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    ok = 'unmask_recommend_requests_total{bundle="tiny@1",outcome="ok",variant="default"}'
    assert grown(ok) == 1
    status = 'unmask_http_requests_total{method="POST",route="/recommend",status="200"}'
    assert grown(status) == 1
    lost = 'unmask_http_requests_total{method="GET",route="other",status="404"}'
    assert grown(lost) == 1
    assert grown('unmask_recommend_duration_seconds_count{served_by="model"}') == 1
    assert grown('unmask_stage_duration_seconds_count{stage="denoise"}') == 1
    assert grown("unmask_nfe_sum") == 3
    assert grown("unmask_denoiser_calls_total") == 3
    assert grown("unmask_nfe_saved_total") == 0
    assert grown("unmask_survivors_count") == 1
    assert grown("unmask_survivors_sum") > 7
    assert grown("unmask_invalid_sids_total") == 0
    assert grown("unmask_items_returned_sum") == 7
    assert grown("unmask_unknown_history_items_total") == 1
    assert grown("unmask_batch_requests_count") == 1
    assert grown("unmask_filtered_requests_total") == 1
    assert after["unmask_ready"] == 1
    assert after["unmask_queue_rows"] == 0
    assert after['unmask_bundle_info{name="tiny",version="1"}'] == 1
    assert len(after) < 1000
    assert not [
        name for name in after if "nonsense" in name or "no/such" in name or "PROPFIND" in name
    ]


def test_an_unchanged_history_is_not_encoded_again(served: Service) -> None:
    def lookups() -> tuple[float, float]:
        found = served.samples()
        hits, misses = (
            found.get(f'unmask_encoder_cache_total{{result="{result}"}}', 0)
            for result in ("hit", "miss")
        )
        return hits, misses

    hits, misses = lookups()
    served.send("item-11", "item-42", user_id="regular")
    first = served.recommend(user_id="regular").json()
    wait_until(lambda: lookups() == (hits, misses + 1))
    again = served.recommend(user_id="regular", r_warm=0).json()
    wait_until(lambda: lookups() == (hits + 1, misses + 1))
    assert served.recommend(user_id="regular").json()["items"] == first["items"] != again["items"]
    wait_until(lambda: lookups() == (hits + 2, misses + 1))
    served.send("item-77", user_id="regular")
    assert served.recommend(user_id="regular").json()["items"] != first["items"]
    wait_until(lambda: lookups() == (hits + 2, misses + 2))


def test_the_log_has_one_line_a_request_and_no_ids_in_clear(served: Service) -> None:
    headers = {"X-Request-ID": "find-me"}
    body = {"user_id": "very-secret-user", "history": ["item-1"], "k": 2}
    served.client.post("/recommend", json=body, headers=headers)
    served.client.get("/users/very-secret-user/history")
    wait_until(lambda: "find-me" in served.stdout)
    lines = [json.loads(line) for line in served.stdout.splitlines()]
    [line] = [line for line in lines if line.get("request_id") == "find-me"]
    assert line["event"] == "request"
    assert (line["route"], line["status"], line["outcome"]) == ("/recommend", 200, "ok")
    assert (line["served_by"], line["nfe"], line["n_items"]) == ("model", 3, 2)
    assert len(line["user_hash"]) == 12
    assert "very-secret-user" not in served.stdout
    assert "item-1" not in served.stdout
    assert served.stderr.count("\n") == served.stderr.count("onnxruntime")  # nothing of ours


def test_routes_of_operators_that_are_switched_off_name_the_setting(served: Service) -> None:
    for path in ("/admin/items", "/admin/drain"):
        answer = served.client.post(path, json={})
        assert answer.status_code == 404
        assert answer.json()["error"]["message"] == (
            "there are no routes under /admin: UNMASK_ADMIN_KEYS is not set"
        )
    elsewhere = served.client.get("/administer").json()["error"]
    assert elsewhere["message"] == "there is no such route"
