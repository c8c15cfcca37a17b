"""The network: a causal encoder over the history, a bidirectional decoder over one SID.

One pass of the encoder serves every prefix of a history, in training as many samples as it has
items: state t has seen items 0..t and nothing later. The decoder reads one state and a partial SID
and gives logits for all positions at once. Knows nothing of users, losses or masks drawn.

history_codes:   (jobs, length, L) int64, oldest first; MASK = num_codes as filler at the end
history_vectors: (jobs, length, d) float32, the items' vectors; zeros as filler
state:           (..., width) float32
partial_sids:    (jobs, beams, L) int64, MASK where not yet filled
logits:          (jobs, beams, L, num_codes) float32
L = num_subspaces. After arXiv 2601.19501, sections 4.3 and 5.1.3, which has a bidirectional
encoder and cross-attention; docs/decisions/008 says why not here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from training.config import ModelConfig


class Dropout(nn.Module):
    """Dropout that draws one byte an element, so its rate is a multiple of 1/256.

    torch.nn.Dropout draws a float on one thread and took 17 % of a step (training/LOG.md).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.dropped = round(256 * rate)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.dropped == 0:
            return x
        drawn = torch.empty(x.shape, dtype=torch.uint8, device=x.device).random_(0, 256)
        return x * ((drawn >= self.dropped).to(x.dtype) * (256 / (256 - self.dropped)))


class Attention(nn.Module):
    """Multi-head self-attention; causal with a learned bias by distance, or bidirectional."""

    def __init__(self, width: int, num_heads: int, *, distances: int = 0) -> None:
        """distances: how far apart two tokens may be for a bias of their own; 0 = not causal."""
        super().__init__()
        self.num_heads = num_heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.distance_bias = nn.Parameter(torch.zeros(num_heads, distances)) if distances else None

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, tokens, width)."""
        n, tokens, width = x.shape
        heads = self.query_key_value(x).reshape(n, tokens, 3, self.num_heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        if self.distance_bias is not None:
            place = torch.arange(tokens, device=x.device)
            distance = place[:, None] - place
            bias = self.distance_bias[:, distance.clamp(0, self.distance_bias.shape[1] - 1)]
            scores = scores + bias.masked_fill(distance < 0, -1e9)
        attended = scores.softmax(dim=-1) @ value
        return self.out(attended.transpose(1, 2).reshape(n, tokens, width))


class FeedForward(nn.Sequential):
    def __init__(self, width: int, multiple: int) -> None:
        super().__init__(
            nn.Linear(width, multiple * width), nn.GELU(), nn.Linear(multiple * width, width)
        )


class Layer(nn.Module):
    """Pre-norm self-attention and feed-forward, over history items or over a SID's positions."""

    def __init__(self, config: ModelConfig, *, distances: int = 0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.num_heads, distances=distances)
        self.ffn_norm = nn.LayerNorm(config.width)
        self.ffn = FeedForward(config.width, config.ffn_multiple)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.ffn(self.ffn_norm(x)))


class MaskedDiffusionModel(nn.Module):
    """Encoder, decoder, one softmax per position over its codes, and the repeat bias.

    repeat_bias is added to the score of an item that the history holds already: what a sum of code
    logits cannot say. It is learnt, so data whose users never repeat an item teach the model so.
    """

    def __init__(
        self, config: ModelConfig, *, num_subspaces: int, num_codes: int, vector_dims: int
    ) -> None:
        super().__init__()
        self.config = config
        self.num_subspaces = num_subspaces
        self.num_codes = num_codes
        self.vector_dims = vector_dims
        width = config.width
        self.code_embedding = nn.Embedding(num_subspaces * num_codes + 1, width)  # last row = MASK
        self.vector_projection = nn.Linear(vector_dims, width) if config.item_vectors else None
        self.position_embedding = nn.Embedding(num_subspaces, width)
        self.difficulty_embedding = nn.Embedding(num_subspaces, width)
        self.embedding_dropout = Dropout(config.dropout)
        self.encoder = nn.ModuleList(
            Layer(config, distances=config.history_length) for _ in range(config.encoder_layers)
        )
        self.encoder_norm = nn.LayerNorm(width)
        self.state_projection = nn.Linear(width, width)
        self.decoder = nn.ModuleList(Layer(config) for _ in range(config.decoder_layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.head = None if config.tied_head else nn.Embedding(num_subspaces * num_codes, width)
        self.bias = nn.Parameter(torch.zeros(num_subspaces, num_codes))
        self.repeat_bias = nn.Parameter(torch.zeros(()))
        self.register_buffer(
            "offsets", torch.arange(num_subspaces) * num_codes, persistent=False
        )  # first embedding row of each position
        self.apply(_initialise)
        if self.vector_projection is not None:  # unit vectors: as large as the codes' sum
            nn.init.normal_(self.vector_projection.weight, std=0.3)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """codes: (..., L) int64 -> (..., L, width); MASK has one embedding for all positions."""
        mask_row = self.num_subspaces * self.num_codes
        rows = torch.where(codes == self.num_codes, mask_row, codes + self.offsets)
        return self.code_embedding(rows)

    def encode(self, history_codes: Tensor, history_vectors: Tensor) -> Tensor:
        """States after every item of each history, (jobs, length, width).

        A state depends on its own item and those before it, never on filler behind it.
        """
        x = self.embed_codes(history_codes).sum(dim=2)
        if self.vector_projection is not None:
            x = x + self.vector_projection(history_vectors)
        x = self.embedding_dropout(x)
        for layer in self.encoder:
            x = layer(x)
        return self.encoder_norm(x)

    def denoise(self, partial_sids: Tensor, difficulty: Tensor, state: Tensor) -> Tensor:
        """Logits of every code at every position: (jobs, beams, L, num_codes).

        difficulty: (jobs,) int64, number of MASK positions, in 1..L
        state:      (jobs, width), after the newest item of each history
        """
        jobs, beams, positions = partial_sids.shape
        of_job = self.state_projection(state)
        if self.config.difficulty_embedding:
            of_job = of_job + self.difficulty_embedding(difficulty - 1)
        x = self.embed_codes(partial_sids) + self.position_embedding.weight
        x = self.embedding_dropout(x + of_job[:, None, None])
        x = x.reshape(jobs * beams, positions, -1)
        for layer in self.decoder:
            x = layer(x)
        return self.logits(self.decoder_norm(x)).reshape(jobs, beams, positions, self.num_codes)

    def logits(self, x: Tensor) -> Tensor:
        """(n, L, width) -> (n, L, num_codes): one head per position."""
        table = self.code_embedding.weight[:-1] if self.head is None else self.head.weight
        table = table.reshape(self.num_subspaces, self.num_codes, -1)
        return (x.transpose(0, 1) @ table.transpose(1, 2)).transpose(0, 1) + self.bias


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02 if isinstance(module, nn.Linear) else 0.05)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
