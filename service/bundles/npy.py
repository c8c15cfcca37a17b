"""Arrays as the bytes of .npy files, and back: no pickle, no archive, and no header is trusted."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_AXES = 3


def array_of(name: str, data: bytes) -> NDArray[Any]:
    """An array of plain numbers from the bytes of an .npy file, in C order.

    Its header must describe exactly the data that is there. Otherwise raises ValueError, which
    names the file.
    """
    file = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(file) == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    except Exception as error:  # whatever numpy's parser of Python literals raises
        raise ValueError(f"{name} has no header of an .npy file") from error
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects; pickles are refused")
    if dtype.kind not in "iuf" or not dtype.isnative or dtype.itemsize > 8:
        raise ValueError(f"{name} holds {dtype}, not plain numbers in this machine's byte order")
    # numpy accepts True or -1 in a header, and would find a size for it.
    is_shape = 0 < len(shape) <= MAX_AXES and all(type(n) is int and n >= 0 for n in shape)
    if not is_shape or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"{name} does not hold the array that its header describes")
    file.seek(0)
    array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return np.ascontiguousarray(array)


def npy_of(array: NDArray[Any]) -> bytes:
    """The bytes of an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
