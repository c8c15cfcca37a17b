"""Draw the dashboards' queries from a running Prometheus, without Grafana.

    python -m deploy.monitoring.draw --prometheus http://127.0.0.1:9090 --minutes 60 --out now.png

Reads the committed dashboards and sends Prometheus the queries that Grafana would send. The picture
is drawn by matplotlib and says so. It needs the extra `train`, for matplotlib.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from deploy.monitoring.local_prometheus import Prometheus
from deploy.monitoring.queries import Query, dashboard_queries

SHOWN = (
    ("Overview", "Recommendations by outcome"),
    ("Overview", "Latency"),
    ("Overview", "Where the time goes"),
    ("Overview", "Batch size"),
    ("Overview", "Turned away"),
    ("Overview", "Degraded answers by reason"),
    ("Overview", "NFE"),
    ("Decoding", "Survivors"),
    ("Decoding", "Denoiser calls"),
    ("Decoding", "Invalid SIDs"),
    ("Bundles and experiments", "Hit rate by variant"),
    ("Bundles and experiments", "Answers by bundle and variant"),
    ("Bundles and experiments", "Shadow overlap"),
    ("Redis", "Breaker"),
    ("Redis", "Errors"),
    ("Process", "Event loop lag"),
)
COLUMNS = 4
COLORS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#a463f2", "#97bbf5", "#9c6b4e")
INK, FAINT, SHADE = "#2b2f36", "#d9dce1", "#e9ebee"
NUM_STEPS = 240


@dataclass(frozen=True)
class Mark:
    """An event to mark, from `start` to `end`, in seconds since the epoch."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Span:
    """The time to draw, in seconds since the epoch, and the window of `rate`."""

    start: float
    end: float
    window: str

    @property
    def step(self) -> float:
        return max(1.0, (self.end - self.start) / NUM_STEPS)

    @property
    def times(self) -> np.ndarray:
        return self.start + self.step * np.arange(int((self.end - self.start) / self.step) + 1)


def draw(source: Prometheus, span: Span, out: Path, title: str, marks: Sequence[Mark] = ()) -> None:
    """Draw the panels of SHOWN into one picture."""
    panels = {
        (board.removeprefix("Unmask / "), panel): list(queries)
        for (board, panel), queries in groupby(
            dashboard_queries(), key=lambda query: (query.board, query.panel)
        )
    }
    plt.rcParams.update(
        {
            "font.size": 7.5,
            "axes.edgecolor": FAINT,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "text.color": INK,
        }
    )
    figure, grid = plt.subplots(
        -(-len(SHOWN) // COLUMNS), COLUMNS, figsize=(16, 11), layout="constrained"
    )
    figure.get_layout_engine().set(w_pad=0.09, h_pad=0.08)
    figure.suptitle(title, x=0.008, ha="left", fontsize=10)
    for place, (axes, shown) in enumerate(zip(grid.flat, SHOWN, strict=True)):
        board, panel = shown
        name = f"{board.partition(' and ')[0]} / {panel}"
        axes.set_title(name, loc="left", fontsize=8.5, fontweight="bold")
        _panel(axes, panels[shown], source, span)
        for mark in marks:
            end = max(mark.end, mark.start + span.step)
            axes.axvspan(mark.start, end, color=SHADE, lw=0, zorder=0)
            if place < COLUMNS:
                at = axes.get_xaxis_transform()
                axes.text(mark.start, 0.3, mark.text, transform=at, rotation=90, ha="right")
    figure.savefig(out, dpi=100, metadata={"Software": None}, pil_kwargs={"optimize": True})
    plt.close(figure)


def _panel(axes: Axes, queries: Sequence[Query], source: Prometheus, span: Span) -> None:
    first = queries[0]
    names, rows = _series(queries, source, span)
    if first.kind == "heatmap":
        _heatmap(axes, names, rows, span)
    else:
        if first.is_stacked:
            axes.stackplot(span.times, np.nan_to_num(rows), labels=names, colors=COLORS, alpha=0.85)
        else:
            for name, row, color in zip(names, rows, COLORS, strict=False):
                axes.plot(span.times, row, label=name, color=color, lw=1.3)
        axes.set_ylim(bottom=0)
        if not np.nanmax(rows, initial=0) > 0:
            axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _text(value, first.unit)))
        axes.grid(axis="y", color=FAINT, lw=0.5)
        axes.legend(
            loc="upper left", ncols=2, frameon=False, fontsize=6.5, handlelength=1, borderpad=0
        )
        ticks, high = axes.get_yticks(), axes.get_ylim()[1]
        axes.set_ylim(0, 1.35 * high)  # room for the legend
        axes.set_yticks([tick for tick in ticks if 0 <= tick <= high])
    axes.set_xlim(span.start, span.end)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: _clock(at - span.start)))
    axes.set_xticks(np.linspace(span.start, span.end, 5))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=2)


def _series(
    queries: Sequence[Query], source: Prometheus, span: Span
) -> tuple[list[str], np.ndarray]:
    """Names of the series, and their values: (series, times) float64, NaN for a missing value."""
    names, rows = [], []
    for query in queries:
        found = source.query_range(query.filled(span.window), span.start, span.end, span.step)
        for one in found:
            row = np.full(len(span.times), np.nan)
            for at, value in one["values"]:
                row[round((at - span.start) / span.step)] = float(value)
            if np.nanmax(row, initial=0) > 0 or len(found) == 1:
                names.append(query.name_of(one["metric"]).removeprefix("demo@"))
                rows.append(row)
    if not rows:
        return ["nothing"], np.zeros((1, len(span.times)))
    return names, np.array(rows)


def _heatmap(axes: Axes, bounds: Sequence[str], rows: np.ndarray, span: Span) -> None:
    """Draw a heatmap. rows: (bounds, times) cumulative counts by upper bound."""
    order = np.argsort([float(bound.replace("+Inf", "inf")) for bound in bounds])
    counts = np.diff(np.nan_to_num(rows[order]), axis=0, prepend=0)
    counts[counts <= 0] = np.nan
    edges = np.arange(len(order) + 1)
    times = np.append(span.times, span.times[-1] + span.step)
    axes.pcolormesh(times, edges, np.log10(counts), cmap="Oranges", rasterized=True)
    labels = [_text(float(bounds[place]), "s") for place in order[:-1]]  # the last is +Inf
    axes.set_yticks(edges[1:-1:2], labels[::2])


def _text(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "s":
        return f"{1000 * value:.3g} ms" if value < 1 else f"{value:g} s"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090")
    parser.add_argument("--minutes", type=float, default=60.0, help="up to now")
    parser.add_argument("--window", default="1m", help="what rates look back over")
    parser.add_argument("--out", type=Path, default=Path("dashboards.png"))
    arguments = parser.parse_args()
    end = time.time()
    span = Span(end - 60 * arguments.minutes, end, arguments.window)
    title = "The dashboards' queries, drawn by matplotlib; not Grafana"
    draw(Prometheus(arguments.prometheus), span, arguments.out, title)
    print(f"drawn to {arguments.out}")


if __name__ == "__main__":
    main()
