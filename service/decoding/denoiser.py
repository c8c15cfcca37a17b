"""What the search needs from a network: encode histories once, then denoise partial SIDs.

A protocol, so that ONNX Runtime, a torch module under training and a random test double drive the
same search. Implementations know nothing of catalogues, beams' scores or tries.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Denoiser(Protocol):
    """Predicts the codes at masked positions of partial SIDs, given encoded histories.

    The code `num_codes` is MASK. A history is padded at its end with rows of MASK; `history_mask`
    says which entries are real.
    """

    num_subspaces: int
    num_codes: int
    history_length: int

    def encode(self, history_codes: NDArray[np.uint16], history_mask: NDArray[np.bool_]) -> Any:
        """Encode histories, oldest item first; the result is passed back to `denoise` untouched.

        history_codes: (jobs, length, num_subspaces) uint16, length <= history_length
        history_mask:  (jobs, length) bool
        """
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
