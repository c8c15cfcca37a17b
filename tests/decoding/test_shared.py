"""What catalogues that grew one from another share, and what they must not see of each other."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.decoding.shared import SharedIndex, SharedList, SharedRows
from service.decoding.unhurried import unhurried


@given(st.lists(st.integers()), st.data())
def test_a_shared_list_is_a_sequence(items: list[int], data: st.DataObject) -> None:
    seen = SharedList(items)
    seen.with_items([7, 8, 9])
    assert len(seen) == len(items)
    assert list(seen) == list(seen[:]) == items
    assert [*reversed(seen)] == items[::-1]
    assert (7 in seen) == (7 in items)
    part = slice(*data.draw(st.tuples(*[st.none() | st.integers(-9, 9)] * 2)))
    assert list(seen[part]) == items[part]
    for index in range(-len(items), len(items)):
        assert seen[index] == items[index]
    for index in (len(items), -len(items) - 1):
        with pytest.raises(IndexError):
            seen[index]


@given(st.data())
def test_whoever_grows_sees_its_own_items_only(data: st.DataObject) -> None:
    """A tree of lists and arrays, each grown from any one before it."""
    start = data.draw(st.lists(st.integers(0, 99), max_size=20))
    rows = SharedRows(np.array(start, np.int64))
    expected, lists, arrays = [start], [SharedList(start)], [rows]
    indices = [SharedIndex({}, len(start))]
    for _ in range(data.draw(st.integers(0, 8))):
        origin = data.draw(st.integers(0, len(expected) - 1))
        new = data.draw(st.lists(st.integers(0, 99), max_size=3))
        lists.append(lists[origin].with_items(new))
        arrays.append(arrays[origin].with_rows(len(expected[origin]), np.array(new, np.int64)))
        names = [f"{item}-{len(expected[origin]) + place}" for place, item in enumerate(new)]
        indices.append(indices[origin].with_items(len(expected[origin]), names))
        expected.append(expected[origin] + new)
    for items, a_list, array, index in zip(expected, lists, arrays, indices, strict=True):
        assert list(a_list) == items
        assert array.first(len(items)).tolist() == items
        found = {name: row for name, row in index.row_of.items() if row < len(items)}
        late = list(enumerate(items))[len(start) :]
        assert found == {f"{item}-{row}": row for row, item in late}


def test_two_threads_that_grow_from_one_do_not_write_over_each_other() -> None:
    def grown(number: int) -> tuple[list[int], list[int]]:
        new = [number] * 50
        return list(base.with_items(new)), rows.with_rows(8, np.array(new)).first(58).tolist()

    for _ in range(50):
        base, rows = SharedList(range(8)), SharedRows(np.arange(8), 100)
        with ThreadPoolExecutor(4) as pool:
            for number, found in enumerate(pool.map(grown, range(4))):
                assert found == ([*range(8)] + [number] * 50,) * 2


def test_long_work_leaves_the_interpreter_to_others() -> None:
    """A thread that goes through many items rests most of the time."""
    items = iter(range(2000))
    processor = time.thread_time()
    started = time.perf_counter()
    found = [sum(range(300), item) - item for item in unhurried(items)]
    waited = time.perf_counter() - started
    assert found == [sum(range(300))] * 2000
    assert waited > 2 * (time.thread_time() - processor)
    assert list(unhurried([])) == []
