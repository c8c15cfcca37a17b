"""A transformer layer with rotary positions (arXiv 2104.09864). Knows no codes and no items."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from training.families.network import TransformerLayer, take

LONGEST_WAVE = 10_000.0


class Layer(TransformerLayer):
    """Self-attention with rotary positions."""

    def heads(self, x: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (n, heads, tokens, width / heads) each.

        x: (n, tokens, width); rotation: see `rotations`, of these tokens
        """
        query, key, value = self.projected(x)
        return rotated(query, rotation), rotated(key, rotation), value

    def forward(
        self, x: Tensor, bias: Tensor, rotation: Tensor, asked: Tensor | None = None
    ) -> Tensor:
        """x: (n, tokens, width); bias: (n, 1, 1 or tokens, tokens), added to the scores of keys.

        asked: (n, m) int64 of the tokens, by default all; only their states, (n, m, width). Then
        the bias must be the same for all of them.
        """
        return self.attend(x, *self.heads(x, rotation), bias, asked)

    def attend(
        self,
        x: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor,
        asked: Tensor | None = None,
    ) -> Tensor:
        """The layer's result, given what `heads` made of x."""
        if asked is not None:
            query = take_of_heads(query, asked)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        return self.rest(take(x, asked), attended)

    def fill(
        self,
        x: Tensor,
        memory: tuple[Tensor, Tensor],
        bias: Tensor,
        rotation: Tensor,
        asked: Tensor | None,
    ) -> Tensor:
        """The codes of items to fill attend to their history and to each other.

        x: (jobs * beams, tokens, width); memory: keys and values of the jobs' histories, each
        (jobs, heads, S, width / heads); bias: (jobs, 1, 1, S)
        """
        query, own_key, own_value = self.heads(x, rotation)
        if asked is not None:
            query = take_of_heads(query, asked)
        key, value = memory
        jobs, heads, num_old, head_width = key.shape
        n, _, m, _ = query.shape
        # All beams of a job have the same history: its keys are not repeated for them.
        of_job = query.reshape(jobs, n // jobs, heads, m, head_width).transpose(1, 2).flatten(2, 3)
        old = of_job @ key.transpose(-1, -2) / math.sqrt(head_width) + bias
        old = old.reshape(jobs, heads, n // jobs, m, num_old).transpose(1, 2).flatten(0, 1)
        own = query @ own_key.transpose(-1, -2) / math.sqrt(head_width)
        share = torch.cat((old, own), dim=-1).softmax(dim=-1)
        of_old = share[..., :num_old].reshape(jobs, n // jobs, heads, m, num_old)
        attended = of_old.transpose(1, 2).flatten(2, 3) @ value
        attended = attended.reshape(jobs, heads, n // jobs, m, head_width).transpose(1, 2)
        attended = attended.flatten(0, 1) + share[..., num_old:] @ own_value
        return self.rest(take(x, asked), attended)


def rotations(num_tokens: int, head_width: int) -> Tensor:
    """Cosines and sines of tokens 0, 1, ...: (num_tokens, 2, head_width / 2) (arXiv 2104.09864)."""
    wave = LONGEST_WAVE ** (-torch.arange(0, head_width, 2) / head_width)
    angle = torch.arange(num_tokens)[:, None] * wave
    return torch.stack((angle.cos(), angle.sin()), dim=1)


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn the pairs of numbers of each token: products of two tokens know how far apart they are.

    x: (n, heads, tokens, head_width); rotation: (tokens, 2, head_width / 2)
    """
    cosine, sine = rotation[:, 0].to(x.dtype), rotation[:, 1].to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


def take_of_heads(x: Tensor, asked: Tensor) -> Tensor:
    """(n, heads, tokens, d), (n, m) -> (n, heads, m, d): the tokens asked for."""
    return take(x.transpose(1, 2).flatten(2), asked).unflatten(2, (x.shape[1], -1)).transpose(1, 2)
