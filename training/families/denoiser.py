"""A model under training as a `Denoiser`, so that validation runs the production decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.decoding import Histories
from training.families.network import Network


class TorchDenoiser:
    """Wraps a model in eval mode; float32, no gradients. Its memory: (jobs, memory_size)."""

    def __init__(self, model: Network) -> None:
        self.model = model
        self.num_subspaces = model.num_subspaces
        self.num_codes = model.num_codes
        self.history_length = model.config.history_length
        self.device = next(model.parameters()).device

    @property
    def repeat_bias(self) -> float:
        return self.model.repeat_bias.item()

    @torch.inference_mode()
    def encode(self, histories: Histories) -> Tensor:
        return self.model.remember(
            self._sent(histories.codes.astype(np.int64)),
            self._sent(histories.vectors.astype(np.float32)),
            self._sent(histories.mask),
        )

    def select(self, memory: Tensor, jobs: NDArray[np.intp]) -> Tensor:
        return memory[self._sent(jobs)]

    def join(self, memories: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(memories))

    @torch.inference_mode()
    def denoise(
        self, memory: Tensor, partial_sids: NDArray[np.uint16], positions: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        logits = self.model.denoise(
            self._sent(partial_sids.astype(np.int64)), memory, self._sent(positions)
        )
        return logits.log_softmax(dim=-1).cpu().numpy()

    def _sent(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)
