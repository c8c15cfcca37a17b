"""Objects that stay are hidden from the garbage collector. Objects of a failed block are not."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from service.telemetry.interpreter_pauses import NEVER, hidden_from_gc


class Thing:
    """Something that can hold a reference to itself."""

    itself: Thing


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def test_no_collection_looks_at_what_was_made() -> None:
    before = gc.get_threshold()
    with hidden_from_gc():
        assert gc.get_threshold() == (*before[:2], NEVER)
        made = [[number] for number in range(1000)]
    assert gc.get_threshold() == before
    watched = {id(one) for one in gc.get_objects()}
    assert not watched & {id(one) for one in made}


def test_what_was_made_goes_when_nobody_holds_it() -> None:
    with hidden_from_gc():
        made = Thing()
    gone = weakref.ref(made)
    del made
    assert gone() is None


def test_young_garbage_does_not_stay() -> None:
    garbage = Thing()
    garbage.itself = garbage
    gone = weakref.ref(garbage)
    del garbage
    with hidden_from_gc():
        pass
    assert gone() is None


def test_what_fails_leaves_nothing_behind() -> None:
    garbage = Thing()
    garbage.itself = garbage
    gone, before = weakref.ref(garbage), gc.get_threshold()
    with pytest.raises(ValueError, match="no such bundle"), hidden_from_gc():
        raise ValueError("no such bundle")
    assert gc.get_threshold() == before
    del garbage
    gc.collect()
    assert gone() is None
