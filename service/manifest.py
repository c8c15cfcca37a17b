"""The manifest of a bundle: its format version, sizes, numbers, and the SHA-256 of every file.

What it says is checked by `service.bundle`, against the files.
"""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from service.decoding import Ranking

FORMAT_VERSION = 3
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
    def expected_files(self) -> tuple[str, ...]:
        """Names of the files that such a bundle has beside its manifest."""
        return FILES if self.content is None else FILES + CONTENT_FILES

    @property
    def ref(self) -> str:
        """`name@version`, the form requests, metrics and settings use."""
        return f"{self.name}@{self.version}"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a bundle's folder whole or not at all: a temporary file, renamed."""
    temporary = folder / "manifest.json.part"
    temporary.write_text(manifest.model_dump_json(indent=2) + "\n")
    temporary.replace(folder / "manifest.json")
