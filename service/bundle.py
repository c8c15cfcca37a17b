"""The bundle: a directory with all that serving needs, and the only contract with training.

`training` writes one with `write_bundle`, `service` reads it with `Bundle.load`. A manifest names
the format version, the sizes and the SHA-256 of every file. No pickle, no path from inside a
bundle is followed. Knows nothing of torch, Redis or HTTP.

manifest.json    Manifest                     codes.npy       (num_items, num_subspaces) uint16
encoder.onnx     history -> memory            vectors.npy     (num_items, d) float16
decoder.onnx     partial SIDs -> log-probs    popularity.npy  (num_items,) int64, never increasing
items.jsonl      Item, one a row              neighbours.npy  (num_items, num_neighbours) int32
held_out.jsonl   HeldOutUser, one a line      affinities.npy  (num_items, num_neighbours) float16
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from service.decoding import Catalogue, Decoder, NeighbourPrior, Ranking, Schedule, SidTrie
from service.decoding.onnx_denoiser import OnnxDenoiser
from service.errors import BundleInvalid
from service.npy import array_of, npy_of

FORMAT_VERSION = 2
FILES = (
    "encoder.onnx",
    "decoder.onnx",
    "codes.npy",
    "popularity.npy",
    "vectors.npy",
    "neighbours.npy",
    "affinities.npy",
    "items.jsonl",
    "held_out.jsonl",
)
REFERENCE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*@[A-Za-z0-9_-][A-Za-z0-9._-]*")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FileEntry(_Model):
    """A file of the bundle: its SHA-256 in hex and its size in bytes."""

    sha256: str
    bytes: int


class DecodingDefaults(_Model):
    """What a request gets when it names no schedule of its own; the ranking is for all requests."""

    r_warm: int
    m_par: int
    beam_width: int = Field(ge=1)
    ranking: Ranking = "rows"


class PriorWeights(_Model):
    """The numbers of the NeighbourPrior; its arrays are files."""

    history_length: int = Field(ge=1)
    decay: float = Field(gt=0, le=1)
    scale: float = Field(ge=1e-12)  # below, memory / scale could overflow
    weight: float = Field(ge=0)


class Manifest(_Model):
    """Description of a bundle; `facts` holds how it was made and how well it does."""

    format_version: int
    name: str
    version: str
    created_at: str
    num_items: int = Field(ge=1)
    num_subspaces: int = Field(ge=1)
    num_codes: int = Field(ge=1, le=65_535)
    history_length: int = Field(ge=1)
    repeat_bias: float
    prior: PriorWeights
    decoding: DecodingDefaults
    files: dict[str, FileEntry]
    facts: dict[str, JsonValue]

    @property
    def ref(self) -> str:
        """`name@version`, the form requests, metrics and settings use."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Item:
    """What is shown of an item; the rest of the system knows only its row."""

    item_id: str
    title: str
    categories: tuple[str, ...]


@dataclass(frozen=True)
class HeldOutUser:
    """A test user: history (item_ids, oldest first) and the item that came next."""

    user_id: str
    history: tuple[str, ...]
    target: str


@dataclass(frozen=True, eq=False)
class Bundle:
    """A verified bundle in memory, ready to decode."""

    manifest: Manifest
    decoder: Decoder
    items: tuple[Item, ...]
    held_out: tuple[HeldOutUser, ...]

    @property
    def catalogue(self) -> Catalogue:
        """The items with their SIDs, by row."""
        return self.decoder.trie.catalogue

    @classmethod
    def load(cls, path: Path, *, ort_threads: int = 1) -> Self:
        """Read, verify and build a bundle. Raises BundleInvalid, a sentence saying what is wrong.

        ort_threads: threads of each ONNX Runtime session.
        """
        manifest, files = _read(path)
        try:
            items = tuple(
                Item(entry["item_id"], entry["title"], tuple(entry["categories"]))
                for entry in _json_lines(files["items.jsonl"])
            )
            held_out = tuple(
                HeldOutUser(entry["user_id"], tuple(entry["history"]), entry["target"])
                for entry in _json_lines(files["held_out.jsonl"])
            )
            arrays = {
                file.removesuffix(".npy"): array_of(file, data)
                for file, data in files.items()
                if file.endswith(".npy")
            }
            codes, neighbours = arrays["codes"], arrays["neighbours"]
            catalogue = Catalogue(
                tuple(item.item_id for item in items),
                codes,
                manifest.num_codes,
                arrays["popularity"],
                arrays["vectors"],
            )
            if len(neighbours) != len(codes):
                raise ValueError("neighbours.npy must have one row per item")
            prior = NeighbourPrior(neighbours, arrays["affinities"], **manifest.prior.model_dump())
            if codes.shape != (manifest.num_items, manifest.num_subspaces):
                raise ValueError(
                    f"codes.npy has shape {codes.shape}, the manifest says "
                    f"{(manifest.num_items, manifest.num_subspaces)}"
                )
            Schedule.from_params(
                num_subspaces=manifest.num_subspaces,
                r_warm=manifest.decoding.r_warm,
                m_par=manifest.decoding.m_par,
            )
            denoiser = OnnxDenoiser(
                files["encoder.onnx"],
                files["decoder.onnx"],
                num_subspaces=manifest.num_subspaces,
                num_codes=manifest.num_codes,
                history_length=manifest.history_length,
                repeat_bias=manifest.repeat_bias,
                threads=ort_threads,
            )
            if denoiser.vector_dims != catalogue.vectors.shape[1]:
                raise ValueError(
                    f"encoder.onnx reads vectors of {denoiser.vector_dims} dimensions, "
                    f"vectors.npy has {catalogue.vectors.shape[1]}"
                )
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise BundleInvalid(f"bundle {path}: {_one_line(error)}") from error
        decoder = Decoder(SidTrie(catalogue), denoiser, manifest.decoding.ranking, prior)
        return cls(manifest, decoder, items, held_out)


def verify(path: Path) -> Manifest:
    """Check version, presence, size and SHA-256 of every file; return the manifest.

    Raises BundleInvalid.
    """
    return _read(path)[0]


def bundle_path(bundles_dir: Path, reference: str) -> Path:
    """Directory of `name@version` in a store: `<bundles_dir>/<name>/<version>`.

    Raises BundleInvalid when the reference is malformed; it can never leave the store.
    """
    if not REFERENCE.fullmatch(reference):
        raise BundleInvalid(f"{reference!r} is not of the form name@version")
    name, version = reference.split("@")
    return bundles_dir / name / version


def write_bundle(
    path: Path,
    *,
    name: str,
    version: str,
    created_at: str,
    catalogue: Catalogue,
    items: Sequence[Item],
    held_out: Iterable[HeldOutUser],
    encoder: bytes,
    decoder: bytes,
    history_length: int,
    repeat_bias: float,
    prior: NeighbourPrior,
    decoding: DecodingDefaults,
    facts: dict[str, JsonValue],
) -> Manifest:
    """Write a bundle to `path`, which must not exist: into a temporary folder, renamed last.

    A crash leaves no half-written bundle. Raises FileExistsError, or BundleInvalid when the parts
    do not fit together.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists; a bundle is never overwritten")
    if tuple(item.item_id for item in items) != tuple(catalogue.item_ids):
        raise BundleInvalid("items must be in catalogue order, one per row")
    files = {
        "encoder.onnx": encoder,
        "decoder.onnx": decoder,
        "codes.npy": npy_of(catalogue.codes),
        "popularity.npy": npy_of(catalogue.popularity),
        "vectors.npy": npy_of(catalogue.vectors),
        "neighbours.npy": npy_of(prior.neighbours),
        "affinities.npy": npy_of(prior.affinities),
        "items.jsonl": _lines(items),
        "held_out.jsonl": _lines(held_out),
    }
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name=name,
        version=version,
        created_at=created_at,
        num_items=catalogue.num_items,
        num_subspaces=catalogue.num_subspaces,
        num_codes=catalogue.num_codes,
        history_length=history_length,
        repeat_bias=repeat_bias,
        prior=PriorWeights(
            history_length=prior.history_length,
            decay=prior.decay,
            scale=prior.scale,
            weight=prior.weight,
        ),
        decoding=decoding,
        files={
            file: FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
            for file, data in files.items()
        },
        facts=facts,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        for file, data in files.items():
            (temporary / file).write_bytes(data)
        (temporary / "manifest.json").write_text(manifest.model_dump_json(indent=2) + "\n")
        Bundle.load(temporary)
        temporary.chmod(0o755)
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return manifest


def _read(path: Path) -> tuple[Manifest, dict[str, bytes]]:
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
        raise BundleInvalid(f"bundle {path}: manifest.json: {_one_line(error)}") from error
    if not REFERENCE.fullmatch(manifest.ref):
        raise BundleInvalid(f"bundle {path}: manifest.json: {manifest.ref!r} is not a name@version")
    if set(manifest.files) != set(FILES):
        raise BundleInvalid(f"bundle {path}: manifest.json must list exactly {', '.join(FILES)}")
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


def _json_lines(data: bytes) -> list[Any]:
    return [json.loads(line) for line in data.splitlines()]


def _lines(entries: Iterable[Item | HeldOutUser]) -> bytes:
    text = "".join(json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in entries)
    return text.encode()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
