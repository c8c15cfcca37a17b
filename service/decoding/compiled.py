"""Compilation of the kernel's loops to machine code, which runs without the interpreter's lock.

Compiled functions are pure, take arrays and numbers, check no bounds, and are compiled when first
called with arguments of some types; the machine code is cached beside the source file, or where
NUMBA_CACHE_DIR says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

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
        return with_cache(True)
    except RuntimeError:  # a cache can be written nowhere: every process compiles for itself
        return with_cache(False)
