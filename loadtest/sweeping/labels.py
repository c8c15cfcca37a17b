"""Names beside the points of a picture, placed so that no name lies on another.

Each name tries places around its point, near places first. A place on another name, on the legend
or outside the axes is never taken. A place on a marker, an error bar or a line is taken only if all
other places are worse. A name that is not next to its point gets a thin line to it. All boxes are
in pixels of the figure. Knows nothing of sweeps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

FONT_SIZE = 7  # points
DISTANCES = (9, 14, 20, 28, 38, 50, 64)  # points, from the point to the edge of its name's circle
ANGLES = 24
NO_LINE = 14  # points: a name that is so near needs no line if no other marker is as near
GAP = 1.5  # pixels that stay free around a name
# What a place costs besides its distance, in points.
ON_MARKER, ON_BAR, ON_LINE, LINE, LINE_ON_MARKER = 60.0, 15.0, 50.0, 8.0, 15.0


@dataclass(frozen=True)
class Label:
    """A name and its point, in the units of the axes."""

    text: str
    x: float
    y: float
    colour: str


@dataclass
class _Drawn:
    """What is in the axes already: names and legend, markers, error bars, lines to names."""

    blocked: list[Bbox]
    markers: list[Bbox]
    bars: list[Bbox]
    lines: list[Path] = field(default_factory=list)


def place_labels(axes: Axes, labels: Sequence[Label]) -> list[Annotation]:
    """Write the names into axes whose points, limits and legend are complete.

    A name without a free place is left out: no name is better than two that nobody can read.
    """
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    inside, pixels = axes.get_window_extent(), figure.dpi / 72  # of a point
    drawn = _drawn_in(axes, pixels)
    placed = []
    for label in labels:
        draft = _write(axes, label, (0, 0), with_line=False)
        size = np.array(Text.get_window_extent(draft).size)
        draft.remove()
        point = axes.transData.transform((label.x, label.y))
        best: tuple[float, Bbox, Path | None, tuple[float, float]] | None = None
        for distance in DISTANCES:
            for number in range(ANGLES):
                angle = 2 * math.pi * number / ANGLES
                # Wide names stand further away at the sides than above and below.
                dx = math.cos(angle) * (distance + size[0] / pixels / 2 - size[1] / pixels / 2)
                dy = math.sin(angle) * distance
                middle = point + pixels * np.array((dx, dy))
                box = Bbox([middle - size / 2, middle + size / 2]).padded(GAP)
                is_clear = distance <= NO_LINE and _is_nearest(point, box, drawn)
                line = None if is_clear else Path([point, middle])
                if _fits(box, inside, drawn):
                    cost = distance + _cost(box, line, drawn)
                    if best is None or cost < best[0]:
                        best = cost, box, line, (dx, dy)
        if best is None:
            continue
        _, box, line, offset = best
        placed.append(_write(axes, label, offset, with_line=line is not None))
        drawn.blocked.append(box)
        drawn.lines += [] if line is None else [line]
    return placed


def boxes_of(names: Sequence[Annotation]) -> list[Bbox]:
    """The boxes of written names, without their lines."""
    [figure] = {name.get_figure(root=True) for name in names}
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    return [Text.get_window_extent(name) for name in names]


def _write(axes: Axes, label: Label, offset: tuple[float, float], *, with_line: bool) -> Annotation:
    line = {"arrowstyle": "-", "linewidth": 0.5, "color": label.colour, "shrinkA": 0, "shrinkB": 3}
    name = axes.annotate(
        label.text,
        (label.x, label.y),
        xytext=offset,
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=FONT_SIZE,
        color=label.colour,
        arrowprops=line if with_line else None,
    )
    name.set_in_layout(False)  # the axes keep their size
    return name


def _drawn_in(axes: Axes, pixels: float) -> _Drawn:
    legend = axes.get_legend()
    markers = []
    for line in axes.lines:
        if line.get_marker() in ("None", None, ""):
            continue
        half = pixels * line.get_markersize() / 2
        for place in axes.transData.transform(np.asarray(line.get_xydata())):
            markers.append(Bbox([place - half, place + half]))
    bars = [
        path.get_extents(axes.transData)
        for collection in axes.collections
        for path in collection.get_paths()
    ]
    return _Drawn([legend.get_window_extent()] if legend else [], markers, bars)


def _is_nearest(point: NDArray[np.float64], box: Bbox, drawn: _Drawn) -> bool:
    """Whether no other marker is about as near to the box as the point of the name."""

    def distance(x: float, y: float) -> float:
        return math.hypot(max(box.x0 - x, 0, x - box.x1), max(box.y0 - y, 0, y - box.y1))

    own = distance(*point)
    middles = [((one.x0 + one.x1) / 2, (one.y0 + one.y1) / 2) for one in drawn.markers]
    others = [place for place in middles if math.dist(place, point) > 1]
    return all(distance(*place) > 1.5 * own for place in others)


def _fits(box: Bbox, inside: Bbox, drawn: _Drawn) -> bool:
    within = inside.x0 < box.x0 and box.x1 < inside.x1 and inside.y0 < box.y0 and box.y1 < inside.y1
    return within and not box.count_overlaps(drawn.blocked)


def _cost(box: Bbox, line: Path | None, drawn: _Drawn) -> float:
    cost = ON_MARKER * box.count_overlaps(drawn.markers) + ON_BAR * box.count_overlaps(drawn.bars)
    cost += ON_LINE * sum(other.intersects_bbox(box, filled=False) for other in drawn.lines)
    if line is not None:
        cost += ON_LINE * sum(line.intersects_bbox(other, filled=False) for other in drawn.blocked)
        # One marker is the point's own.
        crossed = sum(line.intersects_bbox(other, filled=False) for other in drawn.markers)
        cost += LINE_ON_MARKER * max(0, crossed - 1)
        cost += LINE + ON_LINE * sum(
            line.intersects_path(other, filled=False) for other in drawn.lines
        )
    return cost
