"""Compilation of the kernel's loops to machine code, which runs without the interpreter's lock.

Compiled functions are pure, take arrays and numbers, and check no bounds. Each is compiled when it
is first called with arguments of some types; a constant has the type of a variable. The machine
code is cached beside the source file, or in NUMBA_CACHE_DIR. It is compiled again after any change
to a source file of the kernel.

A cache folder that cannot be written came with an image. It is read, and nothing is added: code
that it lacks is compiled and not kept. (It holds code for one processor; numba looks it up by the
processor's name and features.)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit, types
from numba.core.caching import (
    CompileResultCacheImpl,
    FunctionCache,
    UserProvidedCacheLocator,
)

KERNEL = Path(__file__).parents[1]
SOURCES = sorted(KERNEL.rglob("*.py"))
KERNEL_STAMP = hashlib.sha256(b"".join(source.read_bytes() for source in SOURCES)).hexdigest()

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """The function as machine code. IEEE arithmetic: x / 0 is inf or nan and raises nothing."""
    return _compiled(function, fastmath=False)


def compiled_in_any_order(function: Function) -> Function:
    """As `compiled`, but sums and maxima may be taken in any order, so that loops become SIMD code.

    The arguments must hold no nan.
    """
    return _compiled(function, fastmath={"reassoc", "nsz", "contract", "nnan"})


def _compiled(function: Function, fastmath: bool | set[str]) -> Function:
    jit = njit(nogil=True, error_model="numpy", fastmath=fastmath)
    found = cast("Any", jit(function))
    of_types, type_alone = found.get_call_template, cast("Any", types.unliteral)
    # To numba a constant is a type of its own, also the 0 that a loop begins with.
    found.get_call_template = lambda given, named: of_types(
        tuple(map(type_alone, given)), {name: type_alone(one) for name, one in named.items()}
    )
    caches: tuple[Any, ...] = (_ReadOnlyCache, FunctionCache)
    for cache in caches:
        try:
            found._cache = cache(function)
        except RuntimeError:  # there is no such folder
            continue
        # Numba looks at the function's own file only. The function may call others, whose files
        # may have changed: so the stamp is a hash of all files of the kernel.
        found._cache._cache_file._source_stamp = KERNEL_STAMP
        break
    return cast("Function", found)  # without a cache every process compiles for itself


class _ReadOnlyFolder(UserProvidedCacheLocator):
    def ensure_cache_path(self) -> None:
        folder = self._cache_path
        if not os.path.isdir(folder) or os.access(folder, os.W_OK):
            raise FileNotFoundError(folder)


class _ReadOnlyCacheImpl(CompileResultCacheImpl):
    _locator_classes = [_ReadOnlyFolder]  # noqa: RUF012 - numba's own is a list


class _ReadOnlyCache(FunctionCache):
    _impl_class = _ReadOnlyCacheImpl

    def save_overload(self, *_: object) -> None:
        """Keep nothing."""
