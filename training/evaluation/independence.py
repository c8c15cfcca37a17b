"""How wrong it is to fill several positions in one call: is a code independent of the others?

A call that fills several positions takes their codes for independent, given the history and the
codes known so far. Three things tell how wrong that is: how much better a position is known from
the true other codes, the mutual information of pairs of positions under the network, and recall
against `m_par`. All of the network alone, without the prior. Knows denoisers and windows.

An autoregressive network answers for the next code only, so of it there is the first figure, from
left to right.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from service.bundles import Bundle, DecodingDefaults, Manifest
from service.decoding import Catalogue, Decoder, Denoiser, Histories, Ranking
from service.decoding.network import masked_positions
from training.config import EvaluationConfig
from training.data import Dataset, Windows
from training.evaluation.evaluation import draw_windows, ranks_at, recall_at, schedule_of
from training.evaluation.figures import markdown_table, paired_difference
from training.evaluation.report import check_data

Known = Literal["nothing", "earlier", "others"]  # of the target's codes, at one position
LARGEST_CALL = 4096  # partial SIDs of one denoiser call
K, BEAM_WIDTH = 10, 50


@dataclass(frozen=True, eq=False)
class CodeAccuracy:
    """How well the code of each position is known.

    right: (num_subspaces,) share of users whose target's code is the most probable one
    bits:  (num_subspaces,) mean of -log2 of its probability
    """

    right: NDArray[np.float64]
    bits: NDArray[np.float64]

    def as_json(self) -> dict[str, list[float]]:
        return {"right": np.round(self.right, 4).tolist(), "bits": np.round(self.bits, 3).tolist()}


def code_accuracy(
    denoiser: Denoiser, catalogue: Catalogue, windows: Windows, known: Known, *, batch: int = 32
) -> CodeAccuracy:
    """Of each position, given the history and the target's codes at other positions.

    known: at no other position, at earlier ones, or at all others
    """
    length, mask = catalogue.num_subspaces, catalogue.num_codes
    place = np.arange(length)
    hidden = {
        "nothing": np.ones((length, length), bool),
        "earlier": place >= place[:, None],
        "others": place == place[:, None],
    }[known]
    right, bits = np.zeros(length), np.zeros(length)
    for indices, memory in _encoded(denoiser, catalogue, windows, batch):
        targets = catalogue.codes[windows.targets[indices]]
        sids = np.where(hidden, mask, targets[:, None, :]).astype(np.uint16)
        positions = masked_positions(sids, mask)
        log_probs = denoiser.denoise(memory, sids, positions)
        asked = (positions == place[:, None]).argmax(axis=2)  # of beam l, position l
        own = np.take_along_axis(log_probs, asked[:, :, None, None], axis=2)[:, :, 0]
        right += (own.argmax(axis=2) == targets).sum(axis=0)
        bits -= np.take_along_axis(own, targets[:, :, None].astype(np.int64), axis=2).sum(
            axis=(0, 2)
        )
    users = max(1, len(windows))
    return CodeAccuracy(right / users, bits / users / np.log(2))


def mutual_information(
    denoiser: Denoiser,
    catalogue: Catalogue,
    windows: Windows,
    *,
    draws: int | None = 16,
    batch: int = 32,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Bits that a code tells of another one under the network, given the history; mean over users.

    Entry (i, j): the code of position i is drawn from what the network gives there when nothing is
    known; the entry is how far the distribution at j then moves, as a Kullback-Leibler divergence.
    Of a network whose answers fit together, that is the mutual information, and the table is
    symmetric. The diagonal is 0.

    draws: codes drawn for each user and position; None = all of them, weighted
    Returns (num_subspaces, num_subspaces) float64.
    """
    length, num_codes = catalogue.num_subspaces, catalogue.num_codes
    random = np.random.default_rng(seed)
    number = num_codes if draws is None else draws
    others = np.array([[j for j in range(length) if j != i] for i in range(length)], np.int64)
    total = np.zeros((length, length))
    if length == 1:
        return total
    batch = max(1, min(batch, LARGEST_CALL // (length * number)))
    for indices, memory in _encoded(denoiser, catalogue, windows, batch):
        jobs = len(indices)
        nothing = np.full((jobs, 1, length), num_codes, np.uint16)
        everywhere = masked_positions(nothing, num_codes)
        before = denoiser.denoise(memory, nothing, everywhere)[:, 0].astype(np.float64)
        shares = np.exp(before)
        if draws is None:
            codes = np.broadcast_to(np.arange(num_codes), (jobs, length, num_codes))
            weights = shares
        else:
            noise = random.gumbel(size=(draws, *before.shape))
            codes = np.moveaxis((before + noise).argmax(axis=-1), 0, -1)
            weights = np.full(codes.shape, 1 / draws)
        sids = np.full((jobs, length, number, length), num_codes, np.uint16)
        for i in range(length):
            sids[:, i, :, i] = codes[:, i]
        positions = np.broadcast_to(others[:, None], (jobs, length, number, length - 1))
        flat = (jobs, length * number)
        after = denoiser.denoise(
            memory, sids.reshape(*flat, length), positions.reshape(*flat, length - 1).copy()
        )
        after = after.reshape(jobs, length, number, length - 1, num_codes).astype(np.float64)
        with np.errstate(invalid="ignore"):  # of codes that are impossible
            moved = np.exp(after) * (after - before[:, others][:, :, None])
        divergence = np.where(np.isfinite(after), moved, 0.0).sum(axis=-1)
        of_others = (divergence * weights[..., None]).sum(axis=(0, 2))  # (length, length - 1)
        total[np.arange(length)[:, None], others] += of_others
    return total / max(1, len(windows)) / np.log(2)


def recall_by_m_par(
    windows: Windows, decoder: Decoder, rankings: tuple[Ranking, ...], *, exclude_seen: bool
) -> list[dict[str, Any]]:
    """recall@10 of schedules (0, m_par), and how it differs from one position a call, paired."""
    length = decoder.trie.catalogue.num_subspaces
    widths = [m_par for m_par in range(1, length + 1) if m_par == length or length // m_par > 1]
    lines = []
    for ranking in rankings:
        first = None
        for m_par in widths:
            setting = DecodingDefaults(
                r_warm=0, m_par=m_par, beam_width=BEAM_WIDTH, ranking=ranking
            )
            found = ranks_at(windows, decoder, setting, k=K, exclude_seen=exclude_seen)
            first = found.item if first is None else first
            difference = paired_difference(found.item, first, K)
            lines.append(
                {
                    "ranking": ranking,
                    "m_par": m_par,
                    "calls": schedule_of(setting, length).nfe,
                    "nfe": round(found.nfe, 3),
                    "recall@10": round(recall_at(found.item, K), 5),
                    "difference": round(difference.mean, 5),
                    "error": round(difference.standard_error, 5),
                }
            )
    return lines


def report_independence(
    bundle: Bundle,
    dataset: Dataset,
    config: EvaluationConfig,
    out: Path,
    console: Console,
    *,
    users: int,
    draws: int,
) -> dict[str, Any]:
    """Measure test users of the bundle's own data; write independence.json and independence.md.

    users: how many, a fixed random draw
    """
    check_data(bundle, dataset)
    report = measure_independence(
        bundle.decoder,
        bundle.manifest,
        draw_windows(dataset.split.test, users, seed=0),
        draws=draws,
        exclude_seen=config.exclude_seen,
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "independence.json").write_text(json.dumps(report, indent=2) + "\n")
    (out / "independence.md").write_text(independence_markdown(report))
    console.print(independence_markdown(report), markup=False, soft_wrap=True)
    return report


def measure_independence(
    decoder: Decoder, manifest: Manifest, windows: Windows, *, draws: int, exclude_seen: bool
) -> dict[str, Any]:
    """All figures of a bundle's network on some users, as JSON."""
    decoder = replace(decoder, prior=None)
    denoiser, catalogue = decoder.denoiser, decoder.trie.catalogue
    how: tuple[Known, ...] = ("earlier",) if manifest.autoregressive else ("nothing", "others")
    report: dict[str, Any] = {
        "bundle": manifest.ref,
        "users": len(windows),
        "exclude_seen": exclude_seen,
        "draws": draws,
        "accuracy": {
            known: code_accuracy(denoiser, catalogue, windows, known).as_json() for known in how
        },
        "mutual_information": None,
        "m_par": [],
    }
    if not manifest.autoregressive:
        bits = mutual_information(denoiser, catalogue, windows, draws=draws)
        rankings: tuple[Ranking, ...] = ("rows", "path")
        report["mutual_information"] = np.round(bits, 4).tolist()
        report["m_par"] = recall_by_m_par(windows, decoder, rankings, exclude_seen=exclude_seen)
    return report


def independence_markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    accuracy, bits = report["accuracy"], report["mutual_information"]
    names = {
        "nothing": "the history alone",
        "earlier": "the history and all earlier codes",
        "others": "the history and all other codes",
    }
    positions = [str(p) for p in range(len(next(iter(accuracy.values()))["right"]))]
    rows = [
        [f"{names[known]}: {what}", *(f"{value:.{digits}f}" for value in found[key])]
        for known, found in accuracy.items()
        for key, what, digits in (("right", "share right", 4), ("bits", "bits of surprise", 2))
    ]
    text = (
        f"# {report['bundle']}: are codes independent?\n\n"
        f"{report['users']:,} test users, the network alone, without the prior.\n\n"
        f"## Codes of the next item, by position\n\n"
        f"{markdown_table(['known', *positions], rows)}\n"
    )
    if bits is None:
        return (
            f"{text}\nThe network is autoregressive: it fills one position a call and takes no two "
            "codes for independent.\n"
        )
    lines = [
        [f"{i} known", *("" if i == j else f"{bit:.3f}" for j, bit in enumerate(line))]
        for i, line in enumerate(bits)
    ]
    by_m_par = [
        [
            line["ranking"],
            str(line["m_par"]),
            str(line["calls"]),
            f"{line['nfe']:.3g}",
            f"{line['recall@10']:.4f}",
            f"{line['difference']:+.4f} ± {line['error']:.4f}",
        ]
        for line in report["m_par"]
    ]
    header = ["ranking", "m_par", "calls at most", "NFE", "recall@10", "against m_par 1"]
    return (
        f"{text}\n## Mutual information of two codes, given the history, in bits\n\n"
        f"What the code of one position tells of another one, under the network; "
        f"{report['draws']} codes drawn for each user and position. 0 = independent.\n\n"
        f"{markdown_table(['', *positions], lines)}\n"
        f"\n## Recall by positions filled a call\n\n"
        f"Schedules (0, m_par), {BEAM_WIDTH} beams, "
        f"{'seen items excluded' if report['exclude_seen'] else 'nothing excluded'}; ± is one "
        "standard error, paired by user.\n\n"
        f"{markdown_table(header, by_m_par)}\n"
    )


def _encoded(
    denoiser: Denoiser, catalogue: Catalogue, windows: Windows, batch: int
) -> Iterator[tuple[NDArray[np.intp], Any]]:
    """Indices of some windows, and the memory of their histories."""
    for start in range(0, len(windows), batch):
        indices = np.arange(start, min(start + batch, len(windows)))
        histories = [windows.history_of(index) for index in indices]
        yield indices, denoiser.encode(Histories.of(histories, catalogue, denoiser.history_length))
