"""Rows of a log that say what another one has said already.

    view A, cart A, purchase A, view B      one user, in order of time
    A, B                                    what there is to predict

A log of clicks and purchases names an item several times in a row, and an export may hold a row
twice. A model that repeats the last item would find most of those, and a service that leaves out
what the user has had, as ours does by default, none. Knows no file.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl


@dataclass(frozen=True)
class Repeats:
    """How many rows repeat another: exactly, or as the next interaction with the same item."""

    duplicates: int
    consecutive: int

    def said(self, *, collapsed: bool) -> str | None:
        """A sentence for the person who started the run; None where there is nothing to say."""
        found = [
            f"{self.duplicates:,} rows that are there more than once (same user, item and time)"
        ] * bool(self.duplicates)
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
            "evaluation.exclude_seen=false they count as found by whatever repeats the last item"
        )


def without_repeats(log: pl.DataFrame) -> tuple[pl.DataFrame, Repeats]:
    """The first of all equal rows, and of all rows in a row that name one item, in their order.

    log: user_id, item_id, order (what users' rows are ordered by); by user, each oldest to newest
    """
    once = log.unique(subset=["user_id", "item_id", "order"], keep="first", maintain_order=True)
    same = pl.all_horizontal(
        pl.col(name) == pl.col(name).shift() for name in ("user_id", "item_id")
    ).fill_null(False)
    collapsed = once.filter(~same)
    return collapsed, Repeats(len(log) - len(once), len(once) - len(collapsed))
