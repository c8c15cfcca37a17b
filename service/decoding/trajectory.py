"""How the rows of an answer were found, call by call. Data only; a `Trail` puts it together.

Denoiser calls are counted from 1. A beam's row of the arrays below is what all its rows have in
common so far; an answer has one for each of its items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The way of each row of an answer through the search; n rows in the answer's order.

    filled: (n, num_subspaces) uint8, the call that filled the position: the one in which the item's
        beam chose it. What was not chosen was settled at once: by the call that left the beam
        decided, which is not asked again (`Beams.in_call`), for the rest follows from its rows;
        else by the last one, which scores whatever is masked for every survivor.
    log_probs: (n, num_subspaces) float32, the denoiser's log-prob of the item's code in that call;
        NaN where a decided beam left no choice
    survivors: (n, nfe) int32, catalogue rows that the item's beam owned after each call; after the
        last one no position is masked, so these are the allowed items that share its SID
    beam_scores: (n, nfe) float32, the beam's score after each call, as `Beams` has it (by the
        ranking "best" that of its path); after the last one the item's own
    """

    filled: NDArray[np.uint8]
    log_probs: NDArray[np.float32]
    survivors: NDArray[np.int32]
    beam_scores: NDArray[np.float32]
