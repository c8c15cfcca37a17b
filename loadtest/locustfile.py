"""A load of held-out users at a constant rate, with the recall of the same answers.

`locust -f loadtest/locustfile.py --headless -u 20 -r 20 -t 60s --host http://127.0.0.1:8000
--held-out BUNDLE/held_out.jsonl`: each of the `-u` simulated users sends `--rate` requests a
second, one held-out user after the other. Recall, latencies and stages of Server-Timing are at
`/recall` of locust's web page during the run, and in a line of JSON at the end. They are of answers
with status 200 only, unlike locust's own tables. The rate is over the whole length of the run. A
request that is still open at the end counts as unanswered. With `--processes` or workers, the
figures are those of all processes.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from flask import Response, jsonify
from greenlet import GreenletExit  # type: ignore[import-untyped]
from locust import FastHttpUser, constant_throughput, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.rpc import Message
from locust.runners import MasterRunner, WorkerRunner
from locust.stats import RequestStats, StatsEntry

from loadtest.clients import (
    KNOWN_TARGETS,
    OF_KNOWN_TARGETS,
    HeldOutUser,
    authorization,
    knows_targets,
    read_held_out,
)

PERCENTILES = (0.5, 0.95, 0.99)
ROUTE = "/recommend"
# Kinds of entries in locust's statistics. A stage is a part of an answer; an open request was
# never answered.
ANSWER, STAGE, OPEN = "answer", "stage", "open"
STOP_TIMEOUT_S = 15  # for open requests at the end; longer than any deadline of the service
REPORTS_WITHIN_S = 10  # after STOP_TIMEOUT_S, for the last figures of workers
FINISH, FINISHED = "unmask_finish", "unmask_finished"  # messages to the workers, and back


class Unanswered(Exception):
    """A request was still open when the run ended."""


class Figures:
    """Figures of the answers of this process; at a master, of all its workers."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.times = RequestStats()
        self.begun = time.perf_counter()
        self.stopped: float | None = None
        self.last_answer_s = 0.0  # from the beginning, by the clock of the process that got it

    @contextmanager
    def open_request(self, environment: Environment) -> Iterator[None]:
        """Around a request: counts it if locust kills it at the end of the run."""
        sent = time.perf_counter()
        try:
            yield
        except GreenletExit:
            waited_ms = 1000 * (time.perf_counter() - sent)
            self._log(OPEN, ROUTE, waited_ms)
            # For locust's own tables and its exit status.
            environment.events.request.fire(  # type: ignore[no-untyped-call]
                request_type="POST",
                name=ROUTE,
                response_time=waited_ms,
                response_length=0,
                context={},
                exception=Unanswered("still open when the run ended"),
            )
            raise

    def count(
        self, user: HeldOutUser, answer: dict[str, Any], waited_ms: float, timing: str
    ) -> None:
        """Count an answer with status 200.

        timing: its header Server-Timing, `name;dur=milliseconds, ...`
        """
        item_ids = [item["item_id"] for item in answer["items"]]
        self.last_answer_s = time.perf_counter() - self.begun
        self.counts["answers"] += 1
        self.counts["hits"] += user.rank_in(item_ids) is not None
        self.counts["degraded"] += answer["degraded"]
        self._log(ANSWER, ROUTE, waited_ms)
        for part in filter(None, timing.split(", ")):
            name, _, milliseconds = part.partition(";dur=")
            self._log(STAGE, name, float(milliseconds))

    def _log(self, kind: str, name: str, milliseconds: float) -> None:
        """Log microseconds: locust keeps two digits of large values, no fractions of small ones."""
        self.times.log_request(kind, name, round(milliseconds * 1000), 0)

    def take(self) -> dict[str, Any]:
        """Everything counted since the last call, for a master; the counts start again at 0."""
        counts = {"counts": dict(self.counts), "statuses": dict(self.statuses)}
        times = self.times.serialize_stats()
        self.counts, self.statuses, self.times = Counter(), Counter(), RequestStats()
        return {**counts, "times": times, "last_answer_s": self.last_answer_s}

    def add(self, taken: dict[str, Any]) -> None:
        """Add the counts of a worker."""
        self.counts.update(taken["counts"])
        self.statuses.update(taken["statuses"])
        self.last_answer_s = max(self.last_answer_s, taken["last_answer_s"])
        for line in taken["times"]:
            entry = StatsEntry.unserialize(line, self.times)
            self.times.get(entry.name, entry.method).extend(entry)

    def length_s(self) -> float:
        """Length of the run in seconds, until now, until its end, or until a later answer."""
        until = time.perf_counter() if self.stopped is None else self.stopped
        return max(until - self.begun, self.last_answer_s)

    def as_json(self, environment: Environment) -> dict[str, Any]:
        """Recall as a share, times in milliseconds with two digits; both only of answers.

        Refusals take almost no time. They would make an overloaded service look fast.
        """
        options, runner = environment.parsed_options, environment.runner
        assert options is not None
        assert runner is not None
        answers, total = self.counts["answers"], environment.stats.total
        recall = self.counts["hits"] / answers if answers else None
        never = self.times.get(ROUTE, OPEN)
        length_s = self.length_s()
        stages = [entry for entry in self.times.entries.values() if entry.method == STAGE]
        return {
            "answers": answers,
            "statuses": dict(sorted(self.statuses.items())),
            "failures": total.num_failures,
            "unanswered": never.num_requests,
            "unanswered_longest_ms": never.max_response_time / 1000,
            "degraded": self.counts["degraded"],
            f"recall@{HeldOutTraffic.fields['k']}{OF_KNOWN_TARGETS * HeldOutTraffic.known}": recall,
            "seconds": round(length_s, 1),
            "requests_per_s": round(answers / length_s, 1),
            "requests_per_s_asked": options.rate * runner.target_user_count,
            **_percentiles(self.times.get(ROUTE, ANSWER)),
            "stages": {entry.name: _stage(entry) for entry in stages},
        }


def _stage(entry: StatsEntry) -> dict[str, float | None]:
    """Figures of the answers that had this stage."""
    mean_ms = round(entry.avg_response_time / 1000, 3)
    return {"answers": entry.num_requests, "mean_ms": mean_ms, **_percentiles(entry)}


def _percentiles(entry: StatsEntry) -> dict[str, float | None]:
    """Percentiles in milliseconds, from microseconds; None if nothing was counted."""
    return {
        f"p{share * 100:.0f}_ms": entry.get_response_time_percentile(share) / 1000
        if entry.num_requests
        else None
        for share in PERCENTILES
    }


class HeldOutTraffic(FastHttpUser):
    """Sends `--rate` requests a second; fewer if an answer takes longer than 1 / rate seconds."""

    users: ClassVar[Iterator[HeldOutUser]]
    fields: ClassVar[dict[str, Any]]
    headers: ClassVar[dict[str, str]]
    figures: ClassVar[Figures]
    known: ClassVar[bool] = False  # has the bundle that answers learnt the targets?
    finished: ClassVar[set[str]] = set()  # workers that have sent their last figures

    def wait_time(self) -> float:
        seconds: float = constant_throughput(self.environment.parsed_options.rate)(self)
        return seconds

    @task
    def recommend(self) -> None:
        if self.figures.stopped is not None:
            return  # locust would kill this user, even if its wait has just ended
        user = next(self.users)
        body = user.request(**self.fields)
        with (
            self.figures.open_request(self.environment),
            self.client.post(
                ROUTE, json=body, headers=self.headers, catch_response=True
            ) as response,
        ):
            self.figures.statuses[str(response.status_code)] += 1
            if response.status_code != 200:
                response.failure(f"status {response.status_code}")
                return
            answer = response.json()
            if len(answer["items"]) < self.fields["k"]:
                response.failure(f"{len(answer['items'])} items instead of {self.fields['k']}")
            waited_ms = response.request_meta["response_time"]
            timing = response.headers.get("Server-Timing", "")
            self.figures.count(user, answer, waited_ms, timing)


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: LocustArgumentParser, **_: Any) -> None:
    # By default locust ends and does not report requests that are still open.
    parser.set_defaults(stop_timeout=str(STOP_TIMEOUT_S))
    parser.add_argument("--held-out", required=True, help="held_out.jsonl of the bundle served")
    parser.add_argument("--rate", type=float, default=1, help="requests a second per user")
    parser.add_argument(
        "--stored-histories",
        action="store_true",
        help="send user ids only: the histories are in the service's store already",
    )
    parser.add_argument(
        "--parameters",
        type=_json_object,
        default="{}",
        help="fields of each request, a JSON object; k is 10",
    )


def _json_object(text: str) -> str:
    """The text itself, because locust's page shows and sends it. Raises ValueError."""
    if not isinstance(json.loads(text), dict):
        raise ValueError(text)
    return text


@events.init.add_listener  # type: ignore[untyped-decorator]
def add_route(environment: Environment, **_: Any) -> None:
    begin(environment)
    runner = environment.runner
    if isinstance(runner, WorkerRunner):
        runner.register_message(FINISH, finish, concurrent=True)
    if isinstance(runner, MasterRunner):
        runner.register_message(FINISHED, hear_last)
    if environment.web_ui and environment.web_ui.app:

        @environment.web_ui.app.route("/recall")
        def recall() -> Response:
            return jsonify(HeldOutTraffic.figures.as_json(environment))


def _from_anywhere(users: Sequence[HeldOutUser]) -> list[HeldOutUser]:
    """The users in random order, so that the processes of one load ask for different users."""
    return random.SystemRandom().sample(users, len(users))


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def begin(environment: Environment, **_: Any) -> None:
    """A run begins. Its options come from the command line or from the form of locust's page."""
    options = environment.parsed_options
    assert options is not None
    users = read_held_out(Path(options.held_out))
    HeldOutTraffic.users = itertools.cycle(_from_anywhere(users))
    HeldOutTraffic.fields = {"k": 10, **json.loads(options.parameters)}
    if options.stored_histories:
        HeldOutTraffic.fields["history"] = None  # the same as no history in the request
    HeldOutTraffic.headers = authorization()
    HeldOutTraffic.figures = Figures()
    HeldOutTraffic.known = knows_targets(environment.host or "")


@events.report_to_master.add_listener  # type: ignore[untyped-decorator]
def tell(data: dict[str, Any], **_: Any) -> None:
    data["figures"] = HeldOutTraffic.figures.take()


@events.worker_report.add_listener  # type: ignore[untyped-decorator]
def hear(data: dict[str, Any], **_: Any) -> None:
    HeldOutTraffic.figures.add(data["figures"])


@events.test_stopping.add_listener  # type: ignore[untyped-decorator]
def end(environment: Environment, **_: Any) -> None:
    """The run ends. A master waits for its workers, to whom locust itself gives half a second."""
    runner = environment.runner
    if HeldOutTraffic.figures.stopped is None:
        HeldOutTraffic.figures.stopped = time.perf_counter()
    if isinstance(runner, MasterRunner):
        HeldOutTraffic.finished.clear()
        runner.send_message(FINISH)
        until = time.monotonic() + environment.stop_timeout + REPORTS_WITHIN_S
        while {one.id for one in runner.clients.running} - HeldOutTraffic.finished:
            if time.monotonic() > until:
                break
            time.sleep(0.05)  # locust has patched it: other greenlets run meanwhile


def finish(environment: Environment, msg: Message, **_: Any) -> None:
    """At a worker: wait for open requests, then send the last figures."""
    runner = environment.runner
    assert isinstance(runner, WorkerRunner)
    runner.stop()
    runner.send_message(FINISHED, HeldOutTraffic.figures.take())


def hear_last(environment: Environment, msg: Message, **_: Any) -> None:
    """At a master: add the last figures of a worker."""
    HeldOutTraffic.figures.add(msg.data)
    HeldOutTraffic.finished.add(msg.node_id)


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def report(environment: Environment, **_: Any) -> None:
    if not isinstance(environment.runner, WorkerRunner):
        if HeldOutTraffic.known:
            print(KNOWN_TARGETS, file=sys.stderr)
        print(json.dumps(HeldOutTraffic.figures.as_json(environment)))
