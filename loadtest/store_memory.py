"""How much memory does a user need in the store? Bytes of history, event log, marks and answers.

`python -m loadtest.store_memory --bundle DIR --redis-url redis://127.0.0.1:6379` needs an empty
store. For each length in `--histories` it serves the bundle with that store, sends that many events
for each of `--users` users and asks for one answer each. It reads the memory of the store before,
between and after, and then empties the store. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from redis import Redis, RedisError

from loadtest.clients import MAX_EVENTS, read_held_out, run_service

PATIENT_MS = 5000  # timeout of a call to the store; nothing is timed here
WRITTEN_WITHIN_S = 30.0  # answers are written to the store in the background


def measure(
    client: httpx.Client, store: Redis, item_ids: Sequence[str], num_users: int, length: int, k: int
) -> dict[str, Any]:
    """Bytes for each user: by kind of key, as the store counts them, and of all memory it took."""
    users = [f"user-{number:08d}" for number in range(num_users)]
    items = itertools.cycle(item_ids)
    events = [
        {"event_id": str(uuid.uuid4()), "user_id": user, "item_id": item, "event_type": "click"}
        for user in users
        for item in itertools.islice(items, length)
    ]
    empty = _used(store)
    for start in range(0, len(events), MAX_EVENTS):
        body = {"events": events[start : start + MAX_EVENTS]}
        client.post("/events", json=body).raise_for_status()
    after_events, num_keys = _used(store), int(store.dbsize())
    for user in users:
        client.post("/recommend", json={"user_id": user, "k": k}).raise_for_status()
    _wait_for_keys(store, num_keys + num_users)
    return {
        "items": length,
        "users": num_users,
        "k": k,
        "by_kind": {kind: round(size / num_users) for kind, size in _by_kind(store).items()},
        "after_events": round((after_events - empty) / num_users),
        "after_answer": round((_used(store) - empty) / num_users),
    }


def _used(store: Redis) -> int:
    return int(store.info("memory")["used_memory"])


def _by_kind(store: Redis) -> dict[str, int]:
    """Bytes of all keys by the second part of their names, such as unmask:history:{user}."""
    kinds: Counter[str] = Counter()
    for key in set(store.scan_iter(count=1000)):  # a scan may name a key twice
        kinds[key.decode().split(":")[1]] += store.memory_usage(key, samples=0) or 0
    return dict(sorted(kinds.items()))


def _wait_for_keys(store: Redis, number: int) -> None:
    until = time.monotonic() + WRITTEN_WITHIN_S
    while store.dbsize() < number:
        if time.monotonic() > until:
            raise RuntimeError(f"the store has {store.dbsize()} keys, {number} were expected")
        time.sleep(0.05)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 1 after a sentence if it cannot measure."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.store_memory", description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="folder of the bundle")
    parser.add_argument("--redis-url", required=True, help="an empty store, emptied again after")
    parser.add_argument("--histories", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--k", type=int, default=10)
    asked = parser.parse_args(arguments)
    results = []
    try:
        item_ids = [
            item for user in read_held_out(asked.bundle / "held_out.jsonl") for item in user.history
        ]
        with Redis.from_url(asked.redis_url) as store:
            if store.dbsize():
                raise RuntimeError(f"{asked.redis_url} is not empty; give this an empty store")
            for length in asked.histories:
                with (
                    run_service(
                        asked.bundle, redis_url=asked.redis_url, redis_timeout_ms=PATIENT_MS
                    ) as service,
                    httpx.Client(base_url=service.url, timeout=60, trust_env=False) as client,
                ):
                    results.append(measure(client, store, item_ids, asked.users, length, asked.k))
                store.flushdb()
                print(_sentence(results[-1]))
    except (RuntimeError, OSError, ValueError, RedisError, httpx.HTTPError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(results))
    return 0


def _sentence(found: dict[str, Any]) -> str:
    kinds = ", ".join(f"{kind} {size:,}" for kind, size in found["by_kind"].items())
    return (
        f"{found['items']} items: {kinds} bytes a user; all memory with one answer "
        f"{found['after_answer']:,} bytes a user, {found['after_answer'] / 1000:.2f} GB per million"
    )


if __name__ == "__main__":
    sys.exit(main())
