"""What is kept of filters: against plain numpy, and never more than the bound."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from worlds import catalogue_of

from service.decoding.catalogue.allowed_rows import (
    FEW,
    FEW_OF_LISTS,
    FEW_OF_ONE_CALL,
    LEAST_BYTES,
    FilterCache,
)
from service.decoding.catalogue.trie import SidTrie

NUM_ITEMS, NUM_CODES = 5000, 7


def trie_of(num_items: int = NUM_ITEMS) -> SidTrie:
    random = np.random.default_rng(num_items)
    return SidTrie(catalogue_of(random.integers(0, NUM_CODES, (num_items, 4)), NUM_CODES))


def rows_of(share: float, seed: int = 0, num_items: int = NUM_ITEMS) -> NDArray[np.int32]:
    """A filter's rows: they cannot be written to."""
    random = np.random.default_rng(seed)
    rows = np.flatnonzero(random.random(num_items) < share).astype(np.int32)
    rows.flags.writeable = False
    return rows


@pytest.mark.parametrize("share", [0.0, 0.01, 0.4, 0.6, 0.95, 1.0])
def test_what_is_made_of_rows(share: float) -> None:
    trie, rows = trie_of(), rows_of(share)
    found = trie.filters.of(rows)
    assert found.codes.tolist() == trie.codes[rows].tolist()
    expected = [np.bincount(own, minlength=NUM_CODES) for own in trie.codes[rows].T]
    assert found.counts.tolist() == np.array(expected).tolist()
    set_bits = [row for row in range(NUM_ITEMS) if int(found.bits[row // 64]) >> row % 64 & 1]
    assert set_bits == rows.tolist()
    asked = np.arange(0, NUM_ITEMS, 3, dtype=np.int32)
    assert found.num_among(asked) == len(np.intersect1d(asked, rows))
    assert found.most_bytes <= trie.filters.most_bytes == LEAST_BYTES


def test_few_and_many() -> None:
    trie = trie_of(80)
    shares = {
        num: [
            trie.filters.of(np.arange(num, dtype=np.int32)).is_at_most(one)
            for one in (FEW, FEW_OF_ONE_CALL)
        ]
        for num in (0, 40, 41, 70, 71, 80)
    }
    few, both, none = [True, True], [False, True], [False, False]
    assert shares == {0: few, 40: few, 41: both, 70: both, 71: none, 80: none}


def test_only_what_cannot_change_is_kept() -> None:
    trie, rows = trie_of(), rows_of(0.5)
    assert trie.filters.of(rows) is trie.filters.of(rows)
    copy = rows.copy()
    assert trie.filters.of(copy) is not trie.filters.of(copy)
    part = rows[10:]
    assert not part.flags.writeable
    assert trie.filters.of(part) is not trie.filters.of(part)
    assert len(trie.filters) == 1


@pytest.mark.parametrize("rows", [[-1, 3], [3, NUM_ITEMS], [3, 3], [4, 3]])
@pytest.mark.parametrize("writeable", [True, False])
def test_wrong_rows_are_refused(rows: list[int], writeable: bool) -> None:
    trie, wrong = trie_of(), np.array(rows, np.int32)
    wrong.flags.writeable = writeable
    for _ in range(2):
        with pytest.raises(ValueError, match="must be"):
            trie.filters.of(wrong)
    assert not len(trie.filters)


def test_filters_together_hold_no_more_than_the_bound() -> None:
    trie = trie_of()
    cache = FilterCache(trie.codes, trie.counts)
    cache.most_bytes = 8 * cache.of(rows_of(0.5)).most_bytes
    filters = [rows_of(share, seed) for seed in range(12) for share in (0.9, 0.02, 0.5)]
    for rows in filters:
        kept = cache.of(rows)
        assert cache.of(rows) is kept
        assert cache.num_bytes <= cache.most_bytes
        made = kept.codes.nbytes * kept.is_at_most(FEW_OF_ONE_CALL)
        if not kept.is_at_most(FEW_OF_LISTS):
            made += kept.counts.nbytes + kept.bits.nbytes + 4 * NUM_ITEMS
        assert kept.rows.nbytes + made <= kept.most_bytes
    assert 1 < len(cache) < len(filters)
    newest, oldest = cache.of(filters[-1]), cache.of(filters[0])
    assert cache.of(filters[-1]) is newest
    assert cache.of(filters[0]) is oldest  # it was made again, and is kept now

    cache.most_bytes = 100
    large = cache.of(filters[0]), cache.of(rows_of(0.9))
    assert not len(cache)
    assert not cache.num_bytes
    assert all(len(one.rows) for one in large)


def test_other_items_begin_with_nothing() -> None:
    trie, rows = trie_of(), rows_of(0.9)
    trie.filters.of(rows)
    more = catalogue_of(np.concatenate((trie.codes, trie.codes[:10])), NUM_CODES)
    grown = trie.with_items(more)
    assert len(trie.filters) == 1
    assert not len(grown.filters)
    counts = grown.filters.of(rows).counts
    assert counts.sum() == 4 * len(rows)
    assert grown.filters.of(np.arange(NUM_ITEMS + 10, dtype=np.int32)).counts.sum() == 4 * 5010
