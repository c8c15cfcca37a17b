"""The report of a bundle: schedules and baselines on test users, the grid on validation users.

evaluation/report.json   every figure        evaluation/report.md   the same as tables
evaluation/ranks.jsonl   {"user_id", "rank", "exclude_seen"} of each test user at the bundle's
                         default setting; the rank is null if the target is not among the SHORT
                         items asked for (LONG items if one search gives both)

Items of the history are left out as `evaluation.exclude_seen` says, by default as in the service,
unless the name of a figure says the other setting. Does not know how the bundle was trained.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from joblib import cpu_count
from rich.console import Console
from rich.progress import Progress

from service.bundles import HISTORY_CAP, Bundle, DecodingDefaults, Manifest
from service.decoding import Retrieval, Schedule
from training.config import EvaluationConfig
from training.data import Dataset
from training.errors import DataError
from training.evaluation.cold_items import RanksByContent, taken_out_and_put_back
from training.evaluation.cold_tables import FAR, cold_markdown
from training.evaluation.decoding_grid import schedules_of
from training.evaluation.evaluation import (
    CUTOFFS,
    LONG,
    NOT_FOUND,
    SHORT,
    AsServed,
    draw_windows,
    invalid_sid_shares,
    metrics,
    popularity_ranks,
    ranks_as_served,
    requests_of,
    schedule_of,
    setting_name,
    targets_seen,
)
from training.evaluation.several_items import measure_several_items, several_items_markdown


def check_data(bundle: Bundle, dataset: Dataset) -> None:
    """Raise DataError if the bundle was not made from this data, or knows its test users."""
    if bundle.manifest.knows_held_out:
        raise DataError(
            f"bundle {bundle.manifest.ref} has learnt all interactions, those of the test too, so "
            "nothing can be measured with it; name the folder `trial` of its run, which lies "
            "beside `bundle`; what --set-default writes there, the next `run` takes into `bundle`"
        )
    if tuple(bundle.catalogue.item_ids) != tuple(dataset.split.train.item_ids):
        raise DataError(
            f"bundle {bundle.manifest.ref} has another catalogue than this data; "
            "use the data, core, cold_items, collapse_repeats and split it was trained with"
        )


def evaluate_bundle(
    bundle: Bundle,
    dataset: Dataset,
    config: EvaluationConfig,
    folder: Path,
    console: Console,
    *,
    grid: dict[str, Any],
    ranks_by_content: RanksByContent,
    horizon: int = 1,
) -> dict[str, Any]:
    """Evaluate on test users through the production decoder; write the report, return its headline.

    The other schedules have the parameters of the default, except finish_rows 0: they do not end
    early. Beams are as many as the service has for requests of SHORT and of LONG items.
    grid: `Grid.as_json` of the validation users; it is copied into the report
    ranks_by_content: a row beside the bundle's own, where new items are measured
    horizon: above 1, sequences of so many items are measured too, see `check_horizon`
    Raises DataError if the bundle was not made from this data.
    """
    check_data(bundle, dataset)
    num_subspaces = bundle.catalogue.num_subspaces
    windows = draw_windows(dataset.split.test, config.users, seed=0)
    default = bundle.manifest.decoding
    if config.beam_width:
        default = default.model_copy(update={"beam_width": config.beam_width})
    settings = _settings(config, default, bundle.manifest)
    without_prior = replace(bundle.decoder, prior=None)
    served, other = config.exclude_seen, _other(config.exclude_seen)
    variants = {
        f"default_{other}": (bundle.decoder, not served),
        "default_prior_off": (without_prior, served),
        f"default_prior_off_{other}": (without_prior, not served),
    }
    with Progress(console=console) as progress:
        asked = [*settings, *[default] * len(variants)]
        num_searches = sum(len(requests_of(one, num_subspaces)) for one in asked)
        task = progress.add_task("test users", total=len(windows) * num_searches)
        options: dict[str, Any] = {
            "batch": config.batch,
            "workers": cpu_count(),
            "advance": lambda users: progress.advance(task, users),
        }
        found = [
            ranks_as_served(windows, bundle.decoder, one, exclude_seen=served, **options)
            for one in settings
        ]
        of_variants = {
            name: ranks_as_served(windows, decoder, default, exclude_seen=exclude_seen, **options)
            for name, (decoder, exclude_seen) in variants.items()
        }
    constrained, unconstrained = invalid_sid_shares(
        draw_windows(windows, config.invalid_sid_users, seed=0),
        bundle.decoder,
        Schedule((1,) * num_subspaces),
        beam_width=default.wide_enough(SHORT).beam_width,
        ranking=default.ranking,
        order=default.order,
        batch=config.batch,
    )
    of_default = found[settings.index(default)]
    report = {
        "bundle": bundle.manifest.ref,
        "precision": bundle.precision,
        "split": dataset.split.name,
        "split_sentence": dataset.split.sentence,
        "users": len(windows),
        "exclude_seen": served,
        "targets_seen": int(targets_seen(windows).sum()),
        "default": {**default.model_dump(), **_item_metrics(of_default)},
        **{name: _item_metrics(one) for name, one in of_variants.items()},
        "popularity": metrics(popularity_ranks(windows, k=LONG, exclude_seen=served)),
        "repeated_items": sum(_repeated(one) for one in found),
        "invalid_sid_users": min(config.invalid_sid_users, len(windows)),
        "invalid_sid_share": constrained,
        "invalid_sid_share_unconstrained": round(unconstrained, 4),
        "schedules": [
            _line(one, ranks, num_subspaces) for one, ranks in zip(settings, found, strict=True)
        ],
        "grid": grid,
        "new_items": taken_out_and_put_back(bundle, dataset, config, ranks_by_content, console),
        "collisions": bundle.manifest.facts.get("collisions"),
    }
    if horizon > 1:
        report["several_items"] = measure_several_items(bundle, dataset, config, horizon)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    (folder / "report.md").write_text(_markdown(report))
    user_ids = dataset.split.train.user_ids
    with (folder / "ranks.jsonl").open("w") as file:
        for user, rank in zip(windows.users, of_default.short.item.tolist(), strict=True):
            place = None if rank == NOT_FOUND else rank
            line = {"user_id": user_ids[user], "rank": place, "exclude_seen": served}
            file.write(json.dumps(line) + "\n")
    console.print(_markdown(report), markup=False, soft_wrap=True)
    return {name: value for name, value in report.items() if name not in ("schedules", "grid")}


def _settings(
    config: EvaluationConfig, default: DecodingDefaults, manifest: Manifest
) -> list[DecodingDefaults]:
    """The default with every schedule that the bundle can follow and finish_rows 0, and itself.

    If there is a dense head, also the default with every retrieval.
    """
    search: dict[str, Any] = {"retrieval": "generate", "finish_rows": 0}
    settings = [
        default.model_copy(update={"r_warm": r_warm, "m_par": m_par, **search})
        for r_warm, m_par in schedules_of(config, manifest.num_subspaces)
    ]
    settings = [one for one in settings if manifest.misfit(one) is None]
    if manifest.dense:
        by_others = [default.model_copy(update={"retrieval": one}) for one in get_args(Retrieval)]
        settings += [one for one in by_others if one not in settings]
    return settings if default in settings else [*settings, default]


def _line(setting: DecodingDefaults, found: AsServed, num_subspaces: int) -> dict[str, Any]:
    milliseconds = found.short.milliseconds
    steps = schedule_of(setting, num_subspaces).steps if setting.retrieval != "dense" else ()
    return {
        **setting.model_dump(),
        "steps": list(steps),
        "nfe": found.short.nfe,
        "item": _item_metrics(found),
        "sid": metrics(found.short.sid, found.long.sid),
        "repeated_items": _repeated(found),
        "milliseconds": {stage: round(value, 3) for stage, value in milliseconds.items()},
    }


def _item_metrics(found: AsServed) -> dict[str, float]:
    return metrics(found.short.item, found.long.item)


def _repeated(found: AsServed) -> int:
    return sum(one.repeated for one in {found.short, found.long})


def _markdown(report: dict[str, Any]) -> str:
    names = [f"{name}@{k}" for k in CUTOFFS for name in ("recall", "ndcg")]
    header = ["schedule", "steps", "finish", "NFE", *names, "SID " + names[2], "repeated"]
    rows = [
        [
            _schedule_said(line),
            "+".join(map(str, line["steps"])),
            str(line["finish_rows"]),
            f"{line['nfe']:.3g}",
            *(f"{line['item'][name]:.4f}" for name in names),
            f"{line['sid']['recall@10']:.4f}",
            str(line["repeated_items"]),
            f"{sum(line['milliseconds'].values()):.2f}",
        ]
        for line in report["schedules"]
    ]
    served, other = report["exclude_seen"], _other(report["exclude_seen"])
    for label, key in (
        ("default, prior off", "default_prior_off"),
        ("popularity", "popularity"),
        (f"default, {setting_name(exclude_seen=not served)}", f"default_{other}"),
        (
            f"default, prior off, {setting_name(exclude_seen=not served)}",
            f"default_prior_off_{other}",
        ),
    ):
        values = [f"{report[key][name]:.4f}" for name in names]
        rows.append([label, "", "", "", *values, "", "", ""])
    default = report["default"]
    return (
        f"# {report['bundle']}, {report['precision']}\n\n"
        f"{_headline(report)}\n\n"
        f"Split {report['split_sentence']}. "
        f"{report['users']:,} test users, whole catalogue. Figures are item-level unless marked "
        f"SID, with {setting_name(exclude_seen=served)} unless a row says otherwise. Of a history "
        f"the newest {HISTORY_CAP} items are used, as many as the service keeps. Default: "
        f"{_said(default)}. Other schedules have finish_rows 0. Figures @{LONG} are of requests "
        f"for {LONG} items, all others of requests for {SHORT}; beam_width is at least that, as in "
        "the service.\n\n"
        f"{_table([*header, 'ms/user'], rows)}\n\n"
        f"Invalid SIDs ({report['invalid_sid_users']:,} users, one position for each step): "
        f"{100 * report['invalid_sid_share']:g} % of the partial SIDs of this search; "
        f"{100 * report['invalid_sid_share_unconstrained']:.1f} % of the SIDs that an "
        "unconstrained search returns.\n\n"
        f"{_new_items_markdown(report['new_items'])}\n\n"
        f"{_several_items_markdown(report.get('several_items'))}"
        f"{_grid_markdown(report['grid'])}"
    )


def _several_items_markdown(found: dict[str, Any] | None) -> str:
    return f"{several_items_markdown(found)}\n\n" if found else ""


def _new_items_markdown(found: dict[str, Any]) -> str:
    if why := found.get("not_measured"):
        return f"## New items\n\n{why[0].upper()}{why[1:]}."
    served = setting_name(exclude_seen=found["exclude_seen"])
    return (
        f"## New items\n\nOf {found['of_items']:,} items that have content, training interactions "
        f"and a test user whose target they are, {found['items']:,} were drawn. *Put back*: they "
        "were taken out of the bundle and added again from their embeddings, as the service adds "
        "items; the network had seen them in training. All test users asked the bundle before and "
        f"after, at its default, and the whole catalogue was ranked, with {served}. Figures @{FAR} "
        f"are of requests for {FAR} items. ± is one standard error, paired over users for shares "
        "and differences; a verdict other than tie needs two.\n\n"
        f"{cold_markdown(found)}"
    )


def _grid_markdown(grid: dict[str, Any]) -> str:
    header = ["schedule", "beam_width", "ranking", "finish_rows", "order", "remask", "guidance"]
    header += ["NFE"]
    header += ["recall@10", "ndcg@10", "behind the best", "ms/user", ""]
    rows = [
        [
            _schedule_said(point),
            str(point["beam_width"]),
            point["ranking"],
            str(point["finish_rows"]),
            point.get("order", "confidence"),  # a report may be of an older grid
            str(point.get("remask", 0)),
            f"{point.get('guidance', 0):g}",
            f"{point['nfe']:.3g}",
            f"{point['recall@10']:.4f}",
            f"{point['ndcg@10']:.4f}",
            f"{point['behind']:.4f} ± {point['error']:.4f}",
            f"{point['milliseconds']:.2f}",
            "chosen" * (place == grid["chosen"]),
        ]
        for place, point in enumerate(grid["points"])
    ]
    return (
        f"## Choosing the default\n\n{grid['users']:,} validation users, "
        f"{setting_name(exclude_seen=grid.get('exclude_seen', False))}; ms/user of "
        f"{grid['timing_users']:,} of them, decoded one by one on one thread. The choice is the "
        "fastest point at most two standard errors behind the best; of points that are nearly as "
        "fast, the one with the fewest denoiser calls: "
        f"{_said(grid['points'][grid['chosen']])}.\n\n{_table(header, rows)}\n"
    )


def _headline(report: dict[str, Any]) -> str:
    """The figures of what is served, and how many targets can never be found there."""
    default, served = report["default"], report["exclude_seen"]
    sentences = [
        f"recall@{SHORT} **{default[f'recall@{SHORT}']:.4f}**, ndcg@{SHORT} "
        f"{default[f'ndcg@{SHORT}']:.4f}, {setting_name(exclude_seen=served)}: "
        + (
            "so the service answers unless a request says `exclude_seen: false`."
            if served
            else "so the service answers requests that say `exclude_seen: false`, and no others."
        )
    ]
    if seen := report["targets_seen"]:
        sentences.append(
            f"For {seen:,} of the {report['users']:,} users, the target is already in the history; "
            "with seen items excluded these targets are never found."
        )
    return " ".join(sentences)


def _other(exclude_seen: bool) -> str:
    """The setting that is not the headline's, as it is written in keys of the report."""
    return "nothing_excluded" if exclude_seen else "seen_excluded"


def _said(decoding: dict[str, Any]) -> str:
    return (
        f"schedule ({decoding['r_warm']}, {decoding['m_par']}), beam_width "
        f"{decoding['beam_width']}, ranking {decoding['ranking']}, finish_rows "
        f"{decoding['finish_rows']}, order {decoding.get('order', 'confidence')}, remask "
        f"{decoding.get('remask', 0)}, guidance {decoding.get('guidance', 0):g}"
        + (f", retrieval {decoding['retrieval']}" if "retrieval" in decoding else "")
    )


def _schedule_said(decoding: dict[str, Any]) -> str:
    """The schedule, and what else finds items than beams."""
    schedule = f"({decoding['r_warm']}, {decoding['m_par']})"
    retrieval = decoding.get("retrieval", "generate")
    if retrieval == "dense":
        return "dense"
    return schedule if retrieval == "generate" else f"{schedule}, {retrieval}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
