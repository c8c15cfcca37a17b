"""Which limit a request has to pass: the gate of clients, a waiting line, or none.

A request waits in a line if it has no key where keys are set, or if its route needs no key. So a
flood of such requests takes no client's place, and little of the event loop. Health has a line of
its own, which refuses nobody. Administrators always pass, because overload must not stop the person
who can end it. Looks at the path and the key only.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping
from typing import Any

from service.http.admission.gate import Gate, WaitingLine
from service.http.admission.keys import Keys

HEALTH = {"/health/live", "/health/ready", "/livez", "/readyz"}
ADMIN = "admin"
AT_ONCE = 8
MOST_WAITING = 1000


class AdmissionRules:
    """The limits of one process. See the module.

    client_roots: the first parts of the paths that belong to clients
    """

    def __init__(self, keys: Keys, clients: Gate, client_roots: Collection[str]) -> None:
        self._keys = keys
        self._clients = clients
        self._health = WaitingLine(AT_ONCE)
        self._others = WaitingLine(AT_ONCE, MOST_WAITING)
        self._client_roots = client_roots

    def limit_of(self, scope: Mapping[str, Any]) -> Gate | WaitingLine | None:
        """The limit that an HTTP request has to pass; None when there is none."""
        path: str = scope["path"]
        if path in HEALTH:
            return self._health
        root = path[1:].partition("/")[0]
        if root == ADMIN and self._keys.is_admin(bearer_key_of(scope)):
            return None
        if root in self._client_roots and self._keys.is_client(client_key_of(scope)):
            return self._clients
        return self._others


def bearer_key_of(scope: Mapping[str, Any]) -> str | None:
    """The bearer key that a request carries, or None."""
    scheme, key = _authorization_of(scope)
    return key if scheme == "bearer" else None


def client_key_of(scope: Mapping[str, Any]) -> str | None:
    """The bearer key, or the password of HTTP Basic: browsers have nothing else for a page.

    For routes of clients only. A browser adds what it was given to requests that pages of others
    send, too; these routes change nothing without a body of JSON or the method DELETE, which such
    pages cannot send. Some routes of administrators have no body.
    """
    scheme, sent = _authorization_of(scope)
    if scheme != "basic":
        return sent if scheme == "bearer" else None
    try:
        pair = base64.b64decode(sent, validate=True).decode()
    except ValueError:
        return None
    _, colon, password = pair.partition(":")
    return password if colon else None


def _authorization_of(scope: Mapping[str, Any]) -> tuple[str, str]:
    sent = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    scheme, _, key = sent.decode("latin-1").partition(" ")
    return scheme.lower(), key.strip()
