"""Histories as arrays: the newest items, oldest first, filler behind them."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import catalogue_of, catalogues

from service.decoding.network.denoiser import Histories

MASK = 3


def test_histories_by_hand() -> None:
    vectors = np.array([[0.5, 1], [2, 3], [4, 5]], np.float16)
    catalogue = catalogue_of([[0, 1], [1, 2], [2, 0]], MASK, vectors)
    given_rows = [np.array(rows, np.int32) for rows in ([0, 1, 2, 0], [], [1])]
    codes, kept_vectors, mask = Histories.of(given_rows, catalogue, history_length=3)
    filler = [MASK, MASK]
    assert codes.tolist() == [
        [[1, 2], [2, 0], [0, 1]],
        [filler, filler, filler],
        [[1, 2], filler, filler],
    ]
    assert kept_vectors.tolist() == [
        [[2, 3], [4, 5], [0.5, 1]],
        [[0, 0], [0, 0], [0, 0]],
        [[2, 3], [0, 0], [0, 0]],
    ]
    assert mask.tolist() == [[True] * 3, [False] * 3, [True, False, False]]
    assert (codes.dtype, kept_vectors.dtype, mask.dtype) == (np.uint16, np.float16, np.bool_)


def test_histories_without_an_item_are_one_filler_long() -> None:
    catalogue = catalogue_of([[0, 1]], MASK)
    codes, vectors, mask = Histories.of([np.empty(0, np.int32)] * 2, catalogue, history_length=5)
    assert codes.tolist() == [[[MASK, MASK]]] * 2
    assert vectors.shape == (2, 1, 0)
    assert mask.tolist() == [[False]] * 2


@settings(deadline=None)
@given(st.data())
def test_every_history_keeps_its_newest_items_in_order(data: st.DataObject) -> None:
    catalogue = data.draw(catalogues())
    rows = st.lists(st.integers(0, catalogue.num_items - 1), max_size=7)
    histories = data.draw(st.lists(rows, min_size=1, max_size=4))
    history_length = data.draw(st.integers(1, 6))
    arrays = [np.array(history, np.int32) for history in histories]
    codes, vectors, mask = Histories.of(arrays, catalogue, history_length)
    longest = min(history_length, max(map(len, histories)))
    assert codes.shape == (len(histories), max(1, longest), catalogue.num_subspaces)
    for job, history in enumerate(histories):
        newest = history[-history_length:]
        assert mask[job].tolist() == [place < len(newest) for place in range(mask.shape[1])]
        assert np.array_equal(codes[job, : len(newest)], catalogue.codes[newest])
        assert np.array_equal(vectors[job, : len(newest)], catalogue.vectors[newest])
        assert np.all(codes[job, len(newest) :] == catalogue.num_codes)
        assert not vectors[job, len(newest) :].any()
