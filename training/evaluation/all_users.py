"""Recommendations for all users of a file at once, as the service would give them.

Through the same decoder, with the bundle's own setting. Users whose items the bundle does not know
get popular items, as when the service answers. Users are decoded in batches that do not depend on
who decodes them, so every engine gives the same answers to the last bit. Knows no metric.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from service.bundles import HISTORY_CAP, Bundle
from training.data import Interactions

NO_ROW = -1  # of an item that the bundle does not know, and where fewer than k items are left
BATCH = 32  # users decoded together

Rows = NDArray[np.int32]
Scores = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Histories:
    """Histories as rows of a catalogue, oldest to newest; NO_ROW where it does not know the item.

    indptr: (num_users + 1,); rows[indptr[u] : indptr[u + 1]] are those of user u
    """

    indptr: NDArray[np.integer]
    rows: Rows

    @classmethod
    def of(cls, log: Interactions, item_ids: Sequence[str]) -> Histories:
        row_of = {item_id: row for row, item_id in enumerate(item_ids)}
        known = np.array([row_of.get(item_id, NO_ROW) for item_id in log.item_ids], np.int32)
        return cls(log.indptr, known[log.rows])

    @property
    def num_users(self) -> int:
        return len(self.indptr) - 1

    def of_user(self, user: int) -> Rows:
        """As in the service, the newest HISTORY_CAP count, and unknown items are left out."""
        start, end = self.indptr[user : user + 2].tolist()
        rows = self.rows[max(start, end - HISTORY_CAP) : end]
        return rows[rows >= 0]


@dataclass(frozen=True)
class Asked:
    """What every user gets: `k` items, without those of the history if `exclude_seen`."""

    k: int
    exclude_seen: bool = True


def answer_users(
    bundle: Bundle,
    histories: Histories,
    users: range,
    asked: Asked,
    *,
    batch: int = BATCH,
    threads: int = 1,
    advance: Callable[[int], None] = lambda users: None,
) -> tuple[Rows, Scores]:
    """The best items of some users: rows and scores, (len(users), k) each.

    Row NO_ROW where the catalogue has no more items; score NaN for popular items, which answer
    where nothing of a history is known.

    threads: batches decoded at a time; advance: called with the number of users, batch by batch
    """
    manifest = bundle.manifest
    setting = manifest.decoding.wide_enough(asked.k)
    schedule = setting.schedule(manifest.num_subspaces)
    popular = np.arange(min(asked.k, bundle.catalogue.num_items), dtype=np.int32)
    rows = np.full((len(users), asked.k), NO_ROW, np.int32)
    scores = np.full((len(users), asked.k), np.nan, np.float32)

    def answer(start: int) -> int:
        some = range(start, min(start + batch, len(users)))
        known = {place: histories.of_user(users[place]) for place in some}
        jobs = {
            place: setting.job(
                history,
                asked.k,
                schedule,
                excluded=np.unique(history) if asked.exclude_seen else np.empty(0, np.int32),
            )
            for place, history in known.items()
            if len(history)
        }
        found = bundle.decoder.decode(list(jobs.values()))[0] if jobs else []
        for place, decoded in zip(jobs, found, strict=True):
            rows[place, : len(decoded.rows)] = decoded.rows
            scores[place, : len(decoded.rows)] = decoded.scores
        for place in known.keys() - jobs.keys():
            rows[place, : len(popular)] = popular
        return len(some)

    with ThreadPoolExecutor(threads) as pool:
        for answered in pool.map(answer, range(0, len(users), batch)):
            advance(answered)
    return rows, scores


def recommend_all(
    bundle: Bundle,
    log: Interactions,
    *,
    k: int,
    exclude_seen: bool = True,
    batch: int = BATCH,
    workers: int = 1,
    advance: Callable[[int], None] = lambda users: None,
) -> pl.DataFrame:
    """What `answers_frame` says of every user of a log.

    log: histories, oldest to newest, as `read_interactions` gives them
    exclude_seen: leave out items of the history; workers: threads that each decode a batch
    """
    item_ids = bundle.catalogue.item_ids
    histories = Histories.of(log, item_ids)
    users, asked = range(log.num_users), Asked(k, exclude_seen)
    answers = answer_users(
        bundle, histories, users, asked, batch=batch, threads=workers, advance=advance
    )
    return answers_frame(log.user_ids, item_ids, *answers)


def answers_frame(
    user_ids: Sequence[str], item_ids: Sequence[str], rows: Rows, scores: Scores
) -> pl.DataFrame:
    """user_id, rank, item_id, score, served_by: one line an item, users in the order given.

    user_ids: of the lines of `rows` and `scores`; item_ids: of the catalogue
    served_by: "model", or "popular" with null scores. A user may get fewer than k items if the
        catalogue has no more
    """
    num_users, k = rows.shape
    of_catalogue = pl.Series("item_id", item_ids, pl.String)
    frame = pl.DataFrame(
        {
            "user_id": pl.Series(user_ids, dtype=pl.String)[np.repeat(np.arange(num_users), k)],
            "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), num_users),
            "row": rows.reshape(-1),
            "score": scores.reshape(-1),
        }
    ).filter(pl.col("row") >= 0)
    is_model = pl.col("score").is_not_nan()
    return frame.with_columns(
        of_catalogue[frame["row"].to_numpy()],
        score=pl.when(is_model).then(pl.col("score")),
        served_by=pl.when(is_model).then(pl.lit("model")).otherwise(pl.lit("popular")),
    ).select("user_id", "rank", "item_id", "score", "served_by")
