"""Measures recall and requests a second for a grid of decoding settings.

`python -m loadtest.sweep --bundle DIR --out FOLDER` starts the service on half of the cores and
loads it from the others. A case is a schedule with beam width and ranking, or `auto`. First every
case answers for the same held-out users: this gives its recall. Then there are `--rounds` rounds,
in which all cases take turns; each looks for the highest rate within the SLO. Each result is
written at once as a line of `sweep.jsonl`, and an interrupted run continues there. The last line of
the output is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from loadtest.clients import (
    BUSY_CPU_SHARE,
    KNOWN_TARGETS,
    HeldOutUser,
    Load,
    ServiceProcess,
    find_capacity,
    knows_targets,
    open_loop,
    read_held_out,
    run_service,
)
from loadtest.replay import Answer, replay, store_histories
from loadtest.sweeping import Case, Results, Setting, SweepError, write_report

CONCURRENCY = 8  # requests at a time while recall is measured
FIRST_GROWTH, LATER_GROWTH = 1.3, 1.12  # factor between two rates, in the first and later rounds
BISECTIONS = 2


async def sweep(
    service: ServiceProcess,
    users: Sequence[HeldOutUser],
    cases: Sequence[Case],
    results: Results,
    setting: Setting,
    rounds: int,
) -> None:
    """Measure everything that is not yet in `results`."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    console = Console(markup=False, emoji=False, highlight=False)  # print text as it is
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("storing histories", total=len(cases) * (1 + rounds))
        if setting.stored_histories:  # also in a run that continues: it has a new store
            async with _client(service.url) as client:
                await store_histories(client, users, concurrency=CONCURRENCY)
        for case in cases:
            progress.update(bar, description=f"recall of {case.name}")
            if not results.find(case=case.parameters, kind="recall"):
                results.add(await recall_of(service.url, users, case, setting))
            progress.advance(bar)
        for number, case in itertools.product(range(rounds), cases):
            progress.update(bar, description=f"round {number + 1}, {case.name}")
            if not results.find(case=case.parameters, kind="rate", round=number):
                found = await rate_of(service, users, case, results, setting, number)
                if found["generator_cpu"] > BUSY_CPU_SHARE:
                    progress.print(f"{case.name}: the busy generator may have set the limit")
            progress.advance(bar)


async def recall_of(
    url: str, users: Sequence[HeldOutUser], case: Case, setting: Setting
) -> dict[str, Any]:
    """Ask for every user once: ranks of the targets, denoiser calls, and a first guess of the rate.

    Requests that are refused because of the queue are sent again, one at a time.
    Raises SweepError if one is refused again.
    """
    # A long deadline, because a queue would lead to refusals and nobody waits for these answers.
    patient = {"timeout_ms": 10_000}
    ask = partial(replay, parameters=_parameters(case, setting) | patient)
    async with _client(url) as client:
        started = time.perf_counter()
        answers = await ask(client, users, concurrency=CONCURRENCY)
        seconds = time.perf_counter() - started
        failed = [place for place, answer in enumerate(answers) if answer.outcome != "ok"]
        once_more = await ask(client, [users[place] for place in failed], concurrency=1)
    for place, answer in zip(failed, once_more, strict=True):
        if answer.outcome != "ok":
            raise SweepError(f"{case.name}: {answer.outcome} instead of an answer")
        answers[place] = answer
    return {
        "kind": "recall",
        "case": case.parameters,
        "ranks": [answer.rank for answer in answers],
        "nfe": _mean_nfe(answers),
        "closed_loop_rate": (len(answers) - len(failed)) / seconds,
    }


def _client(url: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=CONCURRENCY)
    return httpx.AsyncClient(base_url=url, timeout=60, limits=limits, trust_env=False)


def _parameters(case: Case, setting: Setting) -> dict[str, Any]:
    """Fields of a request. If histories are in the store, the request has none."""
    stored = {"history": None} if setting.stored_histories else {}
    return {"k": setting.k, "exclude_seen": setting.exclude_seen, **stored, **case.parameters}


def _mean_nfe(answers: Sequence[Answer]) -> float:
    calls = [answer.nfe for answer in answers if answer.nfe is not None]
    return sum(calls) / max(1, len(calls))


async def rate_of(
    service: ServiceProcess,
    users: Sequence[HeldOutUser],
    case: Case,
    results: Results,
    setting: Setting,
    number: int,
) -> dict[str, Any]:
    """Find the highest rate within the SLO; later rounds start at the rate of the first round."""
    before = results.find(case=case.parameters, kind="rate", round=0)
    recall = results.find(case=case.parameters, kind="recall")
    assert recall is not None
    first_guess = 0.7 * recall["closed_loop_rate"]
    parameters = _parameters(case, setting)
    cores: dict[float, float] = {}  # cores that the service used, by rate

    async def probe(rate: float, seconds: float, *, discard_s: float) -> Load:
        cpu, started = service.cpu_s, time.perf_counter()
        load = await open_loop(
            service.url, users, rate, seconds, parameters, seed=number, discard_s=discard_s
        )
        cores[rate] = (service.cpu_s - cpu) / (time.perf_counter() - started)
        return load

    capacity = await find_capacity(
        probe,
        setting.slo_ms,
        guess=(before and before["rate"]) or first_guess,
        growth=LATER_GROWTH if before and before["rate"] else FIRST_GROWTH,
        bisections=BISECTIONS,
        probe_s=setting.probe_s,
        min_answers=setting.min_answers,
    )
    load = capacity.load
    hits = load.hits() if load and case.is_auto else None
    return results.add(
        {
            "kind": "rate",
            "case": case.parameters,
            "round": number,
            "rate": capacity.rate,
            "p50_ms": load.quantile_ms(0.5) if load else None,
            "p95_ms": load.quantile_ms(0.95) if load else None,
            "p99_ms": load.quantile_ms(0.99) if load else None,
            "answers": len(load.answered()) if load else 0,
            "recall": load.recall() if load else None,
            "hits": [hits.get(user.user_id) for user in users] if hits else None,
            "generator_cpu": load.cpu_share if load else 0.0,
            "service_cpu": cores[load.rate] if load else None,
            "rss_mb": service.rss_mb,
        }
    )


def cases_of(
    asked: argparse.Namespace, num_subspaces: int, *, autoregressive: bool = False
) -> list[Case]:
    """The grid without duplicates; an `r_warm` or `m_par` above num_subspaces is cut to it.

    autoregressive: whether the bundle fills one position a call; then beam widths are all there is
    """
    found: dict[str, Case] = {}
    rankings, schedules = asked.rankings, asked.schedules
    if autoregressive:
        rankings, schedules = ["path"], [(num_subspaces, 1)]
    grid = itertools.product(rankings, asked.beam_widths, schedules)
    for ranking, beam_width, (r_warm, m_par) in grid:
        parameters = {
            "r_warm": min(r_warm, num_subspaces),
            "m_par": min(m_par, num_subspaces),
            "beam_width": beam_width,
            "ranking": ranking,
        }
        found.setdefault(json.dumps(parameters), Case(parameters))
    if "auto" in asked.modes:
        found["auto"] = Case({"schedule": "auto"})
    return [case for case in found.values() if case.is_auto or "fixed" in asked.modes]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run or resume the sweep and write its report; 1 with a sentence when it cannot."""
    asked = _parser().parse_args(arguments)
    here = machine()  # before the service gets cores of its own
    try:
        users = read_held_out(asked.bundle / "held_out.jsonl", asked.users)
        with run_service(asked.bundle, slo_ms=asked.slo_ms, encoder_cache=0) as service:
            manifest = httpx.get(f"{service.url}/info", trust_env=False).raise_for_status().json()
            bundle = manifest["bundle"]
            if knows_targets(service.url):
                raise SweepError(f"A sweep draws recall against requests. {KNOWN_TARGETS}")
            setting = Setting(
                bundle=f"{bundle['name']}@{bundle['version']}",
                slo_ms=asked.slo_ms,
                users=len(users),
                k=asked.k,
                probe_s=asked.probe_seconds,
                min_answers=asked.min_answers,
                stored_histories=asked.stored_histories,
                exclude_seen=asked.exclude_seen,
                service_cores=len(service.cores),
                machine=here,
            )
            cases = cases_of(
                asked, bundle["num_subspaces"], autoregressive=bundle["autoregressive"]
            )
            results = Results(asked.out, setting)
            asyncio.run(sweep(service, users, cases, results, setting, asked.rounds))
    except (SweepError, OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        print(error, file=sys.stderr)
        return 1
    figures = write_report(asked.out, results.measured(cases), setting)
    print(json.dumps(figures))
    return 0


def machine() -> str:
    """The processor as Linux names it, and how many of its cores this process may use."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(": ")[2] for line in text.splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def _schedule(text: str) -> tuple[int, int]:
    r_warm, _, m_par = text.partition(",")
    return int(r_warm), int(m_par)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest.sweep", description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="folder of the bundle")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--slo-ms", type=int, default=100, help="p99 must be at most this")
    parser.add_argument(
        "--schedules",
        type=_schedule,
        nargs="+",
        default=[(0, 8), (1, 7), (0, 2), (4, 4), (2, 2), (4, 2), (6, 2), (0, 1)],
        metavar="R_WARM,M_PAR",
    )
    parser.add_argument("--beam-widths", type=int, nargs="+", default=[50])
    parser.add_argument("--rankings", nargs="+", default=["rows", "path"])
    parser.add_argument("--modes", nargs="+", default=["fixed", "auto"], choices=["fixed", "auto"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--users", type=int, help="only the first USERS users; default: all")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument(
        "--stored-histories",
        action="store_true",
        help="store the histories first, and let the service read them from its embedded Valkey",
    )
    parser.add_argument(
        "--exclude-seen",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="leave out items of the history, as the service does by default",
    )
    parser.add_argument("--probe-seconds", type=float, default=8, help="of each rate tried")
    parser.add_argument("--min-answers", type=int, default=500, help="of each rate tried")
    return parser


if __name__ == "__main__":
    sys.exit(main())
