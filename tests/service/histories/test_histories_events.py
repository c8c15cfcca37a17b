"""Which events are stored, which are counted, and what is counted of them."""

from __future__ import annotations

from typing import Any

from stores import shown, with_store

from service.histories.events import store_events
from service.histories.redis_store import RedisHistoryStore
from service.schemas.events import EventsRequest, EventsResponse
from service.telemetry.metrics import Metrics


def post(
    redis_url: str, metrics: Metrics, *events: dict[str, Any], **types: list[str]
) -> EventsResponse:
    body = EventsRequest.model_validate(
        {"events": [{"event_id": str(n), **event} for n, event in enumerate(events)]}
    )

    async def use(store: RedisHistoryStore) -> EventsResponse:
        await store.remember([("p", shown("r1", "a", "b")), ("p", shown("r2", "b"))])
        types_ = {
            "event_types": ["click", "buy"],
            "counted_event_types": ["impression", "view"],
            **types,
        }
        return await store_events(body.events, store, metrics, **types_)

    return with_store(redis_url, use)


def history(redis_url: str, user_id: str) -> list[str]:
    return with_store(redis_url, lambda store: store.read(user_id)).history


def test_hits_are_counted_by_answer_and_type(redis_url: str) -> None:
    metrics = Metrics()
    click = {"user_id": "p", "event_type": "click", "recommendation_id": "r1"}
    answer = post(
        redis_url,
        metrics,
        {**click, "item_id": "b"},
        {**click, "item_id": "a"},
        {**click, "item_id": "b", "recommendation_id": "r2"},
        {**click, "item_id": "b", "event_type": "buy"},
        {**click, "item_id": "z"},
        {**click, "item_id": "a", "recommendation_id": "unknown"},
        {**click, "item_id": "b", "event_id": "0"},
    )
    assert (answer.accepted, answer.duplicates, answer.attributed) == (6, 1, 4)

    def counted(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"unmask_{name}", labels)

    where = {"bundle": "tiny@1", "variant": "b"}
    assert counted("attributed_events_total", event_type="click", **where) == 3
    assert counted("hit_recommendations_total", event_type="click", **where) == 2
    assert counted("hit_recommendations_total", event_type="buy", **where) == 1
    assert counted("attribution_rank_bucket", event_type="click", le="1.0") == 2
    assert counted("attribution_rank_bucket", event_type="click", le="2.0") == 3
    assert counted("events_total", event_type="click", result="duplicate") == 1


def test_counted_events_may_have_several_items_and_enter_no_history(redis_url: str) -> None:
    seen = {"user_id": "q", "event_type": "impression"}
    answer = post(
        redis_url,
        Metrics(),
        {**seen, "item_ids": ["a", "b"]},
        {**seen, "item_id": "a"},
        {**seen, "item_id": "a", "event_type": "view"},
        {**seen, "item_id": "c", "event_type": "click"},
        {**seen, "item_ids": ["a"], "event_type": "click"},
        {**seen, "item_id": "a", "item_ids": ["a"]},
        seen,
        {**seen, "item_ids": []},
        {**seen, "item_ids": ["a"] * 101},
        {**seen, "item_id": "a", "event_type": "stare"},
    )
    assert (answer.accepted, answer.attributed) == (4, 0)
    assert [(entry.index, entry.code) for entry in answer.rejected] == [
        *((index, "invalid_event") for index in range(4, 9)),
        (9, "unknown_event_type"),
    ]
    assert answer.rejected[0].message == "item_ids: an event of this type has one item_id"
    assert answer.rejected[1].message == "either item_id or item_ids must be given"
    assert answer.rejected[-1].message.endswith("click, buy, impression, view")
    assert history(redis_url, "q") == ["c"]


def test_a_type_of_both_lists_enters_the_history(redis_url: str) -> None:
    view = {"user_id": "v", "event_type": "view", "item_id": "a"}
    answer = post(redis_url, Metrics(), view, event_types=["view"], counted_event_types=["view"])
    assert (answer.accepted, history(redis_url, "v")) == (1, ["a"])


def test_event_types_reach_the_metrics_only_from_the_lists(redis_url: str) -> None:
    metrics = Metrics()
    post(redis_url, metrics, {"user_id": "m", "event_type": "x" * 20, "item_id": "a"})
    assert "xxx" not in metrics.text().decode()
