"""Compilation where no cache can be written, as in a container that is read-only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.decoding.loops.compilation import compiled, compiled_in_any_order


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


def test_machine_code_of_an_image_is_read_and_nothing_is_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))
    build: Any = compiled(total)
    build(np.arange(5.0))
    assert len(list(tmp_path.rglob("*.nbc"))) == 1

    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    run: Any = compiled(total)
    assert run(np.arange(5.0)) == 10
    assert (run.stats.cache_hits.total(), run.stats.cache_misses.total()) == (1, 0)
    assert run(np.arange(5)) == 10  # of another type: compiled, and not kept
    assert run.stats.cache_misses.total() == 1
    assert len(list(tmp_path.rglob("*.nbc"))) == 1


def refuse(*_: object, **__: object) -> None:
    raise OSError("read-only file system")
