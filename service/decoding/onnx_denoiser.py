"""The denoiser that ships: two ONNX graphs run by ONNX Runtime.

`encoder.onnx` turns each history into one vector, once per request; `decoder.onnx` turns partial
SIDs and that vector into log-probs for all beams of all jobs. Knows nothing of files: it is given
the graphs' bytes.

memory: (jobs, width) float32
"""

from __future__ import annotations

from typing import cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.decoding.job import Histories

ENCODER_INPUTS = ("history_codes", "history_vectors", "history_mask")
ENCODER_OUTPUTS = ("memory",)
DECODER_INPUTS = ("partial_sids", "difficulty", "memory")
DECODER_OUTPUTS = ("log_probs",)

Memory = NDArray[np.float32]


class OnnxDenoiser:
    """Runs the two graphs on the CPU with an explicit number of threads.

    Raises ValueError when a graph's inputs, outputs or sizes are not the expected ones.
    """

    def __init__(
        self,
        encoder: bytes,
        decoder: bytes,
        *,
        num_subspaces: int,
        num_codes: int,
        history_length: int,
        repeat_bias: float,
        threads: int = 1,
    ) -> None:
        self.num_subspaces = num_subspaces
        self.num_codes = num_codes
        self.history_length = history_length
        self.repeat_bias = repeat_bias
        self._encoder = _session(encoder, "encoder.onnx", ENCODER_INPUTS, ENCODER_OUTPUTS, threads)
        self._decoder = _session(decoder, "decoder.onnx", DECODER_INPUTS, DECODER_OUTPUTS, threads)
        [vectors] = [i for i in self._encoder.get_inputs() if i.name == "history_vectors"]
        self.vector_dims: int = vectors.shape[-1]
        shape = self._decoder.get_outputs()[0].shape
        if shape[-2:] != [num_subspaces, num_codes]:
            raise ValueError(
                f"decoder.onnx gives log_probs of {shape[-2:]}, not {[num_subspaces, num_codes]}"
            )

    def encode(self, histories: Histories) -> Memory:
        inputs = {
            "history_codes": histories.codes.astype(np.int64),
            "history_vectors": histories.vectors.astype(np.float32),
            "history_mask": histories.mask,
        }
        return cast("Memory", self._encoder.run(ENCODER_OUTPUTS, inputs)[0])

    def select(self, memory: Memory, jobs: NDArray[np.intp]) -> Memory:
        return memory[jobs]

    def denoise(
        self,
        memory: Memory,
        partial_sids: NDArray[np.uint16],
        difficulty: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        inputs = {
            "partial_sids": partial_sids.astype(np.int64),
            "difficulty": difficulty,
            "memory": memory,
        }
        return cast("NDArray[np.float32]", self._decoder.run(DECODER_OUTPUTS, inputs)[0])


def _session(
    graph: bytes, name: str, inputs: tuple[str, ...], outputs: tuple[str, ...], threads: int
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base class of their own
        raise ValueError(f"{name} is not a graph that ONNX Runtime loads: {error}") from error
    found = tuple(entry.name for entry in session.get_inputs())
    if set(found) != set(inputs):
        raise ValueError(f"{name} has inputs {found}, expected {inputs}")
    found = tuple(entry.name for entry in session.get_outputs())
    if set(found) != set(outputs):
        raise ValueError(f"{name} has outputs {found}, expected {outputs}")
    return session
