"""The table of pairs against counting, and when it is made."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import catalogue_of, catalogues, of_rows

from service.decoding.catalogue.catalogue import Catalogue
from service.decoding.catalogue.code_pairs import (
    MAX_COUNT,
    count_pairs,
    is_affordable,
    with_more_items,
)
from service.decoding.catalogue.trie import SidTrie


def counted(catalogue: Catalogue) -> np.ndarray:
    """How many items have each code at each position and each at each other one, to MAX_COUNT."""
    shape = (catalogue.num_subspaces, catalogue.num_codes)
    counts = np.zeros((*shape, *shape), np.int64)
    for sid in catalogue.codes.tolist():
        for position, code in enumerate(sid):
            for other, other_code in enumerate(sid):
                counts[position, code, other, other_code] += 1
    return np.minimum(counts, MAX_COUNT).astype(np.uint8)


@settings(deadline=None)
@given(catalogues())
def test_the_table_counts_items_of_pairs(catalogue: Catalogue) -> None:
    pairs = count_pairs(catalogue.codes, catalogue.num_codes)
    assert pairs.dtype == np.uint8
    np.testing.assert_array_equal(pairs, counted(catalogue))


@pytest.mark.parametrize("num_items", [254, 255, 256, 600])
def test_counts_stop_at_255(num_items: int) -> None:
    catalogue = catalogue_of([*[[0, 1]] * num_items, [1, 1]], num_codes=2)
    pairs = count_pairs(catalogue.codes, 2)
    assert pairs[0, 0, 1, 1] == pairs[1, 1, 0, 0] == min(num_items, 255)
    np.testing.assert_array_equal(pairs, counted(catalogue))
    np.testing.assert_array_equal(with_more_items(pairs, catalogue.codes[:1])[1, 1, 0, 1], 1)


@settings(deadline=None)
@given(st.data())
def test_a_table_that_grew_is_that_of_all_items(data: st.DataObject) -> None:
    catalogue = data.draw(catalogues())
    before = data.draw(st.integers(1, catalogue.num_items))
    old = count_pairs(catalogue.codes[:before], catalogue.num_codes)
    kept = old.copy()
    pairs = with_more_items(old, catalogue.codes[before:])
    np.testing.assert_array_equal(pairs, counted(catalogue))
    np.testing.assert_array_equal(old, kept)


def test_the_table_is_made_where_it_costs_at_most_eight_bytes_an_item() -> None:
    """(2 * 4) ** 2 = 64 bytes."""
    codes = np.zeros((8, 2), np.uint16)
    few, enough = catalogue_of(codes[:7], 4), catalogue_of(codes, 4)
    assert not is_affordable(few, 8)
    assert is_affordable(enough, 8)
    assert SidTrie(few).pairs is None
    grown = SidTrie(few).with_items(enough)
    assert grown.pairs is not None
    assert grown.without_items(few).pairs is None
    assert SidTrie(few, pair_bytes_per_item=math.inf).pairs is not None
    assert SidTrie(enough, pair_bytes_per_item=0).pairs is None


@settings(deadline=None)
@given(st.data())
def test_a_trie_keeps_its_table_right(data: st.DataObject) -> None:
    whole = data.draw(catalogues())
    start = data.draw(st.integers(1, whole.num_items))
    trie = SidTrie(of_rows(whole, range(start)), pair_bytes_per_item=math.inf)
    grown = trie.with_items(whole)
    np.testing.assert_array_equal(grown.pairs, counted(whole))
    fewer = of_rows(whole, range(whole.num_items - start, whole.num_items))
    np.testing.assert_array_equal(grown.without_items(fewer).pairs, counted(fewer))
