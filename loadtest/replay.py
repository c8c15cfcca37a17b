"""Replays held-out users over HTTP: is the served recall the one that was measured offline?

`python -m loadtest.replay --held-out BUNDLE/held_out.jsonl` sends one request for each user, a few
at a time, and measures recall@k, ndcg@k, latency and errors. With `--compare` it also compares
every user's rank with the one that `python -m training evaluate` wrote. It is a closed loop: its
latencies are of a busy server, not of a request rate. Imports nothing of the service.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from loadtest.clients import (
    KNOWN_TARGETS,
    OF_KNOWN_TARGETS,
    HeldOutUser,
    authorization,
    knows_targets,
    read_held_out,
)

PERCENTILES = (50, 95, 99)
RETRY_LATER = {429, 503}
ATTEMPTS = 3
MAX_COMPLAINTS = 10


@dataclass(frozen=True)
class Answer:
    """The answer for one user.

    outcome: `ok`, or what went wrong
    seconds: time waited
    rank:    1-based rank of the target; None if it is not in the answer
    nfe:     denoiser calls; None if nothing was decoded
    """

    user_id: str
    outcome: str
    seconds: float
    rank: int | None = None
    num_items: int = 0
    served_by: str | None = None
    nfe: int | None = None


@dataclass(frozen=True)
class Comparison:
    """Comparison of served ranks with ranks measured offline, both cut off at the same k.

    identical: number of users; different, unknown: ids of users
    """

    identical: int
    different: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def all_identical(self) -> bool:
        return not self.different and not self.unknown


async def replay(
    client: httpx.AsyncClient,
    users: Sequence[HeldOutUser],
    parameters: dict[str, Any],
    *,
    seed_events: bool = False,
    concurrency: int = 8,
) -> list[Answer]:
    """One POST /recommend for each user, `concurrency` at a time; answers in the order of `users`.

    parameters:  fields of the request besides user_id and history
    seed_events: store each history through POST /events first, and do not send it with the request
    """
    answers: list[Answer | None] = [None] * len(users)
    queue = iter(enumerate(users))

    async def work() -> None:
        for place, user in queue:
            answers[place] = await _replay_one(client, user, parameters, seed_events)

    await asyncio.gather(*(work() for _ in range(concurrency)))
    return [answer for answer in answers if answer is not None]


async def store_histories(
    client: httpx.AsyncClient, users: Sequence[HeldOutUser], *, concurrency: int = 8
) -> None:
    """Replace the stored history of each user by the held-out one. Raises httpx.HTTPError."""
    queue = iter(users)

    async def work() -> None:
        for user in queue:
            await _seed(client, user)

    await asyncio.gather(*(work() for _ in range(concurrency)))


async def _replay_one(
    client: httpx.AsyncClient, user: HeldOutUser, parameters: dict[str, Any], seed_events: bool
) -> Answer:
    start = time.perf_counter()
    try:
        if seed_events:
            await _seed(client, user)
            body = {"user_id": user.user_id, **parameters}
        else:
            body = user.request(**parameters)
        start = time.perf_counter()
        response = (await client.post("/recommend", json=body)).raise_for_status()
    except httpx.HTTPStatusError as error:
        return Answer(user.user_id, _outcome(error.response), time.perf_counter() - start)
    except httpx.HTTPError as error:
        return Answer(user.user_id, type(error).__name__, time.perf_counter() - start)
    seconds = time.perf_counter() - start
    answer = response.json()
    item_ids = [item["item_id"] for item in answer["items"]]
    rank, decoding = user.rank_in(item_ids), answer["decoding"]
    nfe = decoding["nfe"] if decoding else None
    return Answer(user.user_id, "ok", seconds, rank, len(item_ids), answer["served_by"], nfe)


async def _seed(client: httpx.AsyncClient, user: HeldOutUser) -> None:
    """Replace the stored history by exactly this user's."""
    history_url = f"/users/{quote(user.user_id, safe='')}/history"
    await _send_patiently(client, "DELETE", history_url)
    for body in user.event_bodies():
        await _send_patiently(client, "POST", "/events", json=body)


async def _send_patiently(client: httpx.AsyncClient, method: str, url: str, **body: Any) -> None:
    """Send a request that is not measured. If the service asks for it, wait and try again."""
    for attempt in range(1, ATTEMPTS + 1):
        response = await client.request(method, url, **body)
        if response.status_code not in RETRY_LATER or attempt == ATTEMPTS:
            break
        await asyncio.sleep(float(response.headers.get("Retry-After", 1)))
    response.raise_for_status()


def _outcome(response: httpx.Response) -> str:
    try:
        return f"{response.status_code} {response.json()['error']['code']}"
    except (ValueError, KeyError, TypeError):
        return str(response.status_code)


def summarise(answers: Sequence[Answer], k: int, wall_s: float) -> dict[str, Any]:
    """The figures of a replay. A user without an answer counts as a miss. Times in milliseconds."""
    ranks = [answer.rank for answer in answers if answer.rank is not None and answer.rank <= k]
    answered = [answer for answer in answers if answer.outcome == "ok"]
    waits_ms = sorted(answer.seconds * 1000 for answer in answered)
    return {
        "users": len(answers),
        f"recall@{k}": len(ranks) / len(answers),
        f"ndcg@{k}": sum(1 / math.log2(rank + 1) for rank in ranks) / len(answers),
        "errors": len(answers) - len(answered),
        "outcomes": dict(Counter(answer.outcome for answer in answers)),
        "served_by": dict(Counter(answer.served_by for answer in answered)),
        "short_lists": sum(answer.num_items < k for answer in answered),
        **{f"p{p}_ms": round(percentile(waits_ms, p), 2) for p in PERCENTILES if waits_ms},
        "requests_per_s": round(len(answered) / wall_s, 1),
    }


def of_known_targets(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures of a bundle that knows the targets: its recall has another name."""
    found = ("recall@", "ndcg@")
    return {
        name + OF_KNOWN_TARGETS * name.startswith(found): value for name, value in figures.items()
    }


def percentile(ascending: Sequence[float], percent: float) -> float:
    """The smallest value such that at least `percent` per cent of the values are not larger."""
    return ascending[max(0, math.ceil(len(ascending) * percent / 100) - 1)]


def compare(answers: Iterable[Answer], offline: dict[str, int | None], k: int) -> Comparison:
    """Compare every user's rank with the offline one; an offline rank above k counts as a miss."""
    identical, different, unknown = 0, [], []
    for answer in answers:
        if answer.user_id not in offline:
            unknown.append(answer.user_id)
            continue
        rank = offline[answer.user_id]
        expected = rank if rank is not None and rank <= k else None
        if answer.outcome == "ok" and answer.rank == expected:
            identical += 1
        else:
            different.append(answer.user_id)
    return Comparison(identical, tuple(different), tuple(unknown))


@dataclass(frozen=True)
class Offline:
    """Ranks measured offline, by user, and whether items of the history were left out."""

    ranks: dict[str, int | None]
    exclude_seen: bool


def read_ranks(path: Path) -> Offline:
    """Read the file that `python -m training evaluate` writes: one JSON object for each line.

    Files from before decision 034 do not have `exclude_seen`: nothing was left out then.
    Raises ValueError if the lines have different settings.
    """
    with path.open(encoding="utf-8") as lines:
        entries = [json.loads(line) for line in lines]
    settings = {bool(entry.get("exclude_seen", False)) for entry in entries}
    if len(settings) > 1:
        raise ValueError(f"{path} has lines of two evaluations: exclude_seen differs")
    ranks = {entry["user_id"]: entry["rank"] for entry in entries}
    return Offline(ranks, settings.pop() if settings else True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: prints figures, then a line of JSON. 1 after an error or a different rank."""
    options = _parser().parse_args(arguments)
    names = [
        "r_warm",
        "m_par",
        "beam_width",
        "ranking",
        "finish_rows",
        "order",
        "remask",
        "guidance",
        "retrieval",
    ]
    chosen = {name: getattr(options, name) for name in names}
    try:
        users = read_held_out(options.held_out, options.users)
        offline = read_ranks(options.compare) if options.compare else None
    except (OSError, ValueError, KeyError) as error:
        print(f"Cannot read the users or ranks: {error}", file=sys.stderr)
        return 1
    exclude_seen = options.exclude_seen
    if exclude_seen is None:  # compare equal settings
        exclude_seen = offline.exclude_seen if offline else True
    elif offline and offline.exclude_seen != exclude_seen:
        option = "--exclude-seen" if offline.exclude_seen else "--no-exclude-seen"
        print(
            f"The ranks in {options.compare} were measured with {option}: add it", file=sys.stderr
        )
        return 1
    parameters = {
        "k": options.k,
        "exclude_seen": exclude_seen,
        **{name: value for name, value in chosen.items() if value is not None},
    }

    async def run() -> list[Answer]:
        limits = httpx.Limits(max_connections=options.concurrency)
        async with httpx.AsyncClient(
            base_url=options.url,
            headers=authorization(),
            timeout=options.timeout_s,
            limits=limits,
            trust_env=False,
        ) as client:
            return await replay(
                client,
                users,
                parameters,
                seed_events=options.seed_events,
                concurrency=options.concurrency,
            )

    start = time.perf_counter()
    answers = asyncio.run(run())
    figures = summarise(answers, options.k, time.perf_counter() - start)
    if knows_targets(options.url):
        figures = of_known_targets(figures)
        print(KNOWN_TARGETS, file=sys.stderr)
    if any(outcome.startswith("401") for outcome in figures["outcomes"]):
        print("The service requires one of its keys: set UNMASK_API_KEYS", file=sys.stderr)
    elif figures["errors"] == len(users):
        print(f"No answer from {options.url}: is the service running there?", file=sys.stderr)
    passed = figures["errors"] == 0
    if offline is not None:
        comparison = compare(answers, offline.ranks, options.k)
        figures["ranks_identical"] = comparison.identical
        figures["ranks_different"] = len(comparison.different)
        figures["ranks_unknown"] = len(comparison.unknown)
        passed = passed and comparison.all_identical
        for user_id in comparison.different[:MAX_COMPLAINTS]:
            print(f"user {user_id}: the rank served is not the offline one", file=sys.stderr)
        if comparison.unknown:
            print(
                f"{len(comparison.unknown)} users are not in {options.compare}; "
                "evaluate all users (leave evaluation.users out)",
                file=sys.stderr,
            )
    for name, value in figures.items():
        print(f"{name:<16} {value:.4f}" if isinstance(value, float) else f"{name:<16} {value}")
    print(json.dumps({"url": options.url, **parameters, **figures, "passed": passed}))
    return 0 if passed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.replay",
        description="Replay held-out users over HTTP and measure recall, latency and errors.",
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--held-out", type=Path, required=True, help="held_out.jsonl of a bundle")
    parser.add_argument("--users", type=int, help="only the first USERS users; default: all")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--r-warm", type=int, help="default: the bundle's")
    parser.add_argument("--m-par", type=int, help="default: the bundle's")
    parser.add_argument("--beam-width", type=int, help="default: the bundle's")
    parser.add_argument("--ranking", help="rows, best or path; default: the bundle's")
    parser.add_argument("--finish-rows", type=int, help="default: the bundle's")
    parser.add_argument("--order", help="confidence, entropy, ...; default: the bundle's")
    parser.add_argument("--remask", type=int, help="default: the bundle's")
    parser.add_argument("--guidance", type=float, help="default: the bundle's")
    parser.add_argument("--retrieval", help="generate, dense or fused; default: the bundle's")
    parser.add_argument("--concurrency", type=int, default=8, help="requests in flight")
    parser.add_argument("--timeout-s", type=float, default=30, help="longest wait for an answer")
    parser.add_argument(
        "--exclude-seen",
        action=argparse.BooleanOptionalAction,
        help="leave out items of the history [default: as the ranks of --compare were measured, "
        "else as the service does, which leaves them out]",
    )
    parser.add_argument(
        "--seed-events",
        action="store_true",
        help="store each history through POST /events (replacing what is there), do not send it",
    )
    parser.add_argument(
        "--compare", type=Path, metavar="FILE", help="ranks.jsonl of the offline evaluation"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
