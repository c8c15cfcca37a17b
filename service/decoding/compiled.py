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
    return cast("Function", njit(nogil=True, cache=True, error_model="numpy")(function))


def compiled_in_any_order(function: Function) -> Function:
    """As above, but sums and maxima are taken in any order, so that loops become SIMD; no nan."""
    flags = {"reassoc", "nsz", "contract", "nnan"}
    return cast(
        "Function", njit(nogil=True, cache=True, error_model="numpy", fastmath=flags)(function)
    )
