"""Where machine code is kept: other processes find it, and a folder may be read-only."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba.core.caching import NullCache

from service.decoding.loops.compilation import (
    KERNEL,
    LEVELS,
    SOURCES,
    compiled,
    compiled_in_any_order,
    level_of,
)

# Scores a catalogue, by functions of three modules that call each other. Prints how often compiled
# code was found in the cache, and how often not.
SCORE = """
import numpy as np
from service.decoding.search.rows import whole_catalogue

codes, biases = np.zeros((3, 2), np.uint16), np.zeros(3, np.float32)
whole_catalogue.best_of_catalogue(codes, biases, np.zeros((2, 4), np.float32), 2, normalised=True)
stats = whole_catalogue._best_of_catalogue.stats
print(stats.cache_hits.total(), stats.cache_misses.total())
"""


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


@compiled
def with_more(values: np.ndarray, found: int, more: int) -> int:
    return found + more + len(values)


@compiled
def of_constants(values: np.ndarray) -> int:
    found = 0
    for _ in range(2):
        found = with_more(values, found, 5)
    return with_more(values, found, more=len(values))


def test_levels_are_what_a_processor_has_all_features_of() -> None:
    features = dict.fromkeys(chain.from_iterable(LEVELS.values()), True)
    assert level_of(features) == "x86-64-v4"
    assert level_of(features | {"avx512vl": False}) == "x86-64-v3"
    assert level_of({**features, "fma": False}) == "x86-64-v2"  # whatever it has beside
    assert level_of({"neon": True}) is None
    assert level_of({name: False for name in features}) is None


def test_constants_are_no_types_of_their_own() -> None:
    for function in (with_more, of_constants):  # not from the cache: it would hold the caller alone
        function._cache = NullCache()
    assert of_constants(np.zeros(3)) == 22
    assert [str(types) for types in with_more.signatures] == [
        "(Array(float64, 1, 'C', False, aligned=True), int64, int64)"
    ]


def refuse(*_: object, **__: object) -> None:
    raise OSError("read-only file system")


def test_every_source_of_the_kernel_is_in_the_stamp() -> None:
    """Numba would look at the file of a function alone, and the function may call others."""
    assert {path.relative_to(KERNEL).as_posix() for path in SOURCES} >= {
        "job.py",
        "loops/heap.py",
        "search/beams.py",
        "search/rows/expansion.py",
        "search/posting_lists/second_step.py",
    }


def test_a_second_process_finds_the_machine_code_of_the_first(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}

    def found_and_missed() -> str:
        command = [sys.executable, "-c", SCORE]
        root = KERNEL.parents[1]
        run = subprocess.run(
            command, env=environment, cwd=root, capture_output=True, text=True, check=True
        )
        return run.stdout.strip()

    assert found_and_missed() == "0 1"
    code = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")}
    assert len(code) > 1
    assert found_and_missed() == "1 0"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")} == code
