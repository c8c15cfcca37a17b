"""How well a network uses its core: FLOPs of a denoiser call, and what one thread can do.

FLOPs are those of the matrix products of `decoder.onnx` at the shapes of the call, two for each
multiply-add, found by ONNX's shape inference. The package `onnx` comes with the extra `train`;
where it is missing, there is no figure. Knows nothing of the search.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.decoding import Denoiser, Histories

GEMM_SIZE = 2048  # rows and columns of the matrices of the peak
SMALL = 64  # elements; larger constants of a graph are weights, whose values decide no shape
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

CallShape = tuple[int, int, int]  # jobs, beams, positions asked for


class RecordedDenoiser:
    """A denoiser that notes how large its calls are.

    calls: (jobs, beams, positions asked for) of every call so far
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser
        self.num_subspaces = denoiser.num_subspaces
        self.num_codes = denoiser.num_codes
        self.history_length = denoiser.history_length
        self.repeat_bias = denoiser.repeat_bias
        self.calls: list[CallShape] = []

    def encode(self, histories: Histories) -> Any:
        return self._denoiser.encode(histories)

    def select(self, memory: Any, jobs: NDArray[np.intp]) -> Any:
        return self._denoiser.select(memory, jobs)

    def join(self, memories: Sequence[Any]) -> Any:
        return self._denoiser.join(memories)

    def denoise(
        self, memory: Any, partial_sids: NDArray[np.uint16], positions: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        num_jobs, num_beams, asked = positions.shape
        self.calls.append((num_jobs, num_beams, asked))
        return self._denoiser.denoise(memory, partial_sids, positions)


class FlopCounter:
    """FLOPs of calls of one `decoder.onnx`. Raises ImportError without the package onnx."""

    def __init__(self, graph: Path) -> None:
        import onnx

        self._model = onnx.load(graph)
        self._known: dict[CallShape, int] = {}
        constants = self._model.graph.initializer
        weights = [tensor for tensor in constants if math.prod(tensor.dims) > SMALL]
        for tensor in weights:  # inputs, so that shape inference need not read their values
            self._model.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
            constants.remove(tensor)

    def of_call(self, call: CallShape) -> int:
        """FLOPs of the matrix products of one call. Raises ValueError where a shape is unknown."""
        if call not in self._known:
            self._known[call] = self._count(call)
        return self._known[call]

    def _count(self, call: CallShape) -> int:
        import onnx

        num_jobs, num_beams, asked = call
        sizes = {"jobs": num_jobs, "beams": num_beams}
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        del model.graph.value_info[:]
        for entry in model.graph.input:
            for size in entry.type.tensor_type.shape.dim:
                if size.dim_param:
                    size.dim_value = sizes.get(size.dim_param, asked)
        for entry in model.graph.output:
            entry.type.tensor_type.ClearField("shape")
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        shapes = {
            entry.name: [size.dim_value for size in entry.type.tensor_type.shape.dim]
            for entry in [*inferred.input, *inferred.value_info, *inferred.output]
        }
        shapes |= {tensor.name: list(tensor.dims) for tensor in inferred.initializer}
        flops = 0
        for node in inferred.node:
            if node.op_type not in {"MatMul", "Gemm"}:
                continue
            left, out = shapes.get(node.input[0], [0]), shapes.get(node.output[0], [0])
            transposed = any(entry.name == "transA" and entry.i for entry in node.attribute)
            flops_here = 2 * math.prod(out) * left[0 if transposed else -1]
            if not flops_here:
                raise ValueError(f"shape inference does not know the sizes of {node.name}")
            flops += flops_here
        return flops


def single_threaded() -> bool:
    """Whether the environment keeps numpy's matrix products on one thread."""
    return any(os.environ.get(name) == "1" for name in THREAD_VARIABLES)


def gemm_flops_per_s(matrix: NDArray[np.float32]) -> float:
    """FLOPs a second of one product of a square float32 matrix with itself."""
    started = perf_counter()
    matrix @ matrix
    return 2.0 * len(matrix) ** 3 / (perf_counter() - started)
