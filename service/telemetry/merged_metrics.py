"""The metrics of several workers as one: what a scrape of any of them shows.

Counters and histograms are added up. A gauge is added up, or the highest or the lowest counts, as
it means. Of a worker that has died, its last counters and histograms stay, and its gauges go. So
what is counted never falls. Knows nothing of processes: a `Dump` is a plain value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric

# One metric each: name, type, text, and samples: name, labels, value.
Sample = tuple[str, dict[str, str], float]
Dump = list[tuple[str, str, str, list[Sample]]]

COUNTED = ("counter", "histogram", "summary")
GAUGES: dict[str, Callable[[float, float], float]] = {  # all others are added up
    "unmask_redis_breaker_state": max,
    "unmask_bundle_info": max,
    "unmask_bundle_config_drift": max,
    "unmask_build_info": max,
    "unmask_ready": max,  # a worker that is not ready takes no requests
    "unmask_draining": max,
    "process_start_time_seconds": min,
    "process_max_fds": max,
}


def dump_of(registry: CollectorRegistry) -> Dump:
    """What the metrics are now."""
    return [
        (
            metric.name,
            metric.type,
            metric.documentation,
            [(one.name, dict(one.labels), float(one.value)) for one in metric.samples],
        )
        for metric in registry.collect()
    ]


def counted(dump: Dump) -> Dump:
    """What stays of a worker that has died."""
    return [metric for metric in dump if metric[1] in COUNTED]


def merged(dumps: Iterable[Dump]) -> Dump:
    """One dump of several."""
    metrics: dict[str, tuple[str, str, dict[tuple[object, ...], Sample]]] = {}
    for dump in dumps:
        for name, kind, text, samples in dump:
            into = metrics.setdefault(name, (kind, text, {}))[2]
            join = GAUGES.get(name, _sum) if kind == "gauge" else _sum
            for sample, labels, value in samples:
                key = (sample, *sorted(labels.items()))
                if key in into:
                    value = join(into[key][2], value)
                into[key] = sample, labels, value
    return [
        (name, kind, text, list(samples.values()))
        for name, (kind, text, samples) in metrics.items()
    ]


def text_of_dump(dump: Dump) -> bytes:
    """A dump in the Prometheus text format."""
    return generate_latest(_Dumped(dump))


class _Dumped:
    """What `generate_latest` wants of a registry."""

    def __init__(self, dump: Dump) -> None:
        self._dump = dump

    def collect(self) -> Iterator[Metric]:
        for name, kind, text, samples in self._dump:
            metric = Metric(name, text, kind)
            for sample, labels, value in samples:
                metric.add_sample(sample, labels, value)
            yield metric


def _sum(one: float, other: float) -> float:
    return one + other
