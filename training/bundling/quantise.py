"""Makes a graph with 8-bit matrix products from an exported graph: smaller and often faster.

Weights become int8 with one scale for each channel. Their inputs become uint8 with one scale and
zero point for each product, fixed here from the largest and smallest numbers that the samples give.
ONNX Runtime could also measure a scale in every batch. That is hardly faster, and an answer would
depend on the rest of its batch (docs/decisions/018). Embeddings, norms and the products of the
attention stay float32. Inputs and outputs keep names and types. Knows no bundles, no searches.
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
    """The same graph with 8-bit products, whose scales are fixed by the samples.

    A graph in which nothing is multiplied by weights is returned unchanged.
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
            quant_format=QuantFormat.QDQ,  # standard operators; ONNX Runtime fuses them
            nodes_to_quantize=products,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # 7 bits. A processor without VNNI adds pairs of 8-bit products in 16 bits, which would
            # overflow. With 7 bits a graph gives the same answers on every processor.
            reduce_range=True,
            extra_options={"OpTypesToExcludeOutputQuantization": list(PRODUCTS)},
        )
        return made.read_bytes()


def _prepare(graph: bytes, path: Path) -> list[str]:
    """Write the graph with folded constants; returns the names of its products by weights."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3  # else it logs every constant that it folds
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
    """The samples in the form that ONNX Runtime needs."""

    def __init__(self, samples: Sequence[GraphInputs]) -> None:
        self._left = iter(samples)

    def get_next(self) -> GraphInputs | None:
        return next(self._left, None)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Quiet meanwhile: ONNX Runtime writes about every tensor to the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
