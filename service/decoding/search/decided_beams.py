"""Which beams the denoiser is asked about, and the question.

Ranked by rows, a beam whose rows share one SID is decided: no call can change its score, and none
is made for it.

codes: (num_items, num_subspaces) uint16
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Codes, Integers, Rows
from service.decoding.loops import compiled
from service.decoding.network import list_masked


@compiled
def in_next_call(
    codes: Codes, starts: Integers, rows: Rows, by_rows: bool
) -> tuple[NDArray[np.int32], int]:
    """`in_call` and `num_in_call` of beams with these rows (`Beams`).

    by_rows: whether they are ranked by rows
    """
    in_call = np.empty(len(starts) - 1, np.int32)
    num_in_call = 0
    for beam in range(len(in_call)):
        first = rows[starts[beam]]
        decided = by_rows
        for i in range(starts[beam] + 1, starts[beam + 1]):
            if not decided:
                break
            for position in range(codes.shape[1]):
                decided &= codes[rows[i], position] == codes[first, position]
        in_call[beam] = -1 if decided else num_in_call
        num_in_call += not decided
    return in_call, num_in_call


@compiled
def question(
    sids: Codes, in_call: NDArray[np.int32], mask: int, partial_sids: Codes, positions: Integers
) -> None:
    """Fill in one job's part of a denoiser call.

    sids, in_call: see `Beams`
    partial_sids: (>= num_in_call, num_subspaces), MASK at the places without a beam
    positions:    (>= num_in_call, n), a beam's masked ones, the last repeated; zeros likewise
    """
    partial_sids[:] = mask
    positions[:] = 0
    for beam in range(len(sids)):
        if in_call[beam] >= 0:
            partial_sids[in_call[beam]] = sids[beam]
            list_masked(sids[beam], mask, positions[in_call[beam]])
