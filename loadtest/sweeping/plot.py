"""A sweep as a picture: requests a second against recall, and beside the paper's own trend.

MDGR's figures (Table 3: industry data, hardware unsaid) stand beside ours only relative to its
schedule (4, 2). Drawn without a display and without matplotlib's global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from loadtest.sweeping.results import Measured, Setting, frontier, papers_of

# MDGR (arXiv 2601.19501), Table 3: (r_warm, m_par), recall@10, QPS.
MDGR_TABLE_3 = (
    ((0, 1), 0.2219, 2.212),
    ((0, 2), 0.2127, 3.015),
    ((2, 2), 0.2199, 2.741),
    ((4, 2), 0.2210, 2.527),
    ((6, 2), 0.2213, 2.365),
    ((4, 3), 0.2205, 2.526),
    ((4, 4), 0.2204, 2.739),
)
MDGR_NAMED = ((0, 1), (4, 2), (0, 2))  # the others lie between
COLOURS = {"rows": "#1f5fa8", "path": "#d9822b", "best": "#2a8c5a", "auto": "#6a6a6a"}


def plot_sweep(measured: Sequence[Measured], setting: Setting, files: Sequence[Path]) -> None:
    """Write the picture to every file, in the format its suffix says.

    Left what was measured, right the same relative to the paper's schedule, with its own figures.
    """
    papers = papers_of(measured)
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _absolute(left, measured, setting)
    if papers and papers.rate and papers.recall:
        _relative(right, measured, papers)
    else:
        right.set_axis_off()
    for file in files:
        metadata = {"Date": None} if file.suffix == ".svg" else {}
        with rc_context({"svg.hashsalt": "sweep"}):  # the same picture, the same file
            figure.savefig(file, dpi=130, metadata=metadata)


def _absolute(axes: Axes, measured: Sequence[Measured], setting: Setting) -> None:
    for group, label in _groups(measured):
        looks = _looks(group[0], measured)
        axes.plot([one.rate for one in group], [one.recall for one in group], label=label, **looks)
        if _is_named(group[0], measured):
            for place, one in enumerate(group):
                _name(axes, one.case.schedule, one.rate, one.recall, looks["color"], place)
    best = frontier(measured)
    axes.plot(
        [one.rate for one in best],
        [one.recall for one in best],
        color="#888888",
        linewidth=1,
        zorder=0,
        label="Pareto front",
    )
    axes.set_xscale("log")
    axes.set_xlabel(f"requests a second with p99 ≤ {setting.slo_ms} ms, {_cores(setting)}")
    axes.set_ylabel(f"recall@{setting.k}")
    axes.set_title(f"{setting.bundle}, {setting.users} users", fontsize=10)
    _finish(axes)


def _relative(axes: Axes, measured: Sequence[Measured], papers: Measured) -> None:
    for group, label in _groups([one for one in measured if not one.case.is_auto]):
        axes.errorbar(
            [one.rate / papers.rate for one in group],
            [100 * one.against(papers)[0] / papers.recall for one in group],
            yerr=[100 * one.against(papers)[1] / papers.recall for one in group],
            elinewidth=0.8,
            label=label,
            **_looks(group[0], measured),
        )
        if _is_named(group[0], measured):
            for place, one in enumerate(group):
                x, y = one.rate / papers.rate, 100 * one.against(papers)[0] / papers.recall
                _name(axes, one.case.schedule, x, y, COLOURS[one.case.ranking], place)
    [(papers_recall, papers_rate)] = [
        (recall, rate) for schedule, recall, rate in MDGR_TABLE_3 if schedule == (4, 2)
    ]
    for place, (schedule, recall, rate) in enumerate(MDGR_TABLE_3):
        x, y = rate / papers_rate, 100 * (recall / papers_recall - 1)
        axes.plot(x, y, "D", color="black", markersize=4, label="" if place else "MDGR, Table 3")
        if schedule in MDGR_NAMED:
            _name(axes, str(schedule), x, y, "black", place)
    axes.set_xscale("log")
    axes.set_xlabel("requests a second, times those of (4, 2) by path")
    axes.set_ylabel("recall against (4, 2) by path, %, ± one standard error")
    axes.set_title("beside the paper's own trend", fontsize=10)
    _finish(axes)


def _groups(measured: Sequence[Measured]) -> list[tuple[list[Measured], str]]:
    """Cases that look alike, and what they are called."""
    found: dict[str, list[Measured]] = {}
    for one in measured:
        beams = f"by {one.case.ranking}, {one.case.beam_width} beams"
        found.setdefault("auto" if one.case.is_auto else beams, []).append(one)
    return [(group, label) for label, group in found.items()]


def _is_named(one: Measured, measured: Sequence[Measured]) -> bool:
    """Only the widest beams' schedules are written out: the others lie in the same order."""
    return one.case.is_auto or one.case.beam_width == max(
        other.case.beam_width or 0 for other in measured
    )


def _looks(one: Measured, measured: Sequence[Measured]) -> dict[str, Any]:
    colour = COLOURS[one.case.ranking]
    filled = _is_named(one, measured)
    return {
        "color": colour,
        "linestyle": "none",
        "marker": "*" if one.case.is_auto else "o" if filled else "v",
        "markersize": 11 if one.case.is_auto else 6 if filled else 5,
        "markerfacecolor": colour if filled else "white",
    }


def _name(axes: Axes, text: str, x: float, y: float, colour: str, place: int) -> None:
    """Above or below the point in turn: neighbours lie close together."""
    offset = (4, 4) if place % 2 else (4, -9)
    axes.annotate(text, (x, y), xytext=offset, textcoords="offset points", fontsize=7, color=colour)


def _finish(axes: Axes) -> None:
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, which="both")
    axes.margins(x=0.1, y=0.12)
    axes.legend(fontsize=8, frameon=False, loc="lower right")


def _cores(setting: Setting) -> str:
    cores = setting.service_cores
    return "one core" if cores == 1 else f"{cores} cores"
