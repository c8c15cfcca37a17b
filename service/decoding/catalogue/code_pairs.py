"""How many items have code c at position p and code d at position q: what is legal after one code.

A beam that has filled one position owns a posting list, too long to look at its rows. This table
says which codes they have at the other positions. It is worth its bytes only where there are many
items to a pair of codes.

pairs: (num_subspaces, num_codes, num_subspaces, num_codes) uint8: pairs[p, c, q, d], and 255 where
    it is that or more
codes: (num_items, num_subspaces) uint16
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decoding.arrays import Codes
from service.decoding.catalogue.catalogue import Catalogue
from service.decoding.loops import compiled

Pairs = NDArray[np.uint8]

MOST = 255  # what a count cannot exceed
BYTES_PER_ITEM = 8.0  # what the table may cost; codes and postings take 48 at 8 subspaces


def pairs_pay(catalogue: Catalogue, bytes_per_item: float) -> bool:
    """Whether the catalogue's table costs at most so many bytes an item."""
    num_bytes = (catalogue.num_subspaces * catalogue.num_codes) ** 2
    return num_bytes <= bytes_per_item * catalogue.num_items


def pairs_of(codes: Codes, num_codes: int) -> Pairs:
    """The table of a catalogue."""
    num_subspaces = codes.shape[1]
    pairs = np.zeros((num_subspaces, num_codes, num_subspaces, num_codes), np.uint8)
    _count(codes, pairs)
    return pairs


def pairs_with(pairs: Pairs, new_codes: Codes) -> Pairs:
    """The table with more items; the one given stays as it is.

    A count of 255 may be any larger number, so nothing can be taken away again.
    """
    pairs = pairs.copy()
    _count(new_codes, pairs)
    return pairs


@compiled
def _count(codes: Codes, pairs: Pairs) -> None:
    """Count more items: at the lower position of a pair first, then the same at the other one."""
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
                flat[at] += np.uint8(flat[at] != MOST)
    for position in range(num_subspaces):
        for code in range(num_codes):
            for lower in range(position):
                for other in range(num_codes):
                    pairs[position, code, lower, other] = pairs[lower, other, position, code]
