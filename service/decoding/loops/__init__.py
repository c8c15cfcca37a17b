"""Compiled building blocks: how a loop becomes machine code, and loops that many modules need.

Pure functions of arrays, without bounds checks. Knows nothing of items or beams.

Reading order: `compilation`, `softmax`, `heap`, `prefetching`.
"""

from service.decoding.loops import heap
from service.decoding.loops.compilation import (
    LEVELS,
    MADE_FOR,
    compiled,
    compiled_functions,
    compiled_in_any_order,
)
from service.decoding.loops.prefetching import ROWS_AHEAD, prefetch
from service.decoding.loops.softmax import BLOCK, exponentiate, highest_of

__all__ = [
    "BLOCK",
    "LEVELS",
    "MADE_FOR",
    "ROWS_AHEAD",
    "compiled",
    "compiled_functions",
    "compiled_in_any_order",
    "exponentiate",
    "heap",
    "highest_of",
    "prefetch",
]
