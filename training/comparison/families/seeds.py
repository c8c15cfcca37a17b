"""Differences over the same users and over seeds, with one standard error that holds both.

A figure is a mean over users, or a ratio of two such means; so it comes with what each user adds to
it. Over seeds figures are averaged, user by user. Knows rows of one system, a row for each seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.comparison.table import Row
from training.evaluation import LONG, Difference, SystemRanks, TargetRanks

Rows = Sequence[Row]  # of one system in one setting, in the order of their seeds


class Estimate(NamedTuple):
    """A figure of one seed. parts: (users,), how far each user is from the mean that it is"""

    value: float
    parts: NDArray[np.float64]


def over_seeds(figures: Sequence[Estimate]) -> Difference:
    """The mean over seeds and its standard error.

    The squared error is that of the users' mean, users drawn at random, and with several seeds the
    variance over seeds divided by their number. The first holds part of the second already, so the
    sum is rather too large. Of one seed it does not hold what another fit would change.
    """
    values = np.array([figure.value for figure in figures])
    parts = np.mean([figure.parts for figure in figures], axis=0)
    variance = parts.var() / len(parts)
    if len(values) > 1:
        variance += values.var(ddof=1) / len(values)
    return Difference(float(values.mean()), float(np.sqrt(variance)))


def difference(found: Rows, reference: Rows, k: int) -> Difference:
    """recall@k of one system minus that of another, pairs of the same seed and user."""
    return over_seeds([_minus(*pair) for pair in _pairs(found, reference, k)])


def growth(found: Rows, reference: Rows, k: int, larger: int) -> Difference:
    """How much larger the difference of recalls is @larger than @k."""
    at_k, at_larger = (
        [_minus(*pair) for pair in _pairs(found, reference, cutoff)] for cutoff in (k, larger)
    )
    return over_seeds(
        [
            Estimate(after.value - before.value, after.parts - before.parts)
            for before, after in zip(at_k, at_larger, strict=True)
        ]
    )


def kept(rows: Rows, k: int) -> Difference | None:
    """recall@k as a share of that of the rows' references; None where these find nothing."""
    shares = _shares(rows, k)
    return None if shares is None else over_seeds(shares)


def kept_more(found: Rows, reference: Rows, k: int) -> Difference | None:
    """How much more of its recall@k one system keeps than another; None likewise."""
    mine, others = _shares(found, k), _shares(reference, k)
    if mine is None or others is None:
        return None
    return over_seeds(
        [
            Estimate(one.value - other.value, one.parts - other.parts)
            for one, other in zip(mine, others, strict=True)
        ]
    )


def ranks_for(ranks: SystemRanks, k: int) -> TargetRanks:
    """Those of the requests that figures @k are of."""
    return ranks.long if k >= LONG and ranks.long is not None else ranks.item


def _pairs(found: Rows, reference: Rows, k: int) -> list[tuple[Estimate, Estimate]]:
    return [
        (_recall(one.ranks, k, one.horizon), _recall(other.ranks, k, other.horizon))
        for one, other in zip(found, reference, strict=True)
    ]


def _recall(ranks: SystemRanks, k: int, horizon: int) -> Estimate:
    hits = (ranks_for(ranks, k) <= k).reshape(-1, horizon).mean(axis=1)  # of each user
    return Estimate(float(hits.mean()), hits - hits.mean())


def _minus(one: Estimate, other: Estimate) -> Estimate:
    return Estimate(one.value - other.value, one.parts - other.parts)


def _shares(rows: Rows, k: int) -> list[Estimate] | None:
    """A ratio of two means, to first order."""
    shares = []
    for row in rows:
        whole = _recall(row.reference or row.ranks, k, row.horizon)
        part = _recall(row.ranks, k, row.horizon)
        if not whole.value:
            return None
        share = part.value / whole.value
        shares.append(Estimate(share, (part.parts - share * whole.parts) / whole.value))
    return shares
