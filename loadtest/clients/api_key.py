"""The key that a load test sends to a service which runs already and asks for one.

The first of UNMASK_API_KEYS, the service's own setting.
"""

from __future__ import annotations

import os


def authorization() -> dict[str, str]:
    """The header that every request has; none where there is no key."""
    first, *_ = os.environ.get("UNMASK_API_KEYS", "").split(",")
    return {"Authorization": f"Bearer {first.strip()}"} if first.strip() else {}
