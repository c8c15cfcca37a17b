"""What happens to a bundle beside its making: 8-bit graphs, promotion to the store.

Reading order: `int8` with `quantise`, `promotion`.
"""

from training.bundling.int8 import eight_bit
from training.bundling.promotion import check_not_promoted, promote, set_default

__all__ = [
    "check_not_promoted",
    "eight_bit",
    "promote",
    "set_default",
]
