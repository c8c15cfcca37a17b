"""The trie's posting lists."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import catalogues, of_rows

from service.decoding.catalogue.trie import SidTrie


@settings(deadline=None)
@given(st.data())
def test_postings_are_the_rows_with_each_code(data: st.DataObject) -> None:
    catalogue = data.draw(catalogues())
    position = data.draw(st.integers(0, catalogue.num_subspaces - 1))
    code = data.draw(st.integers(0, catalogue.num_codes - 1))
    trie = SidTrie(catalogue)
    rows = trie.rows[position, slice(*trie.indptr[position, code : code + 2])]
    expected = np.flatnonzero(catalogue.codes[:, position] == code)
    assert rows.tolist() == expected.tolist()


@settings(deadline=None)
@given(st.data())
def test_a_trie_that_grew_is_that_of_the_whole_catalogue(data: st.DataObject) -> None:
    whole = data.draw(catalogues())
    start, middle = sorted(
        data.draw(st.tuples(st.integers(1, whole.num_items), st.integers(1, whole.num_items)))
    )
    trie = SidTrie(of_rows(whole, range(start)))
    for stop in (middle, whole.num_items):
        catalogue = of_rows(whole, range(stop))
        trie, expected = trie.with_items(catalogue), SidTrie(catalogue)
        assert trie.catalogue is catalogue
        for name in ("codes", "indptr", "rows", "counts"):
            found, other = getattr(trie, name), getattr(expected, name)
            assert found.dtype == other.dtype
            np.testing.assert_array_equal(found, other)


@settings(deadline=None)
@given(st.data())
def test_rows_with_a_sid_are_all_that_have_it(data: st.DataObject) -> None:
    catalogue = data.draw(catalogues())
    trie = SidTrie(catalogue)
    code = st.integers(0, catalogue.num_codes - 1)
    length = catalogue.num_subspaces
    any_sid = st.lists(code, min_size=length, max_size=length)
    sid = np.array(data.draw(st.sampled_from(catalogue.codes.tolist()) | any_sid), np.uint16)
    expected = np.flatnonzero((catalogue.codes == sid).all(axis=1))
    assert trie.rows_with(sid).tolist() == expected.tolist()
