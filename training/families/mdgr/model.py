"""Our network: a causal encoder over the history, a bidirectional decoder over one SID.

One pass of the encoder serves every prefix of a history, in training as many samples as it has
items: state t has seen items 0..t and nothing later. The decoder reads one state and a partial SID
and gives logits at all positions, or at those asked for. Knows nothing of users, losses or masks
drawn.

history_codes:   (jobs, length, L) int64, oldest first; MASK = num_codes as filler at the end
history_vectors: (jobs, length, d) float32, the items' vectors; zeros as filler
state:           (..., width) float32
partial_sids:    (jobs, beams, L) int64, MASK where not yet filled
positions:       (jobs, beams, n) int64, those asked for; without it all L of them, in order
logits:          (jobs, beams, n, num_codes) float32
L = num_subspaces. After arXiv 2601.19501, sections 4.3 and 5.1.3, which has a bidirectional
encoder and cross-attention (`published`); docs/decisions/008 says why not here.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.config import ModelConfig
from training.families.device import HOST
from training.families.network import (
    Dropout,
    FeedForward,
    Network,
    initialise,
    logits_at,
    logits_of,
    take,
)


class Attention(nn.Module):
    """Multi-head self-attention; causal with a learned bias by distance, or bidirectional."""

    def __init__(self, width: int, num_heads: int, *, distances: int = 0) -> None:
        """distances: how far apart two tokens may be for a bias of their own; 0 = not causal."""
        super().__init__()
        self.num_heads = num_heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.distance_bias = nn.Parameter(torch.zeros(num_heads, distances)) if distances else None

    def forward(self, x: Tensor, asked: Tensor | None = None) -> Tensor:
        """x: (n, tokens, width); asked: (n, m) int64 of the tokens. Returns (n, m, width)."""
        if asked is None:
            query, key, value = self._heads(self.query_key_value(x), 3)
        else:
            width, projection = x.shape[-1], self.query_key_value
            weight, bias = projection.weight, projection.bias
            [query] = self._heads(F.linear(take(x, asked), weight[:width], bias[:width]), 1)
            key, value = self._heads(F.linear(x, weight[width:], bias[width:]), 2)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        if self.distance_bias is not None:
            place = torch.arange(x.shape[1], device=x.device)
            distance = (place if asked is None else asked)[..., None] - place
            bias = self.distance_bias[:, distance.clamp(0, self.distance_bias.shape[1] - 1)]
            bias = bias.masked_fill(distance < 0, -1e9)
            scores = scores + (bias if asked is None else bias.transpose(0, 1))
        attended = scores.softmax(dim=-1) @ value
        return self.out(attended.transpose(1, 2).flatten(2))

    def _heads(self, projected: Tensor, parts: int) -> Tensor:
        """(n, tokens, parts * width) -> (parts, n, heads, tokens, width / heads)."""
        n, tokens, _ = projected.shape
        return projected.reshape(n, tokens, parts, self.num_heads, -1).permute(2, 0, 3, 1, 4)


class Layer(nn.Module):
    """Pre-norm self-attention and feed-forward, over history items or over a SID's positions."""

    def __init__(self, config: ModelConfig, *, distances: int = 0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.num_heads, distances=distances)
        self.ffn_norm = nn.LayerNorm(config.width)
        self.ffn = FeedForward(config.width, config.ffn_multiple)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, asked: Tensor | None = None) -> Tensor:
        """x: (n, tokens, width); asked: (n, m) int64 of the tokens, by default all.

        Only keys and values are computed for tokens not asked for. Returns (n, m, width).
        """
        x = take(x, asked) + self.dropout(self.attention(self.attention_norm(x), asked))
        return x + self.dropout(self.ffn(self.ffn_norm(x)))


class MDGRNetwork(Network):
    """What both networks of this family have: their code table, and what a minibatch asks.

    one_target: whether a history has to be read again for each of its targets
    code_embedding: (L * num_codes + 1, width), the last row is of MASK; head: None = tied to it
    offsets: (L,) int64, first row of each position
    """

    one_target: bool
    code_embedding: nn.Embedding
    head: nn.Embedding | None
    offsets: Tensor

    def embed_codes(self, codes: Tensor) -> Tensor:
        """codes: (..., L) int64 -> (..., L, width); MASK has one embedding for all positions."""
        mask_row = self.num_subspaces * self.num_codes
        rows = torch.where(codes == self.num_codes, mask_row, codes + self.offsets)
        return self.code_embedding(rows)

    def head_tables(self) -> Tensor:
        """What states are multiplied with: (L, num_codes, width)."""
        table = self.code_embedding.weight[:-1] if self.head is None else self.head.weight
        return table.reshape(self.num_subspaces, self.num_codes, -1)

    @abstractmethod
    def logits_of_samples(
        self,
        codes: Tensor,
        vectors: Tensor,
        segment: Tensor,
        length: Tensor,
        partial_sids: Tensor,
    ) -> Tensor:
        """Logits of every code at every position of n samples: (n, L, num_codes).

        codes, vectors: of the items of segments, (segments, items, L) and (segments, items, d)
        segment, length: (n,) int64, a sample sees the first `length` items of its segment
        partial_sids: (n, L)
        """


class MaskedDiffusionModel(MDGRNetwork):
    """Encoder, decoder, one softmax per position over its codes, and the repeat bias.

    repeat_bias is added to the score of an item that the history holds already: what a sum of code
    logits cannot say. It is learnt, so data whose users never repeat an item teach the model so.
    """

    one_target = False

    def __init__(
        self, config: ModelConfig, *, num_subspaces: int, num_codes: int, vector_dims: int
    ) -> None:
        super().__init__()
        self.config = config
        self.num_subspaces = num_subspaces
        self.num_codes = num_codes
        self.vector_dims = vector_dims
        self.uses_vectors = config.item_vectors
        self.memory_size = width = config.width
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
        self.apply(initialise)
        if self.vector_projection is not None:  # unit vectors: as large as the codes' sum
            nn.init.normal_(self.vector_projection.weight, std=0.3)

    def encode(
        self, history_codes: Tensor, history_vectors: Tensor, asked: Tensor | None = None
    ) -> Tensor:
        """States after every item of each history, (jobs, length, width).

        A state depends on its own item and those before it, never on filler behind it.
        asked: (jobs, m) int64, places in the history; then only their states, (jobs, m, width)
        """
        x = self.embed_codes(history_codes).sum(dim=2)
        if self.vector_projection is not None:
            x = x + self.vector_projection(history_vectors)
        x = self.embedding_dropout(x)
        for layer in self.encoder[:-1]:
            x = layer(x)
        return self.encoder_norm(self.encoder[-1](x, asked))

    def logits_of_samples(
        self,
        codes: Tensor,
        vectors: Tensor,
        segment: Tensor,
        length: Tensor,
        partial_sids: Tensor,
    ) -> Tensor:
        states = self.encode(codes, vectors)
        states = states[segment, (length - 1).clamp(min=0)]
        nothing = length == 0
        if nothing.device != HOST or nothing.any():  # a device would have to be waited for
            filler = torch.full_like(codes[:1, :1], self.num_codes)  # one, as serving has it
            empty = self.encode(filler, torch.zeros_like(vectors[:1, :1]))
            states = torch.where(nothing[:, None], empty[0], states)
        return self.denoise(partial_sids[:, None], states)[:, 0]

    def remember(self, codes: Tensor, vectors: Tensor, mask: Tensor) -> Tensor:
        """The state after the newest item of each history: (jobs, width)."""
        return self.encode(codes, vectors, newest_place(mask))[:, 0]

    def denoise(
        self, partial_sids: Tensor, memory: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        """Logits of every code at every position asked for: (jobs, beams, n, num_codes).

        memory: (jobs, width), the state after the newest item of each history
        """
        jobs, beams, num_subspaces = partial_sids.shape
        told = self.state_projection(memory)[:, None]
        if self.config.difficulty_embedding:
            difficulty = (partial_sids == self.num_codes).sum(dim=-1).clamp(min=1)
            told = told + self.difficulty_embedding(difficulty - 1)
        x = self.embed_codes(partial_sids) + self.position_embedding.weight
        x = self.embedding_dropout(x + told[:, :, None])
        x = x.reshape(jobs * beams, num_subspaces, -1)
        asked = None if positions is None else positions.flatten(0, 1)
        for layer in self.decoder[:-1]:
            x = layer(x)
        x = self.decoder_norm(self.decoder[-1](x, asked))
        heads, bias = self.head_tables(), self.bias
        logits = logits_of(x, heads, bias) if asked is None else logits_at(x, asked, heads, bias)
        return logits.reshape(jobs, beams, x.shape[1], self.num_codes)


def newest_place(mask: Tensor) -> Tensor:
    """Where each history's last item is; the first filler item where there is none.

    mask: (jobs, length) bool. Returns (jobs, 1) int64.
    """
    return (mask.sum(dim=1, keepdim=True) - 1).clamp(min=0)
