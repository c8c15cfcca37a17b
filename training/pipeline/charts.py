"""The charts of a run's report, as SVG inside a page of HTML.

Text takes the colour of the page, so the charts can be read on light and on dark ground. Nothing in
them names another file or address. The same numbers give the same text. Knows numbers, no runs.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

INK = "#010203"  # becomes the colour of the page's text
COLOURS = ("#4c78d8", "#e0742f", "#3c9d5b", "#c94f8c", "#8a63c9", "#c9a227", "#2f9fae", "#d2504b")
COLOURS += ("#7d8b2f", "#a0674b")
OTHERS = "#9aa0ae"
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "axes.grid": True,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
Values = Sequence[float]


def fit_chart(steps: Values, losses: Values, checked: Values, recalls: Values) -> str:
    """Loss by step, and recall@10 on validation users by the step at which it was measured."""
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(steps, losses, color=COLOURS[0])
        left.set(xlabel="step", ylabel="loss")
        right.plot(checked, recalls, color=COLOURS[2], marker="o", markersize=4)
        right.set(xlabel="step", ylabel="recall@10, validation users")
        right.set_ylim(bottom=0)
        if len(recalls):
            best = int(np.argmax(recalls))
            right.plot(checked[best], recalls[best], "o", markersize=10, mfc="none", color=INK)
        return svg_of(figure, "fit")


def codes_chart(codes_used: Values, entropy_bits: Values, num_codes: int) -> str:
    """How many codes each position uses, and how evenly, as a share of the most there could be."""
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 2.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        positions = np.arange(len(codes_used))
        left.bar(positions, codes_used, color=COLOURS[0])
        left.axhline(num_codes, color=INK, linewidth=1, linestyle="--")
        left.set(xlabel="position", ylabel="codes used")
        most = max(float(np.log2(num_codes)), 1e-9)
        right.bar(positions, np.array(entropy_bits) / most, color=COLOURS[6])
        right.axhline(1, color=INK, linewidth=1, linestyle="--")
        right.set(xlabel="position", ylabel="entropy, share of the most")
        for axes in (left, right):
            axes.set_xticks(positions if len(positions) <= 16 else positions[::4])
            axes.grid(axis="x", visible=False)
        return svg_of(figure, "codes")


def grid_chart(points: Sequence[Mapping[str, Any]], chosen: int) -> str:
    """The settings that were tried on validation users: time against recall@10.

    Bars are two standard errors of the difference to the best one, over the same users.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        axes = figure.subplots()
        rankings = list(dict.fromkeys(point["ranking"] for point in points))
        for ranking, colour in zip(rankings, COLOURS, strict=False):
            own = [point for point in points if point["ranking"] == ranking]
            _with_errors(
                axes,
                [point["milliseconds"] for point in own],
                [point["recall@10"] for point in own],
                [2 * point["error"] for point in own],
                colour,
                f"ranking {ranking}",
            )
        point = points[chosen]
        found = point["milliseconds"], point["recall@10"]
        axes.plot(*found, "o", markersize=12, mfc="none", color=INK, label="chosen")
        if min(point["milliseconds"] for point in points) > 0:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("{x:g}")
        axes.set(xlabel="milliseconds a user, one thread", ylabel="recall@10, validation users")
        axes.legend()
        return svg_of(figure, "grid")


def schedules_chart(lines: Sequence[tuple[str, float, float, float]]) -> str:
    """Name, denoiser calls, recall@10 and its standard error of each schedule, on test users."""
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        axes = figure.subplots()
        _, calls, recalls, errors = zip(*lines, strict=True)
        _with_errors(axes, calls, recalls, [2 * error for error in errors], COLOURS[0], None)
        for name, x, y, _ in lines:
            axes.annotate(name, (x, y), xytext=(6, 4), textcoords="offset points", fontsize=8)
        axes.margins(x=0.12)
        axes.set(xlabel="denoiser calls (NFE)", ylabel="recall@10, test users")
        return svg_of(figure, "schedules")


def bars_chart(
    name: str, labels: Sequence[str], recalls: Values, errors: Values, label: str
) -> str:
    """recall@10 of groups that have an order, with two standard errors; label: of the groups"""
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 3), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(labels))
        doubled = [2 * error for error in errors]
        axes.bar(places, recalls, yerr=doubled, color=COLOURS[0], ecolor=INK, capsize=3)
        axes.set_xticks(places, labels)
        axes.grid(axis="x", visible=False)
        axes.set_ylim(bottom=0)
        axes.set(xlabel=label, ylabel="recall@10, test users")
        return svg_of(figure, name)


def map_chart(places: NDArray[np.uint16], groups: NDArray[np.integer]) -> str:
    """Items on the map. groups: a number of COLOURS for each item; -1 = all others"""
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 7), layout="constrained")
        axes = figure.subplots()
        size = float(np.clip(30_000 / max(1, len(places)), 1.5, 30))
        order = np.argsort(groups, kind="stable")
        colours = np.array([*COLOURS, OTHERS])[groups[order]]
        x, y = places[order, 0].astype(float), 65_535 - places[order, 1].astype(float)
        axes.scatter(x, y, s=size, c=colours, linewidths=0, rasterized=True)
        axes.set_aspect("equal")
        axes.set_axis_off()
        return svg_of(figure, "map")


def _with_errors(
    axes: Axes, x: Values, y: Values, errors: Values, colour: str, label: str | None
) -> None:
    bars = dict(fmt="o", markersize=5, capsize=2, linewidth=1, color=colour, alpha=0.85)
    axes.errorbar(x, y, yerr=errors, label=label, **bars)


def svg_of(figure: Figure, name: str) -> str:
    """The element `svg` of a figure; its ids begin with the name, so that no two charts share one.

    What it shows is said by the caption beside it, so it is hidden from readers of the screen.
    """
    buffer = io.StringIO()
    unchanging = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=unchanging, transparent=True, dpi=144)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    text = re.sub(r' (?:xmlns(?::\w+)?|version)="[^"]*"', "", text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', text)
    text = text.replace('xlink:href="data:', 'href="data:').replace(INK, "currentColor")
    return text.replace("<svg ", '<svg aria-hidden="true" ', 1).strip()
