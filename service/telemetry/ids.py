"""Ids of requests and answers: very likely unique, and not secret.

The system seeds the random generator once. Asking the system for every id would take longer than
reading the request. Ids of answers sort by the time they were made: UUID version 7, which Python
3.11 does not have.
"""

from __future__ import annotations

import random
import time
from uuid import UUID

_bits = random.Random().getrandbits


def request_id() -> str:
    """A random id of 32 hex digits."""
    return f"{_bits(128):032x}"


def uuid7() -> UUID:
    """A random UUID that sorts by its time of creation (RFC 9562, 5.7)."""
    milliseconds = time.time_ns() // 1_000_000
    value = milliseconds << 80 | _bits(80)
    value = value & ~(0xF << 76) | 0x7 << 76  # version
    value = value & ~(0x3 << 62) | 0x2 << 62  # variant
    return UUID(int=value)
