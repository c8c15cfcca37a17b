"""Compilation where no cache can be written, as in a read-only container."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from service.decoding.compiled import compiled, compiled_in_any_order


def total(values: np.ndarray) -> float:
    found = 0.0
    for value in values:
        found += value
    return found


@pytest.mark.parametrize("compile_", [compiled, compiled_in_any_order])
def test_without_a_place_for_a_cache_functions_are_compiled_all_the_same(
    compile_: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    compiled_total = compile_(total)
    assert compiled_total(np.arange(5.0)) == 10
    assert compiled_total.stats.cache_path is None
