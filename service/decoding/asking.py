"""Which beams the denoiser is asked about, and the question.

Ranked by rows, a beam whose rows share one SID is decided: no call can change its score, and none
is made for it.

codes: (num_items, num_subspaces) uint16
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.beams import Codes, Integers
from service.decoding.compiled import compiled
from service.decoding.job import Rows


@compiled
def places_asked(
    codes: Codes, starts: Integers, rows: Rows, by_rows: bool
) -> tuple[NDArray[np.int32], int]:
    """`asked` and `num_asked` of beams with these rows (`Beams`). by_rows: how they are ranked"""
    asked = np.empty(len(starts) - 1, np.int32)
    num_asked = 0
    for beam in range(len(asked)):
        first = rows[starts[beam]]
        decided = by_rows
        for i in range(starts[beam] + 1, starts[beam + 1]):
            if not decided:
                break
            for position in range(codes.shape[1]):
                decided &= codes[rows[i], position] == codes[first, position]
        asked[beam] = -1 if decided else num_asked
        num_asked += not decided
    return asked, num_asked


@compiled
def question(
    sids: Codes, asked: NDArray[np.int32], mask: int, partial_sids: Codes, positions: Integers
) -> None:
    """Fill in one job's part of a denoiser call.

    sids, asked:  see `Beams`
    partial_sids: (>= num_asked, num_subspaces), MASK at the places without a beam
    positions:    (>= num_asked, n), a beam's masked ones, the last again and again; zeros likewise
    """
    partial_sids[:] = mask
    positions[:] = 0
    for beam in range(len(sids)):
        place = asked[beam]
        if place >= 0:
            found = 0
            for position in range(sids.shape[1]):
                partial_sids[place, position] = sids[beam, position]
                if sids[beam, position] == mask:
                    positions[place, found:] = position
                    found += 1
