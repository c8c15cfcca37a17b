"""What operators see: metrics, traces, and the pauses of the Python interpreter.

Counts and times what it is told. It decides nothing and knows no other room.

Reading order: `metrics` (every metric, in one list), `merged_metrics` (those of several workers as
one), `traces` (OpenTelemetry, if it is wanted), `interpreter_pauses` (garbage collection and
event-loop lag), `ids` (of requests and answers).
"""

from service.telemetry.ids import request_id, uuid7
from service.telemetry.interpreter_pauses import hidden_from_gc, measure_loop_lag, watched_gc
from service.telemetry.merged_metrics import Dump, counted, dump_of, merged, text_of_dump
from service.telemetry.metrics import METRICS_CONTENT_TYPE, Metrics
from service.telemetry.traces import Traces, traces_if_asked

__all__ = [
    "METRICS_CONTENT_TYPE",
    "Dump",
    "Metrics",
    "Traces",
    "counted",
    "dump_of",
    "hidden_from_gc",
    "measure_loop_lag",
    "merged",
    "request_id",
    "text_of_dump",
    "traces_if_asked",
    "uuid7",
    "watched_gc",
]
