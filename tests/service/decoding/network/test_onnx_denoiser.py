"""A small exported network through `decode`: ONNX Runtime finds what torch finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from worlds import catalogue_of, job_of

from service.decoding.catalogue.trie import SidTrie
from service.decoding.decoder import Decoder
from service.decoding.job import Decoded, Job
from service.decoding.network.denoiser import Denoiser, Histories
from service.decoding.network.gather_graph import gather_graph
from service.decoding.network.onnx_denoiser import (
    DeviceMemories,
    OnnxDenoiser,
    Provider,
    ProviderMissing,
)
from service.decoding.schedule import Schedule
from service.decoding.search import denoiser_calls as batch_denoiser
from training.config import ModelConfig
from training.families.denoiser import TorchDenoiser
from training.families.export import export_graphs
from training.families.mdgr.model import MaskedDiffusionModel

NUM_SUBSPACES, NUM_CODES, HISTORY_LENGTH, VECTOR_DIMS = 4, 12, 6, 5
RANDOM = np.random.default_rng(0)
TRIE = SidTrie(
    catalogue_of(
        RANDOM.integers(0, NUM_CODES, (300, NUM_SUBSPACES)),
        NUM_CODES,
        RANDOM.standard_normal((300, VECTOR_DIMS)).astype(np.float16),
    )
)
# Different schedules, widths and history lengths in one batch, an empty and a long one among them.
BATCH = [
    job_of(schedule=Schedule((1, 1, 2)), history=[5, 9, 200], k=10, beam_width=10),
    job_of(schedule=Schedule((4,)), history=[], k=20, beam_width=20),
    job_of(schedule=Schedule((1, 1, 1, 1)), history=range(9), k=5, beam_width=12, excluded=[3, 4]),
    job_of(schedule=Schedule((2, 2)), history=[7], k=10, beam_width=30),
    job_of(schedule=Schedule((1, 3)), history=[7, 8, 299, 1], k=3, beam_width=5),
]


SIZES: dict[str, Any] = {
    "num_subspaces": NUM_SUBSPACES,
    "num_codes": NUM_CODES,
    "history_length": HISTORY_LENGTH,
    "repeat_bias": 0.0,
}


@pytest.fixture(scope="module")
def model() -> MaskedDiffusionModel:
    """Its weights spread so that its log-probs differ by whole nats."""
    torch.manual_seed(0)
    config = ModelConfig(
        width=16, num_heads=2, encoder_layers=1, decoder_layers=1, history_length=HISTORY_LENGTH
    )
    model = MaskedDiffusionModel(
        config, num_subspaces=NUM_SUBSPACES, num_codes=NUM_CODES, vector_dims=VECTOR_DIMS
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
        model.repeat_bias.zero_()
    return model


@pytest.fixture(scope="module")
def graphs(model: MaskedDiffusionModel) -> tuple[bytes, bytes]:
    encoder, decoder, *_ = export_graphs(model)
    return encoder, decoder


@pytest.fixture(scope="module")
def denoisers(
    model: MaskedDiffusionModel, graphs: tuple[bytes, bytes]
) -> tuple[TorchDenoiser, OnnxDenoiser]:
    """The same network twice."""
    return TorchDenoiser(model), OnnxDenoiser(*graphs, **SIZES)


def decode_all(batch: list[Job], denoiser: Denoiser) -> list[Decoded]:
    return Decoder(TRIE, denoiser).decode(batch)[0]


def test_onnx_runtime_recommends_what_torch_recommends(
    denoisers: tuple[TorchDenoiser, OnnxDenoiser],
) -> None:
    given, exported = (decode_all(BATCH, denoiser) for denoiser in denoisers)
    for job, ours, theirs in zip(BATCH, exported, given, strict=True):
        assert len(ours.rows) == job.k
        assert ours.rows.tolist() == theirs.rows.tolist()
        assert np.allclose(ours.scores, theirs.scores, atol=1e-3)
    assert len({float(answer.scores[0]) for answer in exported}) == len(BATCH)


def test_a_batch_equals_its_jobs_alone(denoisers: tuple[TorchDenoiser, OnnxDenoiser]) -> None:
    _, exported = denoisers
    for job, answer in zip(BATCH, decode_all(BATCH, exported), strict=True):
        (alone,) = decode_all([job], exported)
        assert answer.rows.tolist() == alone.rows.tolist()
        assert np.allclose(answer.scores, alone.scores, atol=1e-3)


@pytest.mark.parametrize("place", [0, 1])
def test_jobs_cut_into_chunks_answer_as_whole_ones(
    denoisers: tuple[TorchDenoiser, OnnxDenoiser], place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = [
        job_of(schedule=Schedule((1, 1, 1, 1)), history=[row], k=3, beam_width=3)
        for row in range(9)
    ]
    wide = job_of(schedule=Schedule((1, 1, 2)), history=[5, 9], k=10, beam_width=200)
    batch = [*narrow[:4], wide, *narrow[4:]]
    cut = decode_all(batch, denoisers[place])
    monkeypatch.setattr(batch_denoiser, "beams_per_chunk", max)
    for answer, whole in zip(cut, decode_all(batch, denoisers[place]), strict=True):
        assert answer.rows.tolist() == whole.rows.tolist()
        assert np.allclose(answer.scores, whole.scores, atol=1e-5)


@pytest.mark.parametrize("place", [0, 1])
def test_kept_memories_answer_as_fresh_ones(
    denoisers: tuple[TorchDenoiser, OnnxDenoiser], place: int
) -> None:
    decoder = Decoder(TRIE, denoisers[place], encoder_cache=10)
    expected = decode_all(BATCH, denoisers[place])
    for batch in (BATCH[1:3], BATCH, BATCH[::-1]):  # nothing kept, some, all
        found, timings = decoder.decode(batch)
        for job, answer in zip(batch, found, strict=True):
            fresh = expected[BATCH.index(job)]
            assert answer.rows.tolist() == fresh.rows.tolist()
            assert np.allclose(answer.scores, fresh.scores, atol=1e-3)
    assert timings.cache_misses == 0


@pytest.mark.parametrize("num_parts", [1, 2, 16, 17, 300])
def test_memories_are_joined_where_they_are(num_parts: int) -> None:
    """The graph for a GPU, run on the CPU."""
    random, device_memories = np.random.default_rng(num_parts), DeviceMemories("cpu", "cpu")
    matrices = [
        random.standard_normal((random.integers(1, 4), 3)).astype(np.float32)
        for _ in range(num_parts)
    ]
    parts = [ort.OrtValue.ortvalue_from_numpy(matrix) for matrix in matrices]
    whole = np.concatenate(matrices)
    joined = device_memories.joined(parts)
    assert np.array_equal(joined.numpy(), whole)
    places = random.permutation(len(whole))[: len(whole) // 2 + 1]
    assert np.array_equal(device_memories.picked([joined], places).numpy(), whole[places])


def test_the_graph_that_joins_is_valid() -> None:
    proto = onnx.load_from_string(gather_graph(300))  # more than a length of one byte can say
    onnx.checker.check_model(proto, full_check=True)
    assert [node.op_type for node in proto.graph.node] == ["Concat", "Gather"]
    assert len(proto.graph.input) == 301


def test_arrays_in_any_layout_are_read_right(
    denoisers: tuple[TorchDenoiser, OnnxDenoiser],
) -> None:
    _, exported = denoisers
    sids = np.full((2, 3, NUM_SUBSPACES), NUM_CODES, np.uint16)
    sids[1, :, 2] = [4, 5, 6]
    positions = np.broadcast_to(np.array([0, 1, 3, 3])[::-1], sids.shape)[..., ::-1]
    memory = exported.encode(
        Histories.of([job.history for job in BATCH[:2]], TRIE.catalogue, HISTORY_LENGTH)
    )
    given = exported.denoise(memory, np.asfortranarray(sids), positions)
    expected = exported.denoise(memory, sids, np.ascontiguousarray(positions))
    assert np.array_equal(given, expected)
    assert given.dtype == np.float32


@pytest.mark.parametrize(
    ("provider", "message"),
    [
        ("cuda", r"cannot run with CUDAExecutionProvider, .*extra `gpu` instead of `cpu`"),
        ("tensorrt", r"cannot run with TensorrtExecutionProvider, .*TensorRT's libraries"),
    ],
)
def test_a_provider_that_is_not_there_is_refused(
    graphs: tuple[bytes, bytes],
    monkeypatch: pytest.MonkeyPatch,
    provider: Provider,
    message: str,
) -> None:
    """Whether ONNX Runtime was built without it, or has it and cannot start it."""
    with pytest.raises(ProviderMissing, match=message):
        OnnxDenoiser(*graphs, **SIZES, provider=provider)
    claimed = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: claimed)
    with (
        pytest.warns(UserWarning, match="not in available"),
        pytest.raises(ProviderMissing, match=message),
    ):
        OnnxDenoiser(*graphs, **SIZES, provider=provider)


def test_a_graph_that_reads_other_types_is_refused(graphs: tuple[bytes, bytes]) -> None:
    encoder, decoder = graphs
    proto = onnx.load_from_string(decoder)
    [sids] = [entry for entry in proto.graph.input if entry.name == "partial_sids"]
    sids.type.tensor_type.elem_type = onnx.TensorProto.INT64
    with pytest.raises(ValueError, match=r"decoder\.onnx has inputs .*tensor\(int64\)"):
        OnnxDenoiser(encoder, proto.SerializeToString(), **SIZES)
