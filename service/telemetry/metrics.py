"""Every metric: name, labels, buckets. Times are seconds, counters end in `_total`.

No label's value comes from user input. Each process has one `Metrics` with its own registry.
`__main__` makes it and hands it to all that observe. Knows nothing of HTTP, Redis or decoding.
"""

from __future__ import annotations

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

METRICS_CONTENT_TYPE = CONTENT_TYPE_LATEST

LATENCY_S = tuple(
    ms / 1000 for ms in (1, 2.5, 5, 7.5, 10, 15, 20, 30, 50, 75, 100, 150, 250, 500, 1000, 2500)
)
NFE = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16)
BATCH_REQUESTS = (1, 2, 4, 8, 16, 32)
ROWS = (1, 8, 16, 32, 64, 128, 256, 512, 1024)
ITEMS = (0, 1, 2, 5, 10, 20, 50, 100)
OVERLAP = tuple(tenth / 10 for tenth in range(11))
RANKS = (1, 2, 3, 5, 10, 20, 50, 100)
SURVIVORS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 100_000, 1_000_000, 10_000_000)
OUTCOMES = ("ok", "degraded", "rejected", "limited", "timeout", "cancelled", "invalid", "error")
LOAD_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The metrics of one process. Each attribute is one metric, named without `unmask_`.

    Counters whose labels are known in advance start at 0. Prometheus sees no increase in a series
    that starts with its first count, and most alerts are about the first.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the series
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"unmask_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"unmask_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"unmask_{name}", text, labels, buckets=buckets, registry=registry)

        self.http_requests = counter(
            "http_requests_total", "Requests answered.", "route", "method", "status"
        )
        self.http_request_duration = histogram(
            "http_request_duration_seconds",
            "From the first byte read to the last byte sent.",
            LATENCY_S,
            "route",
            "method",
        )
        self.inflight_requests = gauge(
            "inflight_requests", "HTTP requests of clients being answered, their bodies whole."
        )
        self.arriving_requests = gauge(
            "arriving_requests", "HTTP requests whose bodies are on their way."
        )

        self.connections_hung_up = counter(
            "connections_hung_up_total",
            "Idle connections that were closed because file descriptors were used up.",
        )

        self.recommend_requests = counter(
            "recommend_requests_total",
            "Recommendations asked for, by outcome: "
            "ok, degraded, rejected, limited (the key asks too often, too many ask without one, "
            "or bodies do not come), timeout, cancelled, "
            "invalid, error.",
            "bundle",
            "variant",
            "outcome",
        )
        self.begin_outcomes("none", "none")  # for requests that reach no bundle
        self.recommend_duration = histogram(
            "recommend_duration_seconds",
            "From receipt to answer, answered requests only; not those of a batch, which have a "
            "deadline and no SLO.",
            LATENCY_S,
            "served_by",
        )
        self.stage_duration = histogram(
            "stage_duration_seconds",
            "Stages of a request; encode, denoise and search: of its batch, until its answer.",
            LATENCY_S,
            "stage",
        )
        self.nfe = histogram("nfe", "Denoiser calls of a request, the encoder not counted.", NFE)
        self.nfe_saved = counter(
            "nfe_saved_total",
            "Denoiser calls that answers did not need: steps of their schedules, less unmask_nfe.",
        )
        self.survivors = histogram(
            "survivors",
            "Catalogue rows that a request's beams still owned when the answer was chosen among "
            "them; all that are allowed where the first call is the last.",
            SURVIVORS,
        )
        self.invalid_sids = counter(
            "invalid_sids_total",
            "Decoded rows that are not in the catalogue, or twice in an answer: must stay 0.",
        )
        self.items_returned = histogram("items_returned", "Items in an answer.", ITEMS)
        self.explored_items = counter(
            "explored_items_total", "New items in the places that `explore` keeps for them."
        )
        self.short_lists = counter(
            "short_lists_total",
            "Answers of fewer than k items, because no more pass filter or candidates (filter), "
            "are left by exclusions (exclusions), exist (catalogue), or fit max_per of those found "
            "(caps), or none of these (beam).",
            "reason",
        )
        for reason in ("filter", "exclusions", "catalogue", "caps", "beam"):
            self.short_lists.labels(reason)
        self.filtered_requests = counter(
            "filtered_requests_total", "Answers to requests with a filter."
        )
        self.schedule_adjusted = counter(
            "schedule_adjusted_total", 'Answers for which schedule="auto" took less than the best.'
        )
        self.fallbacks = counter("fallbacks_total", "Degraded answers.", "reason")
        for reason in (
            "history_unavailable",
            "history_unknown",
            "schedule_reduced",
            "decode_failed",
            "deadline",
        ):
            self.fallbacks.labels(reason)
        self.history_length = histogram(
            "history_length", "Items in the history of a request.", ITEMS, "source"
        )
        self.unknown_history_items = counter(
            "unknown_history_items_total", "History items the bundle does not know."
        )

        self.queue_requests = gauge("queue_requests", "Requests waiting to be decoded.")
        self.queue_rows = gauge("queue_rows", "Beams of the requests waiting to be decoded.")
        self.batch_requests = histogram(
            "batch_requests", "Requests decoded together.", BATCH_REQUESTS
        )
        self.batch_duration = histogram(
            "batch_duration_seconds",
            "Decoding of a batch; its sum over wall time is how busy the decode thread is.",
            LATENCY_S,
        )
        self.batch_rows = histogram("batch_rows", "Beams decoded together.", ROWS)
        self.denoiser_calls = counter(
            "denoiser_calls_total",
            "Calls of the network, each for all beams of a batch; those of batches that failed "
            "until their last answer.",
        )
        self.encoder_cache = counter(
            "encoder_cache_total",
            "Histories decoded: hit where the encoder was skipped, miss where not.",
            "result",
        )
        for result in ("hit", "miss"):
            self.encoder_cache.labels(result)
        self.rejected = counter(
            "rejected_total",
            "Requests turned away: inflight, queue_full, predicted_wait, rate_limit, not_ready; "
            "unkeyed: too many at a time without a client's key or for an open route; arriving: "
            "their bodies were too long on their way; item_pages: too many lists of items at a "
            "time.",
            "reason",
        )
        for reason in (
            "inflight",
            "queue_full",
            "predicted_wait",
            "rate_limit",
            "not_ready",
            "unkeyed",
            "arriving",
            "item_pages",
        ):
            self.rejected.labels(reason)

        self.redis_operation_duration = histogram(
            "redis_operation_duration_seconds",
            "Redis calls, failed ones too; `read` and `remember` may be for several requests.",
            LATENCY_S,
            "operation",
        )
        self.redis_errors = counter(
            "redis_errors_total",
            "Failed Redis calls: timeout, connection, response; breaker_open: not tried; replica: "
            "the primary was asked instead.",
            "operation",
            "kind",
        )
        self.redis_breaker_state = gauge(
            "redis_breaker_state", "0 closed, 1 half open (a call probes), 2 open (none is tried)."
        )
        self.embedded_store_starts = counter(
            "embedded_store_starts_total",
            "Starts of the embedded Valkey after it had ended or hung: done, failed.",
            "result",
        )
        for result in ("done", "failed"):
            self.embedded_store_starts.labels(result)
        self.events = counter(
            "events_total", "Events: accepted, duplicate, rejected.", "event_type", "result"
        )
        self.event_log_trimmed = counter(
            "event_log_trimmed_total",
            "Events that left the event log because they were older than UNMASK_EVENT_LOG_DAYS; "
            "logs that nobody writes to any more expire uncounted.",
        )

        self.trending_dropped = counter(
            "trending_dropped_total",
            "Users of items that were not counted for what is trending: the store was away.",
        )

        self.shadow_requests = counter(
            "shadow_requests_total",
            "Requests for the candidate bundle to answer unseen: compared, skipped, failed.",
            "result",
        )
        for result in ("compared", "skipped", "failed"):
            self.shadow_requests.labels(result)
        self.shadow_overlap = histogram(
            "shadow_overlap_ratio", "Share of an answer that the candidate finds too.", OVERLAP
        )

        self.recommendations = counter(
            "recommendations_total",
            "Answers with items, which are remembered for a day; unmask_hit_recommendations_total "
            "over this is the hit rate.",
            "bundle",
            "variant",
        )
        self.remember_dropped = counter(
            "remember_dropped_total",
            "Answers that could not be remembered: no event will be attributed to them.",
        )
        self.attributed_events = counter(
            "attributed_events_total",
            "Accepted events that name an answer of the last day and an item in it.",
            "event_type",
            "bundle",
            "variant",
        )
        self.hit_recommendations = counter(
            "hit_recommendations_total",
            "Answers with at least one such event of that type, each counted once; over "
            "unmask_recommendations_total: the hit rate.",
            "event_type",
            "bundle",
            "variant",
        )
        self.attribution_rank = histogram(
            "attribution_rank",
            "Rank of the item of an attributed event in its answer, from 1.",
            RANKS,
            "event_type",
        )

        self.bundle_info = gauge("bundle_info", "1 for the bundle served.", "name", "version")
        self.bundle_load = histogram(
            "bundle_load_seconds", "Loading, verifying and priming a bundle.", LOAD_S
        )
        self.bundle_operations = counter(
            "bundle_operations_total",
            "load, activate, rollback, unload, change_items, and reload, which is what SIGHUP asks "
            "for: done, failed, or refused while a bundle was loaded.",
            "operation",
            "result",
        )
        for operation in ("load", "activate", "rollback", "unload", "change_items", "reload"):
            for result in ("done", "failed", "refused"):
                self.bundle_operations.labels(operation, result)
        self.bundle_config_drift = gauge(
            "bundle_config_drift", "1 while a restart would bring another bundle than the active."
        )
        self.build_info = gauge("build_info", "1 for the running version.", "version")
        self.workers = gauge(
            "workers", "Processes that answer on the port, see UNMASK_WORKERS; 1 without it."
        )
        self.ready = gauge("ready", "1 while GET /health/ready answers 200.")
        self.draining = gauge("draining", "1 once the process has been told to stop.")
        self.event_loop_lag = histogram(
            "event_loop_lag_seconds", "How late the event loop is, ten times a second.", LATENCY_S
        )
        self.gc_pause = histogram(
            "gc_pause_seconds", "Collections of Python's garbage collector.", LATENCY_S
        )

    def begin_outcomes(self, bundle: str, variant: str) -> None:
        """Let a bundle's counters of recommendations start at 0, for every outcome."""
        for outcome in OUTCOMES:
            self.recommend_requests.labels(bundle, variant, outcome)

    def text(self) -> bytes:
        """All metrics in the Prometheus text format."""
        return generate_latest(self.registry)
