"""The sweep: results survive an interruption, the best are found, and a whole small sweep runs."""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from loadtest import sweep
from loadtest.clients.held_out import HeldOutUser
from loadtest.clients.open_loop import Load, Sent, open_loop
from loadtest.clients.service_process import ServiceProcess, run_service
from loadtest.sweep import cases_of, main, rate_of
from loadtest.sweeping.plot import MDGR_TABLE_3
from loadtest.sweeping.report import write_report
from loadtest.sweeping.results import (
    PAPERS,
    Case,
    Measured,
    Results,
    Setting,
    SweepError,
    frontier,
    papers_of,
)
from service.bundles.store import configured_path

SETTING = Setting(
    bundle="demo@1",
    slo_ms=100,
    users=4,
    k=10,
    probe_s=8.0,
    min_answers=500,
    stored_histories=False,
    exclude_seen=True,
    service_cores=1,
    machine="a machine",
)
ROWS = {"r_warm": 0, "m_par": 8, "beam_width": 50, "ranking": "rows"}


def recall_line(case: Case, ranks: list[int | None], nfe: float = 1.0) -> dict[str, Any]:
    return {"kind": "recall", "case": case.parameters, "ranks": ranks, "nfe": nfe}


def rate_line(case: Case, number: int, rate: float, **others: Any) -> dict[str, Any]:
    figures = {"p50_ms": 20.0, "p95_ms": 60.0, "p99_ms": 90.0, "recall": 0.5, "answers": 500}
    figures |= {"generator_cpu": 0.1, "service_cpu": 0.9}
    named = {"kind": "rate", "case": case.parameters, "round": number, "rate": rate}
    return named | figures | others


def measured(
    ranks: list[int | None], rates: list[float], parameters: dict[str, Any] = ROWS, nfe: float = 1.0
) -> Measured:
    case = Case(parameters)
    rounds = [rate_line(case, number, rate) for number, rate in enumerate(rates)]
    return Measured(case, recall_line(case, ranks, nfe), rounds)


def test_results_are_found_again(tmp_path: Path) -> None:
    case = Case(ROWS)
    results = Results(tmp_path, SETTING)
    results.add(recall_line(case, [1, None, 3, None]))
    results.add(rate_line(case, 0, 100.0))
    again = Results(tmp_path, SETTING)
    assert again.find(case=ROWS, kind="rate", round=0) == rate_line(case, 0, 100.0)
    assert again.find(case=ROWS, kind="rate", round=1) is None
    [one] = again.measured([case, Case(PAPERS)])
    assert (one.recall, one.rate) == (0.5, 100.0)


def test_a_line_that_was_cut_off_is_measured_again(tmp_path: Path) -> None:
    case = Case(ROWS)
    results = Results(tmp_path, SETTING)
    results.add(rate_line(case, 0, 100.0))
    path = tmp_path / "sweep.jsonl"
    path.write_text(path.read_text() + '{"kind": "rate", "case"')
    again = Results(tmp_path, SETTING)
    assert again.find(case=ROWS, kind="rate", round=0)
    again.add(rate_line(case, 1, 110.0))
    assert [json.loads(line) for line in path.read_text().splitlines()][-1]["round"] == 1


def test_another_setting_wants_another_folder(tmp_path: Path) -> None:
    Results(tmp_path, SETTING)
    with pytest.raises(SweepError, match="another --out"):
        Results(tmp_path, replace(SETTING, slo_ms=50))


def test_what_no_other_beats_in_both_is_the_front() -> None:
    slow_good = measured([1, 1, 1, None], [10.0])
    middle = measured([1, 1, None, None], [50.0, 40.0, 60.0])
    beaten = measured([1, None, None, None], [45.0])
    fast_bad = measured([1, None, None, None], [90.0])
    assert frontier([fast_bad, beaten, slow_good, middle]) == [slow_good, middle, fast_bad]
    assert middle.rate == 50.0


def test_recalls_are_compared_user_by_user() -> None:
    one, other = measured([1, 2, None, 4], [10.0]), measured([1, None, None, 4], [10.0])
    difference, error = one.against(other)
    assert difference == 0.25
    assert math.isclose(error, np.std([0, 1, 0, 0], ddof=1) / 2)


def test_auto_has_the_recall_of_its_rate() -> None:
    case = Case({"schedule": "auto"})
    rounds = [
        rate_line(case, number, 10, recall=recall) for number, recall in enumerate((0.2, 0.3))
    ]
    one = Measured(case, recall_line(case, [1, 1, 1, 1]), rounds)
    assert one.recall == 0.25
    assert measured([1, 1, 1, 1], [10.0]).recall == 1.0


def test_auto_is_compared_over_the_users_of_its_rate(tmp_path: Path) -> None:
    """Not over all users, who may be easier or harder."""
    auto = Case({"schedule": "auto"})
    rounds = [
        rate_line(auto, 0, 10, recall=0.75, hits=[1.0, 0.5, None, None]),
        rate_line(auto, 1, 10, recall=1.0, hits=[1.0, None, None, None]),
        rate_line(auto, 2, 0, recall=None, hits=None),
    ]
    one = Measured(auto, recall_line(auto, [None, None, None, None]), rounds)
    papers = measured([1, None, 1, 1], [10.0], PAPERS)
    difference, error = one.against(papers)
    assert difference == 0.25
    assert error == 0.25  # of 0 and 0.5
    never_held = Measured(auto, recall_line(auto, [1, 1, None, None]), rounds[2:])
    assert never_held.against(papers)[0] == -0.25  # that of its recall, whose users are all

    without = Measured(auto, one.recall_line, [rate_line(auto, 0, 10, recall=0.75)])
    figures = write_report(tmp_path, [without, papers], SETTING)
    text = (tmp_path / "sweep.md").read_text()
    assert "| auto | auto | - | 1.0 | 0.7500 | - | " in text
    assert {case["recall_difference"] for case in figures["cases"]} == {None, 0.0}
    json.loads(json.dumps(figures), parse_constant=pytest.fail)  # JSON knows no NaN


def test_the_grid_has_no_doubles() -> None:
    asked = argparse.Namespace(
        rankings=["rows", "path"],
        beam_widths=[50],
        schedules=[(0, 8), (4, 2), (6, 2), (8, 8), (0, 9)],
        modes=["fixed", "auto"],
    )
    names = [case.name for case in cases_of(asked, num_subspaces=4)]
    schedules = ["(0, 4)", "(4, 2)", "(4, 4)"]
    assert names == [
        *(f"{schedule} rows 50" for schedule in schedules),
        *(f"{schedule} path 50" for schedule in schedules),
        "auto",
    ]
    only = cases_of(asked, num_subspaces=4, autoregressive=True)
    assert [case.name for case in only] == ["(4, 1) path 50", "auto"]
    asked.modes = ["auto"]
    assert [case.name for case in cases_of(asked, 8)] == ["auto"]


def test_the_report_says_what_further_calls_buy(tmp_path: Path) -> None:
    papers = measured([1, None, None, None], [20.0, 24.0, 22.0], PAPERS, nfe=5.5)
    by_path = measured([1, 2, None, None], [88.0], {**PAPERS, "r_warm": 0, "m_par": 8})
    case = Case({**ROWS, "r_warm": 6, "m_par": 1})
    unheld = {"p50_ms": None, "p95_ms": None, "p99_ms": None, "answers": 0, "service_cpu": None}
    nothing = Measured(
        case, recall_line(case, [1, 2, 3, None], 7.0), [rate_line(case, 0, 0.0, **unheld)]
    )
    assert papers_of([by_path, papers]) is papers
    figures = write_report(tmp_path, [papers, by_path, nothing], SETTING)
    text = (tmp_path / "sweep.md").read_text()
    assert "| (4, 2) | path | 50 | 5.5 | 0.2500 | +0.0000 ± 0.0000 | 22 (20 to 24) | 1.0 |" in text
    assert (
        "| (0, 8) | path | 50 | 1.0 | 0.5000 | +0.2500 ± 0.2500 | **88** (88 to 88) | 4.0 |" in text
    )
    assert "**0** (0 to 0) | 0.0 | - | - |" in text
    assert "| path | 50 | (0, 8) | (4, 2) | +4.5 | -0.2500 ± 0.2500 | -75% |" in text
    with (tmp_path / "sweep.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["requests_per_s"] for row in rows] == ["88.0", "22.0", "0.0"]
    assert [case["against_paper"] for case in figures["cases"]] == [4.0, 1.0, 0.0]
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    picture = (tmp_path / "sweep.svg").read_bytes()
    assert b"MDGR, Table 3" in picture
    write_report(tmp_path, [papers, by_path, nothing], SETTING)
    assert (tmp_path / "sweep.svg").read_bytes() == picture


def test_the_papers_own_figures_are_those_published() -> None:
    by_schedule = {schedule: (recall, rate) for schedule, recall, rate in MDGR_TABLE_3}
    assert len(by_schedule) == 7
    assert by_schedule[4, 2] == (0.2210, 2.527)


@dataclass
class BusyService:
    """A service that needs 0.8 cores up to 100 requests a second; above, 1.9 and is too slow.

    seconds: its clock, also for what measures it
    """

    url: str = ""
    cpu_s: float = 0.0
    rss_mb: float = 1.0
    seconds: float = 0.0

    def perf_counter(self) -> float:
        return self.seconds

    async def load(
        self,
        url: str,
        users: Sequence[HeldOutUser],
        rate: float,
        seconds: float,
        *_: Any,
        **__: Any,
    ) -> Load:
        self.seconds += seconds
        self.cpu_s += (1.9 if rate > 100 else 0.8) * seconds
        waited = 1.0 if rate > 100 else 0.01
        sent = [Sent(0.0, waited, 200, user.user_id, rank=1) for user in users[:1]]
        return Load(rate, seconds, 0.3, sent)


@pytest.mark.parametrize("case", [Case(ROWS), Case({"schedule": "auto"})], ids=["fixed", "auto"])
def test_processor_time_is_that_of_the_rate_found(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not include pauses or rates that broke the SLO."""
    service = BusyService()
    monkeypatch.setattr("loadtest.sweep.open_loop", service.load)
    monkeypatch.setattr("loadtest.sweep.time", service)
    monkeypatch.setattr("loadtest.clients.capacity.PAUSE_S", 0)
    users = [HeldOutUser("u1", ("a",), "b"), HeldOutUser("u2", ("a",), "b")]
    results = Results(tmp_path, SETTING)
    results.add(recall_line(case, [1, None]) | {"closed_loop_rate": 120.0})
    found = asyncio.run(rate_of(service, users, case, results, SETTING, 0))  # type: ignore[arg-type]
    assert 84 <= found["rate"] <= 100
    assert found["service_cpu"] == pytest.approx(0.8)
    assert found["hits"] == ([1.0, None] if case.is_auto else None)


LIMIT = 100.0  # requests a second
SLO_MS = 500


@pytest.fixture
def known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real service answers, at most 20 requests a second; how fast is decided here.

    So what a sweep finds does not depend on how busy this machine is.
    """

    async def load(
        url: str, users: Sequence[HeldOutUser], rate: float, *asked: Any, **more: Any
    ) -> Load:
        found = await open_loop(url, users, min(rate, 20.0), *asked, **more)
        waited = SLO_MS / 2000 if rate <= LIMIT else SLO_MS / 500
        return replace(found, rate=rate, sent=[replace(one, seconds=waited) for one in found.sent])

    unhurried = partial(run_service, default_timeout_ms=10_000, redis_timeout_ms=5000)

    @contextmanager
    def patient(*asked: Any, **settings: Any) -> Iterator[ServiceProcess]:
        with unhurried(*asked, **settings | {"slo_ms": 60_000}) as service:
            yield service

    monkeypatch.setattr("loadtest.clients.capacity.PAUSE_S", 0)
    monkeypatch.setattr("loadtest.sweep.open_loop", load)
    monkeypatch.setattr("loadtest.sweep.run_service", patient)


@pytest.mark.usefixtures("known_speed")
def test_all_of_it_on_the_demo_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = os.sched_getaffinity(0)
    bundle = configured_path(Path("models_store"), "demo")
    command = ["--bundle", str(bundle), "--out", str(tmp_path), "--users", "20", "--rounds", "1"]
    command += ["--slo-ms", str(SLO_MS), "--probe-seconds", "0.5", "--min-answers", "5"]
    command += ["--schedules", "4,2", "--rankings", "path", "--stored-histories"]
    assert main(command) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    by_name = {(case["schedule"], case["ranking"]): case for case in figures["cases"]}
    papers, auto = by_name["(4, 2)", "path"], by_name["auto", "auto"]
    assert papers["against_paper"] == 1.0
    assert papers["nfe"] > auto["nfe"] > 0
    assert 0 < papers["recall"] <= 1
    for found in (papers, auto):
        assert LIMIT / 1.5 < found["requests_per_s"] <= LIMIT
        assert found["p99_ms"] == SLO_MS / 2
    assert figures["setting"]["machine"].endswith(f", {len(own)} cores")
    assert os.sched_getaffinity(0) == own
    lines = (tmp_path / "sweep.jsonl").read_text()
    assert len(lines.splitlines()) == 1 + 2 * 2

    assert main(command) == 0  # everything is there already
    assert (tmp_path / "sweep.jsonl").read_text() == lines
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures


def test_a_sweep_that_goes_on_reads_stored_histories_too(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    known_speed: None,
) -> None:
    """Its recalls are measured already, but its service has a new store."""
    seen: list[list[str]] = []

    async def load(url: str, users: Sequence[HeldOutUser], *asked: Any, **more: Any) -> Load:
        for user in users:
            answer = httpx.get(f"{url}/users/{user.user_id}/history", timeout=60, trust_env=False)
            seen.append(answer.json()["history"])
            assert seen[-1] == list(user.history[-len(seen[-1]) :])
        return await known(url, users, *asked, **more)

    known = sweep.open_loop
    monkeypatch.setattr(sweep, "open_loop", load)
    bundle = configured_path(Path("models_store"), "demo")
    command = ["--bundle", str(bundle), "--out", str(tmp_path), "--users", "5"]
    command += ["--slo-ms", "500", "--probe-seconds", "0.5", "--min-answers", "5"]
    command += ["--schedules", "0,8", "--rankings", "rows", "--modes", "fixed"]
    command += ["--stored-histories", "--rounds"]
    assert main([*command, "0"]) == 0
    assert not seen
    assert main([*command, "1"]) == 0
    assert len(seen) >= 5
    assert all(seen)
    [case] = json.loads(capsys.readouterr().out.splitlines()[-1])["cases"]
    assert LIMIT / 1.5 < case["requests_per_s"] <= LIMIT
