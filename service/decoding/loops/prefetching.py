"""A hint to the processor: this row of an array will be read soon.

Rows of a posting list are far apart in memory, and each read waits for main memory. With a hint
some rows ahead, the processor fetches many rows at once. A hint changes time and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

# Rows between a hint and its use: enough time for main memory, few enough for the L1 cache.
ROWS_AHEAD = 48

READ, KEEP_CLOSE, DATA = 0, 3, 1  # arguments of LLVM's llvm.prefetch


def _prefetch(_context: Any, array: Any, row: Any) -> Any:
    """Fetch the first cache line of array[row]. Called from compiled code only."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type, _ = signature.args
        made = context.make_array(array_type)(context, builder, arguments[0])
        stride = builder.extract_value(made.strides, 0)
        number, byte = ir.IntType(32), ir.IntType(8)
        offset = builder.mul(arguments[1], stride)
        address = builder.gep(builder.bitcast(made.data, byte.as_pointer()), [offset])
        declared = ir.FunctionType(ir.VoidType(), [byte.as_pointer(), number, number, number])
        hint = builder.module.declare_intrinsic("llvm.prefetch", [byte.as_pointer()], declared)
        builder.call(hint, [address, *(ir.Constant(number, n) for n in (READ, KEEP_CLOSE, DATA))])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


prefetch = cast("Callable[[Any, np.integer], None]", intrinsic(_prefetch))
