"""OpenTelemetry: a span for each request, each stage of a recommendation, and each batch.

Tracing is on when OTEL_EXPORTER_OTLP_ENDPOINT is set and the extra `otel` is installed. The SDK's
own OTEL_ variables set the rest. Spans of stages are made after the answer, from its timings. Some
stages come in pieces: calls of the network alternate with steps of the search. Such a stage is one
span as long as their sum. If a request has a `traceparent`, that is its parent. A batch has many
requests, so it has no parent: it is a trace of its own, linked to the spans of its requests.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

from service.errors import SettingsInvalid

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
NS = 1_000_000_000
FLUSH_S = 2.0
STAGES = ("history", "queue", "encode", "denoise", "search", "map")


class Traces:
    """The tracer of one process."""

    def __init__(self) -> None:
        """Raises SettingsInvalid when the extra is not installed."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import Link
            from opentelemetry.trace.propagation import set_span_in_context
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise SettingsInvalid(
                f"{ENDPOINT} is set, but OpenTelemetry is not installed: pip install 'unmask[otel]'"
            ) from error
        name = os.environ.get("OTEL_SERVICE_NAME", "unmask")
        self._provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
        self._exporter = OTLPSpanExporter()
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("unmask")
        self._extract = TraceContextTextMapPropagator().extract
        self._inside = set_span_in_context
        self._link = Link
        self._current: ContextVar[Any] = ContextVar("request", default=None)

    def begin(self, method: str, seconds: float, traceparent: str | None) -> Any:
        """The span of a request that began `seconds` ago. It becomes the current span of this task.

        Samplers see no route, because the route is not known yet.
        """
        parent = self._extract({"traceparent": traceparent}) if traceparent else None
        start = time.time_ns() - int(seconds * NS)
        attributes = {"http.request.method": method}
        span = self._tracer.start_span(method, parent, attributes=attributes, start_time=start)
        self._current.set(span)
        return span

    @property
    def current(self) -> Any:
        """The span of the request that this task works for; None if there is no request."""
        return self._current.get()

    def end(
        self, root: Any, name: str, attributes: dict[str, Any], timings_ms: dict[str, float]
    ) -> str:
        """End the span of a request and add spans of its stages; returns its trace id in hex."""
        end = time.time_ns()
        root.update_name(name)
        root.set_attributes(attributes)
        inside = self._inside(root)
        stages = {stage: timings_ms[stage] for stage in STAGES if stage in timings_ms}
        at = end - int(sum(stages.values()) * NS / 1000)  # the time before is reading the request
        for stage, milliseconds in stages.items():
            span = self._tracer.start_span(stage, inside, start_time=at)
            at = min(end, at + int(milliseconds * NS / 1000))  # rounding may add a nanosecond
            span.end(at)
        root.end(end)
        return f"{root.get_span_context().trace_id:032x}"

    def record_batch(
        self, requests: Iterable[Any], end: int, seconds: float, attributes: dict[str, Any]
    ) -> None:
        """Record the span of a batch, if at least one of its requests is sampled.

        requests: their spans; one may occur several times; end: time.time_ns()
        """
        contexts = [span.get_span_context() for span in dict.fromkeys(requests)]
        links = [self._link(context) for context in contexts if context.trace_flags.sampled]
        if not links:
            return
        start = end - int(seconds * NS)
        span = self._tracer.start_span(
            "batch", links=links, attributes=attributes, start_time=start
        )
        span.end(end)

    def stop(self) -> None:
        """Send what is left. A collector that does not answer is given up."""
        give_up = threading.Timer(FLUSH_S, self._exporter.shutdown)
        give_up.start()
        self._provider.shutdown()
        give_up.cancel()


def traces_if_asked() -> Traces | None:
    """A tracer if the environment asks for one, else None."""
    return Traces() if os.environ.get(ENDPOINT) else None
