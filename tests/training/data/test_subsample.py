"""A data set without some items, by hand and against plain Python."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import log_of

from service.bundles.bundle import Item
from training.data.interactions import Dataset
from training.data.splits import Interactions, Windows, leave_last_out
from training.data.subsample import without_items
from training.errors import DataError

HISTORIES = st.lists(st.lists(st.integers(0, 6), max_size=8), min_size=1, max_size=8)


def dataset_of(log: Interactions) -> Dataset:
    items = tuple(Item(item_id, f"Title of {item_id}", ()) for item_id in log.item_ids)
    embeddings = np.arange(log.num_items, dtype=np.float32)[:, None] + 1
    return Dataset(leave_last_out(log), items, embeddings, ())


def ids_of(log: Interactions, windows: Windows) -> dict[str, tuple[list[str], str]]:
    """History and target of each user of some windows."""
    return {
        log.user_ids[user]: (
            [log.item_ids[row] for row in windows.history_of(window)],
            log.item_ids[windows.targets[window]],
        )
        for window, user in enumerate(windows.users.tolist())
    }


def histories_of(log: Interactions) -> list[list[str]]:
    return [[log.item_ids[row] for row in log.history_of(user)] for user in range(log.num_users)]


def test_a_data_set_without_items_by_hand() -> None:
    full = dataset_of(
        log_of(
            [
                [0, 5, 1, 2, 3, 0],  # train i0 i5 i1 i2: loses i5 in the middle
                [0, 1, 2, 5, 3],  # validation of i5: no window; the history at test is without it
                [0, 1, 2, 5],  # test of i5: no window; validation i2 stays
                [5, 0, 1],  # nothing is left of the history at validation; at test i0 is
                [5, 5],  # a user without any item is a user still
            ]
        )
    )
    left = without_items(full, np.array([5], np.int32))
    split = left.split
    assert split.train.item_ids == ("i0", "i1", "i2", "i3", "i4", "i6")
    assert split.train.user_ids == full.split.train.user_ids
    assert histories_of(split.train) == [
        ["i0", "i1", "i2"],
        ["i0", "i1", "i2"],
        ["i0", "i1"],
        [],
        [],
    ]
    assert ids_of(split.train, split.validation) == {
        "u0": (["i0", "i1", "i2"], "i3"),
        "u2": (["i0", "i1"], "i2"),
    }
    assert ids_of(split.train, split.test) == {
        "u0": (["i0", "i1", "i2", "i3"], "i0"),
        "u1": (["i0", "i1", "i2"], "i3"),
        "u3": (["i0"], "i1"),
    }
    assert histories_of(split.before_test)[:4] == [
        ["i0", "i1", "i2", "i3"],
        ["i0", "i1", "i2"],
        ["i0", "i1", "i2"],
        ["i0"],
    ]
    assert histories_of(split.everything)[2:4] == [["i0", "i1", "i2"], ["i0", "i1"]]
    assert [item.item_id for item in left.items] == list(split.train.item_ids)
    assert left.embeddings is not None
    assert left.embeddings[:, 0].tolist() == [1, 2, 3, 4, 5, 7]


def test_without_too_many_items_there_is_nothing_left_to_learn() -> None:
    full = dataset_of(log_of([[0, 1, 2, 3, 4], [0, 1, 2, 3]]))
    for removed in ([0, 1], [2, 3], [4, 3]):
        with pytest.raises(DataError, match=rf"without {len(removed)} of 7 items too few"):
            without_items(full, np.array(removed, np.int32))


@settings(deadline=None, max_examples=60)
@given(HISTORIES, st.sets(st.integers(0, 6), max_size=3))
def test_nothing_of_the_items_is_left_and_everything_else_is(
    histories: list[list[int]], removed: set[int]
) -> None:
    full = dataset_of(log_of([*histories, [3, 4, 5, 6, 4, 3, 5, 6, 5]]))
    gone = {f"i{row}" for row in removed}
    try:
        left = without_items(full, np.array(sorted(removed), np.int32)).split
    except DataError:
        return
    whole, train = full.split, left.train

    def kept(ids: list[str]) -> list[str]:
        return [item_id for item_id in ids if item_id not in gone]

    for name in ("train", "before_test", "everything"):
        now, was = getattr(left, name), getattr(whole, name)
        assert histories_of(now) == [kept(ids) for ids in histories_of(was)]
        assert now.item_ids == train.item_ids == tuple(kept(list(was.item_ids)))
        replace(now)  # checks that its arrays fit together
    for name in ("validation", "test"):
        expected = {
            user: (kept(history), target)
            for user, (history, target) in ids_of(whole.train, getattr(whole, name)).items()
            if target not in gone and kept(history)
        }
        assert ids_of(train, getattr(left, name)) == expected
