"""8-bit graphs: what they read and give is the same, what they say is nearly."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch

from service.decoding import Histories
from service.decoding.denoiser import masked_positions
from service.decoding.onnx_denoiser import OnnxDenoiser
from training.config import ModelConfig
from training.export import export_graphs
from training.model import MaskedDiffusionModel
from training.quantise import quantised

L, V, D = 4, 30, 8
SIZES: dict[str, Any] = {
    "num_subspaces": L,
    "num_codes": V,
    "history_length": 6,
    "repeat_bias": 0.0,
}


@pytest.fixture(scope="module")
def graphs() -> tuple[bytes, bytes]:
    """Of a network whose probabilities at a position differ by factors of ten."""
    torch.manual_seed(0)
    config = ModelConfig(width=32, num_heads=2, encoder_layers=1, decoder_layers=1)
    model = MaskedDiffusionModel(config, num_subspaces=L, num_codes=V, vector_dims=D)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model.code_embedding.weight.mul_(2)
    encoder, decoder, _ = export_graphs(model)
    return encoder, decoder


def test_quantised_graphs_say_nearly_the_same(graphs: tuple[bytes, bytes]) -> None:
    random = np.random.default_rng(0)
    jobs, beams = 5, 40
    histories = Histories(
        random.integers(0, V, (jobs, 6, L)).astype(np.uint16),
        random.standard_normal((jobs, 6, D)).astype(np.float16),
        np.ones((jobs, 6), bool),
    )
    masked = random.random((jobs, beams, L)) < 0.7
    sids = np.where(masked, V, random.integers(0, V, masked.shape)).astype(np.uint16)
    positions = masked_positions(masked)
    given, small = (
        denoiser.denoise(denoiser.encode(histories), sids, positions)
        for denoiser in (
            OnnxDenoiser(*graphs, **SIZES),
            OnnxDenoiser(*map(quantised, graphs), **SIZES),
        )
    )
    assert given.std() > 0.5
    assert 0 < np.abs(small - given).mean() < 0.05 * given.std()
    likely = given > np.log(0.01)
    assert np.abs(small - given)[likely].max() < 0.5 * given.std()


def test_every_weight_of_a_product_is_8_bit(graphs: tuple[bytes, bytes]) -> None:
    for graph in graphs:
        proto = onnx.load_from_string(quantised(graph)).graph
        weights = {entry.name: entry.data_type for entry in proto.initializer}
        operators = [node.op_type for node in proto.node]
        assert "Gemm" not in operators
        assert operators.count("MatMulInteger") >= 4
        for node in proto.node:
            if node.op_type == "MatMulInteger":
                assert weights[node.input[1]] == onnx.TensorProto.INT8
            elif node.op_type == "MatMul":
                assert node.input[1] not in weights
