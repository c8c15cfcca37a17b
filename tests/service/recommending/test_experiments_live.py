"""An experiment with two bundles, and answers with next pages, over real HTTP."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running_service import Service, service_process, wait_until
from tiny_bundle import write_tiny_bundle

from service.recommending.experiment import load_experiment

EXPERIMENT = """
name = "prior"
salt = "s"

[[variants]]
name = "old"
weight = 1
bundle = "ab@1"

[[variants]]
name = "new"
weight = 1
bundle = "ab@2"

[[variants]]
name = "quick"
weight = 1
r_warm = 0
m_par = 4
"""
HISTORY = ["item-3", "item-40"]


@pytest.fixture(scope="module")
def service(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """ab@1 is active, ab@2 belongs to a variant."""
    folder = tmp_path_factory.mktemp("experiment")
    write_tiny_bundle(folder / "ab" / "1", name="ab")
    write_tiny_bundle(folder / "ab" / "2", name="ab", version="2", offset=5)
    (folder / "experiment.toml").write_text(EXPERIMENT)
    with service_process(
        folder / "run",
        bundles_dir=folder,
        bundle="ab@1",
        experiment_file=folder / "experiment.toml",
        redis_url=redis_url,
        admin_keys="an-admin-key",
    ) as service:
        yield service


def recommended(service: Service, user_id: str, **body: Any) -> dict[str, Any]:
    answer = service.recommend(user_id=user_id, k=5, **body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def item_ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def test_a_user_gets_the_same_variant_and_what_it_says(service: Service, tmp_path: Path) -> None:
    (tmp_path / "e.toml").write_text(EXPERIMENT)
    experiment = load_experiment(tmp_path / "e.toml")
    found = defaultdict(set)
    for number in range(30):
        user_id = f"e-{number}"
        first, second = (recommended(service, user_id, history=HISTORY) for _ in range(2))
        assert first["experiment"] == second["experiment"]
        variant = first["experiment"]["variant"]
        assert variant == experiment.variant_of(user_id).name
        found[variant].add((first["bundle"], tuple(first["decoding"]["schedule"])))
        found[f"{variant} items"].add(tuple(item_ids(first)))
    assert found["old"] == {("ab@1", (1, 1, 2))}
    assert found["new"] == {("ab@2", (1, 1, 2))}
    assert found["quick"] == {("ab@1", (4,))}
    assert len(found["old items"]) == len(found["new items"]) == 1
    assert found["old items"] != found["new items"]


def test_a_request_with_its_own_decoding_is_left_out(service: Service) -> None:
    for n in range(6):  # of every variant
        for asked in ({"r_warm": 1}, {"schedule": "auto"}):
            answer = recommended(service, f"e-pinned-{n}", history=HISTORY, **asked)
            assert answer["experiment"] == {"name": "prior", "variant": "pinned"}
            assert answer["bundle"] == "ab@1"


def test_what_an_operator_asks_counts_for_no_variant(service: Service) -> None:
    admin = {"Authorization": "Bearer an-admin-key"}
    for n in range(6):  # users of every variant
        body = {"user_id": f"e-{n}", "history": HISTORY}
        sent = service.client.post("/admin/bundles/ab@2/recommend", json=body, headers=admin)
        assert (sent.json()["bundle"], sent.json()["experiment"]) == ("ab@2", None)
        assert sent.json()["decoding"]["schedule"] == [1, 1, 2]


def test_both_bundles_are_in_memory(service: Service) -> None:
    assert service.roles() == {"ab@1": ["active", "experiment"], "ab@2": ["experiment"]}


def test_hits_are_counted_for_their_variant(service: Service) -> None:
    before = service.samples()
    answer = recommended(service, "e-hit", history=HISTORY)
    variant = answer["experiment"]["variant"]
    click = {
        "user_id": "e-hit",
        "item_id": item_ids(answer)[2],
        "event_type": "click",
        "recommendation_id": answer["recommendation_id"],
    }

    def attributed(number: int) -> bool:
        events = {"events": [click | {"event_id": f"hit-{number}"}]}
        sent = service.client.post("/events", json=events).json()
        return sent["attributed"] == 1

    numbers = iter(range(100))
    wait_until(lambda: attributed(next(numbers)))  # it is stored after it was sent
    assert attributed(1000)
    labels = f'bundle="{answer["bundle"]}",'
    hits = f'unmask_hit_recommendations_total{{{labels}event_type="click",variant="{variant}"}}'
    events = f'unmask_attributed_events_total{{{labels}event_type="click",variant="{variant}"}}'
    shown = f'unmask_recommendations_total{{{labels}variant="{variant}"}}'
    after = service.samples()
    assert after[hits] - before.get(hits, 0) == 1
    assert after[events] - before.get(events, 0) == 2
    assert after[shown] - before.get(shown, 0) == 1


def test_pages_do_not_repeat_and_end_when_nothing_is_left(service: Service) -> None:
    whole = item_ids(recommended(service, "e-pages", history=HISTORY, beam_width=100) | {})
    seen: list[str] = []
    page = recommended(service, "e-pages", history=HISTORY)
    for _ in range(4):
        assert not set(item_ids(page)) & {*seen, *HISTORY}
        seen += item_ids(page)
        page = recommended(service, "e-pages", history=HISTORY, after=page["recommendation_id"])
    assert len(seen) == len(set(seen)) == 20
    assert whole[0] in seen
    last = page["recommendation_id"]
    excluded = [f"item-{number}" for number in range(200)]
    nothing = recommended(service, "e-pages", history=HISTORY, after=last, exclude_items=excluded)
    assert nothing["items"] == []


def test_a_page_after_an_answer_of_somebody_else_is_not_found(service: Service) -> None:
    page = recommended(service, "e-pages", history=HISTORY)
    answer = service.recommend(user_id="e-other", after=page["recommendation_id"])
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "recommendation_not_found")


def test_explanations_tell_the_way_of_every_item(service: Service) -> None:
    answer = recommended(service, "e-why", history=HISTORY, explain=True, r_warm=2, m_par=2)
    for item in answer["items"]:
        why = item["explanation"]
        assert len(why["filled_by_call"]) == len(item["sid"]) == len(why["log_probs"])
        assert set(why["filled_by_call"]) <= set(range(1, answer["decoding"]["nfe"] + 1))
        assert len(why["survivors"]) == len(why["beam_scores"]) == answer["decoding"]["nfe"]
        assert why["survivors"] == sorted(why["survivors"], reverse=True)
        assert why["beam_scores"][-1] == pytest.approx(item["score"], abs=1e-3)
        for shared in why["history_in_common"]:
            assert shared["item_id"] in HISTORY
            sid = service.client.get(f"/items/{shared['item_id']}").json()["sid"]
            same = sum(a == b for a, b in zip(sid, item["sid"], strict=True))
            assert shared["codes"] == same > 0
    plain = recommended(service, "e-why", history=HISTORY, r_warm=2, m_par=2)
    assert not any("explanation" in item for item in plain["items"])
    assert item_ids(plain) == item_ids(answer)


def test_several_requests_at_once(service: Service) -> None:
    good = {"user_id": "e-batch", "history": HISTORY, "k": 3}
    requests = [good, good | {"r_warm": 9}, good | {"k": 1}, {"user_id": "e-nobody"}]
    body = {"requests": requests, "timeout_ms": 10_000}
    answered = 'unmask_recommend_duration_seconds_count{served_by="model"}'
    before = service.samples()[answered]
    results = service.client.post("/recommend/batch", json=body).json()["results"]
    assert service.samples()[answered] == before  # the SLO does not hold for bulk
    assert [result["status"] for result in results] == [200, 422, 200, 200]
    assert [len(r["response"]["items"]) for r in results if r["response"]] == [3, 1, 10]
    assert results[1]["error"]["param"] == "r_warm"
    assert results[0]["error"] is None
    alone = recommended(service, "e-batch", history=HISTORY)
    assert item_ids(results[0]["response"]) == item_ids(alone)[:3]
    bundle, variant = alone["bundle"], alone["experiment"]["variant"]
    of_variant = f'bundle="{bundle}",outcome="error",variant="{variant}"'
    assert service.samples()[f"unmask_recommend_requests_total{{{of_variant}}}"] == 0
    inner = service.client.post("/recommend/batch", json={"requests": [good | {"timeout_ms": 5}]})
    [refused] = inner.json()["results"]
    assert (refused["status"], refused["error"]["param"]) == (422, "timeout_ms")
