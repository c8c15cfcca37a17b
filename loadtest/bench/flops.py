"""How well a network uses its core: FLOPs of a denoiser call, and the peak of one thread.

Only the matrix products of `decoder.onnx` are counted, at the shapes of the call, with two FLOPs
for each multiply-add. A copy of the graph that returns the shapes of its products gives them. It
needs the package `onnx`, which comes with the extra `train`. Knows nothing of the search.
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

GEMM_SIZE = 2048  # rows and columns of the matrices whose product gives the peak
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(uint16)": np.uint16,
}
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

CallShape = tuple[int, int, int]  # jobs, beams, positions asked for


class RecordedDenoiser:
    """A denoiser that records the shapes of its calls.

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
    """Counts FLOPs of calls of one `decoder.onnx`. Raises ImportError without the package onnx."""

    def __init__(self, graph: Path) -> None:
        import onnx
        import onnxruntime as ort

        model = onnx.load(graph)
        self._known: dict[CallShape, int] = {}
        self._transposed: list[bool] = []  # for each product: is its left matrix transposed?
        products = [node for node in model.graph.node if node.op_type in {"MatMul", "Gemm"}]
        del model.graph.output[:]
        for number, node in enumerate(products):
            for side, name in (("left", node.input[0]), ("out", node.output[0])):
                shape = f"{side}-{number}"
                model.graph.node.append(onnx.helper.make_node("Shape", [name], [shape]))
                model.graph.output.append(
                    onnx.helper.make_tensor_value_info(shape, onnx.TensorProto.INT64, [None])
                )
            transposed = any(entry.name == "transA" and entry.i for entry in node.attribute)
            self._transposed.append(transposed)
        self._session = ort.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )

    def of_call(self, call: CallShape) -> int:
        """FLOPs of the matrix products of one call."""
        if call not in self._known:
            self._known[call] = self._count(call)
        return self._known[call]

    def _count(self, call: CallShape) -> int:
        num_jobs, num_beams, asked = call
        sizes = {"jobs": num_jobs, "beams": num_beams}
        inputs = {}
        for entry in self._session.get_inputs():
            shape = [n if isinstance(n, int) else sizes.get(n, asked) for n in entry.shape]
            inputs[entry.name] = np.zeros(shape, DTYPES[entry.type])
        shapes = iter(self._session.run(None, inputs))
        return sum(
            2 * math.prod(out.tolist()) * int(left[0 if transposed else -1])
            for transposed, left, out in zip(self._transposed, shapes, shapes, strict=False)
        )


def single_threaded() -> bool:
    """Whether the environment limits numpy's matrix products to one thread."""
    return any(os.environ.get(name) == "1" for name in THREAD_VARIABLES)


def gemm_flops_per_s(matrix: NDArray[np.float32]) -> float:
    """FLOPs a second of the product of a square float32 matrix with itself."""
    started = perf_counter()
    matrix @ matrix
    return 2.0 * len(matrix) ** 3 / (perf_counter() - started)
