"""The bundle: a folder with all that serving needs, and the only contract with training.

`training` writes a bundle with `write_bundle`, and `service` reads it with `Bundle.load`. A
manifest names the format version, the sizes and the SHA-256 of every file. Right hashes say only
that nothing was changed. So everything that is read is also checked for type and bounds. No pickle
is read, and no path from inside a bundle is followed. Knows nothing of torch, Redis or HTTP.

manifest.json    Manifest                     codes.npy       (num_items, num_subspaces) uint16
encoder.onnx     history -> memory            vectors.npy     (num_items, d) float16
decoder.onnx     partial SIDs -> log-probs    popularity.npy  (num_items,) int64, never increasing
items.jsonl      Item, one a row              neighbours.npy  (num_items, num_neighbours) int32
held_out.jsonl   HeldOutUser, one a line      affinities.npy  (num_items, num_neighbours) float16
rotation.npy, centroids.npy                   the Codebook, for items that are added later; a
                                              residual one: centroids.npy, perhaps weights.npy
content_mean.npy, content_components.npy      its ContentProjection, if it has one
encoder.int8.onnx, decoder.int8.onnx          the graphs with 8-bit products, if it has them
dense.onnx       memory -> query              its dense head, if it has one
map.npy          (num_items, 2) uint16        where each item is on the map of the catalogue, if any
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from service.bundles.arrays import codebook_of, npy_of, read_arrays
from service.bundles.attributes import AttributeIndex, check_types, types_of
from service.bundles.decoding_defaults import DecodingDefaults
from service.bundles.items import HiddenItems, Item
from service.bundles.items import text_of as text_of
from service.bundles.lines import HELD_OUT, ITEMS, lines_of, read_held_out, read_items
from service.bundles.lines import HeldOutUser as HeldOutUser
from service.bundles.lines import check_items as check_items
from service.bundles.manifest import CONTENT_TEXT as CONTENT_TEXT
from service.bundles.manifest import (
    DENSE_FILE,
    FORMAT_VERSION,
    GRAPHS,
    MAP_FILE,
    CodebookPart,
    ContentPart,
    ContentText,
    DensePart,
    FileEntry,
    Manifest,
    Precision,
    PriorWeights,
    one_line,
    read_files,
    write_manifest,
)
from service.bundles.manifest import HISTORY_CAP as HISTORY_CAP
from service.bundles.manifest import MAX_HISTORY_LENGTH as MAX_HISTORY_LENGTH
from service.bundles.shared_parts import OwnParts, SharedParts
from service.decoding import (
    Catalogue,
    Codebook,
    ContentProjection,
    Decoder,
    NeighbourPrior,
    SidTrie,
)
from service.decoding.catalogue import SharedList
from service.decoding.network import (
    OnnxDenoiser,
    OnnxDenseHead,
    Provider,
    ProviderMissing,
    RuntimeMissing,
)
from service.errors import BundleInvalid, ProviderUnavailable


@dataclass(frozen=True, eq=False)
class Bundle:
    """A verified bundle in memory, ready to decode.

    manifest: of the folder that it was read from; items may have been added or removed since
    items:    in catalogue order, one per row
    attributes: which of these rows pass a filter
    precision: of the graphs that the decoder runs
    items_version: which changes of its items it has, see `service.loading.item_changes`
    hidden: items that are not recommended for a while
    num_added: how many of its items, the last ones, were added or replaced since it was loaded
    origin: the bundle as it was loaded, so that items of its files can come back; None = this one
    places: (num_items - num_added, 2) uint16, of the others on the map; None = it has no map
    """

    manifest: Manifest
    decoder: Decoder
    items: SharedList[Item]
    held_out: tuple[HeldOutUser, ...]
    codebook: Codebook
    attributes: AttributeIndex
    precision: Precision = "fp32"
    items_version: int = 0
    hidden: HiddenItems = field(default_factory=HiddenItems)
    num_added: int = 0
    origin: Bundle | None = None
    places: NDArray[np.uint16] | None = None

    @property
    def as_loaded(self) -> Bundle:
        """The bundle without any changes of its items."""
        return self.origin or self

    @property
    def catalogue(self) -> Catalogue:
        """The items with their SIDs, by row."""
        return self.decoder.trie.catalogue

    def with_items(self, items: Sequence[Item], embeddings: NDArray[np.floating]) -> Bundle:
        """A bundle that has these items too: see `Decoder.with_items`. This one stays as it is.

        embeddings: (n, manifest.content.embedding_dims). Raises ValueError.
        """
        item_ids = [item.item_id for item in items]
        decoder = self.decoder.with_items(item_ids, embeddings, self.codebook)
        attributes = self.attributes.with_items(items)
        return replace(
            self,
            decoder=decoder,
            items=self.items.with_items(items),
            attributes=attributes,
            num_added=self.num_added + len(items),
            origin=self._kept(),
        )

    def without_items(self, item_ids: Collection[str]) -> Bundle:
        """A bundle without these items: see `Decoder.without_items`. This one stays as it is.

        No item of it is hidden: that must be said again.
        """
        decoder, removed = self.decoder.without_items(item_ids), set(item_ids)
        items = SharedList(item for item in self.items if item.item_id not in removed)
        rows = self.catalogue.rows_of(item_ids)
        attributes = self.attributes.without_rows(rows)
        first_added = self.catalogue.num_items - self.num_added
        num_gone = np.count_nonzero(np.unique(rows) >= first_added)
        places = self.places
        return replace(
            self,
            decoder=decoder,
            items=items,
            attributes=attributes,
            hidden=HiddenItems(),  # rows have moved
            num_added=self.num_added - int(num_gone),
            origin=self._kept(),
            places=None if places is None else np.delete(places, rows[rows < first_added], axis=0),
        )

    def _kept(self) -> Bundle:
        """The bundle as it was loaded, without what it remembers of requests."""
        if self.origin is not None:
            return self.origin
        trie = self.decoder.trie
        postings = trie.indptr, trie.rows
        fresh = SidTrie(  # of the same arrays, with nothing kept of filters
            trie.catalogue, postings, trie.pairs, pair_bytes_per_item=trie.pair_bytes_per_item
        )
        return replace(
            self,
            decoder=replace(self.decoder, trie=fresh),
            attributes=self.attributes.forgetting(),
            hidden=HiddenItems(),
            items_version=0,
        )

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        ort_threads: int = 1,
        provider: Provider = "cpu",
        precision: Precision = "fp32",
        encoder_cache: int = 0,
        encoder_cache_mb: int | None = None,
        key: str | None = None,
        shared: Path | None = None,
    ) -> Self:
        """Read, verify and build a bundle.

        Raises BundleInvalid or ProviderUnavailable, each with one sentence.
        key: the key that the manifest must be signed with; None = signed or not
        ort_threads, provider: of each ONNX Runtime session
        encoder_cache: see `Decoder`; fewer if they would have more than `encoder_cache_mb` MiB
        precision: of the graphs to run; only these become sessions
        shared: a private folder through which several processes have a bundle in memory once
        """
        manifest, files = read_files(path, key)
        if precision == "int8":
            _check_int8(path, manifest, provider)
        graphs = GRAPHS[precision]
        try:
            items = SharedList(read_items(files[ITEMS], manifest.num_items))
            held_out = read_held_out(files[HELD_OUT])
            arrays = read_arrays(manifest, files)
            parts = SharedParts(shared, manifest) if shared else OwnParts()
            arrays = parts.arrays(arrays)
            prior = NeighbourPrior(
                arrays["neighbours"], arrays["affinities"], **manifest.prior.model_dump()
            )
            denoiser = OnnxDenoiser(
                *(files[graph] for graph in graphs),
                names=graphs,
                num_subspaces=manifest.num_subspaces,
                num_codes=manifest.num_codes,
                history_length=manifest.history_length,
                repeat_bias=manifest.repeat_bias,
                threads=ort_threads,
                provider=provider,
            )
            dense = None
            if manifest.dense:
                dense = OnnxDenseHead(
                    files[DENSE_FILE],
                    memory_bytes=denoiser.memory_bytes,
                    weight=manifest.dense.weight,
                    threads=ort_threads,
                    provider=provider,
                )
            vector_dims = arrays["vectors"].shape[1]
            if dense and dense.dims > vector_dims:
                raise ValueError(
                    f"{DENSE_FILE} asks for content of {dense.dims} dimensions, vectors.npy has "
                    f"{vector_dims}"
                )
            item_ids, row_of = parts.item_ids(items)
            catalogue = Catalogue(
                item_ids,
                arrays["codes"],
                manifest.num_codes,
                arrays["popularity"],
                arrays["vectors"],
                row_of,
                content_dims=dense.dims if dense else 0,
            )
            if denoiser.max_horizon < manifest.max_horizon:
                raise ValueError(
                    f"{graphs[1]} can be asked for one item at a time, manifest.json says "
                    f"max_horizon {manifest.max_horizon}"
                )
            if denoiser.vector_dims != vector_dims:
                raise ValueError(
                    f"{graphs[0]} reads vectors of {denoiser.vector_dims} dimensions, "
                    f"vectors.npy has {vector_dims}"
                )
            content = None
            if part := manifest.content:
                axes = arrays["content_components"]
                content = ContentProjection(arrays["content_mean"], axes, part.weight)
            codebook = codebook_of(manifest, arrays, content, vector_dims)
            trie = SidTrie(parts.with_room(catalogue))
            if encoder_cache_mb is not None:
                encoder_cache = min(
                    encoder_cache, (encoder_cache_mb << 20) // denoiser.memory_bytes
                )
            decoder = Decoder(trie, denoiser, prior, dense, encoder_cache=encoder_cache)
            check_types(items, manifest.attributes)
            attributes = AttributeIndex.of(items, manifest.attributes)
            items = parts.items(items, files[ITEMS], while_alive=codebook)
        except ProviderMissing as error:
            raise ProviderUnavailable(f"UNMASK_PROVIDER={provider}: {error}") from error
        except RuntimeMissing as error:
            raise ProviderUnavailable(str(error)) from error
        except ValueError as error:
            raise BundleInvalid(f"bundle {path}: {one_line(error)}") from error
        except Exception as error:  # from a library: whatever a bundle holds, it is no bug of ours
            kind = type(error).__name__
            raise BundleInvalid(
                f"bundle {path} cannot be loaded: {kind}: {one_line(error)}"
            ) from error
        return cls(
            manifest,
            decoder,
            items,
            held_out,
            codebook,
            attributes,
            precision,
            places=arrays.get("map"),
        )


def verify(path: Path, key: str | None = None) -> Manifest:
    """Check version, digest, and presence, size and SHA-256 of every file; return the manifest.

    key: the key that the manifest must be signed with. Raises BundleInvalid.
    """
    return read_files(path, key)[0]


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
    codebook: Codebook,
    decoding: DecodingDefaults,
    facts: dict[str, JsonValue],
    int8: tuple[bytes, bytes] | None = None,
    content_text: ContentText | None = None,
    content_model: str | None = None,
    text_columns: Sequence[str] = (),
    family: str = "mdgr",
    autoregressive: bool = False,
    history_dropout: float = 0.0,
    dense: tuple[bytes, float] | None = None,
    max_horizon: int = 1,
    places: NDArray[np.uint16] | None = None,
) -> Manifest:
    """Write a bundle to `path`, which must not exist: into a temporary folder, renamed last.

    content_text, content_model: which text of the items was embedded, and by which model; None =
        unknown
    text_columns: what else was embedded, see `ContentPart`
    autoregressive, history_dropout: of the network, see `Manifest`
    int8: the encoder and the decoder with 8-bit products, if the bundle should have them
    family: of the network
    dense: graph and weight of its dense head, if it has one
    max_horizon: how many items its decoder can be asked for together
    places: of its items on the map of the catalogue, if it should have one
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
        **{f"{name}.npy": npy_of(array) for name, array in codebook.arrays.items()},
        ITEMS: lines_of(items),
        HELD_OUT: lines_of(held_out),
    }
    if int8:
        files.update(zip(GRAPHS["int8"], int8, strict=True))
    if dense:
        files[DENSE_FILE] = dense[0]
    if places is not None:
        files[MAP_FILE] = npy_of(places)
    if codebook.num_positions != catalogue.num_subspaces:
        raise BundleInvalid("the SIDs must have as many codes as the codebook gives")
    try:
        attributes = types_of(items)
    except ValueError as error:
        raise BundleInvalid(str(error)) from error
    content = None
    if projection := codebook.content:
        files["content_mean.npy"] = npy_of(projection.mean)
        files["content_components.npy"] = npy_of(projection.components)
        content = ContentPart(
            embedding_dims=projection.embedding_dims,
            weight=projection.weight,
            text=content_text,
            text_columns=list(text_columns),
            model=content_model,
        )
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name=name,
        version=version,
        created_at=created_at,
        family=family,
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
        content=content,
        attributes=attributes,
        codebook=CodebookPart(
            kind=codebook.kind,
            collisions=codebook.collisions,
            normalised="weights" in codebook.arrays,
        ),
        decoding=decoding,
        autoregressive=autoregressive,
        history_dropout=history_dropout,
        dense=dense and DensePart(weight=dense[1]),
        max_horizon=max_horizon,
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
        manifest = write_manifest(temporary, manifest)
        Bundle.load(temporary)
        if int8:
            Bundle.load(temporary, precision="int8")
        temporary.chmod(0o755)
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return manifest


def _check_int8(path: Path, manifest: Manifest, provider: Provider) -> None:
    if not manifest.has_int8:
        cure = "set UNMASK_PRECISION=fp32, or train it again with --set export.int8=true"
        if manifest.facts.get("int8"):
            cure = "they lost too much recall (facts.int8 in it): set UNMASK_PRECISION=fp32"
        raise BundleInvalid(f"bundle {path} has no int8 graphs, {cure}")
    if provider != "cpu":
        raise ProviderUnavailable(
            f"UNMASK_PROVIDER={provider}: int8 graphs run on the CPU only; set "
            "UNMASK_PRECISION=fp32 or UNMASK_PROVIDER=cpu"
        )
