"""The denoiser that ships: two ONNX graphs run by ONNX Runtime; a third one if it has a dense head.

`encoder.onnx` turns each history into one row of numbers, its memory, once per request. What they
mean is the network's affair: one state, or the keys and values of all its layers. `decoder.onnx`
turns partial SIDs and that row into log-probs at given positions, for all beams of all jobs.
`dense.onnx` turns the row into a query, which is compared with the content of items. The graphs
read the search's own arrays: no dtype is converted on the way in. Knows nothing of files: it gets
the bytes of the graphs.

memory: (jobs, width) float32, kept by ONNX Runtime on the device where the graphs run
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from service.decoding.job import MAX_HORIZON
from service.decoding.network.denoiser import Histories
from service.decoding.network.gather_graph import gather_graph

_import_error: ImportError | None = None
try:
    import onnxruntime as ort
except ImportError as error:  # `require_runtime` reports it in a sentence
    _import_error = error

# Two distributions that write into the same folder: uninstalling one breaks the other.
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")

Provider = Literal["cpu", "cuda", "tensorrt"]

# Inputs by name, with their types as ONNX Runtime writes them.
ENCODER_INPUTS = {
    "history_codes": "tensor(uint16)",
    "history_vectors": "tensor(float16)",
    "history_mask": "tensor(bool)",
}
ENCODER_OUTPUTS = {"memory": "tensor(float)"}
DECODER_INPUTS = {
    "partial_sids": "tensor(uint16)",
    "positions": "tensor(int64)",
    "memory": "tensor(float)",
}
DECODER_OUTPUTS = {"log_probs": "tensor(float)"}
DENSE_INPUTS = {"memory": "tensor(float)"}
DENSE_OUTPUTS = {"query": "tensor(float)"}
# How many axes each input and output has.
_AXES = {
    "history_codes": 3,
    "history_vectors": 3,
    "history_mask": 2,
    "partial_sids": 3,
    "positions": 3,
    "memory": 2,
    "log_probs": 4,
    "query": 2,
}

# The requested provider comes first; the others run the operators that it lacks.
_PROVIDERS: dict[Provider, tuple[str, ...]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
_NEEDED: dict[Provider, str] = {
    "cpu": "install unmask with its extra `cpu`",
    "cuda": "install unmask with its extra `gpu` instead of `cpu`, and an NVIDIA driver",
    "tensorrt": "install unmask with its extra `gpu` instead of `cpu`, an NVIDIA driver and "
    "TensorRT's libraries",
}


# A graph with weights in other files names a "location", and ONNX Runtime opens any file there.
EXTERNAL_DATA = b"location"
_NUM_PARTS = 16  # memories that are joined in one run on the device


class ProviderMissing(ValueError):
    """ONNX Runtime would run the graphs with another provider than the requested one."""


class RuntimeMissing(ValueError):
    """ONNX Runtime is not installed, or pip lists it although its files are gone."""


def require_runtime() -> None:
    """Raise RuntimeMissing, which names the commands to run, unless ONNX Runtime can run graphs.

    Uninstalling may leave part of the folder behind. Python imports that without an error, as an
    empty package.
    """
    if _import_error is None and hasattr(ort, "InferenceSession"):
        return
    versions: dict[str, str] = {}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if not versions:
        raise RuntimeMissing(
            "ONNX Runtime is not installed: install unmask with its extra `cpu`, or with `gpu` for "
            "an NVIDIA GPU"
        )
    claimed = [f"{name}=={version}" for name, version in versions.items()]
    wanted = claimed[0] if len(claimed) == 1 else "onnxruntime (or onnxruntime-gpu)"
    why = f" ({_import_error})" if _import_error else ""
    raise RuntimeMissing(
        f"ONNX Runtime cannot be imported{why}, though pip lists {' and '.join(claimed)}: "
        "onnxruntime and onnxruntime-gpu share a folder, and uninstalling one takes the other's "
        "files away. Run `python -m pip uninstall -y onnxruntime onnxruntime-gpu`, then "
        f"`python -m pip install {wanted}`"
    )


class OnnxDenoiser:
    """Runs the two graphs with one provider of ONNX Runtime and an explicit number of threads.

    "cuda" and "tensorrt" have not been run on a GPU yet. With these, memories stay on the device.
    TensorRT builds an engine for every new shape of a batch.

    vector_dims: of the items' vectors that the encoder reads
    memory_bytes: of the memory of one job
    max_horizon: how many items the decoder's graph can be asked for together
    Raises ValueError when a graph's inputs, outputs or sizes are not the expected ones,
    ProviderMissing when ONNX Runtime would run them with another provider than the requested one,
    and RuntimeMissing when it is not installed.
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
        provider: Provider = "cpu",
        names: tuple[str, str] = ("encoder.onnx", "decoder.onnx"),
    ) -> None:
        """threads: of each graph's operators on the CPU
        names: of the two graphs, for error messages
        """
        require_runtime()
        encoder_name, decoder_name = names
        self.num_subspaces = num_subspaces
        self.num_codes = num_codes
        self.history_length = history_length
        self.repeat_bias = repeat_bias
        self._device = "cpu" if provider == "cpu" else "cuda"
        self._encoder = _session(encoder, encoder_name, threads, provider)
        _check(self._encoder, encoder_name, ENCODER_INPUTS, ENCODER_OUTPUTS)
        self._decoder = _session(decoder, decoder_name, threads, provider)
        _check(self._decoder, decoder_name, DECODER_INPUTS, DECODER_OUTPUTS)
        self._device_memories = None if provider == "cpu" else DeviceMemories("cuda", self._device)
        self.vector_dims = _last_axis(self._encoder.get_inputs(), "history_vectors", encoder_name)
        found = _last_axis(self._encoder.get_inputs(), "history_codes", encoder_name)
        if found != num_subspaces:
            raise ValueError(f"{encoder_name} reads SIDs of {found} codes, not {num_subspaces}")
        [sids] = [one for one in self._decoder.get_inputs() if one.name == "partial_sids"]
        self.max_horizon = 1
        if not isinstance(sids.shape[-1], int):  # of any size, so for any number of items
            self.max_horizon = MAX_HORIZON
        elif sids.shape[-1] != num_subspaces:
            raise ValueError(
                f"{decoder_name} reads SIDs of {sids.shape[-1]} codes, not {num_subspaces}"
            )
        found = _last_axis(self._decoder.get_outputs(), "log_probs", decoder_name)
        if found != num_codes:
            raise ValueError(f"{decoder_name} gives log_probs of {found} codes, not {num_codes}")
        given = _last_axis(self._encoder.get_outputs(), "memory", encoder_name)
        found = _last_axis(self._decoder.get_inputs(), "memory", decoder_name)
        self.memory_bytes = 4 * max(1, given)
        if given != found:
            raise ValueError(
                f"{decoder_name} reads a memory of {found} numbers, {encoder_name} gives {given}"
            )

    def encode(self, histories: Histories) -> ort.OrtValue:
        binding = self._encoder.io_binding()
        arrays = [np.ascontiguousarray(array) for array in histories]
        for name, array in zip(ENCODER_INPUTS, arrays, strict=True):
            binding.bind_cpu_input(name, array)  # borrowed: `arrays` must outlive the run
        binding.bind_output("memory", self._device)
        self._encoder.run_with_iobinding(binding)
        return binding.get_outputs()[0]

    def select(self, memory: ort.OrtValue, jobs: NDArray[np.intp]) -> ort.OrtValue:
        if self._device_memories:
            return self._device_memories.picked([memory], jobs)
        return ort.OrtValue.ortvalue_from_numpy(memory.numpy()[jobs])

    def join(self, memories: Sequence[ort.OrtValue]) -> ort.OrtValue:
        if self._device_memories:
            return self._device_memories.joined(memories)
        return ort.OrtValue.ortvalue_from_numpy(np.concatenate([m.numpy() for m in memories]))

    def denoise(
        self,
        memory: ort.OrtValue,
        partial_sids: NDArray[np.uint16],
        positions: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        partial_sids, positions = map(np.ascontiguousarray, (partial_sids, positions))
        binding = self._decoder.io_binding()
        binding.bind_cpu_input("partial_sids", partial_sids)
        binding.bind_cpu_input("positions", positions)
        binding.bind_ortvalue_input("memory", memory)
        binding.bind_output("log_probs")
        self._decoder.run_with_iobinding(binding)
        return cast("NDArray[np.float32]", binding.copy_outputs_to_cpu()[0])


class OnnxDenseHead:
    """Runs `dense.onnx`, memory -> query, on the memories of an `OnnxDenoiser`: a `DenseHead`.

    Raises as `OnnxDenoiser` does.
    """

    def __init__(
        self,
        graph: bytes,
        *,
        memory_bytes: int,
        weight: float,
        threads: int = 1,
        provider: Provider = "cpu",
    ) -> None:
        """memory_bytes: of one job's memory, as the denoiser gives it"""
        require_runtime()
        name = "dense.onnx"
        self.weight = weight
        self._session = _session(graph, name, threads, provider)
        _check(self._session, name, DENSE_INPUTS, DENSE_OUTPUTS)
        self.dims = _last_axis(self._session.get_outputs(), "query", name)
        found = _last_axis(self._session.get_inputs(), "memory", name)
        if 4 * max(1, found) != memory_bytes:
            raise ValueError(
                f"{name} reads a memory of {found} numbers, the encoder gives {memory_bytes // 4}"
            )

    def queries(self, memory: ort.OrtValue) -> NDArray[np.float32]:
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("memory", memory)
        binding.bind_output("query")
        self._session.run_with_iobinding(binding)
        return cast("NDArray[np.float32]", binding.copy_outputs_to_cpu()[0])


class DeviceMemories:
    """Picks from memories and joins them on their device, without a copy to the host."""

    def __init__(self, provider: Provider, device: str) -> None:
        self._session = _session(gather_graph(_NUM_PARTS), "the gather graph", 1, provider)
        self._device = device

    def picked(self, parts: Sequence[ort.OrtValue], places: NDArray[np.intp]) -> ort.OrtValue:
        """Some jobs of at most _NUM_PARTS memories. places: indices into the joined memories"""
        places = np.ascontiguousarray(places, np.int64)
        binding = self._session.io_binding()
        for number in range(_NUM_PARTS):  # the last one fills up; its repeats come behind all
            binding.bind_ortvalue_input(f"part_{number}", parts[min(number, len(parts) - 1)])
        binding.bind_cpu_input("places", places)
        binding.bind_output("picked", self._device)
        self._session.run_with_iobinding(binding)
        return binding.get_outputs()[0]

    def joined(self, parts: Sequence[ort.OrtValue]) -> ort.OrtValue:
        """All jobs of any number of memories."""
        while len(parts) > _NUM_PARTS:
            starts = range(0, len(parts), _NUM_PARTS)
            parts = [self.joined(parts[start : start + _NUM_PARTS]) for start in starts]
        return self.picked(parts, np.arange(sum(part.shape()[0] for part in parts)))


def _session(graph: bytes, name: str, threads: int, provider: Provider) -> ort.InferenceSession:
    if EXTERNAL_DATA in graph:
        raise ValueError(f"{name} keeps weights in other files; export it with its weights inside")
    wanted = _PROVIDERS[provider]
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    offered = ort.get_available_providers()
    if wanted[0] in offered:
        try:
            session = ort.InferenceSession(
                graph,
                options,
                providers=[entry for entry in wanted if entry in offered],
                # On the CPU the fused operator is slower than the two that it replaces.
                disabled_optimizers=["SkipLayerNormFusion"] if provider == "cpu" else [],
            )
        except Exception as error:  # its exceptions have no common base class of their own
            raise ValueError(f"{name} is not a graph that ONNX Runtime loads: {error}") from error
        offered = session.get_providers()
        if offered[0] == wanted[0]:
            return session
    # ONNX Runtime itself would use the next provider without an error.
    raise ProviderMissing(
        f"{name} cannot run with {wanted[0]}, ONNX Runtime offers {offered}: {_NEEDED[provider]}"
    )


def _check(
    session: ort.InferenceSession, name: str, inputs: dict[str, str], outputs: dict[str, str]
) -> None:
    for kind, entries, expected in (
        ("inputs", session.get_inputs(), inputs),
        ("outputs", session.get_outputs(), outputs),
    ):
        found = {entry.name: entry.type for entry in entries}
        if found != expected:
            raise ValueError(f"{name} has {kind} {found}, expected {expected}")
        for entry in entries:
            if len(entry.shape) != _AXES[entry.name]:
                raise ValueError(
                    f"{name}: {entry.name} has {len(entry.shape)} axes, expected "
                    f"{_AXES[entry.name]}"
                )


def _last_axis(entries: Sequence[ort.NodeArg], entry: str, name: str) -> int:
    """The size of an entry's last axis. It must be a number; other axes may have names."""
    [shape] = [one.shape for one in entries if one.name == entry]
    if not isinstance(shape[-1], int):
        raise ValueError(f"{name}: the last axis of {entry} must have a size that is known")
    return shape[-1]
