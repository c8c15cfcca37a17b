"""The bundle contract: what is written comes back, and everything damaged is refused clearly."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tiny_bundle import (
    DECODER,
    DENSE,
    DENSE_WEIGHT,
    EMBEDDING_DIMS,
    ENCODER,
    REPEAT_BIAS,
    edit_manifest,
    replace_file,
    tiny_catalogue,
    tiny_codebook,
    tiny_prior,
    write_tiny_bundle,
)

from service.bundles import Condition, manifest
from service.bundles.bundle import Bundle, Item, verify
from service.bundles.ladder import ladder_of
from service.bundles.manifest import (
    CONTENT_FILES,
    FILES,
    GRAPHS,
    INT8_FILES,
    DecodingDefaults,
    write_manifest,
)
from service.bundles.store import stored_path
from service.decoding import Histories, Job, NeighbourPrior, Schedule
from service.decoding.network import onnx_denoiser
from service.errors import BundleInvalid, ProviderUnavailable


@pytest.fixture
def copy(bundles_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundles_dir / "tiny" / "1", tmp_path / "copy"))


def test_the_encoder_cache_has_a_limit_in_bytes(bundles_dir: Path) -> None:
    """A memory of the tiny bundle has 64 numbers of 4 bytes."""
    bundle = Bundle.load(bundles_dir / "tiny" / "1", encoder_cache=10_000, encoder_cache_mb=1)
    assert bundle.decoder.encoder_cache == (1 << 20) / (4 * 64)
    bundle = Bundle.load(bundles_dir / "tiny" / "1", encoder_cache=100, encoder_cache_mb=1)
    assert bundle.decoder.encoder_cache == 100


def test_a_bundle_that_does_not_say_its_family_is_of_mdgr(copy: Path) -> None:
    assert verify(copy).family == "mdgr"
    edit_manifest(copy, lambda manifest: manifest.pop("family"))
    assert verify(copy).family == "mdgr"
    edit_manifest(copy, lambda manifest: manifest.update(family="maskgr"))
    assert Bundle.load(copy).manifest.family == "maskgr"
    edit_manifest(copy, lambda manifest: manifest.update(family=7))
    with pytest.raises(BundleInvalid, match=r"manifest\.json: family: .* valid string"):
        verify(copy)


def test_a_bundle_comes_back_as_it_was_written(bundles_dir: Path) -> None:
    bundle = Bundle.load(bundles_dir / "tiny" / "1")
    manifest = verify(bundles_dir / "tiny" / "1")
    assert bundle.manifest == manifest
    assert manifest.ref == "tiny@1"
    catalogue = bundle.catalogue
    assert len(bundle.items) == catalogue.num_items == manifest.num_items
    assert [item.item_id for item in bundle.items] == list(catalogue.item_ids)
    assert bundle.decoder.denoiser.num_codes == catalogue.num_codes == manifest.num_codes
    assert bundle.decoder.denoiser.repeat_bias == manifest.repeat_bias == REPEAT_BIAS
    assert manifest.decoding == DecodingDefaults(r_warm=2, m_par=2, beam_width=10)
    written = tiny_catalogue()
    for name in ("codes", "vectors", "popularity"):
        found, expected = getattr(catalogue, name), getattr(written, name)
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)
    prior = bundle.decoder.prior
    assert prior is not None
    for field in fields(NeighbourPrior):
        assert np.array_equal(getattr(prior, field.name), getattr(tiny_prior(), field.name))


def test_the_codebook_comes_back_as_it_was_written(bundles_dir: Path, tmp_path: Path) -> None:
    found, written = Bundle.load(bundles_dir / "tiny" / "1").codebook, tiny_codebook()
    assert np.array_equal(found.rotation, written.rotation)
    assert np.array_equal(found.centroids, written.centroids)
    assert found.content is not None
    assert written.content is not None
    assert np.array_equal(found.content.mean, written.content.mean)
    assert np.array_equal(found.content.components, written.content.components)
    assert found.content.weight == written.content.weight

    path = write_tiny_bundle(tmp_path / "1", codebook=replace(written, content=None))
    bundle = Bundle.load(path)
    assert set(bundle.manifest.files) == set(FILES)
    assert bundle.manifest.content is bundle.codebook.content is None
    with pytest.raises(ValueError, match="takes no embeddings"):
        bundle.with_items([Item("new", "New", ())], np.ones((1, EMBEDDING_DIMS)))


def test_items_come_and_go_and_the_bundle_stays_as_it_was(bundles_dir: Path) -> None:
    bundle = Bundle.load(bundles_dir / "tiny" / "1")
    embeddings = np.random.default_rng(0).normal(size=(3, EMBEDDING_DIMS))
    new = [Item(f"new-{n}", f"New {n}", ("rare", "brand new")) for n in range(3)]
    grown = bundle.with_items(new, embeddings)
    assert list(grown.items) == [*bundle.items, *new]
    vectors, _ = tiny_codebook().vectors_of(embeddings, bundle.catalogue.vectors)
    assert np.array_equal(grown.catalogue.vectors[-3:], vectors.astype(np.float16))
    assert np.array_equal(grown.catalogue.codes[-3:], tiny_codebook().codes_of(vectors))

    shrunk = grown.without_items(["item-3", "new-1", "gone"])
    item_ids = [item.item_id for item in shrunk.items]
    assert item_ids == list(shrunk.catalogue.item_ids)
    assert set(grown.catalogue.item_ids) - set(item_ids) == {"item-3", "new-1"}
    assert bundle.catalogue.num_items == len(bundle.items) == 200
    for state, expected in (
        (bundle, {"item-0", "item-50", "item-100", "item-150"}),
        (grown, {"item-0", "item-50", "item-100", "item-150", "new-0", "new-1", "new-2"}),
        (shrunk, {"item-0", "item-50", "item-100", "item-150", "new-0", "new-2"}),
    ):
        rare = state.attributes.allowed({"category": Condition(["rare"])})
        assert {state.items[row].item_id for row in rare} == expected
        state.decoder.trie.filters.of(rare)
        assert len(state.decoder.trie.filters) == 1
    origin = bundle.with_items(new, embeddings).as_loaded  # its arrays, and nothing of filters
    assert np.shares_memory(origin.decoder.trie.rows, bundle.decoder.trie.rows)
    assert origin.decoder.trie.pairs is bundle.decoder.trie.pairs
    assert not len(origin.decoder.trie.filters)
    assert bundle.attributes.remembers({"category": Condition(["rare"])})
    assert not origin.attributes.remembers({"category": Condition(["rare"])})
    for state in (bundle, grown, shrunk):
        history = state.catalogue.rows_of(["item-5", "new-0", "new-1", "item-9"])
        [decoded], _ = state.decoder.decode([Job(history, 250, Schedule((1, 3)), 250)])
        assert sorted(decoded.rows.tolist()) == list(range(state.catalogue.num_items))


def test_the_decoding_defaults_of_a_manifest_may_be_written_again(copy: Path) -> None:
    manifest, decoding = verify(copy), DecodingDefaults(r_warm=1, m_par=3, beam_width=20)
    assert (decoding.ranking, decoding.finish_rows) == ("rows", 0)
    decoding = decoding.model_copy(update={"ranking": "best", "finish_rows": 30})
    files = {path.name for path in copy.iterdir()}
    write_manifest(copy, manifest.model_copy(update={"decoding": decoding}))
    assert Bundle.load(copy).manifest.decoding == decoding
    assert {path.name for path in copy.iterdir()} == files


def test_a_manifest_that_knows_no_finish_rows_means_none(copy: Path) -> None:
    edit_manifest(copy, lambda manifest: manifest["decoding"].pop("finish_rows"))
    assert Bundle.load(copy).manifest.decoding.finish_rows == 0


def test_a_manifest_that_knows_no_orders_means_any_and_confidence(copy: Path) -> None:
    def forget(manifest: dict[str, Any]) -> None:
        del manifest["autoregressive"], manifest["decoding"]["order"]
        for point in manifest["facts"]["grid"]["points"]:
            del point["order"]

    before = ladder_of(verify(copy))
    edit_manifest(copy, forget)
    manifest = Bundle.load(copy).manifest
    assert (manifest.decoding.order, manifest.autoregressive) == ("confidence", False)
    assert ladder_of(manifest) == before
    assert len(before) > 1


def test_a_bundle_without_a_dense_head_says_nothing_of_one(copy: Path) -> None:
    """So older releases read it."""
    text = (copy / "manifest.json").read_text()
    assert "dense" not in text
    assert "retrieval" not in text
    assert Bundle.load(copy).decoder.dense is None


def test_a_dense_head_is_read_and_compared_with_content(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path / "dense", dense=DENSE)
    fields = json.loads((path / "manifest.json").read_text())
    assert fields["dense"] == {"weight": DENSE_WEIGHT}
    assert "dense.onnx" in fields["files"]
    bundle = Bundle.load(path)
    head = bundle.decoder.dense
    assert head is not None
    assert (head.dims, head.weight, bundle.catalogue.content_dims) == (8, DENSE_WEIGHT, 8)
    rows = np.array([3, 20], np.int32)
    job = Job(rows, 20, Schedule((1, 1, 2)), 20, excluded=rows, retrieval="dense")
    [found], _ = bundle.decoder.decode([job])
    histories = Histories.of([rows], bundle.catalogue, 8)
    query = head.queries(bundle.decoder.denoiser.encode(histories))[0]
    scores = bundle.catalogue.vectors[:, :8].astype(np.float64) @ query
    scores[rows] = -np.inf
    assert found.rows.tolist() == np.argsort(-scores, kind="stable")[:20].tolist()
    default = bundle.manifest.decoding.model_copy(update={"retrieval": "fused"})
    write_manifest(path, bundle.manifest.model_copy(update={"decoding": default}))
    assert Bundle.load(path).manifest.decoding.retrieval == "fused"


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (DENSE.replace("64]", "63]"), "dense.onnx reads a memory of 63 numbers, the encoder gives"),
        (
            DENSE.replace(") => (float[jobs, 8] query", ") => (float[jobs, 8] other").replace(
                "query = S", "other = S"
            ),
            "dense.onnx has outputs",
        ),
        (
            DENSE.replace("jobs, 8]", "jobs, 128]").replace(
                "query = Slice (memory, first, end, axis)",
                "query = Concat <axis = 1> (memory, memory)",
            ),
            "content of 128 dimensions, vectors.npy has 64",
        ),
    ],
)
def test_a_dense_head_that_does_not_fit_is_refused(
    tmp_path: Path, graph: str, message: str
) -> None:
    with pytest.raises(BundleInvalid, match=message):
        write_tiny_bundle(tmp_path / "dense", dense=graph)


def test_a_bundle_is_never_overwritten_and_leaves_nothing_half_written(
    bundles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileExistsError, match="never overwritten"):
        write_tiny_bundle(bundles_dir / "tiny" / "1")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        write_tiny_bundle(tmp_path / "store" / "1")
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize("name", FILES + CONTENT_FILES)
def test_a_missing_truncated_or_altered_file_is_refused(copy: Path, name: str) -> None:
    data = (copy / name).read_bytes()
    (copy / name).unlink()
    with pytest.raises(BundleInvalid, match=f"{name} is missing"):
        Bundle.load(copy)
    if not data:
        (copy / name).write_bytes(b"x")
        with pytest.raises(BundleInvalid, match=f"{name} has 1 bytes"):
            Bundle.load(copy)
        return
    (copy / name).write_bytes(data[:-1])
    with pytest.raises(BundleInvalid, match=f"{name} has {len(data) - 1} bytes"):
        Bundle.load(copy)
    (copy / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleInvalid, match=f"{name} does not match its SHA-256"):
        verify(copy)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(format_version=99), "has format version 99, this release reads 3"),
        (
            lambda m: m.update(format_version=2),
            "has format version 2, this release reads 3; export",
        ),
        (lambda m: m.pop("format_version"), "manifest.json"),
        (lambda m: m.update(surprise=1), "surprise"),
        (lambda m: m["files"].pop("codes.npy"), "must list exactly"),
        (
            lambda m: m["files"].update({"../../etc/passwd": m["files"]["codes.npy"]}),
            "must list exactly",
        ),
        (
            lambda m: m.update(num_items=m["num_items"] + 1),
            "items.jsonl has 200 lines, the manifest says 201",
        ),
        (
            lambda m: m.update(num_codes=m["num_codes"] + 1),
            r"centroids\.npy has shape .*, the manifest says \(4, 17, d_sub\)",
        ),
        (lambda m: m.update(version="../../../escaped"), "is not a name@version"),
        (lambda m: m.update(name=".hidden"), "is not a name@version"),
        (
            lambda m: m["decoding"].update(r_warm=9),
            "r_warm must be at most 4, the bundle's num_subspaces",
        ),
        (lambda m: m["decoding"].update(m_par=9), "m_par must be at most 4, the bundle's"),
        (lambda m: m["decoding"].update(order="legal"), "decoding.order"),
        (lambda m: m["decoding"].update(retrieval="dense"), "so retrieval must be generate"),
        (lambda m: m["decoding"].update(retrieval="sparse"), "decoding.retrieval"),
        (lambda m: m.update(dense={"weight": 0.5}), "must list exactly"),
        (lambda m: m.update(dense={"weight": 1.5}), "dense.weight"),
        (lambda m: m.update(autoregressive=True), "so order must be left_to_right"),
        (lambda m: m["decoding"].update(m_par=0), "decoding.m_par"),
        (lambda m: m["decoding"].update(beam_width=0), "beam_width"),
        (lambda m: m["decoding"].update(finish_rows=-1), "finish_rows"),
        (lambda m: m["decoding"].update(ranking="worst"), "decoding.ranking"),
        (lambda m: m.pop("repeat_bias"), "repeat_bias"),
        (lambda m: m.pop("prior"), "prior"),
        (lambda m: m.pop("content"), "content"),
        (lambda m: m.update(content=None), "must list exactly"),
        (lambda m: m["content"].update(weight=1.5), "content.weight"),
        (
            lambda m: m["content"].update(embedding_dims=9),
            r"content_mean\.npy has shape \(12,\), the manifest says \(9,\)",
        ),
        (lambda m: m["prior"].update(weight=-1), "prior.weight"),
        (lambda m: m["prior"].update(decay=0), "prior.decay"),
        (lambda m: m["prior"].update(scale=0), "prior.scale"),
        (lambda m: m["prior"].update(weight=float("inf")), "prior.weight"),
        (lambda m: m.update(repeat_bias=float("nan")), "repeat_bias"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    copy: Path, edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    edit_manifest(copy, edit)
    with pytest.raises(BundleInvalid, match=message):
        Bundle.load(copy)


def test_a_manifest_that_is_not_json_or_absent_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "manifest.json").write_text("{")
    with pytest.raises(BundleInvalid, match=r"manifest\.json"):
        verify(copy)
    with pytest.raises(BundleInvalid, match=r"no readable manifest\.json"):
        verify(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("version", "fields_of_later", "files_of_later"),
    [
        (1, ["prior", "repeat_bias", "content"], ["vectors.npy", "neighbours.npy", "rotation.npy"]),
        (2, ["content"], ["rotation.npy", "centroids.npy"]),
    ],
)
def test_a_bundle_of_an_older_format_is_refused_by_its_version(
    copy: Path, version: int, fields_of_later: list[str], files_of_later: list[str]
) -> None:
    """Its manifest has other fields and files. Still the sentence is about the version."""

    def older(manifest: dict[str, Any]) -> None:
        manifest["format_version"] = version
        for field in fields_of_later:
            del manifest[field]
        for name in files_of_later:
            del manifest["files"][name]

    edit_manifest(copy, older)
    for read in (Bundle.load, verify):
        with pytest.raises(BundleInvalid) as refused:
            read(copy)
        assert str(refused.value) == (
            f"bundle {copy} has format version {version}, this release reads 3; "
            "export it again with the matching release"
        )


def _npy_of(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"vectors": lambda a: a[:-1]},
            r"vectors\.npy has shape \(199, 64\), the manifest says \(200, d\)",
        ),
        ({"vectors": lambda a: a.astype(np.float32)}, "array of float16"),
        (
            {"vectors": lambda a: a * np.float16(np.nan)},
            r"vectors\.npy, row 0: every number must be finite",
        ),
        ({"vectors": lambda a: a[:, :-1]}, "encoder.onnx reads vectors of"),
        ({"popularity": lambda a: a.astype(np.float64)}, "array of int64"),
        ({"popularity": lambda a: np.stack([a, a], axis=1)}, "array of int64"),
        (
            {"neighbours": lambda a: a[:-2], "affinities": lambda a: a[:-2]},
            r"neighbours\.npy has shape \(198, 3\), the manifest says \(200, ",
        ),
        ({"neighbours": lambda a: a[:, :-1]}, r"num_neighbours of neighbours\.npy is 2"),
        ({"affinities": lambda a: a[:-1]}, r"affinities\.npy has shape \(199, 3\)"),
        (
            {"neighbours": lambda a: a + np.int32(1)},
            r"neighbours\.npy, row 1\d\d: every number must be a row",
        ),
        ({"neighbours": lambda a: a.astype(np.int64)}, "array of int32"),
        ({"affinities": lambda a: -a}, "finite and not negative"),
        ({"affinities": lambda a: a.astype(np.float64)}, "float16"),
        ({"rotation": lambda a: a[:, 4:]}, "as the centroids say"),
        ({"rotation": lambda a: a[:-1]}, "one row per dimension of vectors"),
        (
            {"rotation": lambda a: a.astype(np.float64)},
            r"rotation\.npy must be .* array of float32",
        ),
        (
            {"centroids": lambda a: a * np.float32(np.nan)},
            r"centroids\.npy, row 0: every number must be finite",
        ),
        ({"centroids": lambda a: a[0]}, r"centroids\.npy must be a \(4, 16, d_sub\) array"),
        ({"centroids": lambda a: a[:, :-1]}, r"centroids\.npy has shape \(4, 15, 16\)"),
        ({"content_mean": lambda a: a[:-1]}, r"content_mean\.npy has shape \(11,\)"),
        (
            {"content_components": lambda a: a.astype(np.float16)},
            r"content_components\.npy must be .* of float32",
        ),
        ({"content_components": lambda a: np.tile(a, (9, 1))}, "more dimensions than the vectors"),
    ],
)
def test_arrays_beside_the_codes_that_do_not_fit_are_refused(
    copy: Path, changed: dict[str, Callable[[np.ndarray], np.ndarray]], message: str
) -> None:
    for name, change in changed.items():
        array = np.load(copy / f"{name}.npy")
        replace_file(copy, f"{name}.npy", _npy_of(change(array)))
    with pytest.raises(BundleInvalid, match=message):
        Bundle.load(copy)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", None])
def test_a_file_that_is_no_array_is_refused(copy: Path, data: bytes | None) -> None:
    if data is None:  # a header that describes far more data than there is
        data = _npy_of(np.zeros((2, 2), np.uint16)).replace(b"(2, 2)", b"(9999999, 9999999)")
    replace_file(copy, "codes.npy", data)
    with pytest.raises(BundleInvalid):
        Bundle.load(copy)


def test_codes_out_of_range_pickles_and_foreign_graphs_are_refused(copy: Path) -> None:
    codes = np.load(copy / "codes.npy")
    original = (copy / "codes.npy").read_bytes()
    codes[0, 0] = 60_000
    np.save(copy / "wrong.npy", codes)
    replace_file(copy, "codes.npy", (copy / "wrong.npy").read_bytes())
    with pytest.raises(BundleInvalid, match=r"codes\.npy, row 0: every number must be below 16"):
        Bundle.load(copy)
    np.save(copy / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    replace_file(copy, "codes.npy", (copy / "pickled.npy").read_bytes())
    with pytest.raises(BundleInvalid, match="pickles are refused"):
        Bundle.load(copy)
    replace_file(copy, "codes.npy", original)
    replace_file(copy, "encoder.onnx", b"not a graph")
    with pytest.raises(BundleInvalid, match=r"encoder\.onnx is not a graph"):
        Bundle.load(copy)
    replace_file(copy, "encoder.onnx", (copy / "decoder.onnx").read_bytes())
    with pytest.raises(BundleInvalid, match=r"encoder\.onnx has inputs"):
        Bundle.load(copy)


def test_a_provider_that_is_not_there_is_not_the_bundles_fault(bundles_dir: Path) -> None:
    with pytest.raises(ProviderUnavailable, match=r"^UNMASK_PROVIDER=tensorrt: .*extra `gpu`"):
        Bundle.load(bundles_dir / "tiny" / "1", provider="tensorrt")


def test_int8_graphs_are_a_second_pair_and_only_the_pair_asked_for_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = DECODER.replace("WORK", "1").replace("Reshape (memory", "Reshape (nobody")
    flat = flat.replace("{\n", "{\n  nobody = Mul (memory, nothing)\n", 1)
    path = write_tiny_bundle(tmp_path / "bundle", int8=(ENCODER, flat))
    manifest = verify(path)
    assert manifest.has_int8
    assert set(manifest.files) == {*FILES, *CONTENT_FILES, *INT8_FILES}

    named: list[str] = []
    session = onnx_denoiser._session

    def noted(graph: bytes, name: str, *others: Any) -> Any:
        named.append(name)
        return session(graph, name, *others)

    monkeypatch.setattr(onnx_denoiser, "_session", noted)
    history = np.array([3, 4, 5], np.int32)
    jobs = [Job(history, 5, Schedule((2, 2)), 10)]
    answers = {}
    for precision in ("fp32", "int8"):
        named.clear()
        bundle = Bundle.load(path, precision=precision)
        assert bundle.precision == precision
        assert named == list(GRAPHS[precision])
        answers[precision] = bundle.decoder.decode(jobs)[0][0]
    assert len(answers["int8"].rows) == 5
    assert not np.array_equal(answers["fp32"].scores, answers["int8"].scores)


def test_int8_asked_for_and_not_there_is_refused(copy: Path, tmp_path: Path) -> None:
    sentence = (
        r"no int8 graphs, set UNMASK_PRECISION=fp32, or train it again with --set export\.int8"
    )
    with pytest.raises(BundleInvalid, match=sentence):
        Bundle.load(copy, precision="int8")
    edit_manifest(copy, lambda manifest: manifest["facts"].update(int8={"accepted": False}))
    with pytest.raises(BundleInvalid, match=r"lost too much recall .*: set UNMASK_PRECISION=fp32"):
        Bundle.load(copy, precision="int8")
    replace_file(copy, "decoder.int8.onnx", (copy / "decoder.onnx").read_bytes())
    with pytest.raises(BundleInvalid, match=r"must list exactly .*, encoder\.int8\.onnx"):
        Bundle.load(copy)
    replace_file(copy, "encoder.int8.onnx", (copy / "decoder.onnx").read_bytes())
    assert Bundle.load(copy).precision == "fp32"
    with pytest.raises(BundleInvalid, match=r"encoder\.int8\.onnx has inputs"):
        Bundle.load(copy, precision="int8")
    with pytest.raises(ProviderUnavailable, match="int8 graphs run on the CPU only"):
        Bundle.load(copy, precision="int8", provider="cuda")
    with pytest.raises(BundleInvalid, match=r"encoder\.int8\.onnx has inputs"):
        write_tiny_bundle(tmp_path / "wrong", int8=(DECODER.replace("WORK", "1"),) * 2)
    assert not (tmp_path / "wrong").exists()


def test_rows_must_be_ordered_by_popularity_and_ids_distinct(copy: Path) -> None:
    popularity = np.load(copy / "popularity.npy")
    np.save(copy / "rising.npy", np.arange(len(popularity)))
    original = (copy / "popularity.npy").read_bytes()
    replace_file(copy, "popularity.npy", (copy / "rising.npy").read_bytes())
    with pytest.raises(BundleInvalid, match="ordered by popularity"):
        Bundle.load(copy)
    replace_file(copy, "popularity.npy", original)
    lines = (copy / "items.jsonl").read_bytes().splitlines(keepends=True)
    replace_file(copy, "items.jsonl", b"".join([lines[1], *lines[1:]]))
    with pytest.raises(BundleInvalid, match="distinct"):
        Bundle.load(copy)


def test_graphs_with_weights_in_other_files_are_refused(copy: Path, tmp_path: Path) -> None:
    """ONNX Runtime would open whatever file a graph names."""
    graph = onnx.load(copy / "decoder.onnx")
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.zeros(64, np.float32).tobytes())
    weights = onnx.TensorProto(name="stolen", data_type=1, dims=[64], data_location=1)
    for path in (str(secret), "../../secret.bin"):
        weights.external_data.add(key="location", value=path)
        graph.graph.initializer.append(weights)
        replace_file(copy, "decoder.onnx", graph.SerializeToString())
        with pytest.raises(BundleInvalid, match=r"decoder\.onnx keeps weights in other files"):
            Bundle.load(copy)


@pytest.mark.parametrize(
    "reference",
    [
        "demo",
        "demo@",
        "@1",
        "../demo@1",
        "demo@../../etc",
        "demo@1/2",
        "a@b@c",
        "..@1",
        "demo@..",
        "",
    ],
)
def test_a_reference_cannot_leave_the_store(reference: str, tmp_path: Path) -> None:
    with pytest.raises(BundleInvalid, match="name@version"):
        stored_path(tmp_path, reference)
    assert stored_path(tmp_path, "demo@1") == tmp_path / "demo" / "1"


# The digest and the signature of the manifest


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m["prior"].update(scale=m["prior"]["scale"] * 2),
        lambda m: m.update(repeat_bias=-1.0000000000000002),
        lambda m: m["facts"].update(note="another"),
        lambda m: m["decoding"].update(finish_rows=1),
    ],
)
def test_a_manifest_that_was_changed_is_refused(
    copy: Path, edit: Callable[[dict[str, Any]], None]
) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    edit(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    for read in (Bundle.load, verify):
        with pytest.raises(BundleInvalid, match=r"manifest\.json does not match its digest"):
            read(copy)


def test_the_digest_is_of_what_the_manifest_says_and_not_of_its_layout(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    digest = manifest.pop("digest")
    del manifest["signature"]
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert digest == hashlib.sha256(text.encode()).hexdigest()
    turned = dict(reversed(list(manifest.items())))
    (copy / "manifest.json").write_text(json.dumps(turned | {"digest": digest}, indent=7))
    assert Bundle.load(copy).manifest.digest == digest


def test_a_bundle_of_before_there_was_a_digest_loads(copy: Path) -> None:
    def older(manifest: dict[str, Any]) -> None:
        for name in ("digest", "signature"):
            del manifest[name]
        for name in ("text", "model"):
            del manifest["content"][name]

    edit_manifest(copy, older)
    manifest = Bundle.load(copy).manifest
    assert manifest.digest is manifest.signature is None
    assert manifest.content is not None
    assert manifest.content.text is None


def test_a_key_wants_a_signature_of_its_own(copy: Path) -> None:
    key, other = "k" * 32, "l" * 32
    with pytest.raises(BundleInvalid, match="is not signed; promote it"):
        Bundle.load(copy, key=key)
    signed = write_manifest(copy, verify(copy), key)
    assert signed.signature
    assert Bundle.load(copy, key=key).manifest == verify(copy) == signed
    with pytest.raises(BundleInvalid, match="is signed with another key"):
        Bundle.load(copy, key=other)
    edit_manifest(copy, lambda manifest: manifest.update(repeat_bias=-2.0))  # its digest, too
    with pytest.raises(BundleInvalid, match="is signed with another key"):
        verify(copy, key)
    assert Bundle.load(copy).manifest.repeat_bias == -2


# Wrong content behind right hashes


ITEM = {"item_id": "item-0", "title": "t", "categories": []}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"title": 7}, "title: Input should be a valid string"),
        ({"title": None}, "title: Input should be a valid string"),
        ({"title": "x" * 10_001}, "title: String should have at most 10000 characters"),
        ({"title": "\ud800"}, "items.jsonl, line 1: .*hex escape"),
        ({"item_id": 7}, "item_id: Input should be a valid string"),
        ({"item_id": ""}, "item_id: String should have at least 1 character"),
        ({"item_id": "x" * 257}, "item_id: String should have at most 256 characters"),
        ({"item_id": "a\nb"}, "item_id: String should match pattern"),
        ({"item_id": "item-5"}, "line 6: item_ids must be distinct, and line 1 has the same"),
        ({"categories": "abc"}, "categories: Input should be a valid tuple"),
        ({"categories": [["a"]]}, r"categories\.0: Input should be a valid string"),
        ({"categories": [" > ".join("a" * 51)]}, "a path of categories may have 50 steps"),
        ({"price": 1}, "price: Unexpected keyword argument"),
    ],
)
def test_an_item_of_another_type_is_refused_by_its_line(
    copy: Path, changed: dict[str, Any], message: str
) -> None:
    lines = (copy / "items.jsonl").read_bytes().splitlines()
    lines[0] = json.dumps(ITEM | changed).encode()
    replace_file(copy, "items.jsonl", b"\n".join(lines))
    with pytest.raises(
        BundleInvalid, match=f"items.jsonl, {'' if 'line' in message else 'line 1'}"
    ):
        Bundle.load(copy)
    with pytest.raises(BundleInvalid, match=message):
        Bundle.load(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(history_length=10**9), "history_length: .* less than or equal to 2048"),
        (lambda m: m.update(num_items=10**12), "num_items: .* less than or equal to 100000000"),
        (lambda m: m.update(num_subspaces=65), "num_subspaces: .* less than or equal to 64"),
        (lambda m: m["decoding"].update(beam_width=10**6), "beam_width: .* equal to 1000"),
        (lambda m: m["prior"].update(history_length=10**9), "prior.history_length"),
        (lambda m: m["content"].update(embedding_dims=10**6), "embedding_dims"),
        (lambda m: m.update(num_items="200"), "num_items: Input should be a valid integer"),
        (lambda m: m.update(repeat_bias=True), "repeat_bias: Input should be a valid number"),
        (lambda m: m["files"]["codes.npy"].update(bytes=10**15), r"codes\.npy may have \d+ bytes"),
        (lambda m: m["files"]["codes.npy"].update(sha256="x"), r"files\.codes\.npy\.sha256"),
    ],
)
def test_sizes_have_bounds(
    copy: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    edit_manifest(copy, change)
    with pytest.raises(BundleInvalid, match=message):
        Bundle.load(copy)


@pytest.mark.parametrize("text", ["[" * 500, '{"a":' * 500, "5", "[]", "null", '{"facts": 1e400}'])
def test_a_manifest_that_is_no_plain_object_is_refused(copy: Path, text: str) -> None:
    (copy / "manifest.json").write_text(text)
    with pytest.raises(BundleInvalid, match=r"manifest\.json"):
        Bundle.load(copy)


@pytest.mark.parametrize("name", ["manifest.json", *FILES])
def test_a_pipe_or_a_folder_in_place_of_a_file_is_refused(copy: Path, name: str) -> None:
    """Nothing waits for a pipe."""
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(BundleInvalid, match=f"{name} is no regular file"):
        Bundle.load(copy)
    (copy / name).unlink()
    (copy / name).mkdir()
    with pytest.raises(BundleInvalid, match=f"{name} is no regular file"):
        verify(copy)


def test_a_link_to_a_file_is_a_file(copy: Path, tmp_path: Path) -> None:
    """Kubernetes mounts files as links."""
    (copy / "codes.npy").rename(tmp_path / "codes.npy")
    (copy / "codes.npy").symlink_to(tmp_path / "codes.npy")
    assert verify(copy).ref == "tiny@1"


def test_arrays_in_another_order_serve_and_odd_numbers_do_not(copy: Path) -> None:
    codes = np.load(copy / "codes.npy")
    replace_file(copy, "codes.npy", _npy_of(np.asfortranarray(codes)))
    found = Bundle.load(copy).catalogue.codes
    assert np.array_equal(found, codes)
    assert found.flags.c_contiguous
    for odd in (codes.astype(">u2"), codes.astype(bool), codes.astype("S2"), codes[None, None]):
        replace_file(copy, "codes.npy", _npy_of(odd))
        with pytest.raises(BundleInvalid, match=r"codes\.npy (holds|does not hold)"):
            Bundle.load(copy)


def test_training_allows_what_a_bundle_may_have() -> None:
    """The limits are written out in training, because importing the bundle takes seconds."""
    from training.config import BundleConfig, ModelConfig, NeighboursConfig

    def most(model: Any, name: str) -> int:
        [bound] = [one.le for one in model.model_fields[name].metadata if hasattr(one, "le")]
        return int(bound)

    assert most(ModelConfig, "history_length") == manifest.MAX_HISTORY_LENGTH
    assert most(NeighboursConfig, "num_neighbours") == manifest.MAX_NEIGHBOURS
    assert most(BundleConfig, "held_out_users") == manifest.MAX_HELD_OUT_USERS
