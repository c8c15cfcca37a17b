"""Reads the vectors of a table's lines: an .npy file of floats with one row for each line.

Executes nothing that a file holds: pickles are refused. Does not know what the vectors mean.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.files.table import reason_of
from training.errors import DataError

# Other formats of vectors. They are not read, but a warning names such a file beside the items.
OTHER_SUFFIXES = (".npz", ".pt", ".pth", ".safetensors", ".h5", ".pkl", ".csv", ".txt", ".parquet")
LARGEST = 1e15  # squares of larger numbers, summed up, may not be finite in 32 bits
CURE = "write one with numpy.save('item_embeddings.npy', vectors)"


def find_vectors(folder: Path) -> tuple[Path | None, str | None]:
    """The file `item_embeddings*.npy` of a folder, and a sentence about a file of another format.

    Raises DataError if there are two.
    """
    found = sorted(folder.glob("item_embeddings*.npy"))
    if len(found) > 1:
        raise DataError(
            f"{folder} has more than one item_embeddings*.npy; give --embeddings with the one to "
            "use"
        )
    if found:
        return found[0], None
    other = [p for p in sorted(folder.glob("item_embeddings*")) if p.suffix in OTHER_SUFFIXES]
    return None, f"{other[0]} is not used, because it is no .npy file; {CURE}" if other else None


def read_vectors(path: Path, num_lines: int, lines: NDArray[np.int64]) -> NDArray[np.float32]:
    """Read an .npy file that has one vector for each line of a table.

    num_lines: lines of the table; the file must have as many rows
    lines:     (n,) int64, the line of each vector, -1 for zeros
    Returns (n, d) float32. Raises DataError.
    """
    try:
        with path.open("rb") as file:
            begins = file.read(6)
        if begins != b"\x93NUMPY":
            what = _kind_of(begins, path)
            raise DataError(f"{path} is {what}, not an .npy file with one array; {CURE}")
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read as a NumPy array: {reason_of(error)}") from error
    if stored.ndim != 2 or stored.dtype.kind != "f" or not stored.shape[1]:
        raise DataError(
            f"{path} must be a float array of two dimensions, one row per item; it is "
            f"{stored.dtype} of shape {stored.shape}"
        )
    if len(stored) != num_lines:
        raise DataError(f"{path} has {len(stored)} rows, but the items file has {num_lines} items")
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite and is refused below
        vectors: NDArray[np.float32] = stored[np.maximum(lines, 0)].astype(np.float32)
    vectors[lines < 0] = 0
    if not np.isfinite(vectors).all():
        row = int(lines[~np.isfinite(vectors).all(axis=1)].min())
        raise DataError(
            f"{path} has values that are not finite numbers of 32 bits, for instance in row {row}, "
            "counted from 0"
        )
    if (large := (np.abs(vectors) > LARGEST).any(axis=1)).any():
        raise DataError(
            f"{path} has numbers above {LARGEST:g}, whose squares are too large for 32 bits, for "
            f"instance in row {int(lines[large].min())}, counted from 0; scale them"
        )
    return vectors


def _kind_of(begins: bytes, path: Path) -> str:
    if not begins:
        return "empty: it has 0 bytes"
    if begins.startswith(b"PK\x03\x04"):
        return "a file of PyTorch" if path.suffix in (".pt", ".pth") else "an archive (.npz)"
    return "something else"
