"""Families as a picture: recall@10 by denoiser calls, and by milliseconds of a request.

Bars are two standard errors of the recall itself, not of differences: these are in the tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from training.comparison.families.tables import facts_of, groups_of, mean_at
from training.comparison.plot import save
from training.comparison.table import Row
from training.evaluation import standard_error


def plot_families(rows: Sequence[Row], files: Sequence[Path]) -> None:
    """Write the picture of the rows of the sweep to every file, in the format its suffix says.

    rows: those of a family's own order; of all seeds, which are averaged
    """
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    by_calls, by_time = figure.subplots(1, 2, sharey=True)
    own = [row for row in rows if not facts_of(row).order]
    for of_system in groups_of(own, lambda row: row.system):
        points = groups_of(of_system, lambda row: facts_of(row).calls)
        recalls = [mean_at(point, 10) for point in points]
        errors = [2 * np.mean([standard_error(row.ranks.item) for row in one]) for one in points]
        calls = [float(np.mean([row.ranks.nfe or 0 for row in point])) for point in points]
        style = {"marker": "o", "capsize": 2, "label": of_system[0].system}
        by_calls.errorbar(calls, recalls, yerr=errors, **style)
        times = [
            milliseconds[0] for one in points if (milliseconds := facts_of(one[0]).milliseconds)
        ]
        if len(times) == len(points):
            by_time.errorbar(times, recalls, yerr=errors, **style)
    by_calls.set_xlabel("denoiser calls of a request (NFE)")
    by_time.set_xlabel("milliseconds of a request, alone on one thread")
    by_calls.set_ylabel("recall@10, ± 2 standard errors")
    for axes in (by_calls, by_time):
        axes.grid(alpha=0.3)
        axes.set_xlim(left=0)
    by_calls.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False)
    save(figure, files)
