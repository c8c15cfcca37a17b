"""Held-out users of a bundle, and the requests that replay them.

A held-out user has a history and a target: the item that came next. Reads `held_out.jsonl` as plain
JSON lines, asks a service whether its bundle has learnt the targets, and imports nothing of it.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from loadtest.clients.api_key import authorization

MAX_EVENTS = 100  # the most that POST /events accepts in one call
MAX_HISTORY = 500  # the most that POST /recommend accepts; the store keeps fewer by default


@dataclass(frozen=True)
class HeldOutUser:
    """A test user: history (item_ids, oldest first) and the item that came next."""

    user_id: str
    history: tuple[str, ...]
    target: str

    @property
    def request_history(self) -> tuple[str, ...]:
        """The newest items of the history, as many as POST /recommend accepts."""
        return self.history[-MAX_HISTORY:]

    def request(self, **fields: Any) -> dict[str, Any]:
        """The body of POST /recommend with the history and these other fields."""
        return {"user_id": self.user_id, "history": self.request_history, **fields}

    def rank_in(self, item_ids: list[str]) -> int | None:
        """1-based rank of the target in an answer; None if it is not there."""
        return item_ids.index(self.target) + 1 if self.target in item_ids else None

    def event_bodies(self) -> list[dict[str, Any]]:
        """Bodies of POST /events that store this user's history if they are posted in order.

        The event_id is the place in the history. So posting again changes nothing.
        """
        events = [
            {
                "event_id": f"held-out-{place}",
                "user_id": self.user_id,
                "item_id": item_id,
                "event_type": "click",
            }
            for place, item_id in enumerate(self.history)
        ]
        starts = range(0, len(events), MAX_EVENTS)
        return [{"events": events[start : start + MAX_EVENTS]} for start in starts]


KNOWN_TARGETS = (
    "The bundle that answers has learnt what these users had next, so finding it is no recall that "
    "others get. To measure recall, serve the trial bundle of its run (the folder `trial` beside "
    "`bundle`) with its held_out.jsonl; waiting times and errors hold for both."
)
OF_KNOWN_TARGETS = "_of_known_targets"  # behind the name of such a recall


def knows_targets(url: str) -> bool:
    """Whether the active bundle of the service at `url` has learnt the targets of held-out users.

    False when that cannot be asked: then the requests that follow say what is wrong.
    """
    try:
        info = httpx.get(f"{url.rstrip('/')}/info", headers=authorization(), trust_env=False)
        bundle = info.raise_for_status().json().get("bundle") or {}
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return False
    return bool(bundle.get("knows_held_out", False))  # older services do not say it


def read_held_out(path: Path, num_users: int | None = None) -> list[HeldOutUser]:
    """The first `num_users` held-out users of a bundle; None means all.

    Raises ValueError if the file is not there or holds no users.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            entries = [json.loads(line) for line in itertools.islice(lines, num_users)]
    except OSError as error:
        raise ValueError(
            f"cannot read {path} ({error.strerror}): name the folder of a bundle, which has a "
            "manifest.json and a held_out.jsonl"
        ) from error
    if not entries:
        raise ValueError(f"{path} holds no users; train with bundle.held_out_users above 0")
    return [
        HeldOutUser(entry["user_id"], tuple(entry["history"]), entry["target"]) for entry in entries
    ]
