"""Arrays, lists and indices that catalogues share: each catalogue sees its own items only."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.decoding.catalogue.growing_arrays import SharedIndex, SharedList, SharedRows
from service.decoding.catalogue.pauses import with_pauses


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


def test_threads_that_grow_from_one_take_turns() -> None:
    """Each gives the interpreter away in the middle of it."""

    def slowly(number: int) -> Iterator[int]:
        for _ in range(5):
            time.sleep(0.001)
            yield number

    def grown(number: int) -> tuple[list[int], set[int]]:
        names = [f"{number}-{name}" for name in range(2000)]
        index = base_index.with_items(8, names).row_of
        return list(base.with_items(slowly(number))), {index[name] for name in names}

    for _ in range(10):
        base, base_index = SharedList(range(8)), SharedIndex({}, 8)
        with ThreadPoolExecutor(4) as pool:
            for number, (items, rows) in enumerate(pool.map(grown, range(4))):
                assert items == [*range(8)] + [number] * 5
                assert rows == set(range(8, 2008))


def test_long_work_leaves_the_interpreter_to_others() -> None:
    """A thread that goes through many items rests most of the time."""
    items = iter(range(2000))
    processor = time.thread_time()
    started = time.perf_counter()
    found = [sum(range(300), item) - item for item in with_pauses(items)]
    waited = time.perf_counter() - started
    assert found == [sum(range(300))] * 2000
    assert waited > 2 * (time.thread_time() - processor)
    assert list(with_pauses([])) == []
