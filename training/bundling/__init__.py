"""What happens to a bundle after it was made: 8-bit graphs, a new default, promotion to the store.

Reading order: `int8` with `quantise`, then `promotion`. Knows no training and no file of users.
"""

from training.bundling.int8 import eight_bit
from training.bundling.promotion import check_not_promoted, promote, set_default

__all__ = [
    "check_not_promoted",
    "eight_bit",
    "promote",
    "set_default",
]
