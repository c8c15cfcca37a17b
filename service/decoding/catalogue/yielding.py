"""Long work in Python beside threads that are in a hurry: it runs a little, then rests a little.

A thread that runs Python holds the interpreter's lock, and one that decodes needs it dozens of
times a job. Knows nothing of what the work is.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

RUN_S = 0.0001
REST_S = 0.0005


def unhurried(items: Iterable[T]) -> Iterator[T]:
    """The same items; whoever goes through them rests now and then."""
    rest_at = time.perf_counter() + RUN_S
    for item in items:
        yield item
        if time.perf_counter() >= rest_at:
            time.sleep(REST_S)
            rest_at = time.perf_counter() + RUN_S
