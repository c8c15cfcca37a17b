"""Tables of families: figures are means over seeds, differences are paired by user and seed.

Knows rows, and no model.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from training.comparison.families.seeds import Rows, difference, kept, kept_more, ranks_for
from training.comparison.table import NONE, FamilyFacts, Row
from training.evaluation import Difference, TargetRanks, markdown_table, ndcg_at, recall_at

RECALLS = ("recall@5", "recall@10", "recall@40")
TIMES = ("ms alone", "ms of 8")
SEARCH = "search / network"  # time in batches, of all test users


def groups_of(rows: Sequence[Row], key: Callable[[Row], Hashable]) -> list[list[Row]]:
    """Rows of the same key, in the order in which keys come first."""
    found: dict[Hashable, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return list(found.values())


def facts_of(row: Row) -> FamilyFacts:
    assert row.facts is not None  # rows of families have them
    return row.facts


def mean_at(rows: Rows, k: int, metric: Callable[[TargetRanks, int], float] = recall_at) -> float:
    """Over the seeds' rows."""
    return float(np.mean([metric(ranks_for(row.ranks, k), k) for row in rows]))


def families_table(rows: Sequence[Row]) -> str:
    """Every family at the setting that its bundle chose, with what it cost."""
    header = [
        "family",
        "network",
        *RECALLS,
        "ndcg@10",
        "sd of recall@10 over seeds",
        "schedule",
        "NFE",
    ]
    header += ["parameters", "steps", "CPU minutes", "minutes by the clock", *TIMES, SEARCH]
    header += ["difference to the first, recall@10", "verdict"]
    lines = []
    systems = groups_of(rows, lambda row: row.system)
    for of_system in systems:
        first = of_system[0]
        line = [first.system, facts_of(first).family, *_recalls(of_system)]
        line += [f"{mean_at(of_system, 10, ndcg_at):.4f}", _deviation(of_system)]
        line += [str(facts_of(first).schedule), _nfe(of_system), f"{first.ranks.parameters:,}"]
        steps = [float(facts_of(row).steps or np.nan) for row in of_system]
        line += [_mean(steps, ",.0f")]
        line += [_mean([_of(facts_of(row).cpu_minutes) for row in of_system], ".1f")]
        line += [_mean([_of(facts_of(row).clock_minutes) for row in of_system], ".1f")]
        line += [*_times(first), _search_share(of_system)]
        others = None if of_system is systems[0] else difference(of_system, systems[0], 10)
        lines.append([*line, *_said(others)])
    return markdown_table(header, lines)


def nfe_table(rows: Sequence[Row]) -> str:
    """Every family at every number of denoiser calls, against itself at the most."""
    header = ["family", "calls", "schedule", "order", "NFE", *TIMES, SEARCH, *RECALLS, "ndcg@10"]
    header += ["difference to its most calls, recall@10", "verdict"]
    lines = []
    for of_system in groups_of(rows, lambda row: row.system):
        points = groups_of(of_system, lambda row: (facts_of(row).calls, facts_of(row).order))
        for point in points:
            facts = facts_of(point[0])
            line = [point[0].system, str(facts.calls), str(facts.schedule)]
            line += [facts.order.replace("_", " ") or "its own", _nfe(point), *_times(point[0])]
            line += [_search_share(point)]
            line += [*_recalls(point), f"{mean_at(point, 10, ndcg_at):.4f}"]
            others = None if point is points[0] else difference(point, points[0], 10)
            lines.append([*line, *_said(others)])
    return markdown_table(header, lines)


def several_items_table(rows: Sequence[Row]) -> str:
    """The next items together, by schedules, and one after another."""
    slots = [f"slot {slot} @10" for slot in range(1, facts_of(rows[0]).horizon + 1)]
    header = ["family", "how", "schedule", "calls", "NFE", *slots, "average @5", "average @10"]
    header += ["difference to the first, average @10", "verdict"]
    lines = []
    points = groups_of(
        rows, lambda row: (row.system, facts_of(row).chained, facts_of(row).schedule)
    )
    for point in points:
        facts = facts_of(point[0])
        hits = np.mean([(row.ranks.item <= 10).reshape(-1, row.horizon) for row in point], axis=0)
        line = [point[0].system, "one after another" if facts.chained else "together"]
        line += [str(facts.schedule), str(facts.calls), _nfe(point)]
        line += [f"{recall:.4f}" for recall in hits.mean(axis=0)]
        line += [f"{mean_at(point, k):.4f}" for k in (5, 10)]
        others = None if point is points[0] else difference(point, points[0], 10)
        lines.append([*line, *_said(others)])
    return markdown_table(header, lines)


def family_density_table(rows: Sequence[Row]) -> str:
    """What families keep of their recall, and how much more than the first one."""
    header = ["family", "dropped"]
    for metric in ("recall@5", "recall@10"):
        header += [metric, "kept", "kept minus what the first keeps", "verdict"]
    lines = []
    for of_system in groups_of(rows, lambda row: row.system):
        for of_share in groups_of(of_system, lambda row: facts_of(row).dropped):
            dropped = facts_of(of_share[0]).dropped
            of_first = [
                row
                for row in rows
                if row.system == rows[0].system and facts_of(row).dropped == dropped
            ]
            line = [of_share[0].system, f"{100 * dropped:.0f} %"]
            for k in (5, 10):
                is_first = not dropped or of_share[0].system == rows[0].system
                share = kept(of_share, k) if dropped else None
                more = None if is_first else kept_more(of_share, of_first, k)
                line += [f"{mean_at(of_share, k):.4f}", NONE if share is None else percent(share)]
                line += [
                    NONE if more is None else percent(more, "+"),
                    more.verdict if more else NONE,
                ]
            lines.append(line)
    return markdown_table(header, lines)


def percent(share: Difference, sign: str = "") -> str:
    """A share and its error in percent."""
    return f"{100 * share.mean:{sign}.1f} ± {100 * share.standard_error:.1f} %"


def _recalls(rows: Rows) -> list[str]:
    return [f"{mean_at(rows, k):.4f}" for k in (5, 10, 40)]


def _deviation(rows: Rows) -> str:
    if len(rows) < 2:
        return NONE
    return f"{np.std([row.recall for row in rows], ddof=1):.4f} ({len(rows)})"


def _nfe(rows: Rows) -> str:
    return f"{np.mean([row.ranks.nfe or 0 for row in rows]):.3g}"


def _times(row: Row) -> list[str]:
    milliseconds = facts_of(row).milliseconds
    return [NONE, NONE] if milliseconds is None else [f"{one:.2f}" for one in milliseconds]


def _search_share(rows: Rows) -> str:
    shares = [row.ranks.search_share for row in rows if row.ranks.search_share is not None]
    return f"{100 * np.mean(shares):.0f} %" if shares else NONE


def _said(found: Difference | None) -> list[str]:
    return [NONE, NONE] if found is None else [str(found), found.verdict]


def _of(value: float | None) -> float:
    return np.nan if value is None else value


def _mean(values: Sequence[float], form: str) -> str:
    mean = float(np.mean(values))
    return NONE if np.isnan(mean) else f"{mean:{form}}"
