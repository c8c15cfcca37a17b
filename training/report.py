"""The test report of a bundle: the table over schedules, baselines beside it, ranks per user.

evaluation/report.json   every figure        evaluation/report.md   the same as tables
evaluation/ranks.jsonl   {"user_id", "rank"} of each test user at the bundle's default schedule,
                         rank within the largest cutoff or null
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from joblib import cpu_count
from rich.console import Console
from rich.progress import Progress

from service.bundle import Bundle
from service.decoding import Schedule
from training.config import EvaluationConfig
from training.errors import DataError
from training.evaluation import (
    CUTOFFS,
    NOT_FOUND,
    ScheduleResult,
    draw_windows,
    evaluate_schedules,
    invalid_sid_shares,
    metrics,
    popularity_ranks,
    ranks,
)
from training.interactions import Dataset


def evaluate_bundle(
    bundle: Bundle, dataset: Dataset, config: EvaluationConfig, folder: Path, console: Console
) -> dict[str, Any]:
    """Evaluate on test users through the production decoder; write the report, return its headline.

    Raises DataError when the bundle was not made from this data.
    """
    catalogue = bundle.catalogue
    if catalogue.item_ids != dataset.split.train.item_ids:
        raise DataError(
            f"bundle {bundle.manifest.ref} has another catalogue than this data; "
            "use the data, core and cold_items it was trained with"
        )
    windows = draw_windows(dataset.split.test, config.users, seed=0)
    default = bundle.manifest.decoding
    chosen = (default.r_warm, default.m_par)
    params = schedules_of(config, catalogue.num_subspaces)
    params = params if chosen in params else [*params, chosen]
    workers = cpu_count()
    without_prior = replace(bundle.decoder, prior=None)
    with Progress(console=console) as progress:
        task = progress.add_task("test users", total=len(windows) * (len(params) + 3))
        results, by_schedule = evaluate_schedules(
            windows,
            bundle.decoder,
            params,
            beam_width=config.beam_width,
            batch=config.batch,
            workers=workers,
            advance=lambda users: progress.advance(task, users),
        )
        schedule = Schedule.from_params(
            num_subspaces=catalogue.num_subspaces, r_warm=chosen[0], m_par=chosen[1]
        )
        variants = {
            name: ranks(
                windows,
                decoder,
                schedule,
                k=max(CUTOFFS),
                beam_width=config.beam_width,
                batch=config.batch,
                workers=workers,
                exclude_seen=exclude_seen,
                advance=lambda users: progress.advance(task, users),
            )
            for name, decoder, exclude_seen in (
                ("default_seen_excluded", bundle.decoder, True),
                ("default_prior_off", without_prior, False),
                ("default_prior_off_seen_excluded", without_prior, True),
            )
        }
    constrained, unconstrained = invalid_sid_shares(
        draw_windows(windows, config.invalid_sid_users, seed=0),
        bundle.decoder,
        Schedule((1,) * catalogue.num_subspaces),
        beam_width=config.beam_width,
        batch=config.batch,
    )
    default_index = params.index(chosen)
    report = {
        "bundle": bundle.manifest.ref,
        "users": len(windows),
        "beam_width": config.beam_width,
        "default": {"r_warm": chosen[0], "m_par": chosen[1], **results[default_index].item},
        **{name: metrics(found.item) for name, found in variants.items()},
        "popularity": metrics(popularity_ranks(windows, k=max(CUTOFFS))),
        "repeated_items": sum(result.repeated_items for result in results),
        "invalid_sid_users": min(config.invalid_sid_users, len(windows)),
        "invalid_sid_share": constrained,
        "invalid_sid_share_unconstrained": round(unconstrained, 4),
        "schedules": [result.as_json() for result in results],
        "collisions": bundle.manifest.facts.get("collisions"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    (folder / "report.md").write_text(_markdown(report, results))
    user_ids = dataset.split.train.user_ids
    with (folder / "ranks.jsonl").open("w") as file:
        for user, rank in zip(windows.users, by_schedule[default_index].item.tolist(), strict=True):
            line = {"user_id": user_ids[user], "rank": None if rank == NOT_FOUND else rank}
            file.write(json.dumps(line) + "\n")
    console.print(_markdown(report, results), markup=False, soft_wrap=True)
    return {name: value for name, value in report.items() if name != "schedules"}


def schedules_of(config: EvaluationConfig, num_subspaces: int) -> list[tuple[int, int]]:
    """The (r_warm, m_par) pairs of the table that make different schedules for this SID length."""
    distinct: dict[tuple[int, ...], tuple[int, int]] = {}
    for entry in config.schedules:
        r_warm, m_par = entry.params(num_subspaces)
        schedule = Schedule.from_params(num_subspaces=num_subspaces, r_warm=r_warm, m_par=m_par)
        distinct.setdefault(schedule.steps, (r_warm, m_par))
    return list(distinct.values())


def _markdown(report: dict[str, Any], results: list[ScheduleResult]) -> str:
    names = [f"{name}@{k}" for k in CUTOFFS for name in ("recall", "ndcg")]
    header = ["schedule", "steps", "NFE", *names, "SID " + names[2], "repeated", "ms/user"]
    rows = [
        [
            f"({result.r_warm}, {result.m_par})",
            "+".join(map(str, result.steps)),
            f"{result.nfe:g}",
            *(f"{result.item[name]:.4f}" for name in names),
            f"{result.sid['recall@10']:.4f}",
            str(result.repeated_items),
            f"{sum(result.milliseconds.values()):.2f}",
        ]
        for result in results
    ]
    for label, key in (
        ("default, seen items excluded", "default_seen_excluded"),
        ("default, prior off", "default_prior_off"),
        ("default, prior off, seen items excluded", "default_prior_off_seen_excluded"),
        ("popularity", "popularity"),
    ):
        rows.append([label, "", "", *(f"{report[key][name]:.4f}" for name in names), "", "", ""])
    lines = [header, ["---"] * len(header), *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    default = report["default"]
    return (
        f"# {report['bundle']}\n\n{report['users']:,} test users, whole catalogue, item-level "
        f"unless marked SID; beam_width {report['beam_width']}; nothing excluded unless said.\n"
        f"Default schedule (chosen on validation): ({default['r_warm']}, {default['m_par']}).\n\n"
        f"{table}\n\n"
        f"Invalid SIDs, {report['invalid_sid_users']:,} users, one position a step: of the partial "
        f"SIDs of this search {100 * report['invalid_sid_share']:g} %; of the SIDs that an "
        f"unconstrained one ends at {100 * report['invalid_sid_share_unconstrained']:.1f} %.\n"
    )
