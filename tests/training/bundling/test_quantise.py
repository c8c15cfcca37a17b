"""8-bit graphs: same inputs and outputs, nearly the same values, independent of the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from service.decoding import Histories
from service.decoding.network.denoiser import masked_positions
from service.decoding.network.onnx_denoiser import DECODER_INPUTS, ENCODER_INPUTS, OnnxDenoiser
from training.bundling.quantise import GraphInputs, quantised
from training.config import ModelConfig
from training.families.export import export_graphs
from training.families.mdgr.model import MaskedDiffusionModel

L, V, D = 4, 30, 8
SIZES: dict[str, Any] = {
    "num_subspaces": L,
    "num_codes": V,
    "history_length": 6,
    "repeat_bias": 0.0,
}

Graphs = tuple[bytes, bytes]

# What is left in float32 may be summed in another order, and a rounding be another one for it. A
# scale that depends on the batch moves log-probs ten times as far.
LAST_BITS = 5e-3


@pytest.fixture(scope="module")
def graphs() -> Graphs:
    """Graphs of a network whose probabilities at a position differ by factors of ten."""
    torch.manual_seed(0)
    config = ModelConfig(width=32, num_heads=2, encoder_layers=1, decoder_layers=1)
    model = MaskedDiffusionModel(config, num_subspaces=L, num_codes=V, vector_dims=D)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model.code_embedding.weight.mul_(2)
    encoder, decoder, *_ = export_graphs(model)
    return encoder, decoder


@pytest.fixture(scope="module")
def small(graphs: Graphs) -> Graphs:
    histories, sids, positions = questions(seed=1, jobs=20)
    memory = OnnxDenoiser(*graphs, **SIZES).encode(histories).numpy()
    samples: tuple[GraphInputs, ...] = (
        dict(zip(ENCODER_INPUTS, histories, strict=True)),
        dict(zip(DECODER_INPUTS, (sids, positions, memory), strict=True)),
    )
    encoder, decoder = (
        quantised(graph, [inputs]) for graph, inputs in zip(graphs, samples, strict=True)
    )
    return encoder, decoder


def questions(seed: int, jobs: int) -> tuple[Histories, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    histories = Histories(
        random.integers(0, V, (jobs, 6, L)).astype(np.uint16),
        random.standard_normal((jobs, 6, D)).astype(np.float16),
        np.ones((jobs, 6), bool),
    )
    masked = random.random((jobs, 40, L)) < 0.7
    masked[..., 0] |= ~masked.any(axis=-1)
    sids = np.where(masked, V, random.integers(0, V, masked.shape)).astype(np.uint16)
    return histories, sids, masked_positions(sids, V)


def test_they_say_nearly_the_same(graphs: Graphs, small: Graphs) -> None:
    histories, sids, positions = questions(seed=0, jobs=5)
    given, quantised_ = (
        denoiser.denoise(denoiser.encode(histories), sids, positions)
        for denoiser in (OnnxDenoiser(*graphs, **SIZES), OnnxDenoiser(*small, **SIZES))
    )
    assert given.std() > 0.5
    assert 0 < np.abs(quantised_ - given).mean() < 0.05 * given.std()
    likely = given > np.log(0.01)
    assert np.abs(quantised_ - given)[likely].max() < 0.5 * given.std()


def test_a_job_is_answered_the_same_alone_and_in_a_batch(small: Graphs) -> None:
    denoiser = OnnxDenoiser(*small, **SIZES)
    histories, sids, positions = questions(seed=0, jobs=5)
    together = denoiser.denoise(denoiser.encode(histories), sids, positions)
    for job in range(5):
        one = slice(job, job + 1)
        memory = denoiser.encode(Histories(*(array[one] for array in histories)))
        alone = denoiser.denoise(memory, sids[one], positions[one])
        np.testing.assert_allclose(alone[0], together[job], rtol=0, atol=LAST_BITS)


def test_every_weight_of_a_product_is_7_bit(small: Graphs) -> None:
    for graph in small:
        proto = onnx.load_from_string(graph).graph
        weights = {entry.name: numpy_helper.to_array(entry) for entry in proto.initializer}
        read = {
            node.output[0]: weights[node.input[0]]
            for node in proto.node
            if node.op_type == "DequantizeLinear" and node.input[0] in weights
        }
        products = [node for node in proto.node if node.op_type in ("MatMul", "Gemm")]
        assert len([node for node in products if node.input[1] in read]) >= 4
        assert not [node for node in products if node.input[1] in weights]
        for node in products:
            if node.input[1] in read:
                assert read[node.input[1]].dtype == np.int8
                assert 60 <= np.abs(read[node.input[1]]).max() <= 64


def test_a_graph_without_weights_comes_back_as_it_is() -> None:
    text = """<ir_version: 9, opset_import: ["": 18]>
    square (float[n, n] x) => (float[n, n] y) { y = MatMul (x, x) }"""
    graph = onnx.parser.parse_model(text).SerializeToString()
    assert quantised(graph, []) == graph
