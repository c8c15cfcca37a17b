"""From ranks to tables: metrics, paired differences, verdicts; Markdown and CSV.

A row is a system in a setting, beside the ranks it is paired with. The CSV holds all rows with the
same columns. Knows no model and no data.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.evaluation import (
    CUTOFFS,
    LONG,
    SHORT,
    Difference,
    Measured,
    SystemRanks,
    TargetRanks,
    cold_figures,
    cold_markdown,
    markdown_table,
    ndcg_at,
    paired_difference,
    recall_at,
    setting_name,
    standard_error,
)

TARGET_IS_NEW, ALL_OTHERS = "target is new", "all others"  # users of the table of new items
NONE = "-"  # a figure that does not exist
METRICS = tuple(f"{metric}@{k}" for k in CUTOFFS for metric in ("recall", "ndcg"))


@dataclass(frozen=True)
class FamilyFacts:
    """What rows of families have beside their ranks.

    family: of the network; schedule: (r_warm, m_par); calls: denoiser calls of it
    order: other than the family's own, else empty
    retrieval: what finds items, see `service.decoding.Job`
    horizon: how many next items are predicted; ranks hold a place for each, a user's side by side
    chained: whether these were found one after another, each by a request of its own
    dropped: share of the training interactions that are left out
    steps, cpu_minutes, clock_minutes: of the fit; None where a record does not say it
    milliseconds: of a request that is decoded alone, and of one of eight together; the first seed's
    """

    seed: int
    family: str
    schedule: tuple[int, int]
    calls: int
    order: str = ""
    retrieval: str = "generate"
    horizon: int = 1
    chained: bool = False
    dropped: float = 0.0
    steps: int | None = None
    cpu_minutes: float | None = None
    clock_minutes: float | None = None
    milliseconds: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class Row:
    """A system in a setting (a schedule, a seed, a share of the data).

    reference: ranks of the same users that it is compared with; None = it is the reference.
    published: the change that MDGR reports of the same step, for the reader
    facts: of rows of families
    """

    system: str
    setting: str
    ranks: SystemRanks
    reference: SystemRanks | None = None
    published: str = ""
    facts: FamilyFacts | None = None

    @property
    def horizon(self) -> int:
        """Places in the ranks for each user."""
        return self.facts.horizon if self.facts else 1

    @property
    def recall(self) -> float:
        """recall@10, item-level, at the setting of the headline."""
        return recall_at(self.ranks.item, 10)

    def change(self, metric: str) -> float:
        """Change of a metric against the reference in percent; nan where there is none to speak of.

        metric: one of METRICS
        """
        before = _item_metric(self.reference, metric) if self.reference else 0.0
        return 100 * (_item_metric(self.ranks, metric) / before - 1) if before else math.nan


def systems_table(rows: Sequence[Row]) -> str:
    """All systems against the full one, at the setting that is served, then at the other one."""
    other = _other_setting(rows)
    header = ["system", *METRICS, "SID recall@10", f"{other}: recall@10", "ndcg@10"]
    header += ["parameters", "minutes", "NFE", "SE of recall@10"]
    header += ["difference to full, recall@10", "verdict", f"{other}: difference", "verdict"]
    lines = []
    for row in rows:
        ranks = row.ranks
        line = [row.system, *(f"{_item_metric(ranks, metric):.4f}" for metric in METRICS)]
        line.append(_shown(ranks.sid, "recall@10"))
        line += [_shown(ranks.other, metric) for metric in ("recall@10", "ndcg@10")]
        line += [f"{ranks.parameters:,}", f"{ranks.minutes:.1f}"]
        line += [
            NONE if ranks.nfe is None else f"{ranks.nfe:g}",
            f"{standard_error(ranks.item):.4f}",
        ]
        line += [*_difference(row), *_difference(row, other=True)]
        lines.append(line)
    return markdown_table(header, lines)


def schedules_table(rows: Sequence[Row]) -> str:
    """Schedules, each against the paper's with the same prior."""
    header = ["schedule", "system", "NFE", "ms/user", "recall@5", "recall@10", "ndcg@10"]
    header += ["recall@40", "SID recall@10", "difference to (4, 2), recall@10", "verdict"]
    header += ["change of recall@10", "MDGR's change"]
    lines = []
    for row in rows:
        ranks = row.ranks
        line = [row.setting, row.system, f"{ranks.nfe:g}", f"{ranks.milliseconds:.2f}"]
        shown = ("recall@5", "recall@10", "ndcg@10", "recall@40")
        line += [f"{_item_metric(ranks, metric):.4f}" for metric in shown]
        line += [_shown(ranks.sid, "recall@10"), *_difference(row)]
        lines.append([*line, _percent(row.change("recall@10")), row.published or NONE])
    return markdown_table(header, lines)


def ablations_table(rows: Sequence[Row]) -> str:
    """Ablations against the run as it is, with what MDGR reports."""
    header = ["ablation", "asked", "recall@10", "difference, recall@10", "verdict"]
    header += [f"{_other_setting(rows)}: difference", "verdict"]
    header += ["change of recall@5 / ndcg@5", "MDGR's change"]
    lines = []
    for row in rows:
        line = [row.system, row.setting, f"{row.recall:.4f}"]
        line += [*_difference(row), *_difference(row, other=True)]
        line.append(" / ".join(_percent(row.change(metric)) for metric in ("recall@5", "ndcg@5")))
        lines.append([*line, row.published or NONE])
    return markdown_table(header, lines)


def density_table(rows: Sequence[Row]) -> str:
    """What systems keep of their recall when training interactions are dropped."""
    header = ["system", "dropped", "recall@5", "kept", "recall@10", "kept"]
    lines = []
    for row in rows:
        line = [row.system, row.setting]
        for metric in ("recall@5", "recall@10"):
            kept = 100 + (row.change(metric) if row.reference else 0.0)
            line += [f"{_item_metric(row.ranks, metric):.4f}", _percent(kept, sign="")]
        lines.append(line)
    return markdown_table(header, lines)


def seeds_table(rows: Sequence[Row]) -> str:
    """recall@10 and ndcg@10 over seeds: mean, standard deviation, largest gap."""
    header = ["system", "seeds", *(f"{metric}: {of}" for metric in ("recall@10", "ndcg@10")
              for of in ("mean", "sd", "gap"))]  # fmt: skip
    lines = []
    for system in dict.fromkeys(row.system for row in rows):
        of_system = [row.ranks.item for row in rows if row.system == system]
        line = [system, str(len(of_system))]
        for metric in ("recall@10", "ndcg@10"):
            values = np.array([_metric(ranks, metric) for ranks in of_system])
            line += [f"{values.mean():.4f}", f"{values.std(ddof=1):.4f}", f"{np.ptp(values):.4f}"]
        lines.append(line)
    return markdown_table(header, lines)


def lengths_table(rows: Sequence[Row]) -> str:
    """recall@10 by length of the history: systems down, lengths across."""
    settings = list(dict.fromkeys(row.setting for row in rows))
    users = {row.setting: len(row.ranks.item) for row in rows}
    lines: dict[str, list[str]] = {}
    for row in rows:
        error = standard_error(row.ranks.item)
        lines.setdefault(row.system, [row.system]).append(f"{row.recall:.4f} ± {error:.4f}")
    header = ["system", *(f"{setting} ({users[setting]:,} users)" for setting in settings)]
    return markdown_table(header, lines.values())


def cold_table(rows: Sequence[Row]) -> str:
    """Users whose target is a new item, then what all others lose: two tables."""
    others = {row.system: row.ranks for row in rows if row.setting == ALL_OTHERS}
    systems = [
        Measured(row.system, row.ranks, others.get(row.system))
        for row in rows
        if row.setting == TARGET_IS_NEW
    ]
    return cold_markdown(cold_figures(systems))


def csv_text(tables: dict[str, Sequence[Row]]) -> str:
    """All rows of all tables in one CSV; empty where a figure does not exist."""
    text = io.StringIO()
    writer: csv.DictWriter[str] | None = None
    for table, rows in tables.items():
        for row in rows:
            figures = {"table": table, **_figures(row)}
            if writer is None:
                writer = csv.DictWriter(text, list(figures), lineterminator="\n")
                writer.writeheader()
            writer.writerow(figures)
    return text.getvalue()


def _figures(row: Row) -> dict[str, str]:
    ranks = row.ranks
    figures = {
        "system": row.system,
        "setting": row.setting,
        "users": str(len(ranks.item) // row.horizon),
    }
    figures |= {metric: f"{_item_metric(ranks, metric):.5f}" for metric in METRICS}
    figures["recall@100"] = "" if ranks.far is None else f"{recall_at(ranks.far, 100):.5f}"
    hits = (ranks.item <= SHORT).reshape(-1, row.horizon).mean(axis=1)
    figures["recall@10_standard_error"] = f"{hits.std() / math.sqrt(len(hits)):.5f}"
    figures["exclude_seen"] = "yes" if ranks.exclude_seen else "no"
    for prefix, of in (("sid", ranks.sid), ("other", ranks.other)):
        for metric in ("recall@10", "ndcg@10"):
            figures[f"{prefix}_{metric}"] = "" if of is None else f"{_metric(of, metric):.5f}"
    figures["parameters"] = str(ranks.parameters) if ranks.parameters else ""
    figures["minutes"] = f"{ranks.minutes:.2f}" if ranks.minutes else ""
    figures["nfe"] = "" if ranks.nfe is None else f"{ranks.nfe:g}"
    figures["milliseconds"] = "" if ranks.milliseconds is None else f"{ranks.milliseconds:.3f}"
    figures["search_share"] = "" if ranks.search_share is None else f"{ranks.search_share:.4f}"
    for prefix, other in (("", False), ("other_", True)):
        found = _paired(row, other=other)
        figures[f"{prefix}difference"] = f"{found.mean:.5f}" if found else ""
        figures[f"{prefix}difference_standard_error"] = (
            f"{found.standard_error:.5f}" if found else ""
        )
        figures[f"{prefix}verdict"] = found.verdict if found else ""
    return figures | _family_figures(row.facts) | {"published": row.published, "note": ranks.note}


def _family_figures(facts: FamilyFacts | None) -> dict[str, str]:
    alone, of_eight = (facts.milliseconds if facts else None) or (None, None)
    figures = {
        "seed": facts and facts.seed,
        "family": facts and facts.family,
        "calls": facts and facts.calls,
        "order": facts and facts.order,
        "retrieval": facts and facts.retrieval,
        "horizon": facts and facts.horizon,
        "chained": facts and ("yes" if facts.chained else "no"),
        "dropped": facts and facts.dropped,
        "steps": facts and facts.steps,
        "cpu_minutes": facts and facts.cpu_minutes,
        "clock_minutes": facts and facts.clock_minutes,
        "milliseconds_alone": alone,
        "milliseconds_of_8": of_eight,
    }
    return {name: "" if value is None else str(value) for name, value in figures.items()}


def _other_setting(rows: Sequence[Row]) -> str:
    """The name of the setting that is not the headline's, which is one for all rows."""
    return setting_name(exclude_seen=not rows[0].ranks.exclude_seen) if rows else "other setting"


def _paired(row: Row, *, other: bool) -> Difference | None:
    if row.reference is None:
        return None
    if not other:
        return paired_difference(row.ranks.item, row.reference.item)
    mine, others = row.ranks.other, row.reference.other
    return None if mine is None or others is None else paired_difference(mine, others)


def _difference(row: Row, *, other: bool = False) -> tuple[str, str]:
    found = _paired(row, other=other)
    return (str(found), found.verdict) if found else (NONE, NONE)


def _metric(ranks: TargetRanks, metric: str) -> float:
    name, _, k = metric.partition("@")
    return (recall_at if name == "recall" else ndcg_at)(ranks, int(k))


def _item_metric(ranks: SystemRanks, metric: str) -> float:
    of_long = ranks.long is not None and metric.endswith(f"@{LONG}")
    return _metric(ranks.long if of_long else ranks.item, metric)


def _shown(ranks: TargetRanks | None, metric: str) -> str:
    return NONE if ranks is None else f"{_metric(ranks, metric):.4f}"


def _percent(value: float, *, sign: str = "+") -> str:
    return NONE if math.isnan(value) else f"{value:{sign}.1f} %"
