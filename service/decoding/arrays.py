"""Types of the kernel's arrays, one name each. Knows nothing of what is done with them.

Rows are int32 indices into the catalogue; codes are uint16, and MASK is num_codes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int32]
Postings = NDArray[np.int32]  # (num_subspaces, num_items), see `SidTrie`
Codes = NDArray[np.uint16]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]
