"""A decoder that reads a whole history by cross-attention: its layers, and what is remembered.

The encoder is bidirectional and runs once for each request. The memory holds its keys and values
for every decoder layer, always of `history_length` items; filler is zeros, and nothing attends to
it. Knows no family: whether an item is one token or one for each code is the family's affair.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.config import ModelConfig
from training.families.network import Dropout, TransformerLayer, bias_of, split_heads


class Remembered(NamedTuple):
    """What the decoder attends to.

    keys, values: (jobs, layers, heads, tokens, width / heads); bias: (jobs, 1, 1, tokens)
    """

    keys: Tensor
    values: Tensor
    bias: Tensor


class SelfAttentionLayer(TransformerLayer):
    """Self-attention over a history or over the codes of a SID."""

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x: (n, tokens, width); bias: what is added to scores, broadcast to (n, 1, tokens, tokens)

        It hides filler from a history, and from each code of a SID those that it may not see.
        """
        return self.rest(x, self.attended(x, bias))

    def attended(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """What the tokens gather from each other: (n, heads, tokens, width / heads)."""
        query, key, value = self.projected(x)
        mask = None if bias is None else bias.to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class CrossAttention(nn.Module):
    """The positions of SIDs attend to the history of their job."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """x: (jobs * beams, L, width); key, value: (jobs, heads, tokens, d); bias: see Remembered.

        All beams of a job have the same history: its keys are not repeated for them.
        """
        jobs, n, num_positions = key.shape[0], x.shape[0], x.shape[1]
        [query] = split_heads(self.query(self.norm(x)), 1, self.num_heads)
        query = query.unflatten(0, (jobs, n // jobs)).transpose(1, 2).flatten(2, 3)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + bias
        attended = scores.softmax(dim=-1).to(value.dtype) @ value
        attended = attended.unflatten(2, (n // jobs, num_positions)).transpose(1, 2).flatten(0, 1)
        return x + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))


def remembered(x: Tensor, is_token: Tensor, cross: Iterable[nn.Module], heads: int) -> Remembered:
    """Keys and values of encoded histories, for the cross-attention of every decoder layer.

    x: (jobs, tokens, width); is_token: (jobs, tokens) bool. Filler has zeros, so that a user
    without a history gets the same whatever the batch is.
    """
    x = x * is_token[:, :, None]
    kept = [split_heads(layer.key_value(x), 2, heads) for layer in cross]
    keys, values = torch.stack(kept, dim=2)
    shown = is_token[:, None, None, :, None]
    return Remembered(keys * shown, values * shown, bias_of(is_token))


def memory_size(config: ModelConfig, tokens_per_item: int) -> int:
    """Numbers in the memory of one history."""
    return config.history_length * (2 * config.decoder_layers * tokens_per_item * config.width + 1)


def to_memory(
    history: Remembered, mask: Tensor, config: ModelConfig, tokens_per_item: int
) -> Tensor:
    """(jobs, memory_size) float32, of `history_length` items, whatever the length of these.

    mask: (jobs, length) bool, true where there is an item
    """
    missing = config.history_length - mask.shape[1]
    kept = torch.stack((history.keys, history.values), dim=1)
    kept = F.pad(kept, (0, 0, 0, missing * tokens_per_item))
    is_item = F.pad(mask.to(kept.dtype), (0, missing))
    return torch.cat((kept.flatten(1), is_item), dim=1)


def from_memory(memory: Tensor, config: ModelConfig, tokens_per_item: int) -> Remembered:
    """What `to_memory` kept, without the places that are filler in all histories."""
    length = config.history_length
    is_item = memory[:, -length:] > 0
    # Other places are filler in all histories. The first stays, so that there is something.
    is_place = torch.cat((is_item.new_ones(1), is_item.any(dim=0)[1:]))
    places = is_place.nonzero()[:, 0]
    kept = memory[:, :-length].reshape(
        memory.shape[0],
        2 * config.decoder_layers,
        config.num_heads,
        length,
        tokens_per_item,
        config.width // config.num_heads,
    )
    kept = kept[:, :, :, places].flatten(3, 4).unflatten(1, (2, -1))
    is_token = is_item[:, places].repeat_interleave(tokens_per_item, dim=1)
    return Remembered(kept[:, 0], kept[:, 1], bias_of(is_token))
