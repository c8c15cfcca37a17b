"""Writes a sweep as a table, a CSV and a picture.

Does not know how anything was measured. Rates are requests a second, latencies are milliseconds.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadtest.sweeping.plot import plot_sweep
from loadtest.sweeping.results import Measured, Setting, frontier, in_order, papers_of


def write_report(folder: Path, measured: Sequence[Measured], setting: Setting) -> dict[str, Any]:
    """Write sweep.md, sweep.csv, sweep.svg and sweep.png; returns the figures of all cases."""
    papers = papers_of(measured)
    ordered = in_order(measured)
    best = [one.case.name for one in frontier(measured)]
    figures = [_figures(one, papers) | {"best": one.case.name in best} for one in ordered]
    with (folder / "sweep.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(figures[0]) if figures else [])
        writer.writeheader()
        writer.writerows(figures)
    (folder / "sweep.md").write_text(_document(ordered, figures, papers, setting), encoding="utf-8")
    plot_sweep(ordered, setting, [folder / "sweep.svg", folder / "sweep.png"])
    return {"setting": asdict(setting), "cases": figures}


def _figures(one: Measured, papers: Measured | None) -> dict[str, Any]:
    difference, error = one.against(papers) if papers else (math.nan, math.nan)
    return {
        "schedule": one.case.schedule,
        "ranking": one.case.ranking,
        "beam_width": one.case.beam_width,
        "nfe": round(one.nfe, 2),
        "recall": one.recall,
        "recall_difference": None if math.isnan(difference) else difference,
        "recall_difference_se": None if math.isnan(error) else error,
        "requests_per_s": round(one.rate, 1),
        "lowest": round(one.rates[0], 1),
        "highest": round(one.rates[-1], 1),
        "against_paper": round(one.rate / papers.rate, 2) if papers and papers.rate else None,
        "p50_ms": one.typical("p50_ms"),
        "p95_ms": one.typical("p95_ms"),
        "p99_ms": one.typical("p99_ms"),
        "answers": min(line["answers"] for line in one.rounds),
        "service_cpu": one.typical("service_cpu"),
        "generator_cpu": one.typical("generator_cpu"),
        "generator_busy": one.generator_busy,
        "rounds": len(one.rounds),
    }


def _document(
    ordered: Sequence[Measured],
    figures: Sequence[dict[str, Any]],
    papers: Measured | None,
    setting: Setting,
) -> str:
    lines = [
        f"# Requests a second against recall: {setting.bundle}",
        "",
        f"`python -m loadtest.sweep` on {setting.machine}: {setting.service_cores} for the service "
        f"and its store, the others for the load generator. {setting.users} held-out users, "
        f"histories in the {'store' if setting.stored_histories else 'requests'}, "
        f"{'seen items excluded' if setting.exclude_seen else 'nothing excluded'}, "
        f"encoder cache off, k = {setting.k}.",
        "",
        "*Requests a second* is the highest rate of an open loop at which p99 is within "
        f"{setting.slo_ms} ms and at most 0.1 % of the requests get no answer. It is the median "
        f"and range of {max((len(one.rounds) for one in ordered), default=0)} rounds, in which all "
        "cases take turns. Latencies and busy cores are those at that rate; the service's cores "
        "include its store. Recall differences are paired by user, ± one standard error. The "
        "recall of `auto` is that at its rate, and its difference is over the users who were asked "
        "for then. **Bold**: no other case is better in both.",
        "",
        "| schedule | ranking | beams | denoiser calls | recall@k | against the paper's | "
        "requests a second | x the paper's | p50, p99 ms | service, generator cores |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in figures:
        rate = f"{row['requests_per_s']:.0f}"
        rate = f"**{rate}**" if row["best"] else rate
        times = "-" if row["against_paper"] is None else f"{row['against_paper']:.1f}"
        latency = "-" if row["p50_ms"] is None else f"{row['p50_ms']:.0f}, {row['p99_ms']:.0f}"
        cores = "-"
        if row["service_cpu"] is not None:
            cores = f"{row['service_cpu']:.2f}, {row['generator_cpu']:.2f}"
        busy = " (generator busy)" if row["generator_busy"] else ""
        lines.append(
            f"| {row['schedule']} | {row['ranking']} | {row['beam_width'] or '-'} | "
            f"{row['nfe']:.1f} | {row['recall']:.4f} | "
            f"{_difference(row['recall_difference'], row['recall_difference_se'])} | "
            f"{rate} ({row['lowest']:.0f} to {row['highest']:.0f}) | {times} | {latency} | "
            f"{cores}{busy} |"
        )
    lines += ["", *_further_calls(ordered)]
    if papers:
        lines += [
            "",
            "![requests a second against recall](sweep.svg)",
            "",
            "Left: every point has its schedule beside it. Right: only the cases with the most "
            "beams have; the figures are relative to the schedule (4, 2), ours by path with 50 "
            "beams and MDGR's as published (Table 3: industry data, hardware not named). Compare "
            "the trends, not the absolute values.",
        ]
    return "\n".join(lines) + "\n"


def _further_calls(ordered: Sequence[Measured]) -> list[str]:
    """What more denoiser calls gain and cost, for each ranking and beam width."""
    lines = [
        "What more denoiser calls gain and cost, from one row to the next with the same ranking "
        "and beam width:",
        "",
        "| ranking | beams | from | to | calls more | recall@k | requests a second |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, int | None], list[Measured]] = {}
    for one in ordered:
        if not one.case.is_auto:
            groups.setdefault((one.case.ranking, one.case.beam_width), []).append(one)
    for (ranking, beam_width), group in groups.items():
        for fewer, more in itertools.pairwise(group):
            change = more.rate / fewer.rate - 1 if fewer.rate else float("nan")
            lines.append(
                f"| {ranking} | {beam_width} | {fewer.case.schedule} | {more.case.schedule} | "
                f"{more.nfe - fewer.nfe:+.1f} | {_difference(*more.against(fewer))} | "
                f"{change:+.0%} |"
            )
    return lines


def _difference(difference: float | None, error: float | None) -> str:
    if difference is None or error is None:
        return "-"
    return f"{difference:+.4f} ± {error:.4f}"
