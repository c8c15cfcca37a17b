"""Export of a trained network to the ONNX graphs a bundle ships, with a parity check.

encoder.onnx: history -> memory, once per request
decoder.onnx: partial SIDs, positions asked for, memory -> log-probs there
dense.onnx:   memory -> query, if the network has a dense head
Names, types and shapes are those of `service.decoding.network.onnx_denoiser`.
"""

from __future__ import annotations

from itertools import chain, product

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from service.decoding import Histories
from service.decoding.network import OnnxDenoiser, OnnxDenseHead, masked_positions
from training.errors import FitDiverged, TrainingError
from training.families.denoiser import TorchDenoiser
from training.families.family import Graphs
from training.families.network import DenseNetwork, Network
from training.families.tracing import DecoderGraph, DenseGraph, EncoderGraph, Graph, traced

PARITY_TOLERANCE = 1e-4  # largest difference between torch and ONNX Runtime
PARITY_SHAPES = ((1, 1, 1), (2, 3, 5), (5, 7, 20))  # (jobs, beams, history length)


def export_graphs(model: Network) -> Graphs:
    """Export and compare with torch on random inputs of several shapes.

    Raises TrainingError when it exceeds PARITY_TOLERANCE, FitDiverged for parameters like nan.
    """
    model = model.eval()
    if not all(bool(tensor.isfinite().all()) for tensor in model.parameters()):
        raise FitDiverged(
            "a parameter of the network is not finite, so it is not exported: fit it again with a "
            "smaller fit.learning_rate"
        )
    encoder, decoder = _export(EncoderGraph(model)), _export(DecoderGraph(model))
    has_head = isinstance(model, DenseNetwork) and model.dense is not None
    dense = _export(DenseGraph(model)) if has_head else None
    return Graphs(encoder, decoder, _parity(model, encoder, decoder, dense), dense)


def _export(graph: Graph) -> bytes:
    program = torch.onnx.ONNXProgram(traced(graph.eval()).clone(), None)
    parameters = program.model.graph.initializers
    program.apply_weights({k: v for k, v in graph.state_dict().items() if k in parameters})
    program.optimize()
    return _without_traces(program.model_proto).SerializeToString()


def _without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph without what the exporter notes beside it: file paths and stack traces.

    They would carry the paths of the machine that trained into every bundle.
    """
    graph = model.graph
    noted = (graph.node, graph.input, graph.output, graph.value_info, graph.initializer)
    for entry in (model, graph, *chain.from_iterable(noted)):
        entry.ClearField("metadata_props")
        entry.ClearField("doc_string")
    return model


def _parity(model: Network, encoder: bytes, decoder: bytes, dense: bytes | None) -> float:
    """Largest difference between torch and ONNX Runtime, in log-probs and in queries."""
    sizes = {
        "num_subspaces": model.num_subspaces,
        "num_codes": model.num_codes,
        "history_length": model.config.history_length,
        "repeat_bias": model.repeat_bias.item(),
    }
    original, shipped = TorchDenoiser(model), OnnxDenoiser(encoder, decoder, **sizes)
    head = dense and OnnxDenseHead(dense, memory_bytes=shipped.memory_bytes, weight=0)
    random = np.random.default_rng(0)
    largest = 0.0
    for (jobs, beams, length), horizon in product(PARITY_SHAPES, {1, model.max_horizon}):
        length = min(length, model.config.history_length)
        shape = (jobs, length, model.num_subspaces)
        history = random.integers(0, model.num_codes, shape).astype(np.uint16)
        mask = np.arange(length) < random.integers(0, length + 1, (jobs, 1))
        vectors = random.standard_normal((jobs, length, model.vector_dims)).astype(np.float16)
        history[~mask], vectors[~mask] = model.num_codes, 0
        num_positions = horizon * model.num_subspaces
        sids, positions = _masked_sids(random, (jobs, beams, num_positions), model.num_codes)
        histories = Histories(history, vectors, mask)
        memory, shipped_memory = original.encode(histories), shipped.encode(histories)
        differences = [
            original.denoise(memory, sids, positions)
            - shipped.denoise(shipped_memory, sids, positions)
        ]
        if head:
            with torch.inference_mode():
                differences.append(model.query(memory).numpy() - head.queries(shipped_memory))
        for difference in differences:
            largest = float(np.maximum(largest, np.abs(difference).max()))  # nan stays nan
    if not largest <= PARITY_TOLERANCE:
        raise TrainingError(
            f"the exported graphs differ from the network by {largest:.2g} in log-probs"
            f"{' or queries' if head else ''}; "
            f"at most {PARITY_TOLERANCE} is accepted"
        )
    return largest


def _masked_sids(
    random: np.random.Generator, shape: tuple[int, int, int], num_codes: int
) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """Partial SIDs of which each beam has its own positions masked, one at least, and those.

    shape: (jobs, beams, num_positions)
    """
    *_, num_positions = shape
    order = random.permuted(np.broadcast_to(np.arange(num_positions), shape), axis=-1)
    num_masked = random.integers(1, num_positions + 1, (*shape[:2], 1))
    masked = order < num_masked
    sids = np.where(masked, num_codes, random.integers(0, num_codes, shape)).astype(np.uint16)
    return sids, masked_positions(sids, num_codes)
