"""MDGR's network to the letter: a bidirectional encoder, a decoder with cross-attention.

A token of the history is an item: its codes' embeddings, concatenated, through one linear map, and
its place counted from the newest. The decoder's positions attend to each other in both directions
and to all states of the history. So one pass over a history serves one target.

codes:   (n, items, L) int64, oldest first, MASK = num_codes as filler at the end
vectors: (n, items, d) float32, the items' vectors; zeros as filler
is_item: (n, items) bool, false for filler, to which nothing attends
After arXiv 2601.19501, sections 4.3 and 5.1.3 and figure 2. What the paper does not say is in
docs/decisions/048.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.config import ModelConfig
from training.families.cross_attention import (
    CrossAttention,
    Remembered,
    SelfAttentionLayer,
    from_memory,
    memory_size,
    remembered,
    to_memory,
)
from training.families.mdgr.model import MDGRNetwork
from training.families.network import (
    Dropout,
    bias_of,
    initialise,
    logits_at,
    logits_of,
)


class DecoderLayer(SelfAttentionLayer):
    """Self-attention over the positions, cross-attention over the history, feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.cross = CrossAttention(config)

    def read(self, x: Tensor, history: Remembered, number: int) -> Tensor:
        """x: (jobs * beams, L, width); number: of this layer."""
        attended = self.attended(x, None)
        x = x + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        x = self.cross(x, history.keys[:, number], history.values[:, number], history.bias)
        return x + self.dropout(self.ffn(self.ffn_norm(x)))


class PublishedModel(MDGRNetwork):
    """Encoder, decoder, one softmax per position over its codes."""

    one_target = True

    def __init__(
        self, config: ModelConfig, *, num_subspaces: int, num_codes: int, vector_dims: int
    ) -> None:
        super().__init__()
        self.config = config
        self.num_subspaces = num_subspaces
        self.num_codes = num_codes
        self.vector_dims = vector_dims
        self.uses_vectors = config.item_vectors
        self.memory_size = memory_size(config, 1)
        width = config.width
        self.code_embedding = nn.Embedding(num_subspaces * num_codes + 1, width)  # last row = MASK
        self.item_projection = nn.Linear(num_subspaces * width, width)
        self.vector_projection = nn.Linear(vector_dims, width) if config.item_vectors else None
        self.age_embedding = nn.Embedding(config.history_length, width)
        self.position_embedding = nn.Embedding(num_subspaces, width)
        self.difficulty_embedding = nn.Embedding(num_subspaces, width)
        self.embedding_dropout = Dropout(config.dropout)
        self.encoder = nn.ModuleList(
            SelfAttentionLayer(config) for _ in range(config.encoder_layers)
        )
        self.encoder_norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.head = None if config.tied_head else nn.Embedding(num_subspaces * num_codes, width)
        self.bias = nn.Parameter(torch.zeros(num_subspaces, num_codes))
        self.repeat_bias = nn.Parameter(torch.zeros(()))
        self.register_buffer(
            "offsets", torch.arange(num_subspaces) * num_codes, persistent=False
        )  # first embedding row of each position
        self.apply(initialise)
        nn.init.normal_(self.item_projection.weight, std=(num_subspaces * width) ** -0.5)
        if self.vector_projection is not None:  # unit vectors: as large as the codes' part
            nn.init.normal_(self.vector_projection.weight, std=0.05)

    def encoded(self, codes: Tensor, vectors: Tensor, is_item: Tensor) -> Remembered:
        """Run the encoder, and project its states for each decoder layer."""
        place = torch.arange(codes.shape[1], device=codes.device)
        age = (is_item.sum(dim=1, keepdim=True) - 1 - place).clamp(min=0)
        x = self.item_projection(self.embed_codes(codes).flatten(2)) + self.age_embedding(age)
        if self.vector_projection is not None:
            x = x + self.vector_projection(vectors)
        x = self.embedding_dropout(x)
        bias = bias_of(is_item)
        for layer in self.encoder:
            x = layer(x, bias)
        cross = [layer.cross for layer in self.decoder]
        return remembered(self.encoder_norm(x), is_item, cross, self.config.num_heads)

    def logits(self, partial_sids: Tensor, history: Remembered, asked: Tensor | None) -> Tensor:
        """partial_sids: (n, L), of equally many beams for each job; asked: (n, m).

        Returns (n, L, num_codes), or (n * m, num_codes) of what is asked for.
        """
        x = self.embed_codes(partial_sids) + self.position_embedding.weight
        if self.config.difficulty_embedding:
            difficulty = (partial_sids == self.num_codes).sum(dim=-1).clamp(min=1)
            x = x + self.difficulty_embedding(difficulty - 1)[:, None]
        x = self.embedding_dropout(x)
        for number, layer in enumerate(self.decoder):
            x = layer.read(x, history, number)
        x = self.decoder_norm(x)
        table = self.head_tables()
        if asked is None:
            return logits_of(x, table, self.bias)
        rows = torch.arange(x.shape[0], device=x.device)[:, None]
        return logits_at(x[rows, asked], asked, table, self.bias)

    def logits_of_samples(
        self,
        codes: Tensor,
        vectors: Tensor,
        segment: Tensor,
        length: Tensor,
        partial_sids: Tensor,
    ) -> Tensor:
        is_item = torch.arange(codes.shape[1], device=codes.device) < length[:, None]
        codes = torch.where(is_item[:, :, None], codes[segment], self.num_codes)
        vectors = vectors[segment] * is_item[:, :, None]
        return self.logits(partial_sids, self.encoded(codes, vectors, is_item), None)

    def remember(self, codes: Tensor, vectors: Tensor, mask: Tensor) -> Tensor:
        return to_memory(self.encoded(codes, vectors, mask), mask, self.config, 1)

    def denoise(
        self, partial_sids: Tensor, memory: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        jobs, beams, _ = partial_sids.shape
        history = from_memory(memory, self.config, 1)
        asked = None if positions is None else positions.flatten(0, 1)
        logits = self.logits(partial_sids.flatten(0, 1), history, asked)
        return logits.reshape(jobs, beams, -1, self.num_codes)
