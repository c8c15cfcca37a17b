"""The story of POST /events: each event is rejected with a reason, or stored and counted.

Events of some types enter histories. Events of other types are only counted. Both are attributed to
the answers that they name. Negative events say which items a user is not interested in. A wrong
event does not stop the others. Sending the same events again changes nothing. Knows nothing of HTTP
or Redis commands.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from pydantic import ValidationError

from service.histories.background import Trending
from service.histories.store import HistoryStore, Stored
from service.schemas import Event, EventsResponse, RejectedEvent, field_name, refusals_among
from service.telemetry import Metrics


async def store_events(
    entries: Sequence[Event | ValidationError],
    histories: HistoryStore,
    metrics: Metrics,
    *,
    event_types: Sequence[str],
    counted_event_types: Sequence[str],
    negative_event_types: Sequence[str] = (),
    trending: Trending | None = None,
) -> EventsResponse:
    """Store the valid events, in the order given.

    event_types: types that enter a history
    counted_event_types: types that do not enter a history but are accepted; a type in both enters
        the history
    negative_event_types: types of refusals; UNDO before one takes a refusal back; a type in two
        lists enters the history, else the refusals
    trending: is told of events that count for what is trending
    Raises HistoryUnavailable. Then some events may be stored. Repeating the call stores the rest.
    """
    started = time.perf_counter()
    refusing, undoing = refusals_among(negative_event_types, event_types)
    known = [*event_types, *refusing, *undoing]
    counted = [one for one in counted_event_types if one not in known]
    known += counted
    events: list[Event] = []
    rejected: list[RejectedEvent] = []
    for index, entry in enumerate(entries):
        if isinstance(entry, ValidationError):
            message = _first_message(entry)
            rejected.append(RejectedEvent(index=index, code="invalid_event", message=message))
        elif entry.event_type not in known:
            message = f"event_type must be one of {', '.join(known)}"
            rejected.append(RejectedEvent(index=index, code="unknown_event_type", message=message))
        elif entry.item_ids and entry.event_type not in counted:
            message = "item_ids: an event of this type has one item_id"
            rejected.append(RejectedEvent(index=index, code="invalid_event", message=message))
        else:
            events.append(entry)
    types = counted, refusing, trending.event_types if trending else ()
    stored = await histories.append(events, *types) if events else []
    for event, fate in zip(events, stored, strict=True):
        _count(event.event_type, fate, metrics)
        if trending and fate.counts and event.item_id is not None:
            trending.note(event.item_id)
    metrics.events.labels("other", "rejected").inc(len(rejected))
    accepted = sum(fate.is_new for fate in stored)
    return EventsResponse(
        accepted=accepted,
        duplicates=len(stored) - accepted,
        attributed=sum(fate.attribution is not None for fate in stored),
        rejected=rejected,
        took_ms=round(1000 * (time.perf_counter() - started), 3),
    )


def _count(event_type: str, stored: Stored, metrics: Metrics) -> None:
    metrics.events.labels(event_type, "accepted" if stored.is_new else "duplicate").inc()
    if found := stored.attribution:
        labels = (event_type, found.bundle, found.variant)
        metrics.attributed_events.labels(*labels).inc()
        metrics.hit_recommendations.labels(*labels).inc(found.is_first)
        metrics.attribution_rank.labels(event_type).observe(found.rank)


def _first_message(error: ValidationError) -> str:
    """Where the first error is, and what it is. It never repeats the value."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    name = field_name(first["loc"])
    return f"{name}: {first['msg']}" if name else first["msg"]
