"""The denoiser as one batch uses it: its active jobs' memories, one call a step, and the time.

A call asks of every job as many beams as of any other. Where the jobs' beams are about as many,
places without a beam fill up the rest. Where they are not, one job of 200 beams would make each of
its neighbours pay for 200, so that jobs are cut into chunks, and a chunk is to the network a job of
its own. Knows nothing of scores or rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Floats, Integers, Rows
from service.decoding.catalogue import Catalogue
from service.decoding.network import Denoiser, EncoderCache, Histories
from service.decoding.search.beams import Beams, CodeBeams
from service.decoding.search.decided_beams import question


class BatchDenoiser:
    """Counts and seconds so far: cache_hits, cache_misses, encode_s, denoise_s."""

    def __init__(
        self, denoiser: Denoiser, catalogue: Catalogue, cache: EncoderCache | None
    ) -> None:
        self._denoiser = denoiser
        self._catalogue = catalogue
        self._cache = cache
        self._memory: Any = None
        # The memory of the last call that was cut into chunks, and how many were each job's.
        self._of_chunks: tuple[list[int], Any] | None = None
        self.repeat_bias = denoiser.repeat_bias
        self.cache_hits = self.cache_misses = 0
        self.encode_s = self.denoise_s = 0.0

    def encode(self, histories: Sequence[Rows]) -> None:
        """Encode the active jobs' histories, or find them in the cache."""
        started = perf_counter()
        newest = [history[-self._denoiser.history_length :] for history in histories]
        if self._cache is None:
            self._memory = self._encoded(newest)
        else:
            self._memory, encoded = self._cache.memory_of(newest, self._denoiser, self._encoded)
            self.cache_hits, self.cache_misses = len(newest) - encoded, encoded
        self.encode_s += perf_counter() - started

    def keep(self, places: Sequence[int]) -> None:
        """Go on with these of the active jobs, in this order. places: at least one"""
        if self._memory is not None:
            self._memory = self._denoiser.select(self._memory, np.array(places))
            self._of_chunks = None

    def denoise(self, beams: Sequence[Beams | CodeBeams | None]) -> list[tuple[Floats, Integers]]:
        """One call; for each job log-probs of the masked positions, and which those are.

        beams: of each active job, some in the call; None = only the fully masked one
        Returns (>= num_in_call, n, num_codes) float32 and (>= num_in_call, n) int64 for each job,
        see `Denoiser.denoise`; what is behind the beams in the call means nothing.
        """
        num_subspaces, mask = self._catalogue.num_subspaces, self._catalogue.num_codes
        widths, left = [], 1
        for own in beams:
            widths.append(1 if own is None else own.num_in_call)
            num_masked = num_subspaces if own is None else own.sids[0].tolist().count(mask)
            left = max(left, num_masked)
        chunk = beams_of_a_chunk(widths)
        chunks = [-(-width // chunk) for width in widths]
        partial_sids = np.empty((sum(chunks), chunk, num_subspaces), np.uint16)
        positions = np.empty((len(partial_sids), chunk, left), np.int64)
        asked = of_jobs(positions, chunks)
        for own, of_job, asked_of in zip(beams, of_jobs(partial_sids, chunks), asked, strict=True):
            if own is None:
                of_job[:], asked_of[:] = mask, np.arange(num_subspaces)
            else:
                question(own.sids, own.in_call, mask, of_job, asked_of)
        started = perf_counter()
        memory = self._memory if len(partial_sids) == len(beams) else self._memory_of(chunks)
        log_probs = self._denoiser.denoise(memory, partial_sids, positions)
        self.denoise_s += perf_counter() - started
        if log_probs.shape != (*positions.shape, mask):  # compiled code checks no bounds
            raise ValueError(f"the denoiser's log-probs have the shape {log_probs.shape}")
        return list(zip(of_jobs(log_probs, chunks), asked, strict=True))

    def _memory_of(self, chunks: list[int]) -> Any:
        """Each job's memory once for every chunk of it."""
        if self._of_chunks is None or self._of_chunks[0] != chunks:
            owners = np.repeat(np.arange(len(chunks)), chunks)
            self._of_chunks = chunks, self._denoiser.select(self._memory, owners)
        return self._of_chunks[1]

    def _encoded(self, histories: Sequence[Rows]) -> Any:
        length = self._denoiser.history_length
        return self._denoiser.encode(Histories.of(histories, self._catalogue, length))


def beams_of_a_chunk(widths: Sequence[int]) -> int:
    """All that any job has, unless half of the call would be places without a beam.

    Else half of what a job has on average: the last chunk of each job wastes less than that, and
    less than a third of the call is wasted.
    """
    widest, total = max(widths), sum(widths)
    if len(widths) * widest <= 2 * total:
        return widest
    return max(1, total // (2 * len(widths)))


def of_jobs(array: NDArray[Any], chunks: Sequence[int]) -> Sequence[NDArray[Any]] | NDArray[Any]:
    """Each job's part of (chunks, beams, ...), as (beams, ...)."""
    if len(array) == len(chunks):
        return array
    ends = np.cumsum(chunks).tolist()
    return [
        array[end - own : end].reshape(-1, *array.shape[2:])
        for own, end in zip(chunks, ends, strict=True)
    ]
