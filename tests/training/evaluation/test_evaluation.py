"""Metrics by hand, and ranks of a denoiser whose preferences are known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from service.bundles.bundle import HISTORY_CAP, DecodingDefaults
from service.decoding import Catalogue, Decoder, Histories, Schedule, SidTrie
from training.data.splits import Windows
from training.evaluation.evaluation import (
    NOT_FOUND,
    _PartialSids,
    _sid_numbers,
    draw_windows,
    invalid_sid_shares,
    metrics,
    popularity_ranks,
    ranks,
    ranks_as_served,
    ranks_at,
)


def test_recall_and_ndcg_by_hand() -> None:
    found = metrics(np.array([1, 3, 10, 11, NOT_FOUND], np.int32))
    assert found["recall@5"] == pytest.approx(0.4)
    assert found["recall@10"] == pytest.approx(0.6)
    assert found["recall@40"] == pytest.approx(0.8)
    assert found["ndcg@5"] == pytest.approx((1 + 0.5) / 5, abs=1e-5)
    assert found["ndcg@10"] == pytest.approx((1 + 0.5 + 1 / math.log2(11)) / 5, abs=1e-5)


def test_popularity_ranks_are_rows_because_rows_are_ordered_by_popularity() -> None:
    windows = _windows(targets=[0, 4, 12])
    assert popularity_ranks(windows, k=10).tolist() == [1, 5, NOT_FOUND]


def _windows(targets: list[int]) -> Windows:
    """Windows of one user each, with the history [row 1]."""
    rows = np.array([row for target in targets for row in (1, target)], np.int32)
    starts = np.arange(len(targets), dtype=np.int64) * 2
    return Windows(rows, np.arange(len(targets), dtype=np.int32), starts, starts + 1)


class _Favourites:
    """Prefers low codes at every position, whatever the history: a denoiser with known ranks."""

    num_subspaces, num_codes, history_length, repeat_bias = 2, 3, 5, 0.0

    def encode(self, histories: Histories) -> int:
        return len(histories.codes)

    def select(self, memory: int, jobs: np.ndarray) -> int:
        return len(jobs)

    def join(self, memories: Sequence[int]) -> int:
        return sum(memories)

    def denoise(self, memory: int, partial_sids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        logits = np.array([[2.0, 1.0, 0.0], [0.6, 0.3, 0.0]], np.float32)
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return log_probs[positions]


def test_item_and_sid_ranks_differ_where_items_share_a_sid() -> None:
    codes = np.array([[0, 0], [0, 0], [0, 1], [1, 0], [2, 2]], np.uint16)
    trie = SidTrie(Catalogue(tuple("abcde"), codes, 3, np.zeros(5, np.int64)))
    windows, decoder = _windows(targets=[0, 1, 2, 3, 4]), Decoder(trie, _Favourites())
    for schedule in (Schedule((2,)), Schedule((1, 1))):
        found = ranks(windows, decoder, schedule, k=4, beam_width=5, batch=2, workers=2)
        assert found.item.tolist() == [1, 2, 3, 4, NOT_FOUND]
        assert found.sid.tolist() == [1, 1, 2, 3, 4]
        assert found.nfe == len(schedule.steps)
        assert found.repeated == 0
    early = ranks(windows, decoder, Schedule((1, 1)), k=4, beam_width=5, finish_rows=5)
    assert (early.item.tolist(), early.nfe) == ([1, 2, 3, 4, NOT_FOUND], 1)
    seen = ranks(windows, decoder, Schedule((2,)), k=4, beam_width=5, exclude_seen=True)
    assert seen.item.tolist() == [1, NOT_FOUND, 2, 3, 4]
    assert _sid_numbers(trie.catalogue) is _sid_numbers(trie.catalogue)


def test_what_the_service_has_forgotten_is_not_seen() -> None:
    codes = np.array([[0, 0], [0, 1], [1, 0]], np.uint16)
    trie = SidTrie(Catalogue(tuple("abc"), codes, 3, np.zeros(3, np.int64)))
    decoder = Decoder(trie, _Favourites())
    for newer, rank in ((HISTORY_CAP - 1, NOT_FOUND), (HISTORY_CAP, 1)):
        rows = np.array([0, *[2] * newer, 0], np.int32)  # row 0, long ago; it is the target too
        ends = np.array([newer + 1])
        windows = Windows(rows, np.zeros(1, np.int32), np.zeros(1, np.int64), ends)
        found = ranks(windows, decoder, Schedule((2,)), k=3, beam_width=3, exclude_seen=True)
        assert found.item.tolist() == [rank]


def test_a_narrow_default_is_asked_for_ten_items_and_for_forty_as_the_service_is() -> None:
    codes = np.random.default_rng(0).integers(0, 8, (300, 4)).astype(np.uint16)
    rows = range(len(codes))
    catalogue = Catalogue(tuple(map(str, rows)), codes, 8, np.zeros(len(codes), np.int64))
    decoder, windows = Decoder(SidTrie(catalogue), _Likes()), _windows(list(rows))
    setting = DecodingDefaults(r_warm=4, m_par=1, beam_width=4, ranking="path")

    def at(k: int, beam_width: int) -> list[int]:
        wide = setting.model_copy(update={"beam_width": beam_width})
        return ranks_at(windows, decoder, wide, k=k).item.tolist()

    served = ranks_as_served(windows, decoder, setting)
    assert served.short.item.tolist() == at(10, 10)
    assert served.long.item.tolist() == at(40, 40)
    assert [rank <= 10 for rank in at(10, 10)] != [rank <= 10 for rank in at(40, 40)]
    found = metrics(served.short.item, served.long.item)
    assert found["recall@10"] == metrics(served.short.item)["recall@10"]
    assert found["recall@40"] == metrics(served.long.item)["recall@40"]
    for one_search in ({"beam_width": 40}, {"r_warm": 0, "m_par": 4}):
        served = ranks_as_served(windows, decoder, setting.model_copy(update=one_search))
        assert served.short is served.long


class _Likes(_Favourites):
    """Random preferences, the same for every user."""

    num_subspaces, num_codes = 4, 8
    table = np.log(np.random.default_rng(3).dirichlet(np.ones(8), 4)).astype(np.float32)

    def denoise(self, memory: int, partial_sids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return self.table[positions]


def test_a_partial_sid_that_no_item_agrees_with_is_counted() -> None:
    codes = np.array([[0, 0], [0, 1], [1, 2]], np.uint16)
    trie = SidTrie(Catalogue(tuple("abc"), codes, 3, np.zeros(3, np.int64)))
    watched = _PartialSids(_Favourites(), trie)
    sids = np.array([[[3, 3], [0, 3], [3, 2], [2, 3], [1, 1]]], np.uint16)  # 3 is MASK
    watched.denoise(1, sids, np.zeros((1, 5, 2), np.int64))
    assert (watched.asked, watched.invalid) == (4, 2)

    constrained, unconstrained = invalid_sid_shares(
        _windows([0, 1, 2]),
        Decoder(trie, _Favourites()),
        Schedule((1, 1)),
        beam_width=9,
        ranking="rows",
        batch=2,
    )
    assert constrained == 0
    assert unconstrained == pytest.approx(6 / 9)  # nine tuples, three items


def test_a_draw_of_users_is_fixed_and_in_order() -> None:
    windows = _windows(list(range(50)))
    drawn = draw_windows(windows, 10, seed=3)
    assert len(drawn) == 10
    assert np.all(np.diff(drawn.users) > 0)
    assert np.array_equal(drawn.users, draw_windows(windows, 10, seed=3).users)
    assert draw_windows(windows, None, seed=3) is windows
