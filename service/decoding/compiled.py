"""Compilation of the kernel's loops to machine code, which runs without the interpreter's lock.

Compiled functions are pure, take arrays and numbers, check no bounds, and are compiled when first
called with arguments of some types; the machine code is cached beside the source file, or where
NUMBA_CACHE_DIR says, and made anew after any change to the kernel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

from numba import njit

SOURCES = sorted(Path(__file__).parent.glob("*.py"))
KERNEL_STAMP = hashlib.sha256(b"".join(source.read_bytes() for source in SOURCES)).hexdigest()

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """The function as machine code, with IEEE arithmetic: x / 0 is inf or nan, nothing raises."""
    return _compiled(function, fastmath=False)


def compiled_in_any_order(function: Function) -> Function:
    """As above, but sums and maxima are taken in any order, so that loops become SIMD; no nan."""
    return _compiled(function, fastmath={"reassoc", "nsz", "contract", "nnan"})


def _compiled(function: Function, fastmath: bool | set[str]) -> Function:
    def with_cache(cache: bool) -> Function:
        jit = njit(nogil=True, error_model="numpy", cache=cache, fastmath=fastmath)
        return cast("Function", jit(function))

    try:
        found = with_cache(True)
    except RuntimeError:  # a cache can be written nowhere: every process compiles for itself
        return with_cache(False)
    # Numba looks at the function's own file only; what it calls may have changed in another one.
    found._cache._cache_file._source_stamp = KERNEL_STAMP  # type: ignore[attr-defined]
    return found
