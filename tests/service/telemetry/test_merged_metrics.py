"""The metrics of several workers as one."""

from __future__ import annotations

import json

from service.telemetry import Metrics, counted, dump_of, merged, text_of_dump


def test_one_alone_is_as_it_is() -> None:
    metrics = Metrics()
    metrics.events.labels("click", 'with "quotes"\n').inc(3)
    metrics.nfe.observe(4)
    dump = json.loads(json.dumps(dump_of(metrics.registry)))  # as it travels

    def lasting(text: bytes) -> list[str]:
        return [line for line in text.decode().splitlines() if not line.startswith("process_")]

    assert lasting(text_of_dump(merged([dump]))) == lasting(metrics.text())


def test_counts_are_added_up_and_gauges_mean_what_they_say() -> None:
    one, other, dead = (Metrics() for _ in range(3))
    for metrics in (one, other, dead):
        metrics.nfe.observe(4)
        metrics.workers.set(1)
        metrics.queue_rows.set(10)
        metrics.bundle_info.labels("tiny", "1").set(1)
        metrics.explored_items.inc(2)
    one.ready.set(1)
    other.redis_breaker_state.set(2)
    dumps = [dump_of(metrics.registry) for metrics in (one, other)]
    text = text_of_dump(merged([*dumps, counted(dump_of(dead.registry))])).decode().splitlines()
    for line in (
        "unmask_nfe_count 3.0",
        'unmask_nfe_bucket{le="3.0"} 0.0',
        'unmask_nfe_bucket{le="4.0"} 3.0',
        "unmask_explored_items_total 6.0",
        "unmask_workers 2.0",
        "unmask_queue_rows 20.0",
        'unmask_bundle_info{name="tiny",version="1"} 1.0',
        "unmask_ready 1.0",
        "unmask_redis_breaker_state 2.0",
    ):
        assert line in text
