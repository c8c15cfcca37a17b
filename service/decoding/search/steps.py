"""One step of one job, for either kind of beam: its best children, or its best rows.

Beams that own posting lists keep them until a step needs the rows' codes in memory of their own;
all other beams own rows. No loops here: those are compiled, in `rows` and `posting_lists`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Floats, Rows
from service.decoding.catalogue import AllowedRows, SidTrie
from service.decoding.catalogue import code_pairs as pairs
from service.decoding.job import Job
from service.decoding.search.beams import Beams, PostingListBeams
from service.decoding.search.posting_lists.first_step import with_biased_rows, with_own_rows
from service.decoding.search.posting_lists.scoring import best_of_posting_lists
from service.decoding.search.posting_lists.second_step import expand_posting_lists
from service.decoding.search.row_biases import RowBiases
from service.decoding.search.rows.expansion import PATH, ROWS, best_survivors, expand

# Beams that own more rows go into the next call without a look whether they are decided (ranked
# by rows): hardly any of them is.
FEW_ROWS = 10_000
_NO_BITS = np.empty(0, np.uint64)


def after_first_step(
    trie: SidTrie,
    beams: PostingListBeams,
    job: Job,
    ranking: int,
    biases: RowBiases,
    allowed: AllowedRows | None,
    is_last: bool,
) -> Beams | PostingListBeams:
    """The first step's beams as the second step needs them, with the biases of their rows.

    They keep their posting lists if the second step is the last one (`is_last`) or can use the
    table of pairs; else their rows are copied. biases: within the filter (`allowed`), if any
    """
    by_rows = ranking == ROWS
    if allowed is None:
        is_long = not by_rows or beams.num_rows > FEW_ROWS
    else:
        # Ranked by rows, sums over lists round otherwise than over copies. And an explanation asks
        # how many rows each beam owns.
        is_long = not (by_rows or job.explain or job.trace or job.remask)
    if (is_last and is_long) or keeps_lists(trie, job, biases):
        bits = _NO_BITS if allowed is None else allowed.bits
        return with_biased_rows(beams, trie.codes, biases.biased_rows, biases.values, bits)
    return with_own_rows(beams, trie.codes, trie.rows, biases.values, by_rows)


def keeps_lists(trie: SidTrie, job: Job, biases: RowBiases) -> bool:
    """Whether beams of one code keep their posting lists, because the table of pairs serves."""
    is_asked = job.allowed is not None and (job.explain or job.trace or job.remask > 0)
    serves = trie.pairs is not None and biases.num_excluded < pairs.MAX_COUNT
    return job.ranking == "path" and serves and not is_asked


def best_rows(
    trie: SidTrie,
    beams: Beams | PostingListBeams,
    log_probs: Floats,
    positions: NDArray[np.int64],
    k: int,
    ranking: int,
) -> tuple[Rows, Floats]:
    """The k best rows once every masked position is filled, best first, ties by row."""
    if isinstance(beams, Beams):
        return best_survivors(trie.codes, beams, log_probs, positions, k, ranking)
    unrolled = (0,) * (trie.codes.shape[1] - 1)
    return best_of_posting_lists(
        trie.codes, trie.rows, beams, log_probs, positions, unrolled, k, ranking
    )


def best_children(
    trie: SidTrie,
    beams: Beams | PostingListBeams,
    log_probs: Floats,
    positions: NDArray[np.int64],
    width: int,
    beam_width: int,
    ranking: int,
    order: int,
    drawn: Floats,
) -> Beams:
    """The best `beam_width` children of all beams, see `expansion.expand`."""
    step = log_probs, positions, width, beam_width
    if isinstance(beams, Beams):
        return expand(trie.codes, trie.num_legal, beams, *step, ranking, order, drawn)
    assert ranking == PATH
    assert trie.pairs is not None
    lists = trie.codes, trie.indptr, trie.rows, trie.pairs, trie.num_legal
    return expand_posting_lists(*lists, beams, *step, order, drawn)
