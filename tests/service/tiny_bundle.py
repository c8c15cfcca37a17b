"""A real bundle in a few kilobytes: two ONNX graphs written by hand, no training.

The log-probs at each position are counts of the history's codes there, changed a little by the
items' vectors, and smoothed. So items that share codes with the history come first. The prior
prefers the next two rows after each item. Repeats get a penalty. The codebook is random: new items
get codes from it, and the codes of the other items do not come from it. POISON in a history makes
ONNX Runtime raise. `work` makes every denoiser call slow: it multiplies (work, work) matrices.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx.parser
from numpy.typing import NDArray
from pydantic import JsonValue

from service.bundles.bundle import DecodingDefaults, HeldOutUser, Item, write_bundle
from service.bundles.manifest import digest_of
from service.decoding import (
    Catalogue,
    Codebook,
    ContentProjection,
    NeighbourPrior,
    ProductCodebook,
)

NUM_ITEMS = 200
NUM_SUBSPACES = 4
NUM_CODES = 16
HISTORY_LENGTH = 8
EMBEDDING_DIMS = 12
REPEAT_BIAS = -1.0
DEFAULT = DecodingDefaults(r_warm=2, m_par=2, beam_width=10)
NEXT_CODE = DecodingDefaults(
    r_warm=4, m_par=1, beam_width=10, ranking="path", order="left_to_right"
)
POISON = "item-199"  # the only item with the last code at position 0

# `table` is one entry short, so that looking up POISON's code is out of bounds.
ENCODER = """
<ir_version: 9, opset_import: ["": 18]>
encoder (uint16[jobs, length, 4] history_codes, float16[jobs, length, 64] history_vectors,
         bool[jobs, length] history_mask)
  => (float[jobs, 64] memory)
  <int64 depth = {16}, float[2] off_on = {0, 1}, int64[3] flat = {0, 0, 64},
   int64[1] last = {2}, int64[1] items = {1}, int64 zero = {0},
   float[15] table = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}>
{
  codes = Cast <to = 7> (history_codes)
  vectors = Cast <to = 1> (history_vectors)
  one_hot = OneHot <axis = -1> (codes, depth, off_on)
  flat_codes = Reshape (one_hot, flat)
  first_codes = Gather <axis = 2> (codes, zero)
  safe_codes = Where (history_mask, first_codes, zero)
  zeros = Gather (table, safe_codes)
  addend = Unsqueeze (zeros, last)
  nudged = Add (flat_codes, vectors)
  tokens = Add (nudged, addend)
  real = Cast <to = 1> (history_mask)
  weights = Unsqueeze (real, last)
  weighted = Mul (tokens, weights)
  memory = ReduceSum <keepdims = 0> (weighted, items)
}
"""
DECODER = """
<ir_version: 9, opset_import: ["": 18]>
decoder (uint16[jobs, beams, 4] partial_sids, int64[jobs, beams, asked] positions,
         float[jobs, 64] memory)
  => (float[jobs, beams, asked, 16] log_probs)
  <int64[3] shape = {0, 4, 16}, int64[1] last = {-1}, int64[2] square = {WORK, WORK},
   float nothing = {0}>
{
  logits = Reshape (memory, shape)
  smoothed = LogSoftmax <axis = -1> (logits)
  indices = Unsqueeze (positions, last)
  answer = GatherND <batch_dims = 1> (smoothed, indices)
  sids = Cast <to = 1> (partial_sids)
  sum = ReduceSum <keepdims = 0> (sids)
  none = Mul (sum, nothing)
  matrix = Expand (none, square)
  product = MatMul (matrix, matrix)
  spent = ReduceSum <keepdims = 0> (product)
  log_probs = Add (answer, spent)
}
"""

# What the history has most of is what comes next, in content too.
DENSE = """
<ir_version: 9, opset_import: ["": 18]>
dense (float[jobs, 64] memory) => (float[jobs, 8] query)
  <int64[1] first = {0}, int64[1] end = {8}, int64[1] axis = {1}>
{
  query = Slice (memory, first, end, axis)
}
"""
DENSE_WEIGHT = 0.25


# The same for SIDs side by side: what is at a position is at the same one of the next SID.
SEVERAL = (
    ("uint16[jobs, beams, 4] partial_sids", "uint16[jobs, beams, filled] partial_sids"),
    ("int64[1] last = {-1},", "int64[1] last = {-1}, int64 four = {4},"),
    (
        "indices = Unsqueeze (positions, last)",
        "own = Mod (positions, four)\n  indices = Unsqueeze (own, last)",
    ),
)


def tiny_catalogue(
    num_items: int = NUM_ITEMS, names: Mapping[str, str] = MappingProxyType({})
) -> Catalogue:
    """Random codes and vectors."""
    random = np.random.default_rng(7)
    codes = random.integers(0, NUM_CODES, (num_items, NUM_SUBSPACES))
    codes[:, 0] %= NUM_CODES - 1
    codes[NUM_ITEMS - 1, 0] = NUM_CODES - 1
    item_ids = [f"item-{row}" for row in range(num_items)]
    return Catalogue(
        tuple(names.get(item_id, item_id) for item_id in item_ids),
        codes.astype(np.uint16),
        NUM_CODES,
        np.arange(num_items, 0, -1),
        (random.integers(0, 4, (num_items, NUM_SUBSPACES * NUM_CODES)) / 16).astype(np.float16),
    )


def tiny_categories(row: int) -> tuple[str, ...]:
    """A path for every item. Every fiftieth item also has a rare one."""
    return (f"Shelves > {row % 10}", "rare") if row % 50 == 0 else (f"Shelves > {row % 10}",)


def tiny_prior(offset: int = 0, num_items: int = NUM_ITEMS) -> NeighbourPrior:
    """After an item comes the next row; half as often the one after it; nothing else."""
    steps = np.array([1, 2, 0], np.int32) + np.int32(offset)
    neighbours = (np.arange(num_items, dtype=np.int32)[:, None] + steps) % num_items
    affinities = np.tile(np.array([1, 0.5, 0], np.float16), (num_items, 1))
    return NeighbourPrior(neighbours, affinities, 4, decay=0.5, scale=0.5, weight=0.5)


def tiny_places(num_items: int = NUM_ITEMS) -> NDArray[np.uint16]:
    """A spiral: distinct places, the first item's in the middle."""
    turns, share = 6 * np.pi * np.linspace(0, 1, num_items), np.linspace(0, 1, num_items)
    radius = 32_767 * np.sqrt(share)
    around = np.stack((np.cos(turns), np.sin(turns)), axis=1)
    return (32_767 + radius[:, None] * around).round().astype(np.uint16)


def tiny_grid() -> list[dict[str, JsonValue]]:
    """As if measured: the default, and two faster points with lower recall."""
    measured = [(2, 2, 4.0, 0.3), (1, 3, 2.0, 0.2), (0, 4, 1.0, 0.1)]
    return [
        DecodingDefaults(r_warm=r_warm, m_par=m_par, beam_width=10).model_dump()
        | {"milliseconds": milliseconds, "recall@10": recall}
        for r_warm, m_par, milliseconds, recall in measured
    ]


def tiny_codebook() -> ProductCodebook:
    """Content has 8 of the 64 dimensions. None of them is rotated."""
    random = np.random.default_rng(8)
    dims = NUM_SUBSPACES * NUM_CODES
    projection = ContentProjection(
        random.normal(size=EMBEDDING_DIMS).astype(np.float32),
        random.normal(size=(8, EMBEDDING_DIMS)).astype(np.float32),
        weight=0.5,
    )
    centroids = random.normal(size=(NUM_SUBSPACES, NUM_CODES, NUM_CODES)).astype(np.float32)
    return ProductCodebook(np.eye(dims, dtype=np.float32), centroids, content=projection)


def write_tiny_bundle(
    path: Path,
    *,
    codebook: Codebook | None = None,
    version: str = "1",
    created_at: str = "2026-01-01T00:00:00Z",
    work: int = 1,
    encoder: str = ENCODER,
    int8: tuple[str, str] | None = None,
    name: str = "tiny",
    offset: int = 0,
    num_items: int = NUM_ITEMS,
    title: str = "Title",
    names: Mapping[str, str] | None = None,
    titles: Mapping[str, str] = MappingProxyType({}),
    autoregressive: bool = False,
    attributes: Callable[[int], dict[str, Any] | None] = lambda row: None,
    history_dropout: float = 0.0,
    dense: str | None = None,
    max_horizon: int = 1,
    has_map: bool = False,
    decoding: DecodingDefaults | None = None,
) -> Path:
    """Write the bundle `name@version` to `path` and return the path.

    offset: of the prior's neighbours; bundles with different offsets give different answers
    names: other ids for some items; titles: other titles for some, by id
    attributes: of the item of each row
    autoregressive: as if the network knew only the next code
    history_dropout: as if it had learnt with it
    dense: a graph, DENSE or another one, if the network has a dense head
    max_horizon: above 1, its decoder can be asked for several items
    has_map: with `tiny_places`
    decoding: its default
    """
    decoder = DECODER.replace("WORK", str(work))
    for one, several in SEVERAL if max_horizon > 1 else ():
        decoder = decoder.replace(one, several)
    catalogue = tiny_catalogue(num_items, names or {})
    histories = [[f"item-{(3 * n + i) % 199}" for i in range(5)] for n in range(10)]
    write_bundle(
        path,
        name=name,
        version=version,
        created_at=created_at,
        catalogue=catalogue,
        items=[
            Item(
                item_id,
                titles.get(item_id, f"{title} of {item_id}"),
                tiny_categories(row),
                attributes(row),
            )
            for row, item_id in enumerate(catalogue.item_ids)
        ],
        held_out=[HeldOutUser(f"user-{n}", tuple(h), "item-7") for n, h in enumerate(histories)],
        encoder=_graph(encoder),
        decoder=_graph(decoder),
        history_length=HISTORY_LENGTH,
        repeat_bias=REPEAT_BIAS,
        prior=tiny_prior(offset, num_items),
        codebook=codebook or tiny_codebook(),
        decoding=decoding or (NEXT_CODE if autoregressive else DEFAULT),
        autoregressive=autoregressive,
        history_dropout=history_dropout,
        max_horizon=max_horizon,
        facts={"grid": {"points": tiny_grid()}},
        dense=dense and (_graph(dense), DENSE_WEIGHT),
        int8=int8 and (_graph(int8[0]), _graph(int8[1])),
        places=tiny_places(num_items) if has_map else None,
    )
    return path


def edit_manifest(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest and make its digest agree, if it has one and the change keeps it."""
    manifest = json.loads((path / "manifest.json").read_text())
    before = manifest.get("digest")
    edit(manifest)
    if before is not None and manifest.get("digest") == before:
        with contextlib.suppress(ValueError):  # no number: refused before the digest is looked at
            manifest["digest"] = digest_of(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def replace_file(path: Path, name: str, data: bytes) -> None:
    """Change a file and make the manifest agree, as an attacker or a wrong exporter would."""
    (path / name).write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    edit_manifest(path, lambda manifest: manifest["files"].update({name: entry}))


def _graph(text: str) -> bytes:
    serialized: bytes = onnx.parser.parse_model(text).SerializeToString()
    return serialized
