"""The network: encodes a history once, then gives log-probs for masked positions.

`Denoiser` is the protocol that the search calls; `DenseHead` is that of a part which some networks
have. ONNX Runtime, a torch module in training and a random test double all fulfil it. Knows no trie
and no beams.

Reading order: `denoiser` (the protocol), `onnx_denoiser`, `gather_graph` (a small ONNX graph, made
here), `encoder_cache` (a history that did not change is not encoded again).
"""

from service.decoding.network.denoiser import (
    Denoiser,
    DenseHead,
    Histories,
    list_masked,
    masked_positions,
)
from service.decoding.network.encoder_cache import EncoderCache
from service.decoding.network.onnx_denoiser import (
    DECODER_INPUTS,
    DECODER_OUTPUTS,
    DENSE_INPUTS,
    DENSE_OUTPUTS,
    ENCODER_INPUTS,
    ENCODER_OUTPUTS,
    OnnxDenoiser,
    OnnxDenseHead,
    Provider,
    ProviderMissing,
    RuntimeMissing,
    require_runtime,
)

__all__ = [
    "DECODER_INPUTS",
    "DECODER_OUTPUTS",
    "DENSE_INPUTS",
    "DENSE_OUTPUTS",
    "ENCODER_INPUTS",
    "ENCODER_OUTPUTS",
    "Denoiser",
    "DenseHead",
    "EncoderCache",
    "Histories",
    "OnnxDenoiser",
    "OnnxDenseHead",
    "Provider",
    "ProviderMissing",
    "RuntimeMissing",
    "list_masked",
    "masked_positions",
    "require_runtime",
]
