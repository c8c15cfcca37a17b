"""Free TCP ports for servers that the tests start.

Not of the range from which the kernel gives a port to every outgoing connection: such a port is
free when it is looked for, and may be taken when the server starts a moment later.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from pathlib import Path

LOWEST = 10_000
OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")  # Linux
USUAL_LOWEST_OUTGOING = 32_768


def _shuffled() -> Iterator[int]:
    """Every port once and in an order of this process: two of them hardly meet."""
    outgoing = int(OUTGOING.read_text().split()[0]) if OUTGOING.exists() else USUAL_LOWEST_OUTGOING
    below = outgoing if outgoing > 2 * LOWEST else USUAL_LOWEST_OUTGOING
    yield from random.SystemRandom().sample(range(LOWEST, below), below - LOWEST)


_ports = _shuffled()


def find_free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, another one at each call."""
    for port in _ports:
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no port is left")
