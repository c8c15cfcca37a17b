"""Finds and removes rows of a log that add nothing: duplicates, and repeats of the same item.

    view A, cart A, purchase A, view B      one user, in order of time
    A, B                                    what remains to predict

A log of clicks and purchases names an item several times in a row, and an export may hold a row
twice. A model that only repeats the last item would find most of these. The service by default
leaves out items that the user has had, and would find none. Knows no file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from training.data.files.table import ROWS_AT_ONCE


@dataclass(frozen=True)
class Repeats:
    """How many rows are exact copies of another, and how many repeat the item just before them."""

    duplicates: int
    consecutive: int

    def said(self, *, collapsed: bool) -> str | None:
        """A sentence for the person who started the run; None if there are no repeats."""
        found = [f"{self.duplicates:,} rows that repeat another (same user, item and time)"] * bool(
            self.duplicates
        )
        found += [
            f"{self.consecutive:,} that repeat the item the same user had just before"
        ] * bool(self.consecutive)
        if not found:
            return None
        what = " and ".join(found)
        if collapsed:
            return f"left out: {what}; interactions.collapse_repeats=false keeps them"
        return (
            f"kept, as interactions.collapse_repeats=false says: {what}; with "
            "evaluation.exclude_seen=false, a model that only repeats the last item finds these"
        )


def without_repeats(log: pl.DataFrame) -> tuple[pl.DataFrame, Repeats]:
    """The log without repeats, in its order; only the first row of each repeat is kept.

    log: user_id, item_id, order (the time or position); sorted by user, then oldest to newest.
    Of what event types say, a row that is kept has the most of its repeats: the largest `weight`;
    and it `is_target` if one of them is. Its `time` is then that of the first of these.
    Some users at a time: to find duplicates takes several times the memory of the rows.
    """
    begins = (log["user_id"] != log["user_id"].shift()).fill_null(True).arg_true().to_numpy()
    parts = np.flatnonzero(np.diff(begins // ROWS_AT_ONCE, prepend=-1))
    firsts = [int(begin) for begin in begins[parts]]
    found = [
        _without_repeats(log.slice(first, end - first))
        for first, end in zip(firsts, [*firsts[1:], len(log)], strict=True)
    ]
    if not found:
        return log, Repeats(0, 0)
    repeats = [each for _, each in found]
    return pl.concat([rows for rows, _ in found]), Repeats(
        sum(each.duplicates for each in repeats), sum(each.consecutive for each in repeats)
    )


def _without_repeats(log: pl.DataFrame) -> tuple[pl.DataFrame, Repeats]:
    once = _merged(log, ["user_id", "item_id", "order"])
    same = pl.all_horizontal(
        pl.col(name) == pl.col(name).shift() for name in ("user_id", "item_id")
    ).fill_null(False)
    if "weight" in log.columns or "is_target" in log.columns:
        in_a_row = once.with_columns(repeat=(~same).cum_sum())
        collapsed = _merged(in_a_row, ["repeat"]).drop("repeat")
    else:
        collapsed = once.filter(~same)
    return collapsed, Repeats(len(log) - len(once), len(once) - len(collapsed))


def _merged(log: pl.DataFrame, same: list[str]) -> pl.DataFrame:
    """The first rows of those with the same values in some columns, with the most of each."""
    if not {"weight", "is_target"} & set(log.columns):
        return log.unique(subset=same, keep="first", maintain_order=True)
    most = {"weight": pl.col("weight").max(), "is_target": pl.col("is_target").any()}
    if "is_target" in log.columns:
        times = pl.col("time")
        most["time"] = pl.coalesce(times.filter(pl.col("is_target")).first(), times.first())
    return (
        log.group_by(same, maintain_order=True)
        .agg(most.get(name, pl.col(name).first()) for name in log.columns if name not in same)
        .select(log.columns)
    )
