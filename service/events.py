"""The story of POST /events: each entry is rejected with a reason, or appended to a history.

A wrong entry does not stop the others, and sending the same events again changes nothing. Knows
nothing of HTTP or Redis commands.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from pydantic import ValidationError

from service.history import HistoryStore
from service.metrics import Metrics
from service.schemas import Event, EventsResponse, RejectedEvent, field_name


async def store_events(
    entries: Sequence[Event | ValidationError],
    histories: HistoryStore,
    metrics: Metrics,
    *,
    event_types: Sequence[str],
) -> EventsResponse:
    """Append the valid events to their users' histories, in the order given.

    event_types: those that belong into a history. Raises HistoryUnavailable; then some events may
    be stored, and repeating the call stores the rest.
    """
    started = time.perf_counter()
    events: list[Event] = []
    rejected: list[RejectedEvent] = []
    for index, entry in enumerate(entries):
        if isinstance(entry, ValidationError):
            message = _first_message(entry)
            rejected.append(RejectedEvent(index=index, code="invalid_event", message=message))
        elif entry.event_type not in event_types:
            message = f"event_type must be one of {', '.join(event_types)}"
            rejected.append(RejectedEvent(index=index, code="unknown_event_type", message=message))
        else:
            events.append(entry)
    appended = await histories.append(events) if events else []
    for event, is_new in zip(events, appended, strict=True):
        metrics.events.labels(event.event_type, "accepted" if is_new else "duplicate").inc()
    metrics.events.labels("other", "rejected").inc(len(rejected))
    return EventsResponse(
        accepted=sum(appended),
        duplicates=len(appended) - sum(appended),
        rejected=rejected,
        took_ms=round(1000 * (time.perf_counter() - started), 3),
    )


def _first_message(error: ValidationError) -> str:
    """Where and what, of the first of the errors; never the value."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    name = field_name(first["loc"])
    return f"{name}: {first['msg']}" if name else first["msg"]
