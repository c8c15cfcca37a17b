"""A shape is traced once a process, without the values of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from training.config import ModelConfig
from training.families import tracing
from training.families.mdgr.model import MaskedDiffusionModel
from training.families.network import Network
from training.families.tracing import DecoderGraph, EncoderGraph, Graph

SMALL: dict[str, Any] = {"width": 8, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 1}
Traced = list[Graph]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Traced:
    """What has been given to torch, which gives a new thing for each."""
    given: Traced = []

    def export(graph: Graph, *_: Any, **__: Any) -> SimpleNamespace:
        given.append(graph)
        return SimpleNamespace(model=object())

    monkeypatch.setattr(tracing.torch.onnx, "export", export)
    uncached = tracing._traced.__wrapped__
    monkeypatch.setattr(tracing, "_traced", lru_cache(uncached))
    return given


def mdgr(vector_dims: int = 4, **config: Any) -> Network:
    sizes = {"num_subspaces": 2, "num_codes": 5, "vector_dims": vector_dims}
    return MaskedDiffusionModel(ModelConfig(**(SMALL | config)), **sizes)


def test_networks_of_one_shape_share_a_trace_whatever_their_parameters(graphs: Traced) -> None:
    one, other = mdgr(), mdgr(history_length=ModelConfig().history_length)
    assert not torch.equal(one.code_embedding.weight, other.code_embedding.weight)
    found = tracing.traced(EncoderGraph(one))
    assert tracing.traced(EncoderGraph(other)) is found
    assert tracing.traced(DecoderGraph(one)) is not found
    assert len(graphs) == 2
    for graph, of in zip(graphs, (EncoderGraph(one), DecoderGraph(one)), strict=True):
        shapes = {name: tensor.shape for name, tensor in of.state_dict().items()}
        assert {name: tensor.shape for name, tensor in graph.state_dict().items()} == shapes
        assert not any(bool(tensor.any()) for tensor in graph.parameters())


@pytest.mark.parametrize(
    "change",
    [
        lambda model: mdgr(vector_dims=3),
        lambda model: mdgr(num_heads=1),
        lambda model: mdgr(history_length=7),
        lambda model: setattr(model, "num_codes", 4),  # a number that the graph may hold
        lambda model: model.register_buffer("a_table", torch.zeros(2), persistent=False),
    ],
)
def test_whatever_else_differs_is_traced_anew(
    change: Callable[[Network], Network | None], graphs: Traced
) -> None:
    model = mdgr()
    found = tracing.traced(EncoderGraph(model))
    assert tracing.traced(EncoderGraph(change(model) or model)) is not found
    assert len(graphs) == 2
