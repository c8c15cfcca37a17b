"""How much memory the search index and the process use, in bytes.

The index is all arrays that the trie and the catalogue hold for the search: codes and postings.
Item ids, vectors and popularity have other purposes and are not counted. The working memory of
searches is not counted either.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.decoding import SidTrie

NOT_INDEX = {"item_ids", "row_of", "vectors", "popularity", "free_biases", "filters"}


def index_bytes(trie: SidTrie) -> int:
    """Bytes of the arrays that a trie and its catalogue hold now; shared memory counts once."""
    return sum({id(array): array.nbytes for array in _arrays(trie)}.values())


def _arrays(value: object) -> Iterator[NDArray[np.generic]]:
    """Arrays held by an object of the kernel; for a view, the array that owns the memory."""
    if isinstance(value, np.ndarray):
        while isinstance(value.base, np.ndarray):
            value = value.base
        yield value
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _arrays(entry)
    elif type(value).__module__.startswith("service.decoding"):
        for name, held in vars(value).items():
            if name not in NOT_INDEX:
                yield from _arrays(held)


def rss_bytes() -> int | None:
    """Resident memory of this process now; None if the system does not tell."""
    if sys.platform != "linux":
        return None
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
