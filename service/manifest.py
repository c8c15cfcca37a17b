"""The manifest of a bundle: its format version, sizes, numbers, and the SHA-256 of every file.

Checked against the files as bytes here, against what they hold in `service.bundle`.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from service.decoding import Ranking
from service.errors import BundleInvalid

FORMAT_VERSION = 3
# Items of a history that the service keeps, unless UNMASK_HISTORY_CAP says otherwise; evaluation
# sees no more.
HISTORY_CAP = 200
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
CONTENT_FILES = ("content_mean.npy", "content_components.npy")
INT8_FILES = ("encoder.int8.onnx", "decoder.int8.onnx")
Precision = Literal["fp32", "int8"]
GRAPHS: dict[Precision, tuple[str, str]] = {
    "fp32": ("encoder.onnx", "decoder.onnx"),
    "int8": INT8_FILES,
}
REFERENCE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*@[A-Za-z0-9_-][A-Za-z0-9._-]*")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FileEntry(_Model):
    """A file of the bundle: its SHA-256 in hex and its size in bytes."""

    sha256: str
    bytes: int


class ContentPart(_Model):
    """What new items' embeddings must be like; what turns them into vectors are files.

    weight: share of the content part in the squared norm of a vector that has all parts
    """

    embedding_dims: int = Field(ge=1)
    weight: float = Field(ge=0, le=1)


class DecodingDefaults(_Model):
    """What a request gets that says nothing else; each field is chosen by measurement."""

    r_warm: int
    m_par: int
    beam_width: int = Field(ge=1)
    ranking: Ranking = "rows"
    finish_rows: int = Field(0, ge=0)

    def wide_enough(self, k: int) -> Self:
        """The same for k items: no fewer beams than these."""
        return self.model_copy(update={"beam_width": max(self.beam_width, k)})


class PriorWeights(_Model):
    """The numbers of the NeighbourPrior; its arrays are files."""

    history_length: int = Field(ge=1)
    decay: float = Field(gt=0, le=1)
    scale: float = Field(ge=1e-12)  # below, memory / scale could overflow
    weight: float = Field(ge=0, le=1e6)


class Manifest(_Model):
    """Description of a bundle; `facts` holds how it was made and how well it does.

    content: null when no embeddings of new items are accepted
    """

    format_version: int
    name: str
    version: str
    created_at: str
    num_items: int = Field(ge=1)
    num_subspaces: int = Field(ge=1)
    num_codes: int = Field(ge=1, le=65_535)
    history_length: int = Field(ge=1)
    repeat_bias: float = Field(ge=-1e6, le=1e6)
    prior: PriorWeights
    content: ContentPart | None
    decoding: DecodingDefaults
    files: dict[str, FileEntry]
    facts: dict[str, JsonValue]

    @property
    def has_int8(self) -> bool:
        """Whether the bundle also has its graphs with 8-bit products."""
        return any(file in self.files for file in INT8_FILES)

    @property
    def expected_files(self) -> tuple[str, ...]:
        """Names of the files that such a bundle has beside its manifest."""
        expected = FILES if self.content is None else FILES + CONTENT_FILES
        return expected + INT8_FILES if self.has_int8 else expected

    @property
    def ref(self) -> str:
        """`name@version`, the form requests, metrics and settings use."""
        return f"{self.name}@{self.version}"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a bundle's folder whole or not at all: a temporary file, renamed."""
    temporary = folder / "manifest.json.part"
    temporary.write_text(manifest.model_dump_json(indent=2) + "\n")
    temporary.replace(folder / "manifest.json")


def read_files(path: Path) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest of a bundle and its files, each as the manifest says.

    Raises BundleInvalid.
    """
    try:
        text = (path / "manifest.json").read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BundleInvalid(
            f"bundle {path}: no readable manifest.json; name the folder of a bundle"
        ) from error
    try:
        version = json.loads(text)["format_version"]
        if version != FORMAT_VERSION:
            raise BundleInvalid(
                f"bundle {path} has format version {version}, this release reads "
                f"{FORMAT_VERSION}; export it again with the matching release"
            )
        manifest = Manifest.model_validate_json(text)
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        raise BundleInvalid(f"bundle {path}: manifest.json: {one_line(error)}") from error
    if not REFERENCE.fullmatch(manifest.ref):
        raise BundleInvalid(f"bundle {path}: manifest.json: {manifest.ref!r} is not a name@version")
    expected = manifest.expected_files
    if set(manifest.files) != set(expected):
        raise BundleInvalid(f"bundle {path}: manifest.json must list exactly {', '.join(expected)}")
    files = {}
    for file, entry in manifest.files.items():
        try:
            data = (path / file).read_bytes()
        except OSError as error:
            raise BundleInvalid(f"bundle {path}: {file} is missing or unreadable") from error
        if len(data) != entry.bytes:
            raise BundleInvalid(
                f"bundle {path}: {file} has {len(data)} bytes, the manifest says {entry.bytes}"
            )
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise BundleInvalid(f"bundle {path}: {file} does not match its SHA-256; copy it again")
        files[file] = data
    return manifest, files


def one_line(error: Exception) -> str:
    """The start of an error's text, for a sentence."""
    return " ".join(str(error).split())[:300]
