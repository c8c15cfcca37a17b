"""Denoisers without a network: log-probs are a hash of the inputs that a network would get.

A hash is a pure function of one job's history and one partial SID. So other jobs in the batch
cannot change it, and a search that mixes up jobs, beams or positions gets different numbers.
Log-probs are multiples of 2**-16: sums of them are exact in float32 in any order, so a search can
be compared with a reference row by row. Outputs that nobody may use, those for repeats and for
places without a beam, claim to be certain of everything, as a trap.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.decoding.network.denoiser import Histories


class HashedDenoiser:
    """Random log-probs, the same ones whenever the inputs are the same.

    sharpness:        spread of the logits; 4 is a hesitant network, 300 one that is always certain
    sees_partial_sid: False makes every call of a job give the same log-probs, so that a SID's
                      score does not depend on the order in which its positions are filled
    repeat_bias:      what the score of an item of the history gains
    horizon:          how many items it is asked for in every call
    calls:            partial SIDs of every call so far, each (jobs, beams, num_subspaces)
    """

    wants_all_masks = True  # as the search does; a left-to-right one wants the next one only

    def __init__(
        self,
        num_subspaces: int,
        num_codes: int,
        *,
        seed: int = 0,
        history_length: int = 5,
        sharpness: float = 4.0,
        sees_partial_sid: bool = True,
        repeat_bias: float = 0.0,
        horizon: int = 1,
    ) -> None:
        self.horizon = horizon
        self.num_subspaces = num_subspaces
        self.num_codes = num_codes
        self.history_length = history_length
        self.seed = seed
        self.sharpness = sharpness
        self.sees_partial_sid = sees_partial_sid
        self.repeat_bias = repeat_bias
        self.calls: list[NDArray[np.uint16]] = []

    def encode(self, histories: Histories) -> NDArray[np.uint64]:
        codes, vectors, mask = histories
        num_jobs, length, num_subspaces = codes.shape
        assert codes.dtype == np.uint16
        assert vectors.dtype == np.float16
        assert mask.dtype == np.bool_
        assert mask.shape == vectors.shape[:2] == (num_jobs, length)
        assert num_subspaces == self.num_subspaces
        assert 1 <= length <= self.history_length
        assert np.all(codes[~mask] == self.num_codes), "PAD is a row of MASK"
        assert not vectors[~mask].any(), "PAD has no vector"
        assert not np.any(~mask[:, :-1] & mask[:, 1:]), "PAD comes last"
        bits = vectors.view(np.uint16)
        hashes = np.full(num_jobs, self.seed, dtype=np.uint64)
        for item in range(length):
            with_item = _fold(_fold(hashes, codes[:, item]), bits[:, item])
            hashes = np.where(mask[:, item], with_item, hashes)
        return hashes

    def select(self, memory: NDArray[np.uint64], jobs: NDArray[np.intp]) -> NDArray[np.uint64]:
        return memory[jobs]

    def join(self, memories: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
        return np.concatenate(memories)

    def denoise(
        self,
        memory: NDArray[np.uint64],
        partial_sids: NDArray[np.uint16],
        positions: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        num_jobs, num_beams, num_subspaces = partial_sids.shape
        assert partial_sids.dtype == np.uint16
        assert positions.dtype == np.int64
        assert memory.shape == (num_jobs,)
        assert positions.shape[:2] == (num_jobs, num_beams)
        assert num_subspaces == self.horizon * self.num_subspaces
        masked = partial_sids == self.num_codes
        difficulty = masked.sum(axis=-1)
        fresh = np.diff(positions, axis=-1, prepend=-1) > 0
        if num_subspaces > 1 and self.wants_all_masks:  # else a beam looks like none
            fresh &= ~(masked.all(axis=-1) & ~positions.any(axis=-1))[..., None]
        is_beam = fresh.any(axis=-1)
        asked = np.zeros_like(masked)
        np.put_along_axis(asked, positions, True, axis=-1)
        assert not np.any(asked[is_beam] & ~masked[is_beam]), "only MASKs are asked for"
        assert np.all(np.diff(positions, axis=-1) >= 0), "positions ascend"
        assert not np.any(fresh[..., 1:] & ~fresh[..., :-1]), "only the last one is repeated"
        if self.wants_all_masks:
            assert np.all(asked[is_beam] == masked[is_beam]), "exactly the MASKs are asked for"
            assert fresh.all(axis=-1).any(), "no beam has as many MASKs as are asked for"
        self.calls.append(partial_sids.copy())

        told = np.repeat(memory[:, None], num_beams, axis=1)
        if self.sees_partial_sid:
            told = _fold(_mix(told, difficulty.astype(np.uint64)), partial_sids)
        at_position = _mix(told[..., None], np.arange(num_subspaces, dtype=np.uint64))
        at_code = _mix(at_position[..., None], np.arange(self.num_codes, dtype=np.uint64))
        log_probs = np.take_along_axis(self._log_probs(at_code), positions[..., None], axis=2)
        return np.where(fresh[..., None], log_probs, 0.0).astype(np.float32)

    def _log_probs(self, hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Normalised up to the rounding."""
        logits = self.sharpness * (hashes >> np.uint64(11)) / 2.0**53
        log_probs = logits - np.log(np.exp(logits - self.sharpness).sum(axis=-1, keepdims=True))
        return np.round((log_probs - self.sharpness) * 65536) / 65536


class TyingDenoiser(HashedDenoiser):
    """Ties everywhere: a code is either likely or 200 nats less likely, nothing in between."""

    def _log_probs(self, hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
        return np.where(hashes >> np.uint64(63), -1.0, -201.0)


def _fold(hashes: NDArray[np.uint64], codes: NDArray[np.uint16]) -> NDArray[np.uint64]:
    """Mix all codes of a SID, or a vector's bits, into a hash: hashes (...), codes (..., n)."""
    for position in range(codes.shape[-1]):
        hashes = _mix(hashes, codes[..., position].astype(np.uint64))
    return hashes


def _mix(hashes: NDArray[np.uint64], values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One round of SplitMix64."""
    mixed = (hashes + np.uint64(0x9E3779B97F4A7C15)) ^ (values * np.uint64(0xD1B54A32D192ED03))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
