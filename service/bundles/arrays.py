"""The arrays of a bundle: the dtype, shape and range of each, checked when it is read.

They are .npy files: no pickle, no archive, and no header is trusted. Sizes that are not in the
manifest have a name, such as "d". Where a name occurs twice, the sizes must agree. These checks
hold for every bundle, so that later code meets no surprise.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.bundles.manifest import MAX_DIMS, MAX_NEIGHBOURS, Manifest
from service.decoding import (
    Codebook,
    ContentProjection,
    ProductCodebook,
    RandomCodebook,
    ResidualCodebook,
    RQVAECodebook,
)

MAX_AXES = 3
Arrays = dict[str, NDArray[Any]]
Size = int | str
# The least and the most that a named size may be.
NAMED_SIZES = {
    "d": (0, MAX_DIMS),
    "rotated": (1, MAX_DIMS + 64),
    "d_sub": (1, MAX_DIMS),
    "num_neighbours": (0, MAX_NEIGHBOURS),
    "content_dims": (1, MAX_DIMS),
    "d_and_bias": (2, MAX_DIMS + 1),
    "hidden_and_bias": (2, MAX_DIMS + 1),
    "latent_and_bias": (2, MAX_DIMS + 1),
}


@dataclass(frozen=True)
class _ArrayKind:
    """dtype, shape, and what the numbers must be: a rule, and the rule in words."""

    dtype: str
    shape: tuple[Size, ...]
    rule: Callable[[NDArray[Any]], NDArray[np.bool_]]
    words: str


def read_arrays(manifest: Manifest, files: Mapping[str, bytes]) -> Arrays:
    """All arrays, by file name without suffix. Raises ValueError, which names the file."""
    kinds = _kinds_of(manifest)
    sizes: dict[str, tuple[int, str]] = {}  # the size for a name, and the file that it comes from
    arrays: Arrays = {}
    for name, kind in kinds.items():
        file = f"{name}.npy"
        array = array_of(file, files[file])
        if array.dtype != kind.dtype or array.ndim != len(kind.shape):
            raise ValueError(
                f"{file} must be a {_written(kind.shape)} array of {kind.dtype}, and is a "
                f"{array.shape} array of {array.dtype}"
            )
        for size, wanted in zip(array.shape, kind.shape, strict=True):
            _check_size(file, array, size, wanted, kind, sizes)
        _check_numbers(file, array, kind)
        arrays[name] = array
    return arrays


def codebook_of(
    manifest: Manifest, arrays: Arrays, content: ContentProjection | None, vector_dims: int
) -> Codebook:
    """The codebook of a bundle. Raises ValueError.

    vector_dims: of vectors.npy; 0 = the encoder sees codes alone
    """
    part = manifest.codebook
    rest: Any = {"content": content, "collisions": part.collisions}
    codebook: Codebook
    if part.kind == "random":
        num_subspaces = manifest.num_subspaces - part.num_digits
        codebook = RandomCodebook((num_subspaces, manifest.num_codes, vector_dims), **rest)
    elif part.kind == "residual":
        codebook = ResidualCodebook(arrays["centroids"], arrays.get("weights"), **rest)
        if vector_dims not in (0, codebook.vector_dims):
            raise ValueError("centroids.npy must have the dimensions of vectors.npy")
    elif part.kind == "rqvae":
        to_latent, from_latent = (
            (arrays[f"{name}_1"], arrays[f"{name}_2"], arrays[f"{name}_3"])
            for name in ("to_latent", "from_latent")
        )
        codebook = RQVAECodebook(arrays["centroids"], to_latent, from_latent, **rest)
        if vector_dims not in (0, codebook.vector_dims):
            raise ValueError("from_latent_3.npy must have the dimensions of vectors.npy")
    else:
        codebook = ProductCodebook(arrays["rotation"], arrays["centroids"], **rest)
        if vector_dims not in (0, codebook.vector_dims):
            raise ValueError("rotation.npy must have one row per dimension of vectors.npy")
    return codebook


def _kinds_of(manifest: Manifest) -> dict[str, _ArrayKind]:
    items, subspaces, codes = manifest.num_items, manifest.num_subspaces, manifest.num_codes
    levels = subspaces - manifest.codebook.num_digits
    finite = np.isfinite, "finite"
    strength = (lambda a: np.isfinite(a) & (a >= 0)), "finite and not negative"
    kinds = {
        "codes": _ArrayKind("uint16", (items, subspaces), lambda a: a < codes, f"below {codes}"),
        "popularity": _ArrayKind("int64", (items,), lambda a: a >= 0, "not negative"),
        "vectors": _ArrayKind("float16", (items, "d"), *finite),
        "neighbours": _ArrayKind(
            "int32",
            (items, "num_neighbours"),
            lambda a: (a >= 0) & (a < items),
            f"a row of the catalogue, from 0 to {items - 1}",
        ),
        "affinities": _ArrayKind("float16", (items, "num_neighbours"), *strength),
        "rotation": _ArrayKind("float32", ("rotation_rows", "rotated"), *finite),
        "centroids": _ArrayKind("float32", (levels, codes, "d_sub"), *finite),
        "map": _ArrayKind("uint16", (items, 2), lambda a: a >= 0, "a place"),
        "weights": _ArrayKind("float32", (levels,), *finite),
        "to_latent_1": _ArrayKind("float32", ("d_and_bias", "hidden"), *finite),
        "to_latent_2": _ArrayKind("float32", ("hidden_and_bias", "hidden"), *finite),
        "to_latent_3": _ArrayKind("float32", ("hidden_and_bias", "d_sub"), *finite),
        "from_latent_1": _ArrayKind("float32", ("latent_and_bias", "hidden"), *finite),
        "from_latent_2": _ArrayKind("float32", ("hidden_and_bias", "hidden"), *finite),
        "from_latent_3": _ArrayKind("float32", ("hidden_and_bias", "d_rebuilt"), *finite),
    }
    if manifest.content:
        dims = manifest.content.embedding_dims
        kinds["content_mean"] = _ArrayKind("float32", (dims,), *finite)
        kinds["content_components"] = _ArrayKind("float32", ("content_dims", dims), *finite)
    return {name: kind for name, kind in kinds.items() if f"{name}.npy" in manifest.files}


def _check_size(
    file: str,
    array: NDArray[Any],
    size: int,
    wanted: Size,
    kind: _ArrayKind,
    sizes: dict[str, tuple[int, str]],
) -> None:
    if isinstance(wanted, int):
        if size != wanted:
            raise ValueError(
                f"{file} has shape {array.shape}, the manifest says {_written(kind.shape)}"
            )
        return
    least, most = NAMED_SIZES.get(wanted, (1, MAX_DIMS))
    if not least <= size <= most:
        raise ValueError(
            f"{file} has shape {array.shape}; {wanted} of {_written(kind.shape)} must be "
            f"{least} to {most}"
        )
    known, other = sizes.setdefault(wanted, (size, file))
    if size != known:
        raise ValueError(f"{file} has shape {array.shape}, but {wanted} of {other} is {known}")


def _check_numbers(file: str, array: NDArray[Any], kind: _ArrayKind) -> None:
    fits = kind.rule(array)
    if not fits.all():
        row = int(np.flatnonzero(~fits.reshape(len(array), -1).all(axis=1))[0])
        raise ValueError(f"{file}, row {row}: every number must be {kind.words}")


def _written(shape: tuple[Size, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


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
