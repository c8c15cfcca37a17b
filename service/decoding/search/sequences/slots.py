"""The slots of a sequence: which rows each of them owns, and where its positions are.

A slot is the place of an item in the sequence, the next item first; it has the positions slot * L
to (slot + 1) * L of the beams' partial SIDs. Knows nothing of scores.

codes: (num_items, L) uint16    L: num_subspaces
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Codes, Floats, Integers, Rows
from service.decoding.loops import compiled
from service.decoding.search.beams import SequenceBeams


class AllowedRows(NamedTuple):
    """What a job may answer with; every slot that is all masked owns these rows.

    rows:   (m,) int32, ascending
    is_allowed: (num_items,) bool
    first:  (L, num_codes) int32, the first of these rows with each code; -1 where there is none
    counts: (L, num_codes) int64, how many of them have it
    """

    rows: Rows
    is_allowed: NDArray[np.bool_]
    first: Rows
    counts: Integers


class SlotBiases(NamedTuple):
    """What scores of rows gain besides their codes; other rows gain nothing.

    rows: (n,) int32, ascending and distinct    values: (horizon, n) float32
    """

    rows: Rows
    values: Floats


@compiled
def allowed_rows_of(codes: Codes, num_codes: int, is_allowed: NDArray[np.bool_]) -> AllowedRows:
    """The rows that are allowed, and the codes that they have."""
    rows = np.nonzero(is_allowed)[0].astype(np.int32)
    first = np.full((codes.shape[1], num_codes), -1, np.int32)
    counts = np.zeros(first.shape, np.int64)
    for row in rows:
        for position in range(codes.shape[1]):
            code = codes[row, position]
            if counts[position, code] == 0:
                first[position, code] = row
            counts[position, code] += 1
    return AllowedRows(rows, is_allowed, first, counts)


@compiled
def rows_of(
    allowed_rows: Rows,
    beams: SequenceBeams,
    beam: int,
    slot: int,
    num_subspaces: int,
    num_codes: int,
) -> Rows:
    """The rows that a slot of a beam owns."""
    if is_all_masked(beams, beam, slot, num_subspaces, num_codes):
        return allowed_rows
    return beams.rows[beams.starts[beam, slot] : beams.stops[beam, slot]]


@compiled
def is_all_masked(
    beams: SequenceBeams, beam: int, slot: int, num_subspaces: int, num_codes: int
) -> bool:
    for position in range(slot * num_subspaces, (slot + 1) * num_subspaces):
        if beams.sids[beam, position] != num_codes:
            return False
    return True


@compiled
def places_of(positions: Integers, slot: int, num_subspaces: int) -> tuple[np.integer, np.integer]:
    """Where the masked positions of a slot begin and end among (n,) ascending positions."""
    begin = np.searchsorted(positions, slot * num_subspaces)
    return begin, np.searchsorted(positions, (slot + 1) * num_subspaces)
