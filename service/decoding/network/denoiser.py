"""What the search needs from a network: encode histories once, then denoise partial SIDs.

A protocol, so that ONNX Runtime, a torch module in training and a random test double all serve the
same search. Implementations know nothing of tries or of the scores of beams.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Rows
from service.decoding.catalogue import Catalogue
from service.decoding.loops import compiled


@compiled
def list_masked(sid: NDArray[np.uint16], mask: int, positions: NDArray[np.int64]) -> None:
    """Fill in a partial SID's masked positions, ascending.

    positions: (n,) if more are masked, the first n; if fewer are, the last one is repeated
    """
    found = 0
    for position in range(len(sid)):
        if found < len(positions) and sid[position] == mask:
            positions[found:] = position
            found += 1


@compiled
def masked_positions(sids: NDArray[np.uint16], mask: int) -> NDArray[np.int64]:
    """The masked positions of partial SIDs, as `Denoiser.denoise` wants them.

    sids: (jobs, beams, num_subspaces) uint16, each with at least one MASK
    Returns (jobs, beams, n) int64; n is the largest number of masked positions of any beam.
    """
    num_jobs, num_beams, _ = sids.shape
    most = 0
    for job in range(num_jobs):
        for beam in range(num_beams):
            most = max(most, int((sids[job, beam] == mask).sum()))
    positions = np.empty((num_jobs, num_beams, most), np.int64)
    for job in range(num_jobs):
        for beam in range(num_beams):
            list_masked(sids[job, beam], mask, positions[job, beam])
    return positions


class Histories(NamedTuple):
    """Histories of a batch as the denoiser reads them, oldest item first, padded at the end.

    codes:   (jobs, length, num_subspaces) uint16, MASK where padded; length >= 1
    vectors: (jobs, length, d) float16, zeros where padded
    mask:    (jobs, length) bool, true where there is an item
    """

    codes: NDArray[np.uint16]
    vectors: NDArray[np.float16]
    mask: NDArray[np.bool_]

    @classmethod
    def of(cls, histories: Sequence[Rows], catalogue: Catalogue, history_length: int) -> Histories:
        """The newest `history_length` items of each history."""
        newest = [history[-history_length:] for history in histories]
        lengths = np.array([len(history) for history in newest])
        length = max(1, int(lengths.max()))
        mask = np.arange(length) < lengths[:, None]
        shape, rows = (len(newest), length), np.concatenate(newest)
        codes = np.full((*shape, catalogue.num_subspaces), catalogue.num_codes, np.uint16)
        vectors = np.zeros((*shape, catalogue.vectors.shape[1]), np.float16)
        codes[mask], vectors[mask] = catalogue.codes[rows], catalogue.vectors[rows]
        return cls(codes, vectors, mask)


class Denoiser(Protocol):
    """Predicts the codes at masked positions of partial SIDs, given encoded histories.

    The code `num_codes` is MASK. `repeat_bias` is added to the score of an item that the history
    holds
    already: a network that sees codes alone takes items with the same codes for one item.
    """

    num_subspaces: int
    num_codes: int
    history_length: int
    repeat_bias: float

    def encode(self, histories: Histories) -> Any:
        """Encode histories of at most `history_length` items. `denoise` gets the result."""
        ...

    def select(self, memory: Any, jobs: NDArray[np.intp]) -> Any:
        """The memory of some of the jobs, in the order given; the same job may be there twice."""
        ...

    def join(self, memories: Sequence[Any]) -> Any:
        """One memory of all jobs of one or more memories, in the order given."""
        ...

    def denoise(
        self,
        memory: Any,
        partial_sids: NDArray[np.uint16],
        positions: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """Log-probs of every code at the given masked positions.

        A beam's difficulty, an input of the network, is the number of its MASKs.

        partial_sids: (jobs, beams, num_subspaces) uint16, MASK where not yet filled
        positions:    (jobs, beams, n) int64, a beam's masked positions, ascending. n is the largest
                      number of any beam; a beam with fewer repeats its last one, and results for
                      the repeats mean nothing. A place without a beam holds MASKs, and its
                      positions are 0.
        Returns (jobs, beams, n, num_codes) float32.
        """
        ...


class DenseHead(Protocol):
    """Predicts the content of the next item: a query for each encoded history.

    The score of an item is the dot product of the query with its content, which is the first `dims`
    numbers of its vector. All content has one norm, so this is cosine / temperature, the logit of
    the loss (arXiv 2511.23021, dense retrieval).

    weight: share of the dense head when its probabilities are mixed with those of the beams, [0, 1]
    """

    dims: int
    weight: float

    def queries(self, memory: Any) -> NDArray[np.float32]:
        """(jobs, dims) float32. memory: what `Denoiser.encode` gave"""
        ...
