"""SIDs that no other item has: against plain Python, one by one and many at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import codebook_of

from service.decoding import Codebook, ResidualCodebook
from service.decoding.catalogue import collisions as module
from service.decoding.catalogue.collisions import Collisions, by_number, free_sids, with_digit

Sid = tuple[int, ...]


def slowly(wanted: list[Sid], taken: list[Sid], nearness: np.ndarray) -> list[Sid]:
    there, found = set(taken), []
    for sid, near in zip(wanted, nearness, strict=True):
        order = [sid[-1], *sorted(range(len(near)), key=lambda code: (-near[code], code))]
        free = [(*sid[:-1], code) for code in order if (*sid[:-1], code) not in there]
        found.append(free[0] if free else sid)
        there.add(found[-1])
    return found


def array(sids: list[Sid], num_positions: int) -> np.ndarray:
    return np.array(sids, np.uint16).reshape(-1, num_positions)


@settings(deadline=None)
@given(st.data(), st.integers(1, 3), st.sampled_from([1, 3, 1024]))
def test_items_choose_one_after_the_other(
    data: st.DataObject, num_positions: int, at_once: int
) -> None:
    sid = st.tuples(*[st.integers(0, 2)] * (num_positions - 1), st.integers(0, 3))
    wanted, taken = (data.draw(st.lists(sid, max_size=15)) for _ in range(2))
    seed = data.draw(st.integers(0, 99))
    nearness = np.random.default_rng(seed).integers(0, 3, (len(wanted), 4)).astype(np.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ITEMS_AT_ONCE", at_once)
        found = free_sids(
            array(wanted, num_positions),
            array(taken, num_positions),
            lambda part: nearness[part].copy(),
        )
    assert list(map(tuple, found.tolist())) == slowly(wanted, taken, nearness)
    assert found.dtype == np.uint16


def test_codes_far_above_those_of_others_are_no_matter() -> None:
    """Keys of beginnings must not run into each other, or overflow."""
    top = 65_533
    wanted = array([(top, top, top), (top, top, 0), (0, top, top), (top, 0, top)], 3)
    found = free_sids(wanted, wanted[:1], lambda part: by_number(4, top + 1)[part])
    assert found.tolist() == [[top, top, 0], [top, top, 1], [0, top, top], [top, 0, top]]


def residual(collisions: Collisions, num_codes: int = 4) -> ResidualCodebook:
    centroids = np.random.default_rng(1).normal(size=(2, num_codes, 3)).astype(np.float32)
    return ResidualCodebook(centroids, collisions=collisions)


def product(collisions: Collisions) -> Codebook:
    made = codebook_of(num_subspaces=2, num_codes=4, vector_dims=3, embedding_dims=3)
    return replace(made, collisions=collisions)


@pytest.mark.parametrize("made", [residual, product])
def test_new_items_get_the_next_digit_or_the_nearest_last_code(
    made: Callable[[Collisions], Codebook],
) -> None:
    vectors = np.random.default_rng(2).normal(size=(12, 3)).astype(np.float32)
    vectors[4:8] = vectors[3]
    codes = made("keep").codes_of(vectors)
    nothing = np.zeros((0, 2), np.uint16)
    np.testing.assert_array_equal(made("keep").sids_of(vectors, codes), codes)

    digits = made("digit").sids_of(vectors, np.zeros((0, 3), np.uint16))
    np.testing.assert_array_equal(digits[:, :2], codes)
    there = codes.tolist()
    wanted_digits = [min(there[:row].count(sid), 4) for row, sid in enumerate(there)]
    assert digits[:, 2].tolist() == [d if d < 4 else 0 for d in wanted_digits]

    sids = made("reassign").sids_of(vectors[3:7], nothing)
    nearness = made("reassign").nearness_of_last(vectors[3:4])[0]
    assert sids[:, 0].tolist() == [codes[3, 0]] * 4
    assert sids[:, 1].tolist() == np.argsort(-nearness).tolist()


@pytest.mark.parametrize("collisions", ["digit", "reassign"])
def test_one_call_or_many_and_what_was_removed_is_free_again(collisions: Collisions) -> None:
    made = residual(collisions, num_codes=20)
    vectors = np.random.default_rng(5).normal(size=(14, 3)).astype(np.float32) / 9
    taken = np.zeros((0, made.num_positions), np.uint16)
    at_once = made.sids_of(vectors, taken)
    one_by_one = taken
    for vector in vectors:
        one_by_one = np.concatenate((one_by_one, made.sids_of(vector[None], one_by_one)))
    np.testing.assert_array_equal(one_by_one, at_once)
    assert len(np.unique(at_once, axis=0)) == 14 > len(np.unique(made.codes_of(vectors), axis=0))
    left = np.delete(at_once, 3, axis=0)
    again = made.sids_of(vectors[3:4], left)
    assert again.tolist() == at_once[3:4].tolist()


def test_with_a_digit() -> None:
    codes = np.array([[1, 2]], np.uint16)
    assert with_digit(codes, "digit").tolist() == [[1, 2, 0]]
    assert with_digit(codes, "keep") is with_digit(codes, "reassign") is codes
