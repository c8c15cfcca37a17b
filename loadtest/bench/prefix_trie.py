"""Left-to-right beam search over a prefix trie, as in other generative recommenders.

The trie holds the distinct prefixes of the catalogue's SIDs, level by level as CSR arrays, like
youtube's STATIC. The search fills position after position with one denoiser call each, and keeps
the `beam_width` children with the best path scores. It is an oracle for the any-order search in
tests and its competitor in decode_bench. Knows no priors, no exclusions, no batches.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.decoding import Catalogue, Decoded, Denoiser, Histories, Job, Timings

Indices = NDArray[np.int64]
Floats = NDArray[np.float32]


class PrefixTrie:
    """Distinct prefixes of SIDs: node j of level p is the j-th prefix of p + 1 codes, in order.

    codes[p]:   (nodes of level p,) uint16, last code of each prefix
    indptr[p]:  (nodes of level p - 1, plus 1) int64: children of node j of the level above are
                indptr[p][j]:indptr[p][j + 1]; above level 0 there is one node, the empty prefix
    indptr[-1]: (nodes of the last level, plus 1) int64: the rows of each SID, in `rows`
    rows:       (num_items,) int32, ordered by SID, then row
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        order = np.lexsort(catalogue.codes.T[::-1])
        self.rows: NDArray[np.int32] = order.astype(np.int32)
        ordered = catalogue.codes[order]
        self.codes: list[NDArray[np.uint16]] = []
        self.indptr: list[Indices] = []
        begins = np.zeros(len(order), bool)  # where a row has another prefix than the row before
        begins[0] = True
        above = np.zeros(1, np.int64)
        for position in range(catalogue.num_subspaces):
            begins[1:] |= ordered[1:, position] != ordered[:-1, position]
            starts = np.flatnonzero(begins)
            self.codes.append(ordered[starts, position])
            self.indptr.append(np.append(np.searchsorted(starts, above), len(starts)))
            above = starts
        self.indptr.append(np.append(above, len(order)))

    @property
    def index_bytes(self) -> int:
        """Bytes of all arrays; the search needs no others of the catalogue."""
        arrays: list[NDArray[Any]] = [self.rows, *self.codes, *self.indptr]
        return sum(array.nbytes for array in arrays)

    def children(self, level: int, nodes: Indices) -> tuple[Indices, Indices]:
        """Children in `level` of these nodes of the level above, and for each its place in `nodes`.

        The last level is num_subspaces; its children are places in `rows`.
        """
        starts = self.indptr[level][nodes]
        lengths = self.indptr[level][nodes + 1] - starts
        parent = np.repeat(np.arange(len(nodes)), lengths)
        before = np.cumsum(lengths) - lengths
        return np.arange(len(parent)) + (starts - before)[parent], parent


def decode_left_to_right(job: Job, trie: PrefixTrie, denoiser: Denoiser) -> tuple[Decoded, Timings]:
    """Decode one job by path score. Its schedule is ignored: the answer is that of (L, 1).

    Ties: of two children the one with the better parent comes first, then the lower code; of two
    items the lower row.
    Raises ValueError if the job excludes rows, because a prefix trie is made for all of them.
    """
    if len(job.excluded):
        raise ValueError("a prefix trie cannot leave rows out")
    started = perf_counter()
    histories = Histories.of([job.history], trie.catalogue, denoiser.history_length)
    memory = denoiser.encode(histories)
    encode_s, denoise_s = perf_counter() - started, 0.0
    num_subspaces = trie.catalogue.num_subspaces
    sids = np.full((1, num_subspaces), denoiser.num_codes, np.uint16)
    nodes, scores = np.zeros(1, np.int64), np.zeros(1, np.float32)
    for position in range(num_subspaces):
        asked = perf_counter()
        log_probs = _log_probs_at(position, sids, memory, denoiser)
        denoise_s += perf_counter() - asked
        nodes, parent = trie.children(position, nodes)
        codes = trie.codes[position][nodes]
        scores = scores[parent] + log_probs[parent, codes]
        if position < num_subspaces - 1:  # the last children are ranked as rows
            kept = _best(scores, job.beam_width)
            nodes, parent, codes, scores = nodes[kept], parent[kept], codes[kept], scores[kept]
        sids = sids[parent]
        sids[:, position] = codes
    places, parent = trie.children(num_subspaces, nodes)
    rows, scores = trie.rows[places], scores[parent]
    by_row = np.argsort(rows)
    best = by_row[_best(scores[by_row], job.k)]
    decoded = Decoded(rows[best], scores[best], nfe=num_subspaces)
    total = perf_counter() - started
    return decoded, Timings(encode_s, denoise_s, total - encode_s - denoise_s)


def _log_probs_at(
    position: int, sids: NDArray[np.uint16], memory: Any, denoiser: Denoiser
) -> Floats:
    """(beams, num_codes) float32: one denoiser call for the next position of every beam."""
    positions = np.full((1, len(sids), 1), position)
    return denoiser.denoise(memory, sids[None], positions)[0, :, 0]


def _best(scores: Floats, num_best: int) -> NDArray[np.intp]:
    """Indices of the highest scores, best first; ties in the order of the indices."""
    if len(scores) <= num_best:
        return np.argsort(-scores, kind="stable")
    threshold = np.partition(scores, len(scores) - num_best)[len(scores) - num_best]
    candidates = np.flatnonzero(scores >= threshold)
    return candidates[np.argsort(-scores[candidates], kind="stable")[:num_best]]
