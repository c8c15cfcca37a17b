"""The table of pairs: how many items have code c at position p and code d at position q.

A beam that has filled one position owns a posting list, which is too long to read. The table says
which codes its rows have at the other positions. Its size depends on the number of codes alone, so
it is made for large catalogues only. Knows nothing of scores or beams.

pairs: (num_subspaces, num_codes, num_subspaces, num_codes) uint8: pairs[p, c, q, d] is the count,
    255 = 255 or more
codes: (num_items, num_subspaces) uint16
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Codes
from service.decoding.catalogue.catalogue import Catalogue
from service.decoding.loops import compiled

Pairs = NDArray[np.uint8]

MAX_COUNT = 255  # counts stop here
BYTES_PER_ITEM = 8.0  # how much the table may cost; codes and postings cost 48 at 8 subspaces


def is_affordable(catalogue: Catalogue, bytes_per_item: float) -> bool:
    """Whether the catalogue's table costs at most this many bytes per item."""
    num_bytes = (catalogue.num_subspaces * catalogue.num_codes) ** 2
    return num_bytes <= bytes_per_item * catalogue.num_items


def count_pairs(codes: Codes, num_codes: int) -> Pairs:
    """The table of a catalogue."""
    num_subspaces = codes.shape[1]
    pairs = np.zeros((num_subspaces, num_codes, num_subspaces, num_codes), np.uint8)
    _count(codes, pairs)
    return pairs


def with_more_items(pairs: Pairs, new_codes: Codes) -> Pairs:
    """The table with these items too. The one given does not change.

    Nothing can be subtracted later: a count of 255 may stand for any larger number.
    """
    pairs = pairs.copy()
    _count(new_codes, pairs)
    return pairs


@compiled
def _count(codes: Codes, pairs: Pairs) -> None:
    """Count more items: first at the lower position of each pair, then copied to the other."""
    num_subspaces, num_codes = pairs.shape[:2]
    flat = pairs.reshape(-1)
    of_position = np.uint64(num_codes)
    of_code = np.uint64(num_subspaces) * of_position
    for row in range(len(codes)):
        for position in range(num_subspaces):
            ones = np.uint64(position) * of_position + np.uint64(codes[row, position])
            for other in range(position, num_subspaces):
                others = np.uint64(other) * of_position + np.uint64(codes[row, other])
                at = ones * of_code + others
                flat[at] += np.uint8(flat[at] != MAX_COUNT)
    for position in range(num_subspaces):
        for code in range(num_codes):
            for lower in range(position):
                for other in range(num_codes):
                    pairs[position, code, lower, other] = pairs[lower, other, position, code]
