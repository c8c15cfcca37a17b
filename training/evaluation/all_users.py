"""Recommendations for all users of a file at once, as the service would give them.

Through the same decoder, with the bundle's own setting. Users whose items the bundle does not know
get popular items, as when the service answers. Knows no metric.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from service.bundles import HISTORY_CAP, Bundle
from training.data import Interactions

NO_ROW = -1  # where fewer than k items are left


def recommend_all(
    bundle: Bundle,
    log: Interactions,
    *,
    k: int,
    exclude_seen: bool = True,
    batch: int = 32,
    workers: int = 1,
    advance: Callable[[int], None] = lambda users: None,
) -> pl.DataFrame:
    """The k best items of every user: user_id, rank, item_id, score, served_by; users in order.

    log: histories, oldest to newest, as `read_interactions` gives them. As in the service, the
        newest HISTORY_CAP items count, and those that the bundle does not know are left out
    exclude_seen: leave out items of the history
    batch: users decoded together; workers: threads that each decode a batch
    served_by: "model", or "popular" with null scores. A user may get fewer than k items if the
        catalogue has no more
    """
    catalogue = bundle.catalogue
    row_of = {item_id: row for row, item_id in enumerate(catalogue.item_ids)}
    known = np.array([row_of.get(item_id, NO_ROW) for item_id in log.item_ids], np.int32)
    manifest = bundle.manifest
    setting = manifest.decoding.wide_enough(k)
    schedule = setting.schedule(manifest.num_subspaces)

    def history_of(user: int) -> NDArray[np.int32]:
        start, end = log.indptr[user : user + 2].tolist()
        rows = known[log.rows[max(start, end - HISTORY_CAP) : end]]
        return rows[rows >= 0]

    def answer(start: int) -> tuple[int, NDArray[np.int32], NDArray[np.float32]]:
        users = range(start, min(start + batch, log.num_users))
        rows = np.full((len(users), k), NO_ROW, np.int32)
        scores = np.full((len(users), k), np.nan, np.float32)
        histories = [history_of(user) for user in users]
        places = [place for place, history in enumerate(histories) if len(history)]
        jobs = [
            setting.job(
                histories[place],
                k,
                schedule,
                excluded=np.unique(histories[place]) if exclude_seen else np.empty(0, np.int32),
            )
            for place in places
        ]
        if jobs:
            for place, decoded in zip(places, bundle.decoder.decode(jobs)[0], strict=True):
                rows[place, : len(decoded.rows)] = decoded.rows
                scores[place, : len(decoded.rows)] = decoded.scores
        popular = np.arange(min(k, catalogue.num_items), dtype=np.int32)
        for place in set(range(len(users))) - set(places):
            rows[place, : len(popular)] = popular
        return start, rows, scores

    rows = np.empty((log.num_users, k), np.int32)
    scores = np.empty((log.num_users, k), np.float32)
    with ThreadPoolExecutor(workers) as pool:
        for start, some_rows, some_scores in pool.map(answer, range(0, log.num_users, batch)):
            rows[start : start + len(some_rows)] = some_rows
            scores[start : start + len(some_rows)] = some_scores
            advance(len(some_rows))
    item_ids = pl.Series("item_id", list(catalogue.item_ids), pl.String)
    frame = pl.DataFrame(
        {
            "user_id": pl.Series(list(log.user_ids), dtype=pl.String)[
                np.repeat(np.arange(log.num_users), k)
            ],
            "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), log.num_users),
            "row": rows.reshape(-1),
            "score": scores.reshape(-1),
        }
    ).filter(pl.col("row") >= 0)
    is_model = pl.col("score").is_not_nan()
    return frame.with_columns(
        item_ids[frame["row"].to_numpy()],
        score=pl.when(is_model).then(pl.col("score")),
        served_by=pl.when(is_model).then(pl.lit("model")).otherwise(pl.lit("popular")),
    ).select("user_id", "rank", "item_id", "score", "served_by")


def recommend_to_file(
    bundle: Bundle, log: Interactions, out: Path, console: Console, *, k: int, **options: Any
) -> dict[str, Any]:
    """Write what `recommend_all` gives as a parquet file; what was written, in numbers."""
    with Progress(console=console) as progress:
        task = progress.add_task("users", total=log.num_users)
        answers = recommend_all(
            bundle, log, k=k, advance=lambda users: progress.advance(task, users), **options
        )
    _write_parquet(answers, out)
    by_model = answers.filter(answers["served_by"] == "model")["user_id"].n_unique()
    return {
        "bundle": bundle.manifest.ref,
        "out": str(out),
        "users": log.num_users,
        "rows": len(answers),
        "served_by_model": by_model,
    }


def _write_parquet(frame: pl.DataFrame, out: Path) -> None:
    """Write the file completely or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.part")
    try:
        frame.write_parquet(temporary)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
