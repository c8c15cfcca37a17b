"""A model under training as a `Denoiser`, so that validation runs the production decoder."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from training.model import MaskedDiffusionModel, Memory


class TorchDenoiser:
    """Wraps a model in eval mode; float32, no gradients."""

    def __init__(self, model: MaskedDiffusionModel) -> None:
        self.model = model
        self.num_subspaces = model.num_subspaces
        self.num_codes = model.num_codes
        self.history_length = model.config.history_length

    @torch.inference_mode()
    def encode(self, history_codes: NDArray[np.uint16], history_mask: NDArray[np.bool_]) -> Memory:
        codes = torch.from_numpy(history_codes.astype(np.int64))
        return self.model.encode(codes, torch.from_numpy(history_mask))

    def select(self, memory: Memory, jobs: NDArray[np.intp]) -> Memory:
        index = torch.from_numpy(jobs)
        return Memory(memory.keys[:, index], memory.values[:, index], memory.mask[index])

    @torch.inference_mode()
    def denoise(
        self, memory: Memory, partial_sids: NDArray[np.uint16], difficulty: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        logits = self.model.denoise(
            torch.from_numpy(partial_sids.astype(np.int64)), torch.from_numpy(difficulty), memory
        )
        return logits.log_softmax(dim=-1).numpy()
