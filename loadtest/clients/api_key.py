"""The API key that a load test sends to a running service.

It is the first key of UNMASK_API_KEYS, which is the service's own setting. Does not know whether
the service requires one.
"""

from __future__ import annotations

import os


def authorization() -> dict[str, str]:
    """The header of every request; empty if there is no key."""
    first, *_ = os.environ.get("UNMASK_API_KEYS", "").split(",")
    return {"Authorization": f"Bearer {first.strip()}"} if first.strip() else {}
