"""Results of a sweep: what a case is, what was measured of it, and the file that keeps both.

The recalls of all cases are of the same users, so differences are paired by user. The exception is
`auto`: its recall is measured at its highest rate, over the users who were asked for then. Does not
know how anything was measured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.clients import BUSY_CPU_SHARE

PAPERS = {"r_warm": 4, "m_par": 2, "beam_width": 50, "ranking": "path"}  # MDGR


@dataclass(frozen=True)
class Case:
    """A decoding setting: fields of POST /recommend besides user, history and k."""

    parameters: dict[str, Any]

    @property
    def is_auto(self) -> bool:
        return "schedule" in self.parameters

    @property
    def schedule(self) -> str:
        if self.is_auto:
            return "auto"
        return f"({self.parameters['r_warm']}, {self.parameters['m_par']})"

    @property
    def ranking(self) -> str:
        return str(self.parameters.get("ranking", "auto"))

    @property
    def beam_width(self) -> int | None:
        return self.parameters.get("beam_width")

    @property
    def name(self) -> str:
        return "auto" if self.is_auto else f"{self.schedule} {self.ranking} {self.beam_width}"

    @property
    def is_papers(self) -> bool:
        return self.parameters == PAPERS


@dataclass(frozen=True)
class Measured:
    """A case with its recall and its rounds.

    recall_line: the line of `sweep.jsonl` with the ranks of the users, the same for all cases
    rounds:      the lines with the highest rate of each round
    """

    case: Case
    recall_line: dict[str, Any]
    rounds: Sequence[dict[str, Any]]

    @cached_property
    def hits(self) -> NDArray[np.float64]:
        """(num_users,) float64: 1.0 if the answer holds the target; for `auto` a share."""
        if self.case.is_auto and self.typical("recall") is not None:
            return self._hits_at_rate()
        return np.array([rank is not None for rank in self.recall_line["ranks"]], dtype=np.float64)

    def _hits_at_rate(self) -> NDArray[np.float64]:
        """(num_users,) share of a user's answers with the target, mean of the rounds; or NaN."""
        unasked = [None] * len(self.recall_line["ranks"])
        lines = [line.get("hits") or unasked for line in self.rounds]
        shares = np.array(lines, dtype=np.float64)  # None is NaN
        rounds = (~np.isnan(shares)).sum(axis=0)
        mean = np.full(len(unasked), np.nan)
        np.divide(np.nansum(shares, axis=0), rounds, out=mean, where=rounds > 0)
        return mean

    @property
    def recall(self) -> float:
        """Share of users whose answer holds the target.

        For `auto` it is that at the highest rate, because `auto` depends on the load.
        """
        at_rate = self.typical("recall") if self.case.is_auto else None
        return float(self.hits.mean()) if at_rate is None else at_rate

    @property
    def nfe(self) -> float:
        return float(self.recall_line["nfe"])

    @property
    def rates(self) -> list[float]:
        return sorted(line["rate"] for line in self.rounds)

    @property
    def rate(self) -> float:
        return median(self.rates)

    def typical(self, name: str) -> float | None:
        """The median over rounds of a figure at the highest rate; None if there is none."""
        values = [line[name] for line in self.rounds if line[name] is not None]
        return median(values) if values else None

    @property
    def generator_busy(self) -> bool:
        return any(line["generator_cpu"] > BUSY_CPU_SHARE for line in self.rounds)

    def against(self, other: Measured) -> tuple[float, float]:
        """Difference in recall to another case and its standard error, paired by user.

        Over the users that both have; NaN if there are none.
        """
        difference = self.hits - other.hits
        difference = difference[~np.isnan(difference)]
        if not len(difference):
            return np.nan, np.nan
        error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else 0.0
        return float(difference.mean()), float(error)


def papers_of(measured: Sequence[Measured]) -> Measured | None:
    """The case with the paper's setting, which the others are compared with; None without it."""
    return next((one for one in measured if one.case.is_papers), None)


def frontier(measured: Sequence[Measured]) -> list[Measured]:
    """The Pareto front: cases that no other beats in both rate and recall, slowest first."""
    return sorted(
        (
            one
            for one in measured
            if not any(
                other.rate >= one.rate
                and other.recall >= one.recall
                and (other.rate, other.recall) != (one.rate, one.recall)
                for other in measured
            )
        ),
        key=lambda one: one.rate,
    )


class SweepError(Exception):
    """The sweep cannot go on; the sentence says why."""


@dataclass(frozen=True)
class Setting:
    """What all results of a folder have in common; another setting needs another folder."""

    bundle: str
    slo_ms: int
    users: int
    k: int
    probe_s: float
    min_answers: int
    stored_histories: bool
    exclude_seen: bool
    service_cores: int
    machine: str


class Results:
    """The file `sweep.jsonl`: its first line is the setting, each other line is one result.

    Raises SweepError if the file has another setting.
    """

    def __init__(self, folder: Path, setting: Setting) -> None:
        self._path = folder / "sweep.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        if not self._path.exists():
            self._append({"setting": asdict(setting)})
        first, *self._lines = _complete_lines(self._path)
        if first["setting"] != asdict(setting):
            raise SweepError(
                f"{self._path} was measured with {first['setting']}, and now it would be "
                f"{asdict(setting)}: choose another --out, or remove the folder"
            )

    def find(self, **wanted: Any) -> dict[str, Any] | None:
        """The first result with these values; None if there is none."""
        matching = (
            line for line in self._lines if all(line.get(name) == wanted[name] for name in wanted)
        )
        return next(matching, None)

    def add(self, line: dict[str, Any]) -> dict[str, Any]:
        self._append(line)
        self._lines.append(line)
        return line

    def _append(self, line: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def measured(self, cases: Sequence[Case]) -> list[Measured]:
        """What was measured of each case that has its recall and at least one round."""
        return _measured(self._lines, cases)


def read_results(folder: Path) -> tuple[Setting, list[Measured]]:
    """The setting of a finished sweep and all that was measured, in the order of the report.

    Files from before `exclude_seen` was recorded do not say it: nothing was excluded then.
    Raises SweepError if the folder holds no sweep.
    """
    path = folder / "sweep.jsonl"
    try:
        first, *lines = _complete_lines(path)
        setting = Setting(**{"exclude_seen": False, **first["setting"]})
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SweepError(f"{path} does not hold the results of a sweep: {error}") from error
    cases = {json.dumps(line["case"]): Case(line["case"]) for line in lines}
    return setting, in_order(_measured(lines, list(cases.values())))


def in_order(measured: Sequence[Measured]) -> list[Measured]:
    """By ranking, then from few denoiser calls to many."""
    return sorted(measured, key=lambda one: (one.case.ranking, one.nfe, one.case.name))


def _measured(lines: Sequence[dict[str, Any]], cases: Sequence[Case]) -> list[Measured]:
    """Each case that has its recall and at least one round."""
    found = []
    for case in cases:
        of_case = [line for line in lines if line["case"] == case.parameters]
        recall = next((line for line in of_case if line["kind"] == "recall"), None)
        rounds = [line for line in of_case if line["kind"] == "rate"]
        if recall and rounds:
            found.append(Measured(case, recall, rounds))
    return found


def _complete_lines(path: Path) -> list[dict[str, Any]]:
    """All lines. A last line that was cut off by an interruption is removed from the file."""
    text = path.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        path.write_text(text, encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
