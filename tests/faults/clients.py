"""Clients that behave as the API asks during a fault, and the answers they got.

Writers send events, a few at a time. Without an answer, or after a 503, they send the same events
with the same event_ids again until these are acknowledged; then the next. A reader asks for
recommendations and health. At the end every acknowledged event must be in its user's history, once.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
from running_service import Service

WRITERS = 3
TOGETHER = 3  # events of one request
USERS = 5  # of each writer
PATIENCE_S = 120.0  # of a client
AGAIN_S = 0.02
READER = "reader"


@dataclass
class Account:
    """Comparison of acknowledged events with the stored ones."""

    acknowledged: int = 0
    missing: int = 0
    twice: int = 0


def account(sent: Mapping[str, Sequence[str]], found: Mapping[str, Sequence[str]]) -> Account:
    """sent: the items of a user's acknowledged events; found: all items of that user's history.

    twice: items that are found more than once, acknowledged or not
    """
    result = Account()
    for user_id, item_ids in sent.items():
        counts = Counter(found[user_id])
        result.acknowledged += len(item_ids)
        result.missing += sum(not counts[item_id] for item_id in item_ids)
        result.twice += sum(number > 1 for number in counts.values())
    return result


@dataclass
class Clients:
    """Threads that send requests to `service`, which may be replaced by another one.

    seen: for each phase, how often clients got which answer
    patience_s: how long a writer sends an event again before it gives up
    """

    service: Service
    phase: str = "before"
    seen: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    sent: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    given_up: int = 0
    patience_s: float = PATIENCE_S
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _going: threading.Event = field(default_factory=threading.Event)

    @property
    def acknowledged(self) -> int:
        return sum(map(len, self.sent.values()))

    def reaches(self, number: int) -> bool:
        """Whether `number` more events are acknowledged within the patience of a client."""
        wanted = self.acknowledged + number
        return within_patience(lambda: self.acknowledged >= wanted)

    def meets(self, number: int, enough: int) -> bool:
        """Whether requests with events were refused in this phase.

        Waits for `number` refusals, or until `enough` events were acknowledged instead.
        """
        wanted = self.acknowledged + enough
        met = self.seen[self.phase]
        within_patience(
            lambda: (
                met["events 503"] + met["events no answer"] >= number or self.acknowledged >= wanted
            )
        )
        return met["events 503"] + met["events no answer"] > 0

    def pause(self) -> None:
        """Let writers and reader finish their requests; then none is sent until `go_on`."""
        self._going.clear()

    def go_on(self) -> None:
        self._going.set()

    def audit(self) -> Account:
        """Compare with the histories after all clients have stopped."""
        found = {user_id: history_of(self.service, user_id) for user_id in self.sent}
        return account(self.sent, found)

    def note(self, what: str) -> None:
        with self._lock:
            self.seen[self.phase][what] += 1

    def write(self, writer: int) -> None:
        """One writer; it runs until all clients stop."""
        with contextlib.closing(Line(self)) as line:
            number = 0
            while self._going.wait() and not self._stopped.is_set():
                self._send(line, writer, number)
                number += TOGETHER

    def _send(self, line: Line, writer: int, first: int) -> None:
        events = [
            {
                "event_id": f"event-{writer}-{number}",
                "user_id": f"writer-{writer}-{number % USERS}",
                "item_id": f"thing-{number}",
                "event_type": "click",
            }
            for number in range(first, first + TOGETHER)
        ]
        started = time.monotonic()
        while time.monotonic() - started < self.patience_s:
            answer = line.ask("events", "POST", "/events", {"events": events})
            if answer is not None and answer.status_code == 200:
                body = answer.json()
                assert body["accepted"] + body["duplicates"] == TOGETHER, body
                with self._lock:
                    for event in events:
                        self.sent[event["user_id"]].append(event["item_id"])
                return
            time.sleep(AGAIN_S)
        self.given_up += TOGETHER

    def read(self) -> None:
        """The reader; it runs until all clients stop."""
        with contextlib.closing(Line(self)) as line:
            while self._going.wait() and not self._stopped.is_set():
                body = {"user_id": READER, "k": 3}
                answer = line.ask("recommendations", "POST", "/recommend", body)
                if answer is not None and answer.status_code == 200:
                    found = answer.json()
                    assert len(found["items"]) == 3
                    assert found["degraded"] == (found["served_by"] == "popular")
                    self.note("popular" if found["degraded"] else "own")
                line.ask("live", "GET", "/health/live")
                time.sleep(AGAIN_S)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Clients run while the block runs. Errors found in their threads are raised at the end."""
        with ThreadPoolExecutor(WRITERS + 1) as pool:
            threads = [pool.submit(self.write, writer) for writer in range(WRITERS)]
            threads.append(pool.submit(self.read))
            self.go_on()
            try:
                yield
            finally:
                self._stopped.set()
                self.go_on()
        for thread in threads:
            thread.result()


class Line:
    """One client's connection to the present service."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._client: httpx.Client | None = None

    def ask(self, what: str, method: str, path: str, body: object = None) -> httpx.Response | None:
        url = self._clients.service.client.base_url
        if self._client is None or self._client.base_url != url:
            self.close()
            self._client = httpx.Client(base_url=url, timeout=PATIENCE_S / 3, trust_env=False)
        try:
            answer = self._client.request(method, path, json=body)
        except httpx.TransportError as error:
            refused = isinstance(error, httpx.ConnectError)
            self._clients.note(f"{what} {'refused' if refused else 'no answer'}")
            return None
        self._clients.note(f"{what} {answer.status_code}")
        return answer

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


def within_patience(condition: Callable[[], bool], seconds: float = PATIENCE_S) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def history_of(service: Service, user_id: str) -> list[str]:
    answers: list[httpx.Response] = []

    def is_read() -> bool:
        answers.append(service.client.get(f"/users/{user_id}/history"))
        return answers[-1].status_code == 200

    assert within_patience(is_read), answers[-1].text
    history: list[str] = answers[-1].json()["history"]
    return history
