"""An exported graph whose matrix products are of 8-bit numbers: smaller, faster where it matters.

Weights become int8, one scale a channel, and what they are multiplied with uint8 on the way, one
scale and zero point a product. These are fixed here, from the largest and smallest numbers that
samples of the graph's inputs give there. A scale measured anew in every batch, which ONNX Runtime
offers as well, is hardly faster, and lets an answer depend on what else is in its batch
(docs/decisions/018). Embeddings, norms and the attention's own products stay float32. Inputs and
outputs keep names and types. Knows nothing of bundles and searches.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

PRODUCTS = ("MatMul", "Gemm")

GraphInputs = dict[str, NDArray[Any]]  # one array by the name of each input


def quantised(graph: bytes, samples: Sequence[GraphInputs]) -> bytes:
    """The same graph with 8-bit products, their scales those of the samples.

    A graph without a product by weights comes back as it is.
    """
    with TemporaryDirectory() as folder, _without_advice():
        prepared, made = Path(folder, "prepared.onnx"), Path(folder, "made.onnx")
        products = _prepare(graph, prepared)
        if not products:
            return graph
        quantize_static(
            prepared,
            made,
            _Samples(samples),
            quant_format=QuantFormat.QDQ,  # standard operators, which ONNX Runtime fuses
            nodes_to_quantize=products,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # 7 bits: without VNNI a processor adds pairs of 8-bit products up in 16 bits, and those
            # overflow. A graph gives the same answers on every processor.
            reduce_range=True,
            extra_options={"OpTypesToExcludeOutputQuantization": list(PRODUCTS)},
        )
        return made.read_bytes()


def _prepare(graph: bytes, path: Path) -> list[str]:
    """Write the graph with its constants folded; the names of its products by weights."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3  # it says which constants it folds away
    ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    model = onnx.load(path)
    weights = {entry.name for entry in model.graph.initializer}
    products = []
    for number, node in enumerate(model.graph.node):
        if node.op_type in PRODUCTS and node.input[1] in weights:
            node.name = f"product_{number}"
            products.append(node.name)
    onnx.save(model, path)
    return products


class _Samples(CalibrationDataReader):
    """The samples in the form that ONNX Runtime asks for."""

    def __init__(self, samples: Sequence[GraphInputs]) -> None:
        self._left = iter(samples)

    def get_next(self) -> GraphInputs | None:
        return next(self._left, None)


@contextmanager
def _without_advice() -> Iterator[None]:
    """ONNX Runtime tells the root logger about every tensor."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
