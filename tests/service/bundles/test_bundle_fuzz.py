"""Bundles with right hashes and wrong content: each is refused with a sentence, or serves.

Each example mutates the manifest and the files of a tiny bundle, and makes hashes and digest right
again. It loads and primes the result, and asks for answers that use all parts. For more examples
than CI has time for: FUZZ_EXAMPLES=5000 pytest tests/service/bundles/test_bundle_fuzz.py
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_bundle import (
    DECODER,
    ENCODER,
    NUM_CODES,
    NUM_SUBSPACES,
    edit_manifest,
    replace_file,
    tiny_codebook,
    write_tiny_bundle,
)

from service.batching.latency_model import LatencyModel
from service.bundles import ladder_of
from service.bundles.bundle import Bundle
from service.bundles.items import Item
from service.decoding import Job, ResidualCodebook
from service.errors import BundleInvalid
from service.http.operator_routes import bundle_info_of
from service.loading.priming import prime
from service.recommending.item_mapping import (
    decoded_items,
    items_of,
    popular_rows,
    similar_items,
)
from service.recommending.planning import plan_in_time
from service.schemas.recommend import RecommendRequest

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
Edit = Callable[[Path], None]

HUGE = 10**400
ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    3,
    65,
    10**9,
    2**31,
    2**63,
    2**64,
    HUGE,
    -0.0,
    0.5,
    1e-320,
    1e308,
    -1e308,
    float("inf"),
    float("nan"),
    "",
    "0",
    "1",
    "a\nb",
    "\ud800",
    "\x00",
    "x" * 300,
    "x" * 20_000,
    [],
    [[]],
    {},
    {"": None},
    ["a"],
    [1],
    "🎈",
    " > ".join("a" * 60),
]
odd = st.sampled_from(ODD)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be put in JSON. Of long lists, only the first entries."""
    found = [path] if path else []
    entries = value.items() if isinstance(value, dict) else []
    if isinstance(value, list):
        entries = list(enumerate(value))[:3]
    for key, inner in entries:
        found += _places(inner, (*path, key))
    return found


def _put(value: Any, path: tuple[Any, ...], new: Any, how: str) -> None:
    *outer, last = path
    for key in outer:
        value = value[key]
    if how == "drop":
        del value[last]
    elif how == "rename" and isinstance(value, dict):
        value[str(last) + "_"] = value.pop(last)
    else:
        value[last] = new


@st.composite
def of_manifest(draw: st.DrawFn, manifest: dict[str, Any]) -> Edit:
    place = draw(st.sampled_from(_places(manifest)))
    how = draw(st.sampled_from(["put", "put", "put", "drop", "rename"]))
    new = draw(odd)
    return lambda path: edit_manifest(path, lambda fields: _put(fields, place, new, how))


@st.composite
def of_lines(draw: st.DrawFn, bundle: Path) -> Edit:
    name = draw(st.sampled_from(["items.jsonl", "held_out.jsonl"]))
    lines = (bundle / name).read_bytes().splitlines()
    row = draw(st.integers(0, min(5, len(lines) - 1)))
    entry = json.loads(lines[row])
    kind = draw(st.sampled_from(["field", "field", "field", "raw", "twice", "gone", "deep"]))
    if kind == "field":
        _put(
            entry,
            draw(st.sampled_from(_places(entry))),
            draw(odd),
            draw(st.sampled_from(["put", "put", "drop", "rename"])),
        )
        lines[row] = json.dumps(entry).encode()
    elif kind == "raw":
        lines[row] = draw(st.binary(max_size=20))
    elif kind == "deep":
        lines[row] = b"[" * 5000
    elif kind == "twice":
        lines[row] = lines[row - 1]
    else:
        del lines[row]
    end = draw(st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"]))
    data = end.join(lines) + draw(st.sampled_from([b"\n", b"", b"\n\n"]))
    return lambda path: replace_file(path, name, data)


def _npy(array: Any, header: bytes | None = None) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@st.composite
def of_arrays(draw: st.DrawFn, bundle: Path) -> Edit:
    name = draw(st.sampled_from(sorted(path.name for path in bundle.glob("*.npy"))))
    array = np.load(bundle / name)
    kind = draw(
        st.sampled_from(["value", "dtype", "order", "shape", "header", "version", "cut", "bytes"])
    )
    data = _npy(array)
    if kind == "value":
        flat = array.reshape(-1).copy()
        limits = (np.finfo if flat.dtype.kind == "f" else np.iinfo)(flat.dtype)
        values = [0, 1, 15, 16, 199, 200, limits.min, limits.max]
        values += [np.nan, np.inf, -np.inf] if flat.dtype.kind == "f" else []
        with np.errstate(all="ignore"):
            flat[draw(st.integers(0, len(flat) - 1))] = np.array(
                draw(st.sampled_from(values))
            ).astype(flat.dtype)
        data = _npy(flat.reshape(array.shape))
    elif kind == "dtype":
        dtype = draw(
            st.sampled_from(
                [
                    "u1",
                    "i1",
                    "u2",
                    ">u2",
                    "i4",
                    "i8",
                    ">i8",
                    "u8",
                    "f2",
                    "f4",
                    ">f4",
                    "f8",
                    "c8",
                    "?",
                    "S3",
                    "U2",
                    "V4",
                    "M8[s]",
                    "O",
                    "f4,i4",
                    "g",
                ]
            )
        )
        with np.errstate(all="ignore"):
            data = _npy(
                np.zeros(array.shape, dtype) if dtype in ("V4", "f4,i4") else array.astype(dtype)
            )
    elif kind == "order":
        data = _npy(np.asfortranarray(array))
    elif kind == "shape":
        shaped = draw(
            st.sampled_from(
                [
                    lambda a: a[:-1],
                    lambda a: a[:0],
                    lambda a: a.T,
                    lambda a: a[None],
                    lambda a: a.reshape(-1),
                    lambda a: a[..., :0],
                    lambda a: np.concatenate([a, a]),
                    lambda a: a.reshape(-1)[0],
                ]
            )
        )
        data = _npy(shaped(array))
    elif kind == "header":
        old = str(array.shape).encode()
        new = draw(
            st.sampled_from(
                [
                    b"(-1,)",
                    b"(True,)",
                    b"(2**9,)",
                    b"(9999999999999,9)",
                    b"()",
                    b"(1.5,)",
                    b"'a'",
                    b"[(",
                    b"\xff\xfe",
                    b"None",
                    b"(" * 50,
                ]
            )
        )
        data = data.replace(old, new.ljust(len(old))[: max(len(old), len(new))], 1)
    elif kind == "version":
        data = data[:6] + bytes([draw(st.integers(0, 5)), draw(st.integers(0, 1))]) + data[8:]
    elif kind == "cut":
        data = data[: draw(st.integers(0, 140))]
    else:
        place = draw(st.integers(0, 127))
        data = data[:place] + bytes([draw(st.integers(0, 255))]) + data[place + 1 :]
    return lambda path: replace_file(path, name, data)


GRAPH_CHANGES = [
    ("history_codes", "codes_of_history"),
    ("uint16[jobs, length, 4]", "uint16[jobs, length, 5]"),
    ("uint16[jobs, length, 4]", "uint16[jobs, length, n]"),
    ("uint16[jobs, length, 4]", "int64[jobs, length, 4]"),
    ("float16[jobs, length, 64]", "float16[jobs, length, 63]"),
    ("float16[jobs, length, 64]", "float16[jobs, length, d]"),
    ("(float[jobs, 64] memory)", "(double[jobs, 64] memory)"),
    ("(float[jobs, 64] memory)", "(float[64] memory)"),
    ("(float[jobs, 64] memory)", "(float[jobs, 32] memory)"),
    ("float[jobs, beams, asked, 16] log_probs", "float[jobs, beams, asked, 17] log_probs"),
    ("float[jobs, beams, asked, 16] log_probs", "float[jobs, beams, asked, n] log_probs"),
    ("int64[jobs, beams, asked] positions", "int32[jobs, beams, asked] positions"),
    ("int64[jobs, beams, asked] positions", "int64[jobs, beams] positions"),
    ("log_probs = Add (answer, spent)", "half = Add (answer, spent)\n log_probs = Log (half)"),
]


@st.composite
def of_graphs(draw: st.DrawFn, bundle: Path) -> Edit:
    """Graphs as a wrong exporter makes them. ONNX Runtime's own reader is not tested here."""
    name, text = draw(st.sampled_from([("encoder.onnx", ENCODER), ("decoder.onnx", DECODER)]))
    kind = draw(st.sampled_from(["text", "text", "other", "empty"]))
    data = b""
    if kind == "other":
        other = "decoder.onnx" if name == "encoder.onnx" else "encoder.onnx"
        data = (bundle / other).read_bytes()
    elif kind == "text":
        old, new = draw(st.sampled_from([pair for pair in GRAPH_CHANGES if pair[0] in text]))
        model = onnx.parser.parse_model(text.replace(old, new).replace("WORK", "1"))
        data = model.SerializeToString()
    return lambda path: replace_file(path, name, data)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One with a codebook of parallel parts, and one of levels with a digit."""
    folder, random = tmp_path_factory.mktemp("fuzz"), np.random.default_rng(9)
    levels = ResidualCodebook(
        random.normal(size=(NUM_SUBSPACES - 1, NUM_CODES, 64)).astype(np.float32),
        np.ones(NUM_SUBSPACES - 1, np.float32),
        content=tiny_codebook().content,
        collisions="digit",
    )
    return [
        write_tiny_bundle(folder / "tiny"),
        write_tiny_bundle(folder / "levels", codebook=levels),
    ]


def answers_of(bundle: Bundle) -> None:
    """Answers to all kinds of requests to a bundle, as JSON."""
    none = np.empty(0, np.int32)
    popular = items_of(bundle, popular_rows(bundle, 100, none, None).tolist(), metadata=True)
    texts = [item.model_dump_json() for item in popular]
    history = bundle.catalogue.rows_of([item.item_id for item in bundle.items[:5]])
    ladder, num_subspaces = ladder_of(bundle.manifest), bundle.catalogue.num_subspaces
    for rungs in (ladder, *([rung] for rung in ladder)):
        plan = plan_in_time(rungs, num_subspaces, 10, lambda _: 0.0, 1.0)
        width = plan.decoding.beam_width
        job = Job(history, 10, plan.schedule, width, explain=True)
        [decoded], _ = bundle.decoder.decode([job])
        places = list(range(len(decoded.rows)))
        found = decoded_items(bundle, decoded, places, history, metadata=True)
        texts += [item.model_dump_json() for item in found]
    for row in (0, bundle.catalogue.num_items - 1):
        texts += [one.model_dump_json() for one in similar_items(bundle, row, 10)]
    texts.append(bundle_info_of(bundle).model_dump_json())
    assert all(text.encode() for text in texts)
    for user in bundle.held_out[:3]:
        RecommendRequest(user_id="u", history=list(user.history)[:500], k=10)
    content = bundle.manifest.content
    if content is not None:
        new = bundle.with_items([Item("brand new", "t", ())], np.ones((1, content.embedding_dims)))
        assert new.catalogue.num_items == bundle.catalogue.num_items + 1


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES == 60,
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_a_bundle_of_wrong_content_is_refused_or_serves(
    bundles: list[Path], data: st.DataObject
) -> None:
    tiny = data.draw(st.sampled_from(bundles))
    manifest = json.loads((tiny / "manifest.json").read_text())
    mutations = st.one_of(of_manifest(manifest), of_lines(tiny), of_arrays(tiny), of_graphs(tiny))
    edits = data.draw(st.lists(mutations, min_size=1, max_size=2))
    copy = tiny.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(tiny, copy)
    for edit in edits:
        # An earlier edit may have removed what this one changes.
        with suppress(KeyError, IndexError, TypeError, AttributeError):
            edit(copy)
    refusal = None
    try:
        bundle = Bundle.load(copy)
        prime(bundle, LatencyModel())
    except BundleInvalid as error:
        refusal = str(error)
    if refusal is None:
        answers_of(bundle)
    else:
        assert len(refusal.splitlines()) == 1
        assert len(refusal) < 1000


@pytest.mark.parametrize(
    ("name", "twice"),
    [
        (b'"repeat_bias"', b'"repeat_bias": 99.0, "repeat_bias"'),
        (b'"r_warm"', b'"r_warm": 1, "r_warm"'),
        (b'"facts": {', b'"facts": {"grid": 1, '),
    ],
)
def test_a_name_that_stands_twice_in_a_manifest_is_refused(
    tmp_path: Path, name: bytes, twice: bytes
) -> None:
    """The digest is over what is read, and other programs may read the other value."""
    path = write_tiny_bundle(tmp_path / "1")
    manifest = path / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(name, twice, 1))
    with pytest.raises(BundleInvalid, match="same name twice"):
        Bundle.load(path)
