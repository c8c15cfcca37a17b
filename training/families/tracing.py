"""The ONNX graphs of a network as they are traced, whatever the values of its parameters.

Tracing takes seconds, and the graph is the same for all networks of one shape: those of a run's fit
and of its refit, or of several seeds. So a shape is traced once a process. What has a shape is
pickled without the values of its parameters; the trace is made of what was pickled, so it cannot
depend on them.
"""

from __future__ import annotations

import io
import logging
import pickle
import warnings
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Any, ClassVar

import onnx_ir
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from service.decoding.network import (
    DECODER_INPUTS,
    DECODER_OUTPUTS,
    DENSE_INPUTS,
    DENSE_OUTPUTS,
    ENCODER_INPUTS,
    ENCODER_OUTPUTS,
)
from training.families.network import DenseNetwork, Network

TRACES_KEPT = 16  # each as large as its network


class Graph(nn.Module, ABC):
    """One of a network's graphs; inputs and outputs have the names that serving asks for."""

    INPUTS: ClassVar[tuple[str, ...]]
    OUTPUTS: ClassVar[tuple[str, ...]]

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.model = model

    @abstractmethod
    def example(self) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]:
        """Inputs to trace with, and the names of their axes that have any length."""

    def _sids(self) -> Tensor:
        return torch.full(
            (3, 4, self.model.num_subspaces), self.model.num_codes, dtype=torch.uint16
        )

    def _memory(self) -> Tensor:
        return torch.zeros(3, self.model.memory_size)


class EncoderGraph(Graph):
    INPUTS, OUTPUTS = tuple(ENCODER_INPUTS), tuple(ENCODER_OUTPUTS)

    def forward(self, codes: Tensor, vectors: Tensor, mask: Tensor) -> Tensor:
        vectors = vectors.to(torch.float32)
        memory = self.model.remember(codes.to(torch.int64), vectors, mask)
        if not self.model.uses_vectors:
            memory = memory + 0 * vectors.sum()  # of no numbers: keeps the input in the graph
        return memory

    def example(self) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]:
        vectors = torch.zeros(3, 4, self.model.vector_dims, dtype=torch.float16)
        mask = torch.ones(3, 4, dtype=torch.bool)
        return (self._sids(), vectors, mask), ({0: "jobs", 1: "length"},) * 3


class DecoderGraph(Graph):
    INPUTS, OUTPUTS = tuple(DECODER_INPUTS), tuple(DECODER_OUTPUTS)

    def forward(self, partial_sids: Tensor, positions: Tensor, memory: Tensor) -> Tensor:
        logits = self.model.denoise(partial_sids.to(torch.int64), memory, positions)
        return logits.log_softmax(dim=-1)

    def example(self) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]:
        sids, most = self._sids(), self.model.max_horizon
        of_sids: dict[int, Any] = {0: "jobs", 1: "beams"}
        if most > 1:
            sids = sids.repeat(1, 1, 2)
            of_sids[2] = self.model.num_subspaces * torch.export.Dim("horizon", min=1, max=most)
        positions = torch.zeros(3, 4, 2, dtype=torch.int64)
        axes = (of_sids, {0: "jobs", 1: "beams", 2: "asked"}, {0: "jobs"})
        return (sids, positions, self._memory()), axes


class DenseGraph(Graph):
    INPUTS, OUTPUTS = tuple(DENSE_INPUTS), tuple(DENSE_OUTPUTS)
    model: DenseNetwork

    def forward(self, memory: Tensor) -> Tensor:
        return self.model.query(memory)

    def example(self) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]:
        return (self._memory(),), ({0: "jobs"},)


def traced(graph: Graph) -> onnx_ir.Model:
    """The graph with parameters of any value. It is shared: change a clone of it."""
    pickled = io.BytesIO()
    _WithoutValues(graph, pickled).dump(graph)
    return _traced(pickled.getvalue())


class _WithoutValues(pickle.Pickler):
    """Writes name, shape and type of a parameter for it. Other tensors have their values."""

    def __init__(self, graph: Graph, file: io.BytesIO) -> None:
        super().__init__(file)
        self._names = {id(tensor): name for name, tensor in graph.named_parameters()}

    def persistent_id(self, found: object) -> object:
        if isinstance(found, nn.Parameter):
            return "parameter", self._names[id(found)], tuple(found.shape), found.dtype
        # The pickles of these are not the same twice: one knows which settings were given.
        if isinstance(found, Tensor):
            return "tensor", found.numpy()
        if isinstance(found, BaseModel):
            return "settings", type(found), found.model_dump_json()
        return None


class _WithZeros(pickle.Unpickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._found: dict[str, nn.Parameter] = {}

    def persistent_load(self, of: Any) -> object:
        match of:
            case "tensor", values:
                return torch.from_numpy(values)
            case "settings", kind, values:
                return kind.model_validate_json(values)
        _, name, shape, dtype = of
        return self._found.setdefault(name, nn.Parameter(torch.zeros(shape, dtype=dtype)))


@lru_cache(TRACES_KEPT)
def _traced(pickled: bytes) -> onnx_ir.Model:
    graph: Graph = _WithZeros(io.BytesIO(pickled)).load()
    inputs, axes = graph.example()
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph,
                inputs,
                dynamo=True,
                verbose=False,
                optimize=False,  # with the values: it folds what is made of them alone
                dynamic_shapes=axes,
                input_names=graph.INPUTS,
                output_names=graph.OUTPUTS,
            )
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
    assert program is not None
    return program.model
