"""8-bit graphs of a trained network, kept only if they keep the recall of the float32 graphs.

`training.bundling.quantise` needs samples of the inputs. They are recorded while the search decodes
training histories with the float32 graphs, once in one call and once position by position. Then
both pairs of graphs rank the targets of the same validation users, through the production decoder
and at the setting that ships. Knows decoders and windows, not files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray

from service.bundles import DecodingDefaults
from service.decoding import Decoder, Denoiser, Histories
from service.decoding.network import DECODER_INPUTS, ENCODER_INPUTS
from training.bundling.quantise import GraphInputs, quantised
from training.data import Windows
from training.evaluation import draw_windows, ranks_at, recall_at

K = 10
LEAST_RECALL_KEPT = 0.99  # as a share of the float32 graphs' recall@10
SAMPLE_WINDOWS = 256  # training histories, decoded once for each schedule
SAMPLE_BEAMS = 10
SAMPLE_BATCH = 32


@dataclass(frozen=True, eq=False)
class EightBit:
    """8-bit graphs and their recall.

    recall, recall_fp32: recall@10 of the same validation users with the 8-bit and the float32
                         graphs
    error:               standard error of the paired difference of the two
    """

    encoder: bytes
    decoder: bytes
    users: int
    recall: float
    recall_fp32: float
    error: float

    @property
    def accepted(self) -> bool:
        """Whether they may ship."""
        return self.recall >= LEAST_RECALL_KEPT * self.recall_fp32

    def as_json(self) -> dict[str, Any]:
        return {
            "accepted": self.accepted,
            "users": self.users,
            "recall@10": round(self.recall, 5),
            "recall@10_fp32": round(self.recall_fp32, 5),
            "error": round(self.error, 5),
            "least_recall_kept": LEAST_RECALL_KEPT,
        }

    def __str__(self) -> str:
        figures = (
            f"recall@10 {self.recall:.4f} with int8 graphs, {self.recall_fp32:.4f} with fp32 "
            f"(± {self.error:.4f}, {self.users} validation users)"
        )
        if self.accepted:
            return f"{figures}: the bundle has both, UNMASK_PRECISION=int8 serves the int8 graphs"
        return (
            f"{figures}: that is less than {100 * LEAST_RECALL_KEPT:g} %, so the bundle has no "
            "int8 graphs"
        )


def eight_bit(
    decoder: Decoder,
    encoder_graph: bytes,
    decoder_graph: bytes,
    denoiser_of: Callable[[bytes, bytes], Denoiser],
    *,
    train: Windows,
    validation: Windows,
    decoding: DecodingDefaults,
    batch: int,
    exclude_seen: bool,
) -> EightBit:
    """Quantise the two graphs of a decoder's denoiser and measure both pairs of graphs.

    denoiser_of: makes a denoiser from an encoder's and a decoder's graph
    train:       windows whose histories give the samples
    validation:  windows whose targets are ranked, all of them
    batch:       how many users are decoded together
    """
    samples = draw_windows(train, SAMPLE_WINDOWS, seed=0)
    encoder_inputs, decoder_inputs = inputs_of(decoder, samples, decoding)
    encoder_graph = quantised(encoder_graph, encoder_inputs)
    decoder_graph = quantised(decoder_graph, decoder_inputs)
    small = replace(decoder, denoiser=denoiser_of(encoder_graph, decoder_graph))
    asked = {"k": K, "batch": batch, "workers": cpu_count(), "exclude_seen": exclude_seen}
    of_small, of_float = (ranks_at(validation, one, decoding, **asked) for one in (small, decoder))
    difference = (of_small.item <= K).astype(np.float64) - (of_float.item <= K)
    return EightBit(
        encoder_graph,
        decoder_graph,
        len(validation),
        recall_at(of_small.item, K),
        recall_at(of_float.item, K),
        float(difference.std() / np.sqrt(max(1, len(validation)))),
    )


def inputs_of(
    decoder: Decoder, windows: Windows, decoding: DecodingDefaults
) -> tuple[list[GraphInputs], list[GraphInputs]]:
    """The inputs that the two graphs get while the search decodes these histories, in batches.

    decoding: the setting that ships. Its schedule is replaced, once by a single call and once by
              one position for each call
    """
    watched = _Watched(decoder.denoiser)
    watching = replace(decoder, denoiser=watched)
    num_subspaces = decoder.denoiser.num_subspaces
    for r_warm in (0, num_subspaces):
        setting = decoding.model_copy(
            update={
                "r_warm": r_warm,
                "m_par": num_subspaces,
                "beam_width": SAMPLE_BEAMS,
                "finish_rows": 0,
                "retrieval": "generate",
            }
        )
        ranks_at(windows, watching, setting, k=K, batch=SAMPLE_BATCH)
    return watched.encoded, watched.denoised


class _Watched:
    """A denoiser that keeps copies of its inputs."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser
        self.num_subspaces, self.num_codes = denoiser.num_subspaces, denoiser.num_codes
        self.history_length, self.repeat_bias = denoiser.history_length, denoiser.repeat_bias
        self.select, self.join = denoiser.select, denoiser.join
        self.encoded: list[GraphInputs] = []
        self.denoised: list[GraphInputs] = []

    def encode(self, histories: Histories) -> Any:
        self.encoded.append(dict(zip(ENCODER_INPUTS, map(np.copy, histories), strict=True)))
        return self._denoiser.encode(histories)

    def denoise(
        self, memory: Any, partial_sids: NDArray[np.uint16], positions: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        arrays = (partial_sids.copy(), positions.copy(), memory.numpy().copy())
        self.denoised.append(dict(zip(DECODER_INPUTS, arrays, strict=True)))
        return self._denoiser.denoise(memory, partial_sids, positions)
