"""SIDs that no other item has, for items whose codes are the same as those of others.

Either a digit behind the codes tells items apart (MaskGR, after TIGER), or the last code is the
nearest one that is free (the collision-free reassignment of arXiv 2605.25330). Both are one thing
here: the last position of a SID is chosen among the codes that no item with the same first codes
has. Items choose one after the other. Knows no vectors: it is told how near a code is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Collisions = Literal["keep", "digit", "reassign"]
Codes = NDArray[np.uint16]

ITEMS_AT_ONCE = 1024  # limits memory: each has a number for every code
CODES = 1 << 16  # more than the codes of any position


def with_digit(codes: Codes, collisions: Collisions) -> Codes:
    """The SIDs that these codes would have if no other item was there: digits are 0."""
    return np.pad(codes, ((0, 0), (0, 1))) if collisions == "digit" else codes


def by_number(num_items: int, num_codes: int) -> NDArray[np.float64]:
    """(num_items, num_codes): how near each digit is. The lowest is the nearest."""
    return np.tile(-np.arange(num_codes, dtype=np.float64), (num_items, 1))


def free_sids(
    wanted: Codes, taken: Codes, nearness_of: Callable[[slice], NDArray[np.float64]]
) -> Codes:
    """For each item, in order, a SID that is not taken: the one it wants, or with another end.

    wanted, taken: (n, num_positions) and (m, num_positions)
    nearness_of: (items of the slice, num_codes), which code at the last position is the next best.
        The wanted one is the best, whatever this says. The array is written to
    An item for which nothing is free gets what it wants, and so shares it.
    """
    sids = wanted.copy()
    for start in range(0, len(wanted), ITEMS_AT_ONCE):
        part = slice(start, start + ITEMS_AT_ONCE)
        before = np.concatenate((taken, sids[:start])) if start else taken
        sids[part, -1] = _free_ends(wanted[part], before, nearness_of(part))
    return sids


def _free_ends(wanted: Codes, taken: Codes, nearness: NDArray[np.float64]) -> Codes:
    """Codes of the last position, for items that choose one after the other."""
    num_items, num_codes = nearness.shape
    groups, rows, groups_of_rows = _same_beginnings(wanted[:, :-1], taken[:, :-1])
    is_taken = np.zeros((num_items, num_codes), dtype=bool)  # at most a group for each item
    is_taken[groups_of_rows, taken[rows, -1]] = True
    ends = wanted[:, -1].copy()
    nearness[np.arange(num_items), ends] = np.inf
    turns = _turns(groups)
    for turn in range(int(turns.max()) + 1):  # of every group the next item
        items = np.flatnonzero(turns == turn)
        closed = is_taken[groups[items]]
        best = np.where(closed, -np.inf, nearness[items]).argmax(axis=1)
        ends[items] = np.where(closed.all(axis=1), ends[items], best)
        is_taken[groups[items], ends[items]] = True
    return ends


def _same_beginnings(
    wanted: Codes, taken: Codes
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Which first codes are the same: (n,) group of each wanted, rows of `taken`, their groups."""
    groups = np.zeros(len(wanted), np.intp)
    rows, groups_of_rows = np.arange(len(taken)), np.zeros(len(taken), np.intp)
    for position in range(wanted.shape[1]):
        keys, groups = np.unique(groups * CODES + wanted[:, position], return_inverse=True)
        sought = groups_of_rows * CODES + taken[rows, position]
        found = np.minimum(np.searchsorted(keys, sought), len(keys) - 1)
        is_same = keys[found] == sought
        rows, groups_of_rows = rows[is_same], found[is_same]
    return groups, rows, groups_of_rows


def _turns(groups: NDArray[np.intp]) -> NDArray[np.intp]:
    """How many items of the same group come before each item."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    turns = np.empty(len(groups), np.intp)
    turns[order] = np.arange(len(groups)) - np.searchsorted(ordered, ordered)
    return turns
