"""What the search needs from a network: encode histories once, then denoise partial SIDs.

A protocol, so that ONNX Runtime, a torch module under training and a random test double drive the
same search. Implementations know nothing of catalogues, beams' scores or tries.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.decoding.job import Histories


class Denoiser(Protocol):
    """Predicts the codes at masked positions of partial SIDs, given encoded histories.

    The code `num_codes` is MASK. `repeat_bias` is what the score of an item gains when the history
    holds it already; with codes alone a network cannot tell it from its likes.
    """

    num_subspaces: int
    num_codes: int
    history_length: int
    repeat_bias: float

    def encode(self, histories: Histories) -> Any:
        """Encode histories of at most `history_length` items; `denoise` gets the result back."""
        ...

    def select(self, memory: Any, jobs: NDArray[np.intp]) -> Any:
        """The memory of some of the jobs only, in the order given."""
        ...

    def denoise(
        self,
        memory: Any,
        partial_sids: NDArray[np.uint16],
        difficulty: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """Log-probs of every code at every position; rows of filled positions are not defined.

        partial_sids: (jobs, beams, num_subspaces) uint16, MASK where not yet filled
        difficulty:   (jobs,) int64, number of masked positions (equal for all beams of a job)
        Returns (jobs, beams, num_subspaces, num_codes) float32.
        """
        ...
