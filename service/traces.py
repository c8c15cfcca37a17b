"""OpenTelemetry: a span for each request, and one for each stage of a recommendation.

On when OTEL_EXPORTER_OTLP_ENDPOINT is set and the extra `otel` is installed; the SDK's own OTEL_
variables say the rest. Spans are made after the answer, from its timings: a stage that came in
pieces, as calls of the network between steps of the search do, is one span of their sum. A
`traceparent` that came with the request is the parent.
"""

from __future__ import annotations

import os
import threading
import time
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

    def record(
        self,
        name: str,
        seconds: float,
        attributes: dict[str, Any],
        timings_ms: dict[str, float],
        traceparent: str | None,
    ) -> str:
        """Spans of a request that ends now; its trace id in hex."""
        parent = self._extract({"traceparent": traceparent}) if traceparent else None
        end = time.time_ns()
        start = end - int(seconds * NS)
        root = self._tracer.start_span(name, parent, attributes=attributes, start_time=start)
        inside = self._inside(root)
        stages = {stage: timings_ms[stage] for stage in STAGES if stage in timings_ms}
        at = end - int(sum(stages.values()) * NS / 1000)  # what comes before is reading the request
        for stage, milliseconds in stages.items():
            span = self._tracer.start_span(stage, inside, start_time=at)
            at = min(end, at + int(milliseconds * NS / 1000))  # rounding may add a nanosecond
            span.end(at)
        root.end(end)
        return f"{root.get_span_context().trace_id:032x}"

    def stop(self) -> None:
        """Send what is left; a collector that does not answer is given up on."""
        give_up = threading.Timer(FLUSH_S, self._exporter.shutdown)
        give_up.start()
        self._provider.shutdown()
        give_up.cancel()


def traces_if_asked() -> Traces | None:
    """A tracer where the environment asks for one."""
    return Traces() if os.environ.get(ENDPOINT) else None
