"""What the search keeps of each call of a job that is traced. Data only."""

from __future__ import annotations

from typing import NamedTuple

from service.decoding.arrays import Floats, Rows
from service.decoding.search.beams import Beams, PostingListBeams


class TracedCall(NamedTuple):
    """A denoiser call for the live beams of one job, and what the search made of it.

    beams: that were asked about; those of the first call are the fully masked one, with its rows
    log_probs: (>= num_undecided, >= n, num_codes) float32, see `Denoiser.denoise`; None if all
        beams were decided, so that no call was made
    children: the beams that were kept; None where the search chose among rows
    found: the rows and scores that were chosen; None where beams were kept
    is_refill: whether the beams are finished rows of which codes were masked again
    """

    beams: Beams | PostingListBeams
    log_probs: Floats | None
    children: Beams | PostingListBeams | None
    found: tuple[Rows, Floats] | None
    is_refill: bool
