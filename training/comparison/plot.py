"""The comparison as a picture: recall@10 of all systems, and of the schedules by denoiser calls.

Drawn without a display and without matplotlib's global state. Bars are two standard errors of the
recall itself, not of differences: paired differences are in the tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.comparison.table import Row
from training.evaluation import TargetRanks, recall_at, setting_name, standard_error

SERVED, OTHER = "#1f5fa8", "#d9822b"
BY_PRIOR = ("#6a6a6a", "#2a8c5a")  # off, on
OFFSET = 0.14  # of the two dots of a system, in lines


def plot_comparison(
    systems: Sequence[Row], schedules: Sequence[Row], files: Sequence[Path]
) -> None:
    """Write the picture to every file, in the format its suffix says."""
    figure = Figure(figsize=(13, 1.6 + 0.36 * max(len(systems), 8)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _dots(left, systems)
    _by_nfe(right, schedules)
    save(figure, files)


def save(figure: Figure, files: Sequence[Path]) -> None:
    """Write a picture to every file, in the format its suffix says."""
    for file in files:
        metadata = {"Date": None} if file.suffix == ".svg" else {}
        with rc_context({"svg.hashsalt": "comparison"}):  # the same picture, the same file
            figure.savefig(file, dpi=150, metadata=metadata)


def _dots(axes: Axes, rows: Sequence[Row]) -> None:
    lines = range(len(rows))
    found = [row.ranks.item for row in rows]
    served, other = (
        setting_name(exclude_seen=exclude_seen)
        for exclude_seen in (rows[0].ranks.exclude_seen, not rows[0].ranks.exclude_seen)
    )
    _errors(axes, found, [line - OFFSET for line in lines], SERVED, served)
    measured = [line for line in lines if rows[line].ranks.other is not None]
    at_other = [ranks for row in rows if (ranks := row.ranks.other) is not None]
    _errors(axes, at_other, [line + OFFSET for line in measured], OTHER, other)
    axes.set_yticks(list(lines), [row.system for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("recall@10, ± 2 standard errors")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)


def _errors(
    axes: Axes, found: Sequence[TargetRanks], places: Sequence[float], colour: str, label: str
) -> None:
    axes.errorbar(
        [recall_at(ranks, 10) for ranks in found],
        places,
        xerr=[2 * standard_error(ranks) for ranks in found],
        fmt="o",
        markersize=5,
        capsize=2,
        color=colour,
        label=label,
    )


def _by_nfe(axes: Axes, rows: Sequence[Row]) -> None:
    systems = dict.fromkeys(row.system for row in rows)
    for system, colour, shift in zip(systems, BY_PRIOR, (-0.06, 0.06), strict=True):
        of_system = [row for row in rows if row.system == system]
        calls = [(row.ranks.nfe or 0) + shift for row in of_system]
        recalls = [row.recall for row in of_system]
        errors = [2 * standard_error(row.ranks.item) for row in of_system]
        axes.errorbar(calls, recalls, yerr=errors, fmt="o", capsize=2, color=colour, label=system)
        for row, x, y in zip(of_system, calls, recalls, strict=True):
            axes.annotate(
                row.setting,
                (x, y),
                xytext=(-5 if shift < 0 else 5, 0),
                textcoords="offset points",
                ha="right" if shift < 0 else "left",
                fontsize=7,
                color=colour,
            )
    axes.margins(x=0.12)
    axes.set_xlabel("denoiser calls (NFE) of schedules (r_warm, m_par)")
    axes.set_ylabel("recall@10, ± 2 standard errors")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
