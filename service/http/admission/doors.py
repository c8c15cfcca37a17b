"""What a request has to pass: the gate of clients, the line of everybody else, or nothing.

Whoever has no key where keys are set, and whoever asks for what needs none, waits for a turn: a
flood of them takes no client's place, and little of the event loop. Health has a line of its own,
which turns nobody away. Administrators are always let in: overload must not stop who would end it.
Looks at the path and the key, at nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from service.http.admission.gate import Gate, Line
from service.http.admission.keys import Keys

HEALTH = {"/health/live", "/health/ready", "/livez", "/readyz"}
ADMIN = "admin"
AT_ONCE = 8
MOST_WAITING = 1000


class Doors:
    """See the module.

    client_roots: the first parts of the paths that are clients'
    """

    def __init__(self, keys: Keys, clients: Gate, client_roots: Collection[str]) -> None:
        self._keys = keys
        self._clients = clients
        self._health = Line(AT_ONCE)
        self._others = Line(AT_ONCE, MOST_WAITING)
        self._client_roots = client_roots

    def door_of(self, scope: Mapping[str, Any]) -> Gate | Line | None:
        """What a request of HTTP has to pass, if anything."""
        path: str = scope["path"]
        if path in HEALTH:
            return self._health
        root, key = path[1:].partition("/")[0], bearer_key_of(scope)
        if root == ADMIN and self._keys.is_admin(key):
            return None
        if root in self._client_roots and self._keys.is_client(key):
            return self._clients
        return self._others


def bearer_key_of(scope: Mapping[str, Any]) -> str | None:
    """The key that a request brings."""
    sent = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    scheme, _, key = sent.decode("latin-1").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None
