"""Pauses in long Python work, so that threads which decode need not wait for the interpreter.

A thread that runs Python holds the interpreter's lock. A thread that decodes needs this lock dozens
of times a job. So long work runs for a short time, then sleeps. Knows nothing of what the work is.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

RUN_S = 0.0001
REST_S = 0.0005


def with_pauses(items: Iterable[T]) -> Iterator[T]:
    """The same items; a loop over them sleeps now and then, so that other threads can run."""
    rest_at = time.perf_counter() + RUN_S
    for item in items:
        yield item
        if time.perf_counter() >= rest_at:
            time.sleep(REST_S)
            rest_at = time.perf_counter() + RUN_S
