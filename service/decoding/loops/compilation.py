"""Compilation of the kernel's loops to machine code, which runs without the interpreter's lock.

Compiled functions are pure, take arrays and numbers, and check no bounds. Each is compiled when it
is first called with arguments of some types; a constant has the type of a variable. The machine
code is cached beside the source file, or in NUMBA_CACHE_DIR. It is compiled again after any change
to a source file of the kernel.

Code is made for a level of x86-64, the highest that the processor has, not for the one processor:
so it can be made elsewhere, without running it (`compile_ahead`). NUMBA_CPU_NAME, if set, says for
what else it is made. Other kinds of processor have no levels.

A cache folder that cannot be written came with an image. It is read, and nothing is added: code
that it lacks is compiled and not kept.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from llvmlite import binding
from numba import config, njit, types
from numba.core.caching import (
    CompileResultCacheImpl,
    FunctionCache,
    UserProvidedCacheLocator,
)

KERNEL = Path(__file__).parents[1]
SOURCES = sorted(KERNEL.rglob("*.py"))
KERNEL_STAMP = hashlib.sha256(b"".join(source.read_bytes() for source in SOURCES)).hexdigest()

# The levels and what each adds, by LLVM's names, as the x86-64 psABI defines them.
LEVELS = {
    "x86-64-v2": ("cx16", "sahf", "popcnt", "sse3", "sse4.1", "sse4.2", "ssse3"),
    "x86-64-v3": ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave"),
    "x86-64-v4": ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
}

Function = TypeVar("Function", bound=Callable[..., object])
compiled_functions: dict[str, Any] = {}  # by module and name


def level_of(features: Mapping[str, bool]) -> str | None:
    """The highest level of which a processor has all features, by LLVM's names; None = none."""
    found = None
    for level, needed in LEVELS.items():
        if not all(features.get(one, False) for one in needed):
            break
        found = level
    return found


options = cast("Any", config)
if options.CPU_NAME is options.CPU_FEATURES is None and (
    level := level_of(binding.get_host_cpu_features())
):
    options.CPU_NAME, options.CPU_FEATURES = level, ""  # numba finds what is cached by both
MADE_FOR: str | None = options.CPU_NAME  # None: for this very processor


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
    compiled_functions[f"{function.__module__}.{function.__qualname__}"] = found
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
