"""A load of held-out users at a constant rate, with the recall of the very same answers.

`locust -f loadtest/locustfile.py --headless -u 20 -r 20 -t 60s --host http://127.0.0.1:8000
--held-out BUNDLE/held_out.jsonl`: each of the `-u` simulated users sends `--rate` requests a
second, one held-out user after the other. At the end recall@k is printed as one line of JSON.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from locust import FastHttpUser, constant_throughput, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from loadtest.held_out import HeldOutUser, read_held_out


class Recall:
    """Held-out users in turn, and how many of their targets were in the answers."""

    def __init__(self, users: list[HeldOutUser], k: int) -> None:
        self.users: Iterator[HeldOutUser] = itertools.cycle(users)
        self.k = k
        self.answers = 0
        self.hits = 0

    def count(self, user: HeldOutUser, item_ids: list[str]) -> None:
        self.answers += 1
        self.hits += user.rank_in(item_ids) is not None


class HeldOutTraffic(FastHttpUser):
    """Sends `--rate` requests a second, fewer only when one answer takes longer than its turn."""

    recall: ClassVar[Recall]

    def wait_time(self) -> float:
        seconds: float = constant_throughput(self.environment.parsed_options.rate)(self)
        return seconds

    @task
    def recommend(self) -> None:
        user = next(self.recall.users)
        body = user.request(k=self.recall.k, exclude_seen=False)
        with self.client.post("/recommend", json=body, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}")
                return
            item_ids = [item["item_id"] for item in response.json()["items"]]
            if len(item_ids) < self.recall.k:
                response.failure(f"{len(item_ids)} items instead of {self.recall.k}")
            self.recall.count(user, item_ids)


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: LocustArgumentParser, **_: Any) -> None:
    parser.add_argument("--held-out", required=True, help="held_out.jsonl of the bundle served")
    parser.add_argument("--k", type=int, default=10, help="items per request")
    parser.add_argument("--rate", type=float, default=1, help="requests a second per user")


@events.init.add_listener  # type: ignore[untyped-decorator]
def read_users(environment: Environment, **_: Any) -> None:
    options = environment.parsed_options
    assert options is not None
    HeldOutTraffic.recall = Recall(read_held_out(Path(options.held_out)), options.k)


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def report(**_: Any) -> None:
    recall = HeldOutTraffic.recall
    share = recall.hits / recall.answers if recall.answers else None
    print(json.dumps({"answers": recall.answers, f"recall@{recall.k}": share}))
