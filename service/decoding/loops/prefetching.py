"""A hint to the processor: these rows of an array will be read soon.

Rows of a posting list are far apart, each read is a wait for main memory. A processor that is told
some rows ahead has many of them under way at once. A hint changes nothing but time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

AHEAD = 48  # rows between a hint and its use: time enough for memory, few enough for the L1 cache

READ, KEEP_CLOSE, DATA = 0, 3, 1  # LLVM's names for what the hint is about are these numbers


def _prefetch(_context: Any, array: Any, row: Any) -> Any:
    """Have the first cache line of array[row] fetched. Called from compiled code only."""

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
