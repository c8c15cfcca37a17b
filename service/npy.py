"""Arrays as the bytes of .npy files and back: no pickle, no archive, no header trusted."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def array_of(name: str, data: bytes) -> NDArray[Any]:
    """An array from the bytes of an .npy file, whose header must promise what there is.

    Raises ValueError, which names the file, otherwise.
    """
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects; pickles are refused")
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"{name} does not hold the array that its header describes")
    file.seek(0)
    array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array


def npy_of(array: NDArray[Any]) -> bytes:
    """The bytes of an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
