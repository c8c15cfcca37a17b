"""The transformer over item sequences that SASRec and BERT4Rec share.

Pre-norm layers; dropout on embeddings and residual branches only, as in
`training.families.mdgr.model`. Item embeddings are tied: what reads an item also scores it. The
last line of the table is the filler of short sequences and BERT4Rec's mask item; nothing attends to
filler. Knows no loss and no user.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from training.baselines.sequence.config import SequenceConfig


class _Layer(nn.Module):
    """Self-attention, then a feed-forward, each on a residual branch."""

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.width * config.ffn_multiple
        self.num_heads = config.num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x: (n, t, width); mask: (n, 1, 1, t) bool, keys to attend to, or None for causal."""
        n, t, width = x.shape
        projected = self.query_key_value(self.attention_norm(x))
        heads = projected.reshape(n, t, 3, self.num_heads, width // self.num_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None
        )
        x = x + self.dropout(self.out(attended.transpose(1, 2).reshape(n, t, width)))
        x = x + self.dropout(self.ffn(self.ffn_norm(x)))
        return x


class SequenceNetwork(nn.Module):
    """Rows of items and their places in; one vector a place out, to be compared with `items`."""

    def __init__(self, config: SequenceConfig, *, num_items: int, num_places: int) -> None:
        super().__init__()
        self.num_items = num_items
        self.scale = math.sqrt(config.width)  # of items read: as loud as what layers add to them
        self.item_embedding = nn.Embedding(num_items + 1, config.width)
        self.place_embedding = nn.Embedding(num_places, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    @property
    def items(self) -> Tensor:
        """(num_items, width): embeddings of the items, without the filler."""
        return self.item_embedding.weight[: self.num_items]

    def forward(self, rows: Tensor, places: Tensor, valid: Tensor | None) -> Tensor:
        """(n, t, width). rows, places: (n, t) int64.

        valid: (n, t) bool, what may be attended to from everywhere; None: each place attends to
        itself and those before it.
        """
        items = self.item_embedding(rows) * self.scale
        x = self.dropout(items + self.place_embedding(places))
        mask = None if valid is None else valid[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask)
        hidden: Tensor = self.norm(x)
        return hidden

    def scores(self, hidden: Tensor) -> Tensor:
        """hidden: (n, width) -> (n, num_items)."""
        return torch.mm(hidden, self.items.T)
