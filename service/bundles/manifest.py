"""The manifest of a bundle: its format version, sizes, numbers, and the SHA-256 of every file.

Every number has a bound that no real use exceeds, because these numbers decide how much memory and
time a load takes. The digest covers the manifest, and so all files. A signature covers the digest.
This module checks the files as bytes. `service.bundles.bundle` checks what they hold.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from pydantic_core import PydanticCustomError, from_json

from service.bundles.decoding_defaults import (
    MAX_SUBSPACES,
    DecodingDefaults,
    Misfit,
    misfit_of,
)
from service.bundles.items import CATEGORY, MAX_ATTRIBUTES, AttributeName, AttributeType
from service.decoding import MAX_HORIZON, CodebookKind, Collisions
from service.errors import BundleInvalid

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
# How many items of a history the service keeps, unless UNMASK_HISTORY_CAP says otherwise.
# Evaluation sees no more.
HISTORY_CAP = 200
MAX_ITEMS = 100_000_000
MAX_CODES = 65_535  # codes and MASK are uint16
MAX_HISTORY_LENGTH = 2_048  # an encoder's attention needs memory by its square
MAX_NEIGHBOURS = 10_000
MAX_DIMS = 8_192  # of vectors and of embeddings
MAX_HELD_OUT_USERS = 1_000_000
MAX_ITEM_BYTES = 1 << 16  # of a line of items.jsonl
MAX_USER_BYTES = 1 << 17  # of a line of held_out.jsonl
MAX_MANIFEST_BYTES = 16 << 20
MAX_GRAPH_BYTES = 1 << 31  # the limit of protobuf
MAX_HEADER_BYTES = 1 << 14  # of an .npy file
FILES = (
    "encoder.onnx",
    "decoder.onnx",
    "codes.npy",
    "popularity.npy",
    "vectors.npy",
    "neighbours.npy",
    "affinities.npy",
    "rotation.npy",
    "centroids.npy",
    "items.jsonl",
    "held_out.jsonl",
)
# The networks of codebook rqvae, a file a layer.
LAYERS = tuple(f"{name}_{n}.npy" for name in ("to_latent", "from_latent") for n in (1, 2, 3))
# Which files the codebook has, by its kind; the weights only if residuals are normalised.
CODEBOOK_FILES: dict[CodebookKind, tuple[str, ...]] = {
    "opq": ("rotation.npy", "centroids.npy"),
    "residual": ("centroids.npy",),
    "rqvae": ("centroids.npy", *LAYERS),
    "random": (),
}
WEIGHTS = "weights.npy"
DENSE_FILE = "dense.onnx"
MAP_FILE = "map.npy"
CONTENT_FILES = ("content_mean.npy", "content_components.npy")
INT8_FILES = ("encoder.int8.onnx", "decoder.int8.onnx")
Precision = Literal["fp32", "int8"]
ContentText = Literal["title. categories"]
CONTENT_TEXT: ContentText = "title. categories"  # as `service.bundles.items.text_of` makes it
GRAPHS: dict[Precision, tuple[str, str]] = {
    "fp32": ("encoder.onnx", "decoder.onnx"),
    "int8": INT8_FILES,
}
REFERENCE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*@[A-Za-z0-9_-][A-Za-z0-9._-]*")


SHA256 = "^[0-9a-f]{64}$"
UNDIGESTED = {"digest", "signature"}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FileEntry(_Model):
    """A file of the bundle: its SHA-256 in hex and its size in bytes."""

    sha256: str = Field(pattern=SHA256)
    bytes: int = Field(ge=0)


class ContentPart(_Model):
    """What embeddings of new items must be like. Files hold what turns them into vectors.

    weight: share of the content part in the squared norm of a vector that has all parts
    text: which text of an item was embedded; null when unknown
    text_columns: whose text was embedded behind it, in this order; not written if there are none
    model: the model that embedded it; null when unknown
    """

    embedding_dims: int = Field(ge=1, le=MAX_DIMS)
    weight: float = Field(ge=0, le=1)
    text: ContentText | None = None
    text_columns: list[str] = Field([], exclude_if=lambda names: not names)
    model: str | None = Field(None, min_length=1, max_length=500)


class CodebookPart(_Model):
    """What made the SIDs. Files hold what encodes new items.

    kind: opq = parallel parts of a rotated vector; residual = levels; rqvae = levels of what a
        network makes of a vector; random = new items get none
    collisions: see `service.decoding.Codebook`; a digit is one of the manifest's `num_subspaces`
    normalised: residuals are normalised between levels
    """

    kind: CodebookKind = "opq"
    collisions: Collisions = "keep"
    normalised: bool = False

    @property
    def num_digits(self) -> int:
        """How many positions of a SID are no subspace of the codebook."""
        return int(self.collisions == "digit")

    @property
    def files(self) -> tuple[str, ...]:
        """Names of its files."""
        return CODEBOOK_FILES[self.kind] + (WEIGHTS,) * self.normalised


class DensePart(_Model):
    """The dense head, whose graph is a file. weight: see `service.decoding.network.DenseHead`"""

    weight: float = Field(ge=0, le=1)


class PriorWeights(_Model):
    """The numbers of the NeighbourPrior; its arrays are files."""

    history_length: int = Field(ge=1, le=1_000_000)
    decay: float = Field(gt=0, le=1)
    scale: float = Field(ge=1e-12, le=1e12)  # otherwise memory / scale could overflow, or be 0
    weight: float = Field(ge=0, le=1e6)


class Manifest(_Model):
    """Description of a bundle. `facts` holds how it was made and how good it is.

    family: kind of its network, a folder of `training/families`; bundles that do not say it are
        of mdgr. Nothing in the service depends on it
    content: null when the bundle accepts no embeddings of new items
    attributes: type of each attribute of its items beside `category`; not written if there is none
    autoregressive: whether the network knows only the next code of a SID, from left to right. Then
        one position is filled a call, the order is left_to_right, and beams are ranked by path
    history_dropout: share of training samples whose history the network did not see; with 0 it
        cannot be guided. Not written if it is 0
    max_horizon: how many next items a request may ask for together; not written if it is 1
    codebook: not written if it is as in bundles from before there was a choice
    dense: null, and not written, when the network has no dense head
    digest: its `digest_of`; null in bundles older than digests
    signature: of the digest, see `signature_of`; null when nobody signed it
    """

    format_version: int
    name: str = Field(max_length=100)
    version: str = Field(max_length=100)
    created_at: str = Field(max_length=100)
    family: str = Field("mdgr", max_length=100)
    num_items: int = Field(ge=1, le=MAX_ITEMS)
    num_subspaces: int = Field(ge=1, le=MAX_SUBSPACES)
    num_codes: int = Field(ge=1, le=MAX_CODES)
    history_length: int = Field(ge=1, le=MAX_HISTORY_LENGTH)
    repeat_bias: float = Field(ge=-1e6, le=1e6)
    prior: PriorWeights
    content: ContentPart | None
    attributes: dict[AttributeName, AttributeType] = Field(
        {}, max_length=MAX_ATTRIBUTES, exclude_if=lambda types: not types
    )
    codebook: CodebookPart = Field(CodebookPart(), exclude_if=lambda part: part == CodebookPart())
    dense: DensePart | None = Field(None, exclude_if=lambda part: part is None)
    decoding: DecodingDefaults
    autoregressive: bool = False
    history_dropout: float = Field(0.0, ge=0, le=1, exclude_if=lambda share: share == 0)
    max_horizon: int = Field(1, ge=1, le=MAX_HORIZON, exclude_if=lambda most: most == 1)
    files: dict[str, FileEntry]
    facts: dict[str, JsonValue]
    digest: str | None = Field(default=None, pattern=SHA256)
    signature: str | None = Field(default=None, pattern=SHA256)

    @model_validator(mode="after")
    def _the_codebook_fits(self) -> Self:
        if self.codebook.num_digits >= self.num_subspaces:
            raise ValueError("SIDs with a digit must have at least 2 subspaces")
        if self.codebook.normalised and self.codebook.kind != "residual":
            raise ValueError("only residuals can be normalised")
        if self.content and self.codebook.kind == "random":
            raise ValueError("random codes have no content")
        return self

    @model_validator(mode="after")
    def _default_fits(self) -> Self:
        if misfit := self.misfit(self.decoding):
            told = {"param": misfit.param, "message": misfit.message}
            raise PydanticCustomError("misfit", "decoding.{param}: {message}", told)
        return self

    def misfit(self, decoding: DecodingDefaults, horizon: int = 1) -> Misfit | None:
        """Why the bundle cannot decode so, for `horizon` items at a time; None if it can."""
        return misfit_of(
            decoding,
            self.num_subspaces,
            autoregressive=self.autoregressive,
            history_dropout=self.history_dropout,
            has_dense=self.dense is not None,
            horizon=horizon,
            max_horizon=self.max_horizon,
        )

    @property
    def filters(self) -> dict[str, AttributeType]:
        """The attributes that a request can filter by, with their types."""
        return {CATEGORY: "text", **self.attributes}

    @property
    def has_int8(self) -> bool:
        """Whether the bundle also has its graphs with 8-bit products."""
        return any(file in self.files for file in INT8_FILES)

    @property
    def knows_held_out(self) -> bool:
        """Whether the targets of its held-out users were learnt before it was shipped."""
        return bool(self.facts.get("refitted"))

    @property
    def expected_files(self) -> tuple[str, ...]:
        """Names of the files that such a bundle has beside its manifest."""
        others = set(CODEBOOK_FILES["opq"]) - set(self.codebook.files)
        expected = tuple(file for file in FILES if file not in others)
        expected += tuple(file for file in LAYERS if file in self.codebook.files)
        expected += (WEIGHTS,) * self.codebook.normalised
        expected += () if self.content is None else CONTENT_FILES
        expected += () if self.dense is None else (DENSE_FILE,)
        expected += (MAP_FILE,) * (MAP_FILE in self.files)
        return expected + INT8_FILES if self.has_int8 else expected

    @property
    def ref(self) -> str:
        """`name@version`, as in requests, metrics and settings."""
        return f"{self.name}@{self.version}"

    @property
    def most_bytes(self) -> dict[str, int]:
        """The most bytes that each file may have, given the other numbers."""
        items, codes = self.num_items, self.num_subspaces * self.num_codes
        arrays = {
            "codes.npy": 2 * items * self.num_subspaces,
            "popularity.npy": 8 * items,
            "vectors.npy": 2 * items * MAX_DIMS,
            "neighbours.npy": 4 * items * MAX_NEIGHBOURS,
            "affinities.npy": 2 * items * MAX_NEIGHBOURS,
            "rotation.npy": 4 * MAX_DIMS * (MAX_DIMS + MAX_SUBSPACES),
            "centroids.npy": 4 * codes * self._most_dims_of_centroids,
            "weights.npy": 4 * self.num_subspaces,
            **dict.fromkeys(LAYERS, 4 * (MAX_DIMS + 1) * MAX_DIMS),
            "content_mean.npy": 4 * MAX_DIMS,
            "content_components.npy": 4 * MAX_DIMS * MAX_DIMS,
            MAP_FILE: 2 * 2 * items,
        }
        most = {file: size + MAX_HEADER_BYTES for file, size in arrays.items()}
        most |= dict.fromkeys((*GRAPHS["fp32"], *INT8_FILES, DENSE_FILE), MAX_GRAPH_BYTES)
        most["items.jsonl"] = items * MAX_ITEM_BYTES
        most["held_out.jsonl"] = MAX_HELD_OUT_USERS * MAX_USER_BYTES
        return most

    @property
    def _most_dims_of_centroids(self) -> int:
        if self.codebook.kind != "opq":
            return MAX_DIMS
        return MAX_DIMS // (self.num_subspaces - self.codebook.num_digits) + 1


def digest_of(fields: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of the JSON of all fields except the digest and the signature.

    Names are sorted, nothing is between tokens, the text is UTF-8, and numbers are as Python writes
    them. So the layout of the file does not change it. Raises ValueError for numbers that are not
    finite.
    """
    digested = {name: value for name, value in fields.items() if name not in UNDIGESTED}
    text = json.dumps(
        digested, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def signature_of(digest: str, key: str) -> str:
    """HMAC-SHA256, in hex. The signer and the checker have the same key."""
    return hmac.new(key.encode(), f"unmask bundle {digest}".encode(), hashlib.sha256).hexdigest()


def write_manifest(folder: Path, manifest: Manifest, key: str | None = None) -> Manifest:
    """Write the manifest of a bundle's folder completely or not at all: a temporary file, renamed.

    It gets its digest, and a signature if there is a key. Returns the manifest as it was written.
    """
    fields = manifest.model_dump(mode="json")
    digest = digest_of(fields)
    signature = key and signature_of(digest, key)
    manifest = manifest.model_copy(update={"digest": digest, "signature": signature})
    temporary = folder / f"{MANIFEST}.part"
    signed = fields | {"digest": digest, "signature": signature}
    temporary.write_text(json.dumps(signed, indent=2, ensure_ascii=False) + "\n")
    temporary.replace(folder / MANIFEST)
    return manifest


def read_fields(path: Path) -> dict[str, Any]:
    """The fields of a bundle's manifest, unchecked. Raises BundleInvalid."""
    try:
        data = read_regular(path / MANIFEST, MAX_MANIFEST_BYTES)
    except OSError as error:
        raise BundleInvalid(
            f"bundle {path}: no readable manifest.json; name the folder of a bundle"
        ) from error
    except ValueError as error:
        raise BundleInvalid(f"bundle {path}: {error}") from error
    try:
        fields = from_json(data)  # refuses what is nested too deeply
        json.loads(data, object_pairs_hook=_distinct)
        if not isinstance(fields, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        raise BundleInvalid(f"bundle {path}: manifest.json: {one_line(error)}") from error
    return fields


def _distinct(pairs: list[tuple[str, Any]]) -> None:
    """Of a name that stands twice, one program takes the first value and another one the last."""
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("an object has the same name twice")


def read_manifest(path: Path, key: str | None = None) -> Manifest:
    """The manifest of a bundle, alone. key: it must be signed with it. Raises BundleInvalid."""
    fields = read_fields(path)
    version = fields.get("format_version")
    if type(version) is not int:
        raise BundleInvalid(f"bundle {path}: manifest.json: format_version must be a whole number")
    if version != FORMAT_VERSION:
        raise BundleInvalid(
            f"bundle {path} has format version {str(version)[:20]}, this release reads "
            f"{FORMAT_VERSION}; export it again with the matching release"
        )
    try:
        manifest = Manifest.model_validate(fields, strict=True)
        digest = digest_of(fields)
    except ValidationError as error:
        raise BundleInvalid(f"bundle {path}: manifest.json: {first_of(error)}") from error
    except (ValueError, RecursionError) as error:
        raise BundleInvalid(f"bundle {path}: manifest.json: {one_line(error)}") from error
    if manifest.digest not in (None, digest):
        raise BundleInvalid(
            f"bundle {path}: manifest.json does not match its digest, so something in it was "
            "changed; copy it again"
        )
    if key and not (
        manifest.signature and hmac.compare_digest(manifest.signature, signature_of(digest, key))
    ):
        how = "is signed with another key" if manifest.signature else "is not signed"
        raise BundleInvalid(
            f"bundle {path} {how}; promote it with `python -m training promote` where "
            "UNMASK_BUNDLE_KEY is that of the service"
        )
    if not REFERENCE.fullmatch(manifest.ref):
        raise BundleInvalid(f"bundle {path}: manifest.json: {manifest.ref!r} is not a name@version")
    expected = manifest.expected_files
    if set(manifest.files) != set(expected):
        raise BundleInvalid(f"bundle {path}: manifest.json must list exactly {', '.join(expected)}")
    for file, most in manifest.most_bytes.items():
        if file in manifest.files and manifest.files[file].bytes > most:
            raise BundleInvalid(
                f"bundle {path}: manifest.json: {file} may have {most} bytes, by the sizes there"
            )
    return manifest


def read_files(path: Path, key: str | None = None) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest of a bundle and its files, each checked against the manifest.

    key: the key that the manifest must be signed with. Raises BundleInvalid.
    """
    manifest = read_manifest(path, key)
    files = {}
    for file, entry in manifest.files.items():
        try:
            data = read_regular(path / file, entry.bytes)
        except OSError as error:
            raise BundleInvalid(f"bundle {path}: {file} is missing or unreadable") from error
        except ValueError as error:
            raise BundleInvalid(f"bundle {path}: {error}") from error
        if len(data) != entry.bytes:
            raise BundleInvalid(
                f"bundle {path}: {file} has {len(data)} bytes, the manifest says {entry.bytes}"
            )
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise BundleInvalid(f"bundle {path}: {file} does not match its SHA-256; copy it again")
        files[file] = data
    return manifest, files


def read_regular(path: Path, most_bytes: int) -> bytes:
    """The bytes of a file or of a link to one. Nothing else is opened: reading a pipe would wait.

    Raises OSError, or ValueError for what is no regular file or has too many bytes.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path.name} is no regular file")
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        found = os.fstat(file.fileno())  # of the opened file, whatever was at the path before
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{path.name} is no regular file")
        if found.st_size > most_bytes:
            raise ValueError(f"{path.name} has {found.st_size} bytes, at most {most_bytes} are due")
        return file.read(most_bytes + 1)  # one more, because the file may grow


def first_of(error: ValidationError) -> str:
    """The first error: where it is, and what is expected. It never says what was found there."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"]))[:100]
    return f"{place}: {first['msg']}" if place else str(first["msg"])


def one_line(error: Exception) -> str:
    """The start of an error's text, on one line, for use in a sentence."""
    return " ".join(str(error).split())[:300]
