"""What load tests share: held-out users, API keys, a service process, an open loop of requests.

Reading order: `held_out`, `api_key`, `service_process`, `open_loop`, `capacity` (the highest rate
within an SLO). Knows the service only over HTTP.
"""

from loadtest.clients.api_key import authorization
from loadtest.clients.capacity import find_capacity
from loadtest.clients.held_out import (
    KNOWN_TARGETS,
    MAX_EVENTS,
    OF_KNOWN_TARGETS,
    HeldOutUser,
    knows_targets,
    read_held_out,
)
from loadtest.clients.open_loop import ANSWER_TIMEOUT_S, BUSY_CPU_SHARE, Load, open_loop
from loadtest.clients.service_process import ServiceProcess, run_service

__all__ = [
    "ANSWER_TIMEOUT_S",
    "BUSY_CPU_SHARE",
    "KNOWN_TARGETS",
    "MAX_EVENTS",
    "OF_KNOWN_TARGETS",
    "HeldOutUser",
    "Load",
    "ServiceProcess",
    "authorization",
    "find_capacity",
    "knows_targets",
    "open_loop",
    "read_held_out",
    "run_service",
]
