"""The Grafana dashboards, in one place: `python -m deploy.monitoring.dashboards` writes their JSON.

A panel has a title, a description, a unit and queries. The rest of Grafana's model is the same for
all panels and is at the end of this file. Queries use metrics of docs/reference/metrics.md and
rules/recording.yml. Tests run every query in a real Prometheus. No test loads them into a real
Grafana.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models import prometheus as prometheus_models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode

FOLDER = Path(__file__).parent / "grafana" / "dashboards"
COLUMNS = 24  # of Grafana's grid
INSTANCE = 'instance=~"$instance"'


@dataclass(frozen=True)
class Panel:
    """A panel of a dashboard.

    unit:    as Grafana calls it
    queries: PromQL by legend; a {{label}} in the legend is filled in
    kind:    lines, stacked lines, a number (red above 0 if `must_be_zero`), the name of a series,
             or a heatmap of histogram buckets
    """

    title: str
    description: str
    unit: str
    queries: dict[str, str]
    kind: Literal["lines", "stacked", "number", "name", "heatmap"] = "lines"
    width: int = 8
    must_be_zero: bool = False
    most: float | None = None

    @property
    def height(self) -> int:
        return 4 if self.kind in ("number", "name") else 8


@dataclass(frozen=True)
class Board:
    """A dashboard. Panels of a row stand from left to right; their widths should fill the row."""

    uid: str
    title: str
    description: str
    rows: Sequence[Sequence[Panel]]
    has_bundles: bool = False  # whether the reader may choose bundles and types of events

    @property
    def panels(self) -> list[Panel]:
        return [panel for row in self.rows for panel in row]


def rate(metric: str, *by: str, where: str = "") -> str:
    """A counter's increase for each second, summed over the chosen replicas."""
    return f"sum{_by(by)} (rate({metric}{{{_where(where)}}}[$__rate_interval]))"


def grown(metric: str, over: str, *by: str, where: str = "") -> str:
    """A counter's increase over a span of time."""
    return f"sum{_by(by)} (increase({metric}{{{_where(where)}}}[{over}]))"


def share(part: str, whole: str) -> str:
    return f"{part}\n/ {whole}"


def mean(histogram: str, *by: str, where: str = "") -> str:
    """The mean of what a histogram counted lately."""
    total, count = (rate(f"{histogram}_{end}", *by, where=where) for end in ("sum", "count"))
    return share(total, count)


def quantile(q: float, histogram: str, *by: str, where: str = "") -> str:
    """A quantile of what a histogram counted lately; exact only at bucket bounds."""
    return f"histogram_quantile({q}, {rate(f'{histogram}_bucket', *by, 'le', where=where)})"


def quantiles(histogram: str, *by: str, where: str = "") -> dict[str, str]:
    legend = "".join(f"{{{{{label}}}}} " for label in by)
    return {
        f"{legend}p{round(100 * q)}": quantile(q, histogram, *by, where=where)
        for q in (0.5, 0.95, 0.99)
    }


def _where(more: str) -> str:
    return f"{INSTANCE}, {more}" if more else INSTANCE


def _by(labels: Sequence[str]) -> str:
    return f" by ({', '.join(labels)})" if labels else ""


SERVED = {"{{name}}@{{version}}": f"sum by (name, version) (unmask_bundle_info{{{INSTANCE}}})"}
REQUESTS = "unmask_recommend_requests_total"

OVERVIEW = Board(
    "unmask-overview",
    "Unmask / Overview",
    "Is it well? Traffic, latency, where the time goes, batches, and what the SLO has left.",
    [
        [
            Panel(
                "Requests",
                "Recommendations asked for, a second, by POST /recommend and in batches.",
                "reqps",
                {"requests": rate(REQUESTS)},
                "number",
                4,
            ),
            Panel(
                "Failing",
                "Share of the last 5 minutes that was refused, late or an error, all replicas; "
                "the SLO allows 0.1 %.",
                "percentunit",
                {"failing": "max(job:unmask_recommend_failures:ratio_rate5m)"},
                "number",
                4,
            ),
            Panel(
                "Slower than 100 ms",
                "Share of the answers of POST /recommend in the last 5 minutes, all replicas; the "
                "SLO allows 1 %.",
                "percentunit",
                {"slow": "max(job:unmask_recommend_slow:ratio_rate5m)"},
                "number",
                4,
            ),
            Panel(
                "Degraded",
                "Share of the answers that were less than they could be: popular items, or a "
                "cheaper decoding. All replicas, 5 minutes.",
                "percentunit",
                {"degraded": "max(job:unmask_recommend_degraded:ratio_rate5m)"},
                "number",
                4,
            ),
            Panel(
                "Ready",
                "Replicas that answer GET /health/ready with 200.",
                "none",
                {"ready": f"sum(unmask_ready{{{INSTANCE}}})"},
                "number",
                4,
            ),
            Panel(
                "Bundle",
                "What is served; two names mean that replicas differ.",
                "none",
                SERVED,
                "name",
                4,
            ),
        ],
        [
            Panel(
                "Recommendations by outcome",
                "ok, degraded, rejected (429 and 503), limited (a key asks too often, strangers), "
                "timeout (504), cancelled (the client left), invalid (4xx), error (5xx).",
                "reqps",
                {"{{outcome}}": rate(REQUESTS, "outcome")},
                "stacked",
            ),
            Panel(
                "Latency",
                "Answers of POST /recommend by the time they took, from receipt to answer.",
                "s",
                {
                    "{{le}}": "sum by (le) (increase(unmask_recommend_duration_seconds_bucket"
                    f"{{{INSTANCE}}}[$__rate_interval]))"
                },
                "heatmap",
            ),
            Panel(
                "Latency quantiles",
                "POST /recommend from receipt to answer, answered requests only; exact only at "
                "buckets.",
                "s",
                quantiles("unmask_recommend_duration_seconds"),
            ),
        ],
        [
            Panel(
                "Where the time goes",
                "Mean time of each stage. encode, denoise and search are those of the batch until "
                "the answer; the rest of a request is HTTP and JSON.",
                "s",
                {"{{stage}}": mean("unmask_stage_duration_seconds", "stage")},
                "stacked",
            ),
            Panel(
                "Batch size",
                "Requests decoded together. 1 means that nobody waits for anybody.",
                "none",
                {
                    "mean": mean("unmask_batch_requests"),
                    "p95": quantile(0.95, "unmask_batch_requests"),
                },
            ),
            Panel(
                "NFE",
                "Denoiser calls of a request; the encoder is not counted.",
                "none",
                {"mean": mean("unmask_nfe"), "p95": quantile(0.95, "unmask_nfe")},
            ),
        ],
        [
            Panel(
                "Waiting and inside",
                "Requests that wait to be decoded, and requests being answered at all.",
                "none",
                {
                    "waiting {{instance}}": f"unmask_queue_requests{{{INSTANCE}}}",
                    "inside {{instance}}": f"unmask_inflight_requests{{{INSTANCE}}}",
                },
            ),
            Panel(
                "Decode thread",
                "How busy each process's decode thread is; at 100 % the process is full.",
                "percentunit",
                {"{{instance}}": rate("unmask_batch_duration_seconds_sum", "instance")},
                most=1,
            ),
            Panel(
                "Turned away",
                "Requests refused: inflight (the gate), queue_full, predicted_wait (would be "
                "late), rate_limit (their key), not_ready, unkeyed (strangers), arriving (their "
                "bodies did not come).",
                "reqps",
                {"{{reason}}": rate("unmask_rejected_total", "reason")},
                "stacked",
            ),
        ],
        [
            Panel(
                "Degraded answers by reason",
                "docs/how-to/operate.md says what each reason means.",
                "reqps",
                {"{{reason}}": rate("unmask_fallbacks_total", "reason")},
                "stacked",
            ),
            Panel(
                "Availability: burn rate",
                "How many times as fast as the SLO allows failures use up its budget; it pages at "
                "14.4 over 1 h and 6 over 6 h. All replicas.",
                "none",
                {
                    window: f"job:unmask_recommend_failures:ratio_rate{window} / 0.001"
                    for window in ("1h", "6h", "3d")
                },
            ),
            Panel(
                "Latency: burn rate",
                "The same for answers slower than 100 ms, of which the SLO allows 1 %.",
                "none",
                {
                    window: f"job:unmask_recommend_slow:ratio_rate{window} / 0.01"
                    for window in ("1h", "6h", "3d")
                },
            ),
        ],
    ],
)

DECODING = Board(
    "unmask-decoding",
    "Unmask / Decoding",
    "What the search does for an answer, and what it saves.",
    [
        [
            Panel(
                "Invalid SIDs",
                "Rows that are not in the catalogue, or twice in an answer, since the start. The "
                "search promises that there are none.",
                "none",
                {"invalid": f"sum(unmask_invalid_sids_total{{{INSTANCE}}})"},
                "number",
                6,
                must_be_zero=True,
            ),
            Panel(
                "Lists that the search left short",
                "Answers of fewer than k items although more were allowed, by max_per too, since "
                "the start.",
                "none",
                {"short": f'sum(unmask_short_lists_total{{{INSTANCE}, reason="beam"}})'},
                "number",
                6,
                must_be_zero=True,
            ),
            Panel(
                "Denoiser calls saved",
                "Of the calls that the schedules have, the share that was not needed: beams "
                "decided, or few enough rows left.",
                "percentunit",
                {
                    "saved": share(
                        rate("unmask_nfe_saved_total"),
                        f"({rate('unmask_nfe_saved_total')} + {rate('unmask_nfe_sum')})",
                    )
                },
                "number",
                6,
            ),
            Panel(
                "Encoder skipped",
                "Histories that had not changed since they were encoded last.",
                "percentunit",
                {
                    "hits": share(
                        rate("unmask_encoder_cache_total", where='result="hit"'),
                        rate("unmask_encoder_cache_total"),
                    )
                },
                "number",
                6,
            ),
        ],
        [
            Panel(
                "Survivors",
                "Rows that the beams still owned when the answer was chosen among them. With a "
                "schedule of one call: the whole catalogue, less what is excluded.",
                "short",
                {
                    "mean": mean("unmask_survivors"),
                    "p50": quantile(0.5, "unmask_survivors"),
                    "p95": quantile(0.95, "unmask_survivors"),
                },
            ),
            Panel(
                "NFE a request",
                "Denoiser calls a request, and those its schedule had beyond that.",
                "none",
                {
                    "used": mean("unmask_nfe"),
                    "saved": share(rate("unmask_nfe_saved_total"), rate("unmask_nfe_count")),
                },
                "stacked",
            ),
            Panel(
                "Denoiser calls",
                "Calls of the network a second, each for all beams of a batch, beside the calls "
                "that requests would have made alone.",
                "ops",
                {
                    "made": rate("unmask_denoiser_calls_total"),
                    "of requests": rate("unmask_nfe_sum"),
                },
            ),
        ],
        [
            Panel(
                "Beams a batch",
                "Beams decoded together.",
                "none",
                quantiles("unmask_batch_rows"),
            ),
            Panel(
                "Time of a batch",
                "Encoder, denoiser and search of a batch together.",
                "s",
                quantiles("unmask_batch_duration_seconds"),
            ),
            Panel(
                "Encoder cache",
                "Histories a second: hit where the encoder was skipped, miss where not.",
                "ops",
                {"{{result}}": rate("unmask_encoder_cache_total", "result")},
                "stacked",
            ),
        ],
        [
            Panel(
                "Unknown items",
                "Of the items in histories, the share that the bundle does not know. It grows as "
                "the bundle gets old.",
                "percentunit",
                {
                    "unknown": share(
                        rate("unmask_unknown_history_items_total"),
                        rate("unmask_history_length_sum"),
                    )
                },
            ),
            Panel(
                "History length",
                "Items in the history of a request, by where it came from.",
                "none",
                {"{{source}} mean": mean("unmask_history_length", "source")},
            ),
            Panel(
                "Short lists",
                "Answers of fewer than k items: no more pass filter or candidates, are left by "
                "exclusions, or exist; caps means that no more of those found fit max_per, beam "
                "that the search did not find what was there.",
                "reqps",
                {"{{reason}}": rate("unmask_short_lists_total", "reason")},
                "stacked",
            ),
        ],
        [
            Panel(
                "Items an answer",
                "Mean number of items returned.",
                "none",
                {"mean": mean("unmask_items_returned")},
            ),
            Panel(
                "Schedules taken down",
                'Answers a second for which schedule="auto" took less than the best decoding.',
                "reqps",
                {"adjusted": rate("unmask_schedule_adjusted_total")},
            ),
            Panel(
                "Filtered requests",
                "Answers a second to requests with a filter.",
                "reqps",
                {"filtered": rate("unmask_filtered_requests_total")},
            ),
        ],
    ],
)

EVENT = 'event_type=~"$event_type"'
LIKED = f'{EVENT}, event_type!="impression"'  # an impression is not a hit
OF_BUNDLE = 'bundle=~"$bundle"'
SHOWN = "unmask_recommendations_total"
HITS = "unmask_hit_recommendations_total"

BUNDLES = Board(
    "unmask-bundles",
    "Unmask / Bundles and experiments",
    "Which bundle answers, how its answers are received, and what a candidate would do.",
    [
        [
            Panel(
                "Served",
                "The active bundle; two names mean that replicas differ.",
                "none",
                SERVED,
                "name",
                8,
            ),
            Panel(
                "Drifted",
                "Replicas whose restart would bring another bundle than the one they serve.",
                "none",
                {"drifted": f"sum(unmask_bundle_config_drift{{{INSTANCE}}})"},
                "number",
                8,
                must_be_zero=True,
            ),
            Panel(
                "Operations that failed",
                "Loads, activations, rollbacks and so on that failed in the last day.",
                "none",
                {"failed": grown("unmask_bundle_operations_total", "1d", where='result="failed"')},
                "number",
                8,
                must_be_zero=True,
            ),
        ],
        [
            Panel(
                "Hit rate by variant",
                "Of the answers of the last hour, the share that an event named, for an item in "
                "it. Hits come after their answers, so the newest minutes read low.",
                "percentunit",
                {
                    "{{event_type}} {{bundle}} {{variant}}": share(
                        grown(
                            HITS,
                            "1h",
                            "event_type",
                            "bundle",
                            "variant",
                            where=f"{LIKED}, {OF_BUNDLE}",
                        ),
                        "on (bundle, variant) group_left () "
                        + grown(SHOWN, "1h", "bundle", "variant", where=OF_BUNDLE),
                    )
                },
                width=12,
            ),
            Panel(
                "Hit rate against the days before",
                "Of each bundle, the last 6 hours and the last 3 days; an alert compares them. All "
                "replicas, pinned requests left out.",
                "percentunit",
                {
                    f"{{{{event_type}}}} {{{{bundle}}}} {over}": "bundle:unmask_hit_rate:ratio"
                    f"{over}{{{LIKED}, {OF_BUNDLE}}}"
                    for over in ("6h", "3d")
                },
                width=12,
            ),
        ],
        [
            Panel(
                "Attributed recall",
                "Of the events of the last hour, the share that named an answer and was for one of "
                "its first 1, 5, 10 items.",
                "percentunit",
                {
                    f"{{{{event_type}}}} @{k}": share(
                        grown(
                            "unmask_attribution_rank_bucket",
                            "1h",
                            "event_type",
                            where=f'{LIKED}, le="{k}.0"',
                        ),
                        grown(
                            "unmask_events_total",
                            "1h",
                            "event_type",
                            where=f'{LIKED}, result="accepted"',
                        ),
                    )
                    for k in (1, 5, 10)
                },
            ),
            Panel(
                "Rank of what was liked",
                "Rank, from 1, of the item of an attributed event in its answer.",
                "none",
                {
                    "{{event_type}} p50": quantile(
                        0.5, "unmask_attribution_rank", "event_type", where=LIKED
                    ),
                    "{{event_type}} p95": quantile(
                        0.95, "unmask_attribution_rank", "event_type", where=LIKED
                    ),
                },
            ),
            Panel(
                "Attributed events",
                "Accepted events a second that name an answer of the last day and an item in it.",
                "ops",
                {
                    "{{event_type}} {{variant}}": rate(
                        "unmask_attributed_events_total",
                        "event_type",
                        "variant",
                        where=f"{EVENT}, {OF_BUNDLE}",
                    )
                },
            ),
        ],
        [
            Panel(
                "Shadow overlap",
                "Share of an answer that the candidate bundle finds too.",
                "percentunit",
                {"mean": mean("unmask_shadow_overlap_ratio")},
                most=1,
            ),
            Panel(
                "Shadow requests",
                "Requests for the candidate: compared, skipped because something else was to be "
                "decoded, failed.",
                "reqps",
                {"{{result}}": rate("unmask_shadow_requests_total", "result")},
                "stacked",
            ),
            Panel(
                "Answers by bundle and variant",
                "Answers with items; a swap shows as one line that takes over from another.",
                "reqps",
                {"{{bundle}} {{variant}}": rate(SHOWN, "bundle", "variant", where=OF_BUNDLE)},
                "stacked",
            ),
        ],
        [
            Panel(
                "Operations",
                "Operations on bundles in the last 10 minutes, by how they ended.",
                "none",
                {
                    "{{operation}} {{result}}": grown(
                        "unmask_bundle_operations_total", "10m", "operation", "result"
                    )
                    + " > 0"
                },
                width=12,
            ),
            Panel(
                "Time to load a bundle",
                "Mean of all loads since the start: reading, verifying, priming.",
                "s",
                {
                    "{{instance}}": f"unmask_bundle_load_seconds_sum{{{INSTANCE}}}\n"
                    f"/ unmask_bundle_load_seconds_count{{{INSTANCE}}}"
                },
                width=12,
            ),
        ],
    ],
    has_bundles=True,
)

REDIS = "unmask_redis_operation_duration_seconds"

STORE = Board(
    "unmask-redis",
    "Unmask / Redis",
    "The history store as the service sees it, and what its trouble costs.",
    [
        [
            Panel(
                "Breaker",
                "0 closed, 1 half open (a call probes), 2 open (none is tried).",
                "none",
                {"{{instance}}": f"unmask_redis_breaker_state{{{INSTANCE}}}"},
                most=2,
            ),
            Panel(
                "Calls",
                "Redis calls a second that were tried, failed ones too.",
                "ops",
                {"{{operation}}": rate(f"{REDIS}_count", "operation")},
                "stacked",
            ),
            Panel(
                "Errors",
                "timeout, connection, response; breaker_open: not tried; replica: the primary was "
                "asked instead. Empty while nothing has ever failed.",
                "ops",
                {"{{operation}} {{kind}}": rate("unmask_redis_errors_total", "operation", "kind")},
                "stacked",
            ),
        ],
        [
            Panel(
                "Time of a call, p99",
                "The longest is UNMASK_REDIS_TIMEOUT_MS.",
                "s",
                {"{{operation}}": quantile(0.99, REDIS, "operation")},
            ),
            Panel(
                "Time of a call, mean",
                "By operation.",
                "s",
                {"{{operation}}": mean(REDIS, "operation")},
            ),
            Panel(
                "Histories by source",
                "Where the histories of requests came from; unavailable: the store did not answer.",
                "reqps",
                {"{{source}}": rate("unmask_history_length_count", "source")},
                "stacked",
            ),
        ],
        [
            Panel(
                "Events",
                "Events a second: accepted, duplicate, rejected.",
                "ops",
                {"{{event_type}} {{result}}": rate("unmask_events_total", "event_type", "result")},
                "stacked",
            ),
            Panel(
                "POST /events by status",
                "503 while the store is down.",
                "reqps",
                {
                    "{{status}}": rate(
                        "unmask_http_requests_total", "status", where='route="/events"'
                    )
                },
                "stacked",
            ),
            Panel(
                "Answers not remembered",
                "Of the answers with items, the share that could not be remembered: no event will "
                "be attributed to them.",
                "percentunit",
                {"dropped": share(rate("unmask_remember_dropped_total"), rate(SHOWN))},
            ),
        ],
    ],
)

PROCESS = Board(
    "unmask-process",
    "Unmask / Process",
    "The processes: memory, processor, event loop, garbage collector.",
    [
        [
            Panel(
                "Scraped",
                "Replicas whose /metrics Prometheus reads.",
                "none",
                {"up": f'sum(up{{job=~".*unmask.*", {INSTANCE}}})'},
                "number",
                6,
            ),
            Panel(
                "Version",
                "Of the release; two names mean that replicas differ.",
                "none",
                {"{{version}}": f"sum by (version) (unmask_build_info{{{INSTANCE}}})"},
                "name",
                6,
            ),
            Panel(
                "Youngest",
                "Time since the last start of any of them.",
                "s",
                {"up": f"time() - max(process_start_time_seconds{{{INSTANCE}}} and unmask_ready)"},
                "number",
                6,
            ),
            Panel(
                "Draining",
                "Replicas that were told to stop.",
                "none",
                {"draining": f"sum(unmask_draining{{{INSTANCE}}})"},
                "number",
                6,
            ),
        ],
        [
            Panel(
                "Memory",
                "Resident. A bundle that is loaded comes on top until another is unloaded.",
                "bytes",
                {"{{instance}}": f"process_resident_memory_bytes{{{INSTANCE}}} and unmask_ready"},
            ),
            Panel(
                "Processor",
                "Cores in use.",
                "none",
                {
                    "{{instance}}": "rate(process_cpu_seconds_total"
                    f"{{{INSTANCE}}}[$__rate_interval]) and unmask_ready"
                },
            ),
            Panel(
                "Open files",
                "Sockets among them, as a share of what the process may open.",
                "percentunit",
                {
                    "{{instance}}": f"process_open_fds{{{INSTANCE}}}"
                    f" / process_max_fds{{{INSTANCE}}} and unmask_ready"
                },
            ),
        ],
        [
            Panel(
                "Event loop lag",
                "How late the loop is, measured ten times a second. What is late here is late for "
                "every request.",
                "s",
                quantiles("unmask_event_loop_lag_seconds"),
            ),
            Panel(
                "Garbage collections, p99",
                "Time of a collection; meanwhile the process does nothing else.",
                "s",
                {"{{instance}}": quantile(0.99, "unmask_gc_pause_seconds", "instance")},
            ),
            Panel(
                "Time spent collecting garbage",
                "Share of the time.",
                "percentunit",
                {"{{instance}}": rate("unmask_gc_pause_seconds_sum", "instance")},
            ),
        ],
        [
            Panel(
                "HTTP requests",
                "All routes, health and metrics among them.",
                "reqps",
                {"{{route}} {{status}}": rate("unmask_http_requests_total", "route", "status")},
                "stacked",
                12,
            ),
            Panel(
                "HTTP latency, p99",
                "From the first byte read to the last byte sent.",
                "s",
                {"{{route}}": quantile(0.99, "unmask_http_request_duration_seconds", "route")},
                width=12,
            ),
        ],
    ],
)

BOARDS = (OVERVIEW, DECODING, BUNDLES, STORE, PROCESS)

# --- Grafana's model ------------------------------------------------------------------------------

SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")


def json_of(board: Board) -> str:
    """The dashboard in Grafana's own model."""
    made = (
        builders.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["unmask"])
        .timezone("browser")
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .link(
            builders.DashboardLink("Unmask")
            .type(dashboard.DashboardLinkType.DASHBOARDS)
            .tags(["unmask"])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(builders.DatasourceVariable("datasource").label("Source").type("prometheus"))
        .with_variable(_variable("instance", "Replica", "unmask_build_info"))
    )
    if board.has_bundles:
        made.with_variable(_variable("bundle", "Bundle", SHOWN))
        made.with_variable(_variable("event_type", "Event", "unmask_events_total"))
    number, top = 0, 0
    for row in board.rows:
        left = 0
        for panel in row:
            number += 1
            place = dashboard.GridPos(h=panel.height, w=panel.width, x=left, y=top)
            made.with_panel(_panel(panel).id(number).grid_pos(place))
            left += panel.width
        top += max(panel.height for panel in row)
    return json.dumps(made.build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def _variable(name: str, label: str, metric: str) -> builders.QueryVariable:
    everything = dashboard.VariableOption(text="All", value="$__all", selected=True)
    return (
        builders.QueryVariable(name)
        .label(label)
        .query(f"label_values({metric}, {name})")
        .datasource(SOURCE)
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(everything)
    )


def _panel(panel: Panel) -> timeseries.Panel | stat.Panel | heatmap.Panel:
    made: timeseries.Panel | stat.Panel | heatmap.Panel
    if panel.kind == "heatmap":
        colors = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges")
        axis = heatmap.YAxisConfig().unit(panel.unit)
        made = heatmap.Panel().calculate(False).color(colors).y_axis(axis)
    elif panel.kind in ("number", "name"):
        made = _number(panel)
    else:
        made = _lines(panel)
    made.title(panel.title).description(panel.description).unit(panel.unit).datasource(SOURCE)
    for place, (legend, expr) in enumerate(panel.queries.items()):
        query = (
            prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(chr(ord("A") + place))
        )
        if panel.kind == "heatmap":
            query.format(prometheus_models.PromQueryFormat.HEATMAP)
        if panel.kind in ("number", "name"):
            query.instant()
        else:
            query.range()
        made.with_target(query)
    return made


def _lines(panel: Panel) -> timeseries.Panel:
    legend = (
        common_builders.VizLegendOptions()
        .show_legend(True)
        .display_mode(common.LegendDisplayMode.LIST)
        .placement(common.LegendPlacement.BOTTOM)
    )
    tooltip = (
        common_builders.VizTooltipOptions()
        .mode(common.TooltipDisplayMode.MULTI)
        .sort(common.SortOrder.DESCENDING)
    )
    made = timeseries.Panel().legend(legend).tooltip(tooltip).line_width(1).min(0)
    made.show_points(common.VisibilityMode.NEVER)
    if panel.most is not None:
        made.max(panel.most)
    if panel.kind == "stacked":
        made.fill_opacity(40)
        made.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    return made


def _number(panel: Panel) -> stat.Panel:
    made = stat.Panel().graph_mode(common.BigValueGraphMode.NONE)
    made.reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    if panel.kind == "name":
        made.text_mode(common.BigValueTextMode.NAME)
    steps = [dashboard.Threshold(None, "green")]
    if panel.must_be_zero:
        steps.append(dashboard.Threshold(0.5, "red"))
    thresholds = builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps)
    return made.thresholds(thresholds)


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for board in BOARDS:
        (FOLDER / f"{board.uid}.json").write_text(json_of(board))
    print(f"{len(BOARDS)} dashboards written to {FOLDER}")


if __name__ == "__main__":
    main()
