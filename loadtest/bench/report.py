"""Makes figures and a table from the seconds of each round.

Times are milliseconds for each job: median and quartiles over rounds. A ratio is taken within each
round, and its median is given. Does not know how the times were measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAPERS_SCHEDULE = (4, 2)  # MDGR's r_warm and m_par
Floats = NDArray[np.float64]


@dataclass(eq=False)
class Timed:
    """A case and its times.

    names:       search, ranking, r_warm, m_par, nfe, beam_width, batch and filter_share (the share
                 of the catalogue that a filter leaves; None without a filter)
    seconds:     (rounds, 3) float64 for each job: encode, denoise, search
    gemm_shares: (rounds,) FLOPs a second of denoiser calls divided by those of a matrix product;
                 None if not known
    """

    names: dict[str, Any]
    seconds: Floats
    gemm_shares: Floats | None = None

    @property
    def total_s(self) -> Floats:
        total: Floats = self.seconds.sum(axis=1)
        return total

    @property
    def search_s(self) -> Floats:
        return self.seconds[:, 2]

    def has(self, **names: Any) -> bool:
        return all(self.names[name] == value for name, value in names.items())


def case_figures(timed: Sequence[Timed]) -> list[dict[str, Any]]:
    """One flat entry for each case. A ratio is None if one of its two times was not measured.

    search_to_network:           search / (encoder + denoiser)
    search_against_unfiltered:   search / search without the filter, all else equal
    speed_against_paper:         time of the paper's schedule / time of the case, all else equal
    speed_against_left_to_right: time of the prefix-trie search with the same beam width / time of
                                 the case
    search_speed_against_left_to_right: the same for the search alone
    gemm_share:                  speed of denoiser calls / speed of one thread's matrix products
    """
    return [_figures_of(case, timed) for case in timed]


def _figures_of(case: Timed, timed: Sequence[Timed]) -> dict[str, Any]:
    names = case.names
    alike = {name: names[name] for name in ("ranking", "beam_width", "batch", "filter_share")}
    r_warm, m_par = PAPERS_SCHEDULE
    paper = _find(timed, search="any-order", r_warm=r_warm, m_par=m_par, **alike)
    same_size = {name: names[name] for name in ("beam_width", "batch", "filter_share")}
    unfiltered = None
    if names["filter_share"] is not None:
        unfiltered = _find(timed, **(names | {"filter_share": None}))
    rival = _find(timed, search="left-to-right", **same_size)
    stages = dict(zip(("encode", "denoise", "search"), case.seconds.T, strict=True))
    stages["total"] = case.total_s
    quartiles = {name: np.percentile(1000 * s, [25, 50, 75]) for name, s in stages.items()}
    return {
        **names,
        **{
            f"{name}_ms": dict(zip(("q1", "median", "q3"), map(_rounded, found), strict=True))
            for name, found in quartiles.items()
        },
        "search_to_network": _ratio(case.search_s, case.total_s - case.search_s),
        "search_against_unfiltered": (
            _ratio(case.search_s, unfiltered.search_s) if unfiltered else None
        ),
        "speed_against_paper": _ratio(paper.total_s, case.total_s) if paper else None,
        "speed_against_left_to_right": _ratio(rival.total_s, case.total_s) if rival else None,
        "search_speed_against_left_to_right": (
            _ratio(rival.search_s, case.search_s) if rival else None
        ),
        "gemm_share": None if case.gemm_shares is None else _rounded(np.median(case.gemm_shares)),
    }


def _find(timed: Sequence[Timed], **names: Any) -> Timed | None:
    return next((case for case in timed if case.has(**names)), None)


def _ratio(numerators: Floats, denominators: Floats) -> float:
    """Median over rounds of the ratio."""
    return _rounded(np.median(numerators / denominators))


def _rounded(value: float | np.floating) -> float:
    return float(f"{value:.5g}")


def table(catalogue: dict[str, Any]) -> str:
    """The results of one catalogue as an aligned table."""
    heads = ["search", "ranking", "schedule", "nfe", "beam", "batch", "filter", "encode"]
    heads += ["denoise", "search", "total ms", "quartiles", "search/net", "/no filter", "x paper"]
    heads += ["x l-to-r", "GEMM"]
    rows = [heads]
    for case in catalogue["cases"]:
        total = case["total_ms"]
        rows.append(
            [
                case["search"],
                case["ranking"],
                f"({case['r_warm']},{case['m_par']})",
                str(case["nfe"]),
                str(case["beam_width"]),
                str(case["batch"]),
                "" if case["filter_share"] is None else f"{case['filter_share']:.3g}",
                *(f"{case[stage + '_ms']['median']:.3f}" for stage in _STAGES),
                f"{total['median']:.3f}",
                f"{total['q1']:.3f}-{total['q3']:.3f}",
                _short(case["search_to_network"]),
                _short(case["search_against_unfiltered"]),
                _short(case["speed_against_paper"]),
                _short(case["speed_against_left_to_right"]),
                "" if case["gemm_share"] is None else f"{case['gemm_share']:.1%}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return "\n".join([_headline(catalogue), *lines, ""])


_STAGES = ("encode", "denoise", "search")


def _short(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3g}"


def _headline(catalogue: dict[str, Any]) -> str:
    parts = [f"{catalogue['num_items']:,} items", f"network {catalogue['network']}"]
    if "precision" in catalogue:
        parts.append(catalogue["precision"])
    parts.append(f"{catalogue['users']} users")
    parts.append(f"index {catalogue['index_bytes_per_item']:.1f} B/item")
    if "build_s" in catalogue:
        parts.append(f"built in {catalogue['build_s']:.2f} s")
    if "prefix_trie_build_s" in catalogue:
        parts.append(
            f"prefix trie {catalogue['prefix_trie_bytes_per_item']:.1f} B/item, "
            f"built in {catalogue['prefix_trie_build_s']:.2f} s"
        )
    if catalogue["rss_bytes"] is not None:
        parts.append(f"RSS {catalogue['rss_bytes'] / 2**20:,.0f} MiB")
    if "gemm_flops_per_s" in catalogue:
        parts.append(f"GEMM {catalogue['gemm_flops_per_s'] / 1e9:.1f} GFLOP/s")
    return ", ".join(parts)
