"""The report of a run, for people: one file of HTML that needs no network and no other file.

report.html beside the stages: curves of the fit, use of the codes, the grid of settings, recall by
length of history, new items, the map of the catalogue, the tables of the evaluation, and the
configuration. It only shows what the stages have left; every text from data is escaped, and the
file itself forbids the browser to load anything. Knows which stage left which file.
"""

from __future__ import annotations

import json
import math
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from markdown_it import MarkdownIt

from service.bundles import Item, verify
from training.config import RunConfig
from training.data import Dataset
from training.evaluation import NOT_FOUND, draw_windows, recall_at, setting_name, standard_error
from training.pipeline.charts import (
    COLOURS,
    OTHERS,
    bars_chart,
    codes_chart,
    fit_chart,
    grid_chart,
    map_chart,
    schedules_chart,
)
from training.stages import written_whole

LENGTHS = (1, 2, 3, 5, 9, 17, 33, 65)  # where groups of histories begin
TITLES = 3  # the most popular items of a code
MOST_CHARS = 100  # of a title
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = """
:root { color-scheme: light dark; --paper: #f5f6f8; --panel: #fff; --ink: #1b2030;
  --soft: #596075; --line: #dfe2ea; --accent: #3d52c4; }
@media (prefers-color-scheme: dark) { :root { --paper: #11141b; --panel: #191d27;
  --ink: #e7e9f0; --soft: #a3abbf; --line: #2b3140; --accent: #a9b6ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 2rem 1.4rem 4rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0 0 0.3rem; }
h3 { font-size: 0.95rem; margin: 1.6rem 0 0.4rem; }
p { margin: 0 0 0.7rem; }
.soft { color: var(--soft); font-size: 0.9rem; }
section { background: var(--panel); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.1rem 1.3rem; margin-top: 1.1rem; overflow-x: auto; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 0.8rem;
  margin-top: 1.2rem; }
.tile { background: var(--panel); border: 1px solid var(--line); border-radius: 10px;
  padding: 0.7rem 1rem; }
.tile b { display: block; font-size: 1.4rem; font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: auto; font-family: inherit; }
table { border-collapse: collapse; font-size: 0.83rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--line); text-align: start;
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
bdi { overflow-wrap: anywhere; }
#evaluation td { white-space: nowrap; }
.dot { display: inline-block; width: 0.75rem; height: 0.75rem; border-radius: 50%; }
pre { overflow-x: auto; font-size: 0.83rem; }
summary { cursor: pointer; font-weight: 600; }
"""


def write_run_report(config: RunConfig, dataset: Dataset, out: Path) -> Path:
    """Write report.html of a run whose evaluation is done; returns its path."""
    report = json.loads((out / "evaluation" / "report.json").read_text())
    parts = [
        _fit(out),
        _codes(report.get("collisions"), report),
        _settings(report),
        _lengths(config, dataset, out),
        new_items_section(report.get("new_items")),
        _map(dataset, out),
        _tables(out),
        _configuration(config),
    ]
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>Run of {escape(report['bundle'])}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{_head(report, dataset)}\n{''.join(parts)}</main>\n</body>\n</html>\n"
    )
    file, data = out / "report.html", page.encode()
    if not (file.is_file() and file.read_bytes() == data):  # a run that is repeated changes nothing
        with written_whole(file) as opened:
            opened.write(data)
    return file


def _head(report: dict[str, Any], dataset: Dataset) -> str:
    default, split = report["default"], dataset.split
    tiles = {
        "recall@10": f"{default['recall@10']:.4f}",
        "ndcg@10": f"{default['ndcg@10']:.4f}",
        "recall@10 of the most popular items": f"{report['popularity']['recall@10']:.4f}",
        "recall@10 without the prior": f"{report['default_prior_off']['recall@10']:.4f}",
        "test users": f"{report['users']:,}",
        "items": f"{split.train.num_items:,}",
        "training interactions": f"{split.train.num_interactions:,}",
    }
    shown = "".join(
        f'<div class="tile"><b>{value}</b><span class="soft">{name}</span></div>'
        for name, value in tiles.items()
    )
    return (
        f"<h1>{escape(report['bundle'])}</h1>\n"
        f'<p class="soft">Split {escape(str(split.sentence))}. All figures are of the trial, which '
        "knows training interactions only, through the decoder that serves; "
        f"{setting_name(exclude_seen=report['exclude_seen'])}.</p>\n"
        f'<div class="tiles">{shown}</div>'
    )


def _section(name: str, title: str, said: str, inside: str) -> str:
    """said: HTML"""
    head = f"<h2>{title}</h2>\n" + (f'<p class="soft">{said}</p>\n' if said else "")
    return f'<section id="{name}">\n{head}{inside}\n</section>\n'


def _fit(out: Path) -> str:
    lines = [json.loads(line) for line in (out / "fit" / "scalars.jsonl").read_text().splitlines()]
    checked = [line for line in lines if "recall@10" in line]
    chart = fit_chart(
        [line["step"] for line in lines],
        [line["loss"] for line in lines],
        [line["step"] for line in checked],
        [line["recall@10"] for line in checked],
    )
    said = "Loss, and recall@10 on validation users without the prior. The ring is what was kept."
    return _section("fit", "Fit", said, chart)


def _codes(collisions: dict[str, Any] | None, report: dict[str, Any]) -> str:
    if not collisions:
        return ""
    said = (
        f"{collisions['unique_sids']:,} SIDs for {collisions['num_items']:,} items; "
        f"{collisions['collided_items']:,} items share theirs, at most "
        f"{collisions['largest_group']:,} the same. Dashed: the most there could be. Invalid SIDs "
        f"of an unconstrained search: {100 * report['invalid_sid_share_unconstrained']:.1f} %; of "
        f"this one: {100 * report['invalid_sid_share']:g} %."
    )
    used, entropy = collisions["codes_used"], collisions["entropy_bits"]
    return _section("codes", "Codes", said, codes_chart(used, entropy, collisions["num_codes"]))


def _settings(report: dict[str, Any]) -> str:
    grid, users = report["grid"], report["users"]
    said = (
        f"Each dot is a setting, on {grid['users']:,} validation users; bars are two standard "
        "errors of its difference to the best one. Chosen is the fastest that is not worse than "
        "the best by more than that."
    )
    inside = grid_chart(grid["points"], grid["chosen"])
    lines = []
    for line in report["schedules"]:
        recall = line["item"]["recall@10"]
        name = f"({line['r_warm']}, {line['m_par']})"
        if line.get("retrieval", "generate") != "generate":
            name = line["retrieval"]
        lines.append((name, line["nfe"], recall, math.sqrt(recall * (1 - recall) / users)))
    inside += (
        f'\n<h3>Schedules</h3>\n<p class="soft">(r_warm, m_par) on {users:,} test users; bars are '
        f"two standard errors of the recall itself.</p>\n{schedules_chart(lines)}"
    )
    return _section("settings", "Settings of the search", said, inside)


def _lengths(config: RunConfig, dataset: Dataset, out: Path) -> str:
    windows = draw_windows(dataset.split.test, config.evaluation.users, seed=0)
    lines = (out / "evaluation" / "ranks.jsonl").read_text().splitlines()
    places = [json.loads(line)["rank"] for line in lines]
    if len(places) != len(windows):
        return ""
    ranks = np.array([NOT_FOUND if place is None else place for place in places])
    lengths = windows.ends - windows.starts
    labels, recalls, errors = [], [], []
    for start, end in zip(LENGTHS, (*LENGTHS[1:], None), strict=True):
        own = ranks[(lengths >= start) & (lengths < (end or math.inf))]
        if not len(own):
            continue
        span = f"{start}" if end == start + 1 else f"{start} to {end - 1}" if end else f"{start}+"
        labels.append(f"{span}\n{len(own):,} users")
        recalls.append(recall_at(own, 10))
        errors.append(standard_error(own, 10))
    said = "recall@10 by the number of items before the target; bars are two standard errors."
    chart = bars_chart("lengths", labels, recalls, errors, "items in the history")
    return _section("lengths", "Length of the history", said, chart)


def new_items_section(found: dict[str, Any] | None) -> str:
    """What the report says of items that are added later. found: what the evaluation has of them"""
    if not found:
        return ""
    if why := found.get("not_measured"):
        return _section("new-items", "New items", f"Not measured: {escape(why)}.", "")
    systems = found["systems"]
    said = (
        f"{found['items']:,} items were taken out of the bundle and added again from their "
        "embeddings, as the service adds items. recall@10 of the users whose target is one of them."
    )
    chart = bars_chart(
        "new-items",
        [f"{one['system']}\n{one['users']:,} users" for one in systems],
        [one["recall@10"] for one in systems],
        [one["recall@10_error"] for one in systems],
        "",
    )
    return _section("new-items", "New items", said, chart)


def _map(dataset: Dataset, out: Path) -> str:
    if "map.npy" not in verify(out / "trial").files:
        return ""
    places = np.load(out / "trial" / "map.npy", allow_pickle=False)
    codes = np.load(out / "trial" / "codes.npy", allow_pickle=False)[:, 0]
    counts = np.bincount(codes)
    largest = np.argsort(-counts, kind="stable")[: len(COLOURS)]
    largest = largest[counts[largest] > 0]
    group_of = np.full(len(counts), -1)
    group_of[largest] = np.arange(len(largest))
    rows = []
    for colour, code in zip(COLOURS, largest.tolist(), strict=False):
        first = np.flatnonzero(codes == code)[:TITLES]  # rows are ordered by popularity
        titles = "<br>".join(_title(dataset.items[row]) for row in first.tolist())
        dot = f'<span class="dot" style="background:{colour}"></span>'
        rows.append(f"<tr><td>{dot} {code}<td>{counts[code]:,}<td>{titles}")
    others = int(counts.sum() - counts[largest].sum())
    dot = f'<span class="dot" style="background:{OTHERS}"></span>'
    rows.append(f"<tr><td>{dot} others<td>{others:,}<td>")
    table = (
        "<table><thead><tr><th>code<th>items<th>most popular</thead><tbody>"
        f"{''.join(rows)}</tbody></table>"
    )
    said = "Items that are alike are near each other. Colours: codes of the first position."
    return _section("map", "Map of the catalogue", said, map_chart(places, group_of[codes]) + table)


def _title(item: Item) -> str:
    title = item.title or item.item_id
    return f"<bdi>{escape(title[:MOST_CHARS])}{'…' * (len(title) > MOST_CHARS)}</bdi>"


def _tables(out: Path) -> str:
    """The tables of the evaluation, as it has written them."""
    markdown = MarkdownIt("js-default").disable(["image", "link", "autolink", "linkify"])
    text = markdown.render((out / "evaluation" / "report.md").read_text())
    for level in ("1", "2"):
        text = text.replace(f"<h{level}>", "<h3>").replace(f"</h{level}>", "</h3>")
    return _section("evaluation", "Evaluation", "", text)


def _configuration(config: RunConfig) -> str:
    text = escape(json.dumps(config.model_dump(mode="json"), indent=2, ensure_ascii=False))
    inside = f"<details><summary>Everything that was set</summary><pre>{text}</pre></details>"
    return _section("configuration", "Configuration", "", inside)
