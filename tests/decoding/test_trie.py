"""The root of the any-order trie: postings."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import catalogues

from service.decoding.trie import SidTrie


@settings(deadline=None)
@given(st.data())
def test_postings_are_the_rows_with_each_code(data: st.DataObject) -> None:
    catalogue = data.draw(catalogues())
    position = data.draw(st.integers(0, catalogue.num_subspaces - 1))
    codes = data.draw(st.lists(st.integers(0, catalogue.num_codes - 1), unique=True))
    rows, group = SidTrie(catalogue).postings(position, np.array(codes, dtype=np.int64))
    expected = [
        (row, index)
        for index, code in enumerate(codes)
        for row in range(catalogue.num_items)
        if catalogue.codes[row, position] == code
    ]
    assert list(zip(rows.tolist(), group.tolist(), strict=True)) == expected
