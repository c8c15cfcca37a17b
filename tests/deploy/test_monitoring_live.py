"""A real service with all kinds of requests and a real Prometheus: no panel is empty."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from running_service import Service, service_process, wait_until
from running_valkey import Server, running
from tiny_bundle import write_tiny_bundle

from deploy.monitoring.draw import Mark, Span, draw
from deploy.monitoring.local_prometheus import Prometheus, prometheus
from deploy.monitoring.queries import Query, dashboard_queries
from service.histories.redis_store import shown_key

WINDOW = "1h"  # for `rate`: all of the load
KEY = {"Authorization": "Bearer the-admin-key"}
EXPERIMENT = """
name = "schedules"
salt = "s"

[[variants]]
name = "as-it-is"
weight = 1

[[variants]]
name = "quick"
weight = 1
r_warm = 0
m_par = 4
"""


@dataclass(frozen=True)
class Watched:
    """A service that has had all kinds of requests, and its Prometheus; both still run."""

    service: Service
    prometheus: Prometheus


@pytest.fixture(scope="module")
def watched(
    prometheus_package: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    write_tiny_bundle(folder / "live" / "1", name="live")
    write_tiny_bundle(folder / "live" / "2", name="live", version="2", offset=5)
    (folder / "experiment.toml").write_text(EXPERIMENT)
    store = Server(folder / "store", {"save": '""'})
    with (
        running(store),
        service_process(
            folder / "run",
            bundles_dir=folder,
            bundle="live@1",
            experiment_file=folder / "experiment.toml",
            redis_url=store.url,
            redis_timeout_ms=2000,
            admin_keys="the-admin-key",
        ) as service,
        prometheus(folder / "prometheus", service.client.base_url.netloc.decode()) as watching,
    ):
        operate(service)
        ask(service, store, "first", 1)
        wait_for_scrapes(watching, 2)  # else a busy machine shows all that follows at once: no rate
        ask(service, store, "before", 24)
        without_store(service, store, watching)
        assert service.client.post("/admin/bundles/live@2/activate", headers=KEY).status_code == 200
        ask(service, store, "after", 5)
        wait_for_scrapes(watching, 3)
        yield Watched(service, watching)


def operate(service: Service) -> None:
    """Load a candidate that answers every request too, and try a rollback, which fails."""
    service.client.headers.update(KEY)
    load = service.client.post("/admin/bundles/live@2/load", json={"shadow_fraction": 1})
    assert load.status_code == 200, load.text
    assert service.client.post("/admin/bundles/rollback").status_code == 409


def ask(service: Service, store: Server, group: str, users: int) -> None:
    """Ask for answers, send events about them, and send all kinds of requests that panels show."""
    for number in range(users):
        user = f"{group}-{number}"
        service.send(f"item-{number}", f"item-{number + 50}", user_id=user)
        answer = service.recommend(user_id=user, k=10).json()
        wait_until(partial(is_remembered, store, user, answer["recommendation_id"]))
        items = [item["item_id"] for item in answer["items"]]
        named = {"user_id": user, "recommendation_id": answer["recommendation_id"]}
        shown = named | {"event_type": "impression", "item_ids": items}
        liked = named | {"event_type": "click", "item_id": items[number % 3]}
        events = [shown, liked, liked]  # the last is a duplicate
        ids = [f"{answer['recommendation_id']}-{n}" for n in (0, 1, 1)]
        body = [event | {"event_id": one} for event, one in zip(events, ids, strict=True)]
        assert service.client.post("/events", json={"events": body}).status_code == 200
        history: dict[str, Any] = {"user_id": user, "history": ["item-1", "unheard-of"]}
        service.recommend(**history, filter={"category": ["rare"]}, k=20, schedule="auto")
        service.recommend(**history, r_warm=4, m_par=1, finish_rows=200)
        service.recommend(**history, k=0)  # refused


def is_remembered(store: Server, user_id: str, recommendation_id: str) -> bool:
    """Whether events can be attributed to an answer: it is stored a little after it was given."""
    return recommendation_id in str(store.ask("LRANGE", shown_key(user_id), 0, 0))


def without_store(service: Service, store: Server, watching: Prometheus) -> None:
    """Stop the store until the breaker is open; then wait until it is closed again."""

    def seen_open() -> bool:
        answer = service.recommend(user_id="before-1").json()
        assert answer["degraded_reasons"] == ["history_unavailable"]
        click = {"event_id": "e", "user_id": "u", "item_id": "item-1", "event_type": "click"}
        lost = service.client.post("/events", json={"events": [click]})
        assert lost.status_code == 503
        return watching.value("max_over_time(unmask_redis_breaker_state[1h])") == 2

    with store.stopped():
        wait_until(seen_open)
        for _ in range(20):  # enough for the alert, however few it took to see the breaker open
            assert service.recommend(user_id="before-1").json()["degraded"]
    wait_until(lambda: not service.recommend(user_id="before-1").json()["degraded"])


def wait_for_scrapes(watching: Prometheus, number: int) -> None:
    """Wait until the rules have used the last scrape."""
    seen = watching.value("count_over_time(up[1h])")
    wait_until(lambda: watching.value("count_over_time(up[1h])") >= seen + number)


def has_data(watched: Watched, query: Query) -> bool:
    series = watched.prometheus.query(query.filled(WINDOW))
    return any(math.isfinite(float(one["value"][1])) for one in series)


def test_every_query_of_every_dashboard_returns_data(watched: Watched) -> None:
    empty = [
        (query.board, query.panel, query.legend)
        for query in dashboard_queries()
        if not has_data(watched, query)
    ]
    assert empty == []


def test_every_rule_is_worked_out_and_records_something(watched: Watched) -> None:
    groups = watched.prometheus.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 40
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []
    recorded = [rule["name"] for rule in rules if rule["type"] == "recording"]
    assert [name for name in recorded if not watched.prometheus.query(name)] == []


def test_what_is_shown_is_what_happened(watched: Watched) -> None:
    value, counts = watched.prometheus.value, watched.service.samples()
    assert value("sum(unmask_invalid_sids_total)") == 0
    assert value("max_over_time(unmask_redis_breaker_state[1h])") == 2
    assert value('unmask_bundle_info{version="2"}') == value("unmask_bundle_config_drift") == 1
    compared = counts['unmask_shadow_requests_total{result="compared"}']
    assert value('unmask_shadow_requests_total{result="compared"}') == compared > 0
    hits = value('sum(unmask_hit_recommendations_total{bundle="live@1", event_type="click"})')
    assert hits == 25
    assert 0 < value('job:unmask_hit_rate:ratio6h{event_type="click"}') <= 1
    assert 0 < value("job:unmask_recommend_degraded:ratio_rate5m") < 1
    assert value('sum(unmask_short_lists_total{reason="filter"})') == 30
    assert value("sum(unmask_nfe_saved_total)") > 0


def test_the_queries_can_be_drawn(watched: Watched, tmp_path: Path) -> None:
    span = Span(time.time() - 20, time.time(), WINDOW)
    draw(watched.prometheus, span, tmp_path / "now.png", "Now", [Mark(span.start, span.end, "x")])
    drawn = (tmp_path / "now.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    assert int.from_bytes(drawn[16:20], "big") == 1600


def test_the_alerts_that_wait_for_nothing_fire(watched: Watched) -> None:
    fired = watched.prometheus.query('ALERTS{alertstate="firing"}')
    assert [one["metric"]["alertname"] for one in fired] == ["UnmaskBundleOperationFailed"]
    pending = watched.prometheus.query('ALERTS{alertstate="pending"}')
    names = {one["metric"]["alertname"] for one in pending}
    assert {"UnmaskBundleConfigDrift", "UnmaskEventsFailing", "UnmaskDegraded"} <= names
