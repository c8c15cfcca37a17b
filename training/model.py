"""The MDGR network: bidirectional encoder over the history, bidirectional decoder over one SID.

Knows nothing of users, losses or masks drawn; it maps codes to logits. Attention is written out, so
that it exports cleanly and keys and values of the cross-attention can be computed once a request.
Dropout sits on embeddings and residual branches only: drawing it costs a quarter of a step.

history_codes: (jobs, length, L) int64, MASK = num_codes as filler at the end
history_mask:  (jobs, length) bool
partial_sids:  (jobs, beams, L) int64, MASK where not yet filled
logits:        (jobs, beams, L, num_codes) float32
L = num_subspaces. Source: arXiv 2601.19501, sections 4.3 and 5.1.3.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.config import ModelConfig


class Memory(NamedTuple):
    """What the decoder reads of a history: cross-attention keys and values of every layer.

    keys, values: (decoder_layers, jobs, num_heads, tokens, head_width); mask: (jobs, tokens) bool
    """

    keys: Tensor
    values: Tensor
    mask: Tensor


class Attention(nn.Module):
    """Multi-head attention without a causal mask; keys and values may be computed beforehand."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def heads(self, x: Tensor) -> Tensor:
        """(n, tokens, width) -> (n, num_heads, tokens, head_width)."""
        return x.reshape(*x.shape[:2], self.num_heads, -1).transpose(1, 2)

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, tokens, width) -> keys and values, each (n, num_heads, tokens, head_width)."""
        keys, values = self.key_value(x).chunk(2, dim=-1)
        return self.heads(keys), self.heads(values)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """x: (n, queries, width); mask: (n, keys) bool, true where a key may be attended."""
        query = self.heads(self.query(x))
        scores = query @ keys.transpose(-1, -2) / math.sqrt(query.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], -1e9)
        attended = scores.softmax(dim=-1) @ values
        return self.out(attended.transpose(1, 2).reshape(x.shape))


class FeedForward(nn.Sequential):
    def __init__(self, width: int, multiple: int) -> None:
        super().__init__(
            nn.Linear(width, multiple * width), nn.GELU(), nn.Linear(multiple * width, width)
        )


class EncoderLayer(nn.Module):
    """Pre-norm self-attention and feed-forward over the history tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.num_heads)
        self.ffn_norm = nn.LayerNorm(config.width)
        self.ffn = FeedForward(config.width, config.ffn_multiple)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        normed = self.attention_norm(x)
        keys, values = self.attention.keys_and_values(normed)
        x = x + self.dropout(self.attention(normed, keys, values, mask))
        return x + self.dropout(self.ffn(self.ffn_norm(x)))


class DecoderLayer(nn.Module):
    """Pre-norm self-attention over a SID's positions, cross-attention to the history, FFN."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(config.width)
        self.self_attention = Attention(config.width, config.num_heads)
        self.cross_norm = nn.LayerNorm(config.width)
        self.cross_attention = Attention(config.width, config.num_heads)
        self.ffn_norm = nn.LayerNorm(config.width)
        self.ffn = FeedForward(config.width, config.ffn_multiple)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """x: (jobs, beams, L, width). Beams share their job's keys: they fold into the queries."""
        jobs, beams, positions, width = x.shape
        x = x.reshape(jobs * beams, positions, width)
        normed = self.self_norm(x)
        own_keys, own_values = self.self_attention.keys_and_values(normed)
        x = x + self.dropout(self.self_attention(normed, own_keys, own_values, None))
        x = x.reshape(jobs, beams * positions, width)
        x = x + self.dropout(self.cross_attention(self.cross_norm(x), keys, values, mask))
        x = x + self.dropout(self.ffn(self.ffn_norm(x)))
        return x.reshape(jobs, beams, positions, width)


class MaskedDiffusionModel(nn.Module):
    """Encoder, decoder and one softmax per position over that position's codes."""

    def __init__(self, config: ModelConfig, *, num_subspaces: int, num_codes: int) -> None:
        super().__init__()
        self.config = config
        self.num_subspaces = num_subspaces
        self.num_codes = num_codes
        width = config.width
        self.code_embedding = nn.Embedding(num_subspaces * num_codes + 1, width)  # last row = MASK
        self.start_token = nn.Parameter(torch.zeros(width))  # gives an empty history a memory
        self.recency_embedding = nn.Embedding(config.history_length, width)
        self.position_embedding = nn.Embedding(num_subspaces, width)
        self.difficulty_embedding = nn.Embedding(num_subspaces, width)
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.encoder_norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.head = None if config.tied_head else nn.Embedding(num_subspaces * num_codes, width)
        self.bias = nn.Parameter(torch.zeros(num_subspaces, num_codes))
        self.register_buffer(
            "offsets", torch.arange(num_subspaces) * num_codes, persistent=False
        )  # first embedding row of each position
        self.apply(_initialise)
        nn.init.normal_(self.start_token, std=0.02)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """codes: (..., L) int64 -> (..., L, width); MASK has one embedding for all positions."""
        mask_row = self.num_subspaces * self.num_codes
        rows = torch.where(codes == self.num_codes, mask_row, codes + self.offsets)
        return self.code_embedding(rows)

    def encode(self, history_codes: Tensor, history_mask: Tensor) -> Memory:
        """Encode histories; positions count from the newest item, so padding does not matter."""
        jobs, length = history_mask.shape
        x = self.embed_codes(history_codes)
        newest = history_mask.sum(dim=1, keepdim=True) - 1
        recency = (newest - torch.arange(length, device=x.device)).clamp(min=0)
        place = self.recency_embedding(recency)
        if self.config.history_tokens == "pooled":
            x, mask = x.sum(dim=2) + place, history_mask
        else:
            x = x + place[:, :, None] + self.position_embedding.weight
            x = x.reshape(jobs, length * self.num_subspaces, -1)
            mask = history_mask[:, :, None].expand(-1, -1, self.num_subspaces)
            mask = mask.reshape(jobs, length * self.num_subspaces)
        start = self.start_token.expand(jobs, 1, -1)
        x = self.embedding_dropout(torch.cat((start, x), dim=1))
        mask = torch.cat((torch.ones_like(mask[:, :1]), mask), dim=1)
        for layer in self.encoder:
            x = layer(x, mask)
        x = self.encoder_norm(x)
        pairs = [layer.cross_attention.keys_and_values(x) for layer in self.decoder]
        return Memory(
            torch.stack([keys for keys, _ in pairs]),
            torch.stack([values for _, values in pairs]),
            mask,
        )

    def denoise(self, partial_sids: Tensor, difficulty: Tensor, memory: Memory) -> Tensor:
        """Logits of every code at every position.

        difficulty: (jobs,) int64, number of MASK positions, in 1..L
        Returns (jobs, beams, L, num_codes).
        """
        x = self.embed_codes(partial_sids) + self.position_embedding.weight
        if self.config.difficulty_embedding:
            x = x + self.difficulty_embedding(difficulty - 1)[:, None, None, :]
        x = self.embedding_dropout(x)
        for index, layer in enumerate(self.decoder):
            x = layer(x, memory.keys[index], memory.values[index], memory.mask)
        return self.logits(self.decoder_norm(x))

    def logits(self, x: Tensor) -> Tensor:
        """(jobs, beams, L, width) -> (jobs, beams, L, num_codes): one head per position."""
        table = self.code_embedding.weight[:-1] if self.head is None else self.head.weight
        table = table.reshape(self.num_subspaces, self.num_codes, -1)
        jobs, beams, positions, width = x.shape
        by_position = x.reshape(jobs * beams, positions, width).transpose(0, 1)
        logits = (by_position @ table.transpose(1, 2)).transpose(0, 1) + self.bias
        return logits.reshape(jobs, beams, positions, self.num_codes)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02 if isinstance(module, nn.Linear) else 0.05)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
