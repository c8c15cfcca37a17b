"""Nights of a tiny world, for the tests: short settings, and how one is spoiled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from training.data.synthetic import make_world, write_world

QUICK = [
    *("fit.epochs=2", "fit.validation_users=20", "codebook.num_codes=16", "refit.share=0"),
    "embeddings.content_dims=24",  # so all files have networks of one shape: traced once
    *("evaluation.invalid_sid_users=1", "evaluation.timing_users=1"),
    *("evaluation.schedule_users=20", "evaluation.schedules=[{r_warm = 0, m_par = 6}]"),
    *("evaluation.rankings=['rows']", "evaluation.beam_widths=[10]"),
    *("neighbours.weights=[1]", "neighbours.scales=[0.3]", "neighbours.decays=[0.7]"),
    *("neighbours.rarity_powers=[0.5]", "neighbours.likeness_weights=[0]", "bundle.name=shop"),
]
SPOILED = ["fit.learning_rate=1e-9", "neighbours.weights=[0]"]  # it has learnt nothing


def write_log(folder: Path, *, users: int = 120, items: int = 60) -> None:
    """A world whose interactions are a folder of parts, as exports of events add to it."""
    write_world(make_world(users, items, 0.1, 7), folder)
    log = pl.read_parquet(folder / "interactions.parquet")
    (folder / "interactions.parquet").unlink()
    (folder / "interactions").mkdir()
    lines = log.select("user_id", "item_id", "timestamp").to_dicts()
    write_part(folder, "2023-11-15", lines)


def write_part(folder: Path, day: str, lines: list[dict[str, Any]]) -> None:
    """A day of the log, as `events export` writes it."""
    text = "".join(json.dumps({**line, "event_type": "click"}) + "\n" for line in lines)
    (folder / "interactions" / f"{day}.jsonl").write_text(text)
