"""Dense retrieval: the rows whose content is nearest to what the dense head expects next.

A query is multiplied with the content of every allowed row, exactly; there is no index. Filters and
exclusions leave rows out before that, so a filtered job still gets its `k`. Knows no beams and no
network.

query:   (dims,) float32, see `service.decoding.network.DenseHead`
vectors: (num_items, d) float16, content first, d >= dims
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Floats, Rows
from service.decoding.catalogue import AllowedRows
from service.decoding.loops import (
    BLOCK,
    compiled,
    compiled_in_any_order,
    exponentiate,
    heap,
    highest_of,
)
from service.decoding.search.row_biases import RowBiases
from service.decoding.search.rows.whole_catalogue import allowed_rows, rows_not_excluded

LEAST = 1e-300  # a probability that float64 can still take the logarithm of
SHIFT = np.float32(2.0**112)  # between the exponents of float16 and float32


def best_by_content(
    vectors: NDArray[np.float16],
    query: Floats,
    allowed: AllowedRows | None,
    biases: RowBiases,
    k: int,
) -> tuple[tuple[Rows, Floats], int]:
    """The k best rows that the job allows, best first, ties by row; and how many it allows.

    allowed: the rows that its filter allows    biases: of this job, without its filter
    Scores are log-probabilities: a softmax of dot product and bias over all allowed rows.
    """
    if allowed is None:
        rows, own_biases = allowed_rows(biases.values, biases.num_excluded)
    else:
        rows, own_biases = rows_not_excluded(allowed.rows, biases.values)
    content = vectors[:, : len(query)].view(np.uint16)
    return _best(content, query * SHIFT, rows, own_biases, k), len(rows)


def fused(
    found: tuple[Rows, Floats], dense: tuple[Rows, Floats], weight: float, k: int
) -> tuple[Rows, Floats]:
    """The k best of the beams' items and of the dense head's, by a mixture of probabilities.

        p(row) = (1 - weight) * p_beams(row) + weight * p_dense(row)

    p_beams is a softmax of the scores of all items that the beams found, 0 for others. So it does
    not matter how beams were ranked, and an item that only one of the two found has its place.
    found, dense: rows and scores, the rows of each distinct. Returns logarithms, best first, ties
    by row.
    """
    of_beams = np.exp(found[1].astype(np.float64) - found[1].max(initial=-np.inf))
    shares = (1 - weight) * of_beams / of_beams.sum(), weight * np.exp(dense[1].astype(np.float64))
    rows, places = np.unique(np.concatenate((found[0], dense[0])), return_inverse=True)
    mixed = np.zeros(len(rows))
    np.add.at(mixed, places, np.concatenate(shares))
    best = np.argsort(-mixed, kind="stable")[:k]
    return rows[best], np.log(np.maximum(mixed[best], LEAST)).astype(np.float32)


@compiled
def _best(
    content: NDArray[np.uint16], query: Floats, rows: Rows, biases: Floats, k: int
) -> tuple[Rows, Floats]:
    """content: the bits of float16 numbers; query: times SHIFT; biases: of these rows."""
    capacity = min(k, len(rows))
    scores, numbers = np.empty(capacity, np.float64), np.empty(capacity, np.int64)
    size = 0
    block = np.empty(BLOCK, np.float32)
    highest, mass = -np.inf, 0.0
    for start in range(0, len(rows), BLOCK):
        stop = min(start + BLOCK, len(rows))
        sums = block[: stop - start]
        for i in range(len(sums)):
            sums[i] = biases[start + i] + product_of(content[rows[start + i]], query)
        best = np.float64(highest_of(sums))
        if size < capacity or best > scores[0]:
            for i in range(len(sums)):
                size = heap.push(scores, numbers, size, sums[i], rows[start + i])
        if best > highest:
            mass *= np.exp(highest - best)
            highest = best
        mass += exponentiate(sums, highest)
    heap.sort(scores, numbers, size)
    shift = highest + np.log(mass)
    return numbers[:size].astype(np.int32), (scores[:size] - shift).astype(np.float32)


@compiled_in_any_order
def product_of(content: NDArray[np.uint16], query: Floats) -> np.float32:
    """(dims,) bits of float16 numbers times a query, which is multiplied with SHIFT.

    Compiled code has no float16: its bits are moved to where float32 has them.
    """
    total = np.float32(0)
    for i in range(len(query)):
        half = np.int32(content[i])
        bits = np.int32(((half & 0x8000) << 16) | ((half & 0x7FFF) << 13))
        total += bits.view(np.float32) * query[i]
    return total
