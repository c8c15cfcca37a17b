"""The denoiser that ships: two ONNX graphs run by ONNX Runtime.

`encoder.onnx` turns histories into the decoder's cross-attention keys and values, once per request;
`decoder.onnx` turns partial SIDs into log-probs. All beams of a job share its keys and values: the
graph folds beams into the query length. Knows nothing of files: it is given the graphs' bytes.

memory: keys and values (layers, jobs, heads, tokens, head_width) float32, mask (jobs, tokens) bool
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

ENCODER_INPUTS = ("history_codes", "history_mask")
MEMORY = ("memory_keys", "memory_values", "memory_mask")
DECODER_INPUTS = ("partial_sids", "difficulty", *MEMORY)
DECODER_OUTPUTS = ("log_probs",)


class Memory(NamedTuple):
    """Encoded histories: what every denoiser call of a request reads."""

    keys: NDArray[np.float32]
    values: NDArray[np.float32]
    mask: NDArray[np.bool_]


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
        threads: int = 1,
    ) -> None:
        self.num_subspaces = num_subspaces
        self.num_codes = num_codes
        self.history_length = history_length
        self._encoder = _session(encoder, "encoder.onnx", ENCODER_INPUTS, MEMORY, threads)
        self._decoder = _session(decoder, "decoder.onnx", DECODER_INPUTS, DECODER_OUTPUTS, threads)
        shape = self._decoder.get_outputs()[0].shape
        if shape[-2:] != [num_subspaces, num_codes]:
            raise ValueError(
                f"decoder.onnx gives log_probs of {shape[-2:]}, not {[num_subspaces, num_codes]}"
            )

    def encode(self, history_codes: NDArray[np.uint16], history_mask: NDArray[np.bool_]) -> Memory:
        inputs = {"history_codes": history_codes.astype(np.int64), "history_mask": history_mask}
        return Memory(*cast(Any, self._encoder.run(MEMORY, inputs)))

    def select(self, memory: Memory, jobs: NDArray[np.intp]) -> Memory:
        return Memory(memory.keys[:, jobs], memory.values[:, jobs], memory.mask[jobs])

    def denoise(
        self,
        memory: Memory,
        partial_sids: NDArray[np.uint16],
        difficulty: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        inputs = {
            "partial_sids": partial_sids.astype(np.int64),
            "difficulty": difficulty,
            "memory_keys": memory.keys,
            "memory_values": memory.values,
            "memory_mask": memory.mask,
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
