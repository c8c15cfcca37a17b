"""What networks of all families have in common: what is asked of them, and some of their layers.

Knows nothing of users, losses or attention.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service.decoding import Catalogue
from training.config import ModelConfig
from training.errors import ConfigError

RANK = 64  # of what the dense head multiplies states with
NEVER = -1e9  # added to a score; not -inf: where nothing may be seen, numbers stay finite


class Network(nn.Module, ABC):
    """A network that `TorchDenoiser` can ask and `export_graphs` can export.

    memory_size: numbers that `remember` gives for each history
    vector_dims: of the items' vectors, 0 if the catalogue has none
    repeat_bias: scalar, see `service.decoding.Denoiser`
    max_horizon: how many items it can fill together; from 2 on, `denoise` takes them side by side
    """

    config: ModelConfig
    num_subspaces: int
    num_codes: int
    vector_dims: int
    memory_size: int
    uses_vectors: bool
    repeat_bias: nn.Parameter
    max_horizon: int = 1

    @abstractmethod
    def remember(self, codes: Tensor, vectors: Tensor, mask: Tensor) -> Tensor:
        """All that `denoise` needs of each history: (jobs, memory_size) float32.

        codes:   (jobs, length, L) int64, oldest first; MASK = num_codes as filler at the end
        vectors: (jobs, length, vector_dims) float32, zeros as filler
        mask:    (jobs, length) bool, true where there is an item
        """

    @abstractmethod
    def denoise(
        self, partial_sids: Tensor, memory: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        """Logits of every code at every position asked for: (jobs, beams, n, num_codes) float32.

        partial_sids: (jobs, beams, horizon * L) int64, MASK where not yet filled; the SIDs of the
            next items, the nearest one first
        positions:    (jobs, beams, n) int64; None = all of them, in order
        """


class DenseNetwork(Network):
    """A network of a family that can have a dense head. dense: None if this one has none"""

    dense: DenseHead | None

    @abstractmethod
    def query(self, memory: Tensor) -> Tensor:
        """What the dense head expects next, see `service.decoding.DenseHead`: (jobs, dims)."""


class DenseHead(nn.Module):
    """From states to a query whose dot product with an item's content is cosine / temperature.

    The states are multiplied with a matrix of low rank (arXiv 2511.23021, dense retrieval).

    dims: of the content
    Raises ConfigError when the catalogue has no content.
    """

    def __init__(self, num_states: int, catalogue: Catalogue, temperature: float) -> None:
        super().__init__()
        self.dims = catalogue.content_dims
        content = catalogue.vectors[:, : self.dims].astype(np.float32)
        norms = np.linalg.norm(content, axis=1)
        if not norms.any():
            raise ConfigError(
                "model.options.dense: no item has content that a query could be compared with; "
                "give --items with titles, or --embeddings, and leave embeddings.content_dims "
                "above 0"
            )
        self.down = nn.Linear(num_states, RANK, bias=False)
        self.up = nn.Linear(RANK, self.dims)
        self.scale = 1 / (temperature * float(np.median(norms[norms > 0])))  # all have one norm

    def forward(self, states: Tensor) -> Tensor:
        """(n, num_states) -> (n, dims)."""
        return self.scale * F.normalize(self.up(self.down(states)), dim=-1)


class Dropout(nn.Module):
    """Dropout that draws one byte an element, so its rate is a multiple of 1/256.

    torch.nn.Dropout draws a float on one thread and took 17 % of a step (docs/log/2026-11.md).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.dropped = round(256 * rate)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.dropped == 0:
            return x
        drawn = torch.empty(x.shape, dtype=torch.uint8, device=x.device).random_(0, 256)
        return x * ((drawn >= self.dropped).to(x.dtype) * (256 / (256 - self.dropped)))


class FeedForward(nn.Sequential):
    def __init__(self, width: int, multiple: int) -> None:
        super().__init__(
            nn.Linear(width, multiple * width), nn.GELU(), nn.Linear(multiple * width, width)
        )


class TransformerLayer(nn.Module):
    """The parts of a pre-norm layer; a family says how its tokens attend to each other."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn = FeedForward(width, config.ffn_multiple)
        self.dropout = Dropout(config.dropout)

    def projected(self, x: Tensor) -> Tensor:
        """Queries, keys and values: (n, tokens, width) -> (3, n, heads, tokens, width / heads)."""
        return split_heads(self.query_key_value(self.attention_norm(x)), 3, self.num_heads)

    def rest(self, x: Tensor, attended: Tensor) -> Tensor:
        """What comes after the attention. attended: (n, heads, tokens, width / heads)"""
        x = x + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.ffn(self.ffn_norm(x)))


def split_heads(projected: Tensor, parts: int, num_heads: int) -> Tensor:
    """(n, tokens, parts * width) -> (parts, n, heads, tokens, width / heads)."""
    n, tokens, _ = projected.shape
    return projected.reshape(n, tokens, parts, num_heads, -1).permute(2, 0, 3, 1, 4)


def bias_of(is_token: Tensor) -> Tensor:
    """What is added to the scores of keys: (n, tokens) bool -> (n, 1, 1, tokens)."""
    return torch.where(is_token, 0.0, NEVER)[:, None, None]


def take(x: Tensor, asked: Tensor | None) -> Tensor:
    """The tokens asked for, all by default: (n, tokens, width), (n, m) -> (n, m, width)."""
    if asked is None:
        return x
    first = torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[1]
    return x.flatten(0, 1)[first + asked]


def logits_of(x: Tensor, heads: Tensor, bias: Tensor) -> Tensor:
    """One head per position: states (n, L, width) -> logits (n, L, num_codes).

    heads: (L, num_codes, width); bias: (L, num_codes)
    """
    return (x.transpose(0, 1) @ heads.transpose(1, 2)).transpose(0, 1) + bias


def logits_at(x: Tensor, asked: Tensor, heads: Tensor, bias: Tensor) -> Tensor:
    """The same for states of the positions asked for: (n, m, width), (n, m) -> (n * m, num_codes).

    States of one position, whichever beams they are of, are multiplied with its head at once.
    """
    x, asked = x.flatten(0, 1), asked.flatten()
    groups = [(asked == position).nonzero()[:, 0] for position in range(len(heads))]
    logits = [
        F.linear(x[group], head, of_position)
        for group, head, of_position in zip(groups, heads, bias, strict=True)
    ]
    return torch.cat(logits)[torch.cat(groups).argsort()]


def initialise(module: nn.Module) -> None:
    """Small random weights; for `nn.Module.apply`."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02 if isinstance(module, nn.Linear) else 0.05)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
