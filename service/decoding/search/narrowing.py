"""What a trie makes of a job's beams, whichever kind they are.

Beams of one code own posting lists until a step asks for more than those tell; all other beams own
rows. Nothing here is a loop: those are compiled.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Floats, Rows
from service.decoding.catalogue import SidTrie
from service.decoding.catalogue import code_pairs as pairs
from service.decoding.job import Job
from service.decoding.search.beams import Beams, CodeBeams
from service.decoding.search.codes.beams import best_of_codes, copied, with_touched
from service.decoding.search.codes.expansion import expand_codes
from service.decoding.search.row_biases import RowBiases
from service.decoding.search.rows.expansion import PATH, ROWS, best_survivors, expand

# Ranked by rows, beams with more are all asked about: hardly any of them is decided.
FEW_ROWS = 10_000


def after_root(
    trie: SidTrie, beams: CodeBeams, job: Job, ranking: int, biases: RowBiases, is_last: bool
) -> Beams | CodeBeams:
    """Beams of one code as the next step wants them, with what is known of their rows.

    is_last: whether the next step is the last one; any other asks the table of pairs
    """
    by_rows = ranking == ROWS
    by_pairs = ranking == PATH and trie.pairs is not None and biases.num_excluded < pairs.MOST
    by_lists = is_last and (not by_rows or beams.num_rows > FEW_ROWS)
    if job.allowed is None and (by_lists or by_pairs):
        return with_touched(beams, trie.codes, biases.touched, biases.values)
    # A filter, too, touches too many rows.
    return copied(beams, trie.codes, trie.rows, biases.values, by_rows)


def best_rows(
    trie: SidTrie,
    beams: Beams | CodeBeams,
    log_probs: Floats,
    positions: NDArray[np.int64],
    k: int,
    ranking: int,
) -> tuple[Rows, Floats]:
    """The k best rows once every masked position is filled, best first, ties by row."""
    if isinstance(beams, Beams):
        return best_survivors(trie.codes, beams, log_probs, positions, k, ranking)
    unrolled = (0,) * (trie.codes.shape[1] - 1)
    return best_of_codes(trie.codes, trie.rows, beams, log_probs, positions, unrolled, k, ranking)


def children(
    trie: SidTrie,
    beams: Beams | CodeBeams,
    log_probs: Floats,
    positions: NDArray[np.int64],
    width: int,
    beam_width: int,
    ranking: int,
    confidence: int,
    drawn: Floats,
) -> Beams:
    """The best `beam_width` children of all beams, see `expansion.expand`."""
    step = log_probs, positions, width, beam_width
    if isinstance(beams, Beams):
        return expand(trie.codes, trie.num_legal, beams, *step, ranking, confidence, drawn)
    assert ranking == PATH
    assert trie.pairs is not None
    lists = trie.codes, trie.indptr, trie.rows, trie.pairs, trie.num_legal
    return expand_codes(*lists, beams, *step, confidence, drawn)
