"""A sweep as a picture: requests a second against recall, and the same beside MDGR's Table 3.

MDGR's figures are of industry data on hardware that the paper does not name. So they stand beside
ours only relative to the schedule (4, 2). Needs no display and leaves matplotlib's global state
alone. Does not know how anything was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from loadtest.sweeping.labels import Label, place_labels
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
MDGR_NAMED = ((0, 1), (4, 2), (0, 2))  # all others lie between these
COLOURS = {"rows": "#1f5fa8", "path": "#d9822b", "best": "#2a8c5a", "auto": "#6a6a6a"}


def plot_sweep(measured: Sequence[Measured], setting: Setting, files: Sequence[Path]) -> None:
    """Write the picture to every file, in the format of its suffix."""
    figure, _ = draw_sweep(measured, setting)
    for file in files:
        metadata = {"Date": None} if file.suffix == ".svg" else {}
        with rc_context({"svg.hashsalt": "sweep"}):  # the same picture, the same file
            figure.savefig(file, dpi=130, metadata=metadata)


def draw_sweep(
    measured: Sequence[Measured], setting: Setting
) -> tuple[Figure, list[list[Annotation]]]:
    """The picture, and the names of its points for each of its axes.

    Left: what was measured. Right: the same relative to the paper's schedule, beside the paper's
    own figures; empty if the paper's schedule was not measured.
    """
    papers = papers_of(measured)
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    labels = [(left, _absolute(left, measured, setting))]
    if papers and papers.rate and papers.recall:
        labels.append((right, _relative(right, measured, papers, setting)))
    else:
        right.set_axis_off()
    return figure, [place_labels(axes, names) for axes, names in labels]


def _absolute(axes: Axes, measured: Sequence[Measured], setting: Setting) -> list[Label]:
    labels = []
    for group, label in _groups(measured):
        looks = _looks(group[0], measured)
        axes.plot([one.rate for one in group], [one.recall for one in group], label=label, **looks)
        labels += [Label(one.case.schedule, one.rate, one.recall, looks["color"]) for one in group]
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
    return labels


def _relative(
    axes: Axes, measured: Sequence[Measured], papers: Measured, setting: Setting
) -> list[Label]:
    labels = []
    for group, label in _groups([one for one in measured if not one.case.is_auto]):
        rates = [one.rate / papers.rate for one in group]
        differences = [100 * one.against(papers)[0] / papers.recall for one in group]
        looks = _looks(group[0], measured)
        axes.errorbar(
            rates,
            differences,
            yerr=[100 * one.against(papers)[1] / papers.recall for one in group],
            elinewidth=0.8,
            label=label,
            **looks,
        )
        if _is_named(group[0], measured):
            labels += [
                Label(one.case.schedule, rate, difference, looks["color"])
                for one, rate, difference in zip(group, rates, differences, strict=True)
            ]
    [(papers_recall, papers_rate)] = [
        (recall, rate) for schedule, recall, rate in MDGR_TABLE_3 if schedule == (4, 2)
    ]
    for place, (schedule, recall, rate) in enumerate(MDGR_TABLE_3):
        x, y = rate / papers_rate, 100 * (recall / papers_recall - 1)
        axes.plot(x, y, "D", color="black", markersize=4, label="" if place else "MDGR, Table 3")
        if schedule in MDGR_NAMED:
            labels.append(Label(str(schedule), x, y, "black"))
    axes.set_xscale("log")
    axes.set_xlabel("requests a second, as a multiple of (4, 2) by path")
    axes.set_ylabel(f"recall@{setting.k}, difference to (4, 2) by path in %")
    axes.set_title("beside MDGR's Table 3; bars: ± one standard error", fontsize=10)
    _finish(axes)
    return labels


def _groups(measured: Sequence[Measured]) -> list[tuple[list[Measured], str]]:
    """Cases that look alike, and the name of each group in the legend."""
    found: dict[str, list[Measured]] = {}
    for one in measured:
        beams = f"by {one.case.ranking}, {one.case.beam_width} beams"
        found.setdefault("auto" if one.case.is_auto else beams, []).append(one)
    return [(group, label) for label, group in found.items()]


def _is_named(one: Measured, measured: Sequence[Measured]) -> bool:
    """Whether the schedule is written beside the point: only at the widest beams and for `auto`."""
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
