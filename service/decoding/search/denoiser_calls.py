"""The denoiser calls of one batch: one per step for all jobs, with their memories and times.

A call is a rectangle: it has room for equally many beams of every job. If the jobs have about
equally many beams, empty places fill up the rest. If not, one job of 200 beams would make each of
its neighbours pay for 200. So jobs are then cut into chunks, and the network sees each chunk as a
job of its own. Jobs that are guided have a second call, which sees no history. Knows nothing of
scores or rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Codes, Floats, Integers, Rows
from service.decoding.catalogue import Catalogue
from service.decoding.job import Timings
from service.decoding.loops import compiled
from service.decoding.network import Denoiser, DenseHead, EncoderCache, Histories, list_masked
from service.decoding.search.beams import Beams, PostingListBeams, SequenceBeams

LEAST_LOG_PROB = -1e4  # an impossible code is no reason for an infinite score


class BatchDenoiser:
    """Encodes and denoises for one batch.

    cache_hits, cache_misses: histories so far    encode_s, denoise_s: seconds so far
    calls: so far
    """

    def __init__(
        self,
        denoiser: Denoiser,
        catalogue: Catalogue,
        cache: EncoderCache | None,
        horizon: int = 1,
    ) -> None:
        """horizon: of all jobs of the batch"""
        self._num_positions = horizon * catalogue.num_subspaces
        self._denoiser = denoiser
        self._catalogue = catalogue
        self._cache = cache
        self._memory: Any = None
        self._nothing: Any = None  # the memory of an empty history, if a job is guided
        # The last call that was cut into chunks: how many each job had, and their memory.
        self._of_chunks: tuple[list[int], Any] | None = None
        self.repeat_bias = denoiser.repeat_bias
        self.cache_hits = self.cache_misses = 0
        self.encode_s = self.denoise_s = 0.0
        self.calls = 0

    def encode(self, histories: Sequence[Rows], *, guided: bool = False) -> None:
        """Encode the active jobs' histories, or find them in the cache.

        guided: whether some of them are guided, so that an empty history is encoded too
        """
        started = perf_counter()
        newest = [history[-self._denoiser.history_length :] for history in histories]
        newest += [np.empty(0, np.int32)] * guided
        if self._cache is None:
            self._memory = self._encoded(newest)
        else:
            self._memory, encoded = self._cache.memory_of(newest, self._denoiser, self._encoded)
            self.cache_hits, self.cache_misses = len(newest) - encoded, encoded
        if guided:
            everybody = np.arange(len(histories))
            self._nothing = self._denoiser.select(self._memory, np.array([len(histories)]))
            self._memory = self._denoiser.select(self._memory, everybody)
        self.encode_s += perf_counter() - started

    def queries(self, dense: DenseHead) -> Floats:
        """(active jobs, dense.dims) what the dense head asks for."""
        started = perf_counter()
        queries = dense.queries(self._memory)
        self.encode_s += perf_counter() - started
        if queries.shape[1] != dense.dims:  # compiled code checks no bounds
            raise ValueError(f"the dense head's queries have the shape {queries.shape}")
        return queries

    def keep_jobs(self, places: Sequence[int]) -> None:
        """Drop all active jobs but these, and put them in this order. places: at least one"""
        if self._memory is not None:
            self._memory = self._denoiser.select(self._memory, np.array(places))
            self._of_chunks = None

    def timings(self, started: float) -> Timings:
        """Of a batch that began then, so far; what is not inside the network is search."""
        search_s = perf_counter() - started - self.encode_s - self.denoise_s
        hits, misses = self.cache_hits, self.cache_misses
        return Timings(self.encode_s, self.denoise_s, search_s, hits, misses, self.calls)

    def denoise(
        self,
        beams: Sequence[Beams | PostingListBeams | SequenceBeams | None],
        guidance: Sequence[float] = (),
    ) -> list[tuple[Floats, Integers]]:
        """One call, or two if a job is guided.

        For each job log-probs of the masked positions, and which positions those are.

        beams: of each active job, not all of them decided; None = the fully masked beam only
        guidance: of each active job, 0 = not guided; nothing = none of them is
        Returns (>= num_undecided, n, num_codes) float32 and (>= num_undecided, n) int64 for each
        job, see `Denoiser.denoise`. Entries behind the undecided beams mean nothing.
        """
        num_positions, mask = self._num_positions, self._catalogue.num_codes
        widths, left = [], 1
        for own in beams:
            widths.append(1 if own is None else own.num_undecided)
            num_masked = num_positions if own is None else own.sids[0].tolist().count(mask)
            left = max(left, num_masked)
        chunk = beams_per_chunk(widths)
        chunks = [-(-width // chunk) for width in widths]
        partial_sids = np.empty((sum(chunks), chunk, num_positions), np.uint16)
        positions = np.empty((len(partial_sids), chunk, left), np.int64)
        job_sids, job_positions = (split_by_job(a, chunks) for a in (partial_sids, positions))
        for own, own_sids, own_positions in zip(beams, job_sids, job_positions, strict=True):
            if own is None:
                own_sids[:], own_positions[:] = mask, np.arange(num_positions)
            else:
                _fill_call(own.sids, own.call_index, mask, own_sids, own_positions)
        started = perf_counter()
        memory = self._memory if len(partial_sids) == len(beams) else self._memory_of(chunks)
        log_probs = self._denoiser.denoise(memory, partial_sids, positions)
        self.calls += 1
        if any(guidance):
            weights = np.repeat(np.array(guidance, np.float32), chunks)
            log_probs = self._guided(log_probs, partial_sids, positions, weights)
        self.denoise_s += perf_counter() - started
        if log_probs.shape != (*positions.shape, mask):  # compiled code checks no bounds
            raise ValueError(f"the denoiser's log-probs have the shape {log_probs.shape}")
        return list(zip(split_by_job(log_probs, chunks), job_positions, strict=True))

    def _guided(
        self,
        log_probs: Floats,
        partial_sids: Codes,
        positions: Integers,
        guidance: NDArray[np.float32],
    ) -> Floats:
        """The log-probs of a call, those of chunks with guidance pulled away from no history."""
        chosen = np.flatnonzero(guidance)
        sids = partial_sids[chosen]
        left = max(1, int((sids == self._catalogue.num_codes).sum(axis=-1).max()))
        alone = self._denoiser.select(self._nothing, np.zeros(len(chosen), np.intp))
        without = self._denoiser.denoise(alone, sids, positions[chosen, :, :left])
        self.calls += 1
        log_probs = log_probs.copy()
        log_probs[chosen, :, :left] = guided_log_probs(
            log_probs[chosen, :, :left], without, guidance[chosen, None, None, None]
        )
        return log_probs

    def _memory_of(self, chunks: list[int]) -> Any:
        """Each job's memory, repeated for each of its chunks."""
        if self._of_chunks is None or self._of_chunks[0] != chunks:
            owners = np.repeat(np.arange(len(chunks)), chunks)
            self._of_chunks = chunks, self._denoiser.select(self._memory, owners)
        return self._of_chunks[1]

    def _encoded(self, histories: Sequence[Rows]) -> Any:
        length = self._denoiser.history_length
        return self._denoiser.encode(Histories.of(histories, self._catalogue, length))


def guided_log_probs(given: Floats, without: Floats, guidance: Floats) -> Floats:
    """Classifier-free guidance: (1 + w) log p(code | history) - w log p(code), normalised again.

    (Ho and Salimans, arXiv 2207.12598) given, without: (..., num_codes); guidance: broadcast to it
    A code that is impossible with the history stays so.
    """
    mixed = given + guidance * (given - np.maximum(without, np.float32(LEAST_LOG_PROB)))
    with np.errstate(invalid="ignore"):  # no code is possible: the search drops nan
        mixed = mixed - mixed.max(axis=-1, keepdims=True)
    mass = np.log(np.exp(mixed).sum(axis=-1, keepdims=True))
    found: Floats = (mixed - mass).astype(np.float32)
    return found


def beams_per_chunk(widths: Sequence[int]) -> int:
    """How many beams a chunk has: those of the widest job, unless half of the call would be empty.

    Else half of a job's average number of beams. Then the last chunk of each job wastes less than
    that, and less than a third of the call is wasted.

    widths: undecided beams of each job
    """
    widest, total = max(widths), sum(widths)
    if len(widths) * widest <= 2 * total:
        return widest
    return max(1, total // (2 * len(widths)))


def split_by_job(
    array: NDArray[Any], chunks: Sequence[int]
) -> Sequence[NDArray[Any]] | NDArray[Any]:
    """Each job's part of (chunks, beams, ...), as (beams, ...). chunks: how many each job has"""
    if len(array) == len(chunks):
        return array
    ends = np.cumsum(chunks).tolist()
    return [
        array[end - own : end].reshape(-1, *array.shape[2:])
        for own, end in zip(chunks, ends, strict=True)
    ]


@compiled
def _fill_call(
    sids: Codes, call_index: NDArray[np.int32], mask: int, partial_sids: Codes, positions: Integers
) -> None:
    """Fill in one job's part of a denoiser call.

    sids, call_index: see `Beams`
    partial_sids: (>= num_undecided, num_positions), MASK at the places without a beam
    positions:    (>= num_undecided, n), a beam's masked positions, the last one repeated; zeros at
                  the places without a beam
    """
    partial_sids[:] = mask
    positions[:] = 0
    for beam in range(len(sids)):
        if call_index[beam] >= 0:
            partial_sids[call_index[beam]] = sids[beam]
            list_masked(sids[beam], mask, positions[call_index[beam]])
