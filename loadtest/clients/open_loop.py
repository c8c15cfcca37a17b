"""An open loop: requests at a rate that does not depend on how fast the service answers.

Arrivals are a Poisson process. A request is due when it arrives, and its latency counts from then.
So the delays of a service that falls behind are counted (no coordinated omission). One process with
one event loop: `cpu_share` says whether the generator itself was the bottleneck. Imports nothing of
the service.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import resource
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np

from loadtest.clients.held_out import HeldOutUser

MAX_CONNECTIONS = 2000
ANSWER_TIMEOUT_S = 15.0  # longer than the longest deadline of a request
BUSY_CPU_SHARE = 0.8  # of a core: above this, delays of the generator are part of the latencies


@dataclass(frozen=True)
class Sent:
    """One request and its answer.

    due:      seconds from the start of the load
    seconds:  from the time it was due to its answer
    status:   of HTTP; 0 if there was no answer
    user_id:  the user it asks for
    rank:     1-based rank of the target; None if it is not in the answer
    degraded: reasons, as in the answer
    adjusted: whether the service chose another setting than the one asked for
    """

    due: float
    seconds: float
    status: int
    user_id: str = ""
    rank: int | None = None
    degraded: tuple[str, ...] = ()
    adjusted: bool = False


@dataclass(frozen=True)
class Load:
    """The result of a load.

    rate:       requests a second that were offered
    seconds:    how long they were offered
    answered_s: from the same start until the last answer
    cpu_share:  cores that the generator used
    """

    rate: float
    seconds: float
    cpu_share: float
    sent: Sequence[Sent] = field(repr=False)
    answered_s: float = 0.0

    @property
    def generator_busy(self) -> bool:
        """Whether the generator, not the service, may have set the limit."""
        return self.cpu_share > BUSY_CPU_SHARE

    @property
    def reached(self) -> float:
        """Answers with items for each second, until the end of the load or the last answer."""
        return len(self.answered()) / max(self.seconds, self.answered_s)

    @property
    def unanswered(self) -> int:
        """Requests without an answer within ANSWER_TIMEOUT_S, or whose connection failed."""
        return len(self.answered(0))

    @property
    def statuses(self) -> dict[int, int]:
        return dict(sorted(Counter(one.status for one in self.sent).items()))

    def answered(self, *statuses: int) -> list[Sent]:
        """The requests that were answered with one of these statuses, by default 200."""
        wanted = statuses or (200,)
        return [one for one in self.sent if one.status in wanted]

    def quantile_ms(self, share: float, *statuses: int) -> float:
        """Latency of the answers with these statuses, by default 200; NaN if there are none."""
        seconds = [one.seconds for one in self.answered(*statuses)]
        return float(np.quantile(seconds, share) * 1000) if seconds else float("nan")

    def hits(self) -> dict[str, float]:
        """For each user with an answer: the share of the answers that hold the target."""
        hits: dict[str, list[bool]] = defaultdict(list)
        for one in self.answered():
            hits[one.user_id].append(one.rank is not None)
        return {user_id: float(np.mean(found)) for user_id, found in hits.items()}

    def recall(self) -> float:
        """Share of the answers that hold the target; every user has the same weight."""
        hits = self.hits()
        return float(np.mean(list(hits.values()))) if hits else 0.0

    def as_json(self) -> dict[str, Any]:
        answered = self.answered()
        reasons = Counter(reason for one in answered for reason in one.degraded)
        return {
            "rate": round(self.rate, 1),
            "seconds": round(self.seconds, 1),
            "reached": round(self.reached, 1),
            "statuses": self.statuses,
            "unanswered": self.unanswered,
            "p50_ms": round(self.quantile_ms(0.5), 2),
            "p95_ms": round(self.quantile_ms(0.95), 2),
            "p99_ms": round(self.quantile_ms(0.99), 2),
            "max_ms": round(self.quantile_ms(1), 2),
            "refused_p50_ms": round(self.quantile_ms(0.5, 429), 2),
            "refused_p99_ms": round(self.quantile_ms(0.99, 429), 2),
            "recall": round(self.recall(), 5),
            "degraded": dict(reasons),
            "adjusted": sum(one.adjusted for one in answered),
            "generator_cpu": round(self.cpu_share, 2),
        }


async def open_loop(
    url: str,
    users: Sequence[HeldOutUser],
    rate: float,
    seconds: float,
    parameters: dict[str, Any] | None = None,
    *,
    seed: int = 0,
    discard_s: float = 0.0,
) -> Load:
    """Send `rate` requests a second for `seconds`, one user after the other, then from the start.

    parameters: fields of each request besides user_id and history
    discard_s:  requests that were due in the first seconds are not in the result
    """
    drawn = random.Random(seed)
    gaps = (drawn.expovariate(rate) for _ in itertools.count())
    due = list(itertools.takewhile(lambda at: at < seconds, itertools.accumulate(gaps)))
    fields = parameters or {}
    asked = itertools.cycle([(user, user.request(**fields)) for user in users])
    sent: list[Sent] = []
    connector = aiohttp.TCPConnector(limit=MAX_CONNECTIONS, keepalive_timeout=60)
    timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        async with asyncio.TaskGroup() as tasks:
            cpu, started = _cpu_s(), time.perf_counter()
            for at in due:
                if (wait := started + at - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                tasks.create_task(_ask(session, url, next(asked), at, started, sent))
        took = time.perf_counter() - started
        cpu_share = (_cpu_s() - cpu) / took
    kept = [one for one in sent if one.due >= discard_s]
    answered_s = max((one.due + one.seconds for one in kept if one.status), default=0.0) - discard_s
    return Load(rate, seconds - discard_s, cpu_share, kept, answered_s)


async def _ask(
    session: aiohttp.ClientSession,
    url: str,
    asked: tuple[HeldOutUser, dict[str, Any]],
    at: float,
    started: float,
    sent: list[Sent],
) -> None:
    user, body = asked
    status, rank, degraded, adjusted = 0, None, (), False
    try:
        async with session.post(f"{url}/recommend", json=body) as response:
            answer = await response.json()
            status = response.status
            if status == 200:
                rank = user.rank_in([item["item_id"] for item in answer["items"]])
                degraded = tuple(answer["degraded_reasons"])
                adjusted = bool(answer["decoding"] and answer["decoding"]["adjusted"])
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        status = 0
    seconds = time.perf_counter() - started - at
    sent.append(Sent(at, seconds, status, user.user_id, rank, degraded, adjusted))


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
