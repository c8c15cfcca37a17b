"""The network: an encoder over the codes of a history, a causal decoder over those of one SID.

The encoder is bidirectional and runs once for each request: the memory holds its keys and values
for every decoder layer. The decoder reads a first token and the codes before a position, attends to
the history, and gives the logits of that position. It keeps nothing between calls: a SID has a
handful of codes, so running them again costs little beside attending to the history.

codes:     (n, items, L) int64, oldest first, MASK = num_codes as filler at the end
vectors:   (n, items, d) float32, the items' vectors; zeros as filler
is_item:   (n, items) bool, false for filler, to which nothing attends
states:    (n, items * L, width) float32
L = num_subspaces. After arXiv 2305.05065: encoder-decoder, cross-attention, a softmax for each
position. Not from there: pre-norm layers instead of T5's, learned ages of items instead of relative
places, no token for the user, and the vector of an item beside its codes (`model.item_vectors`), so
that all families have the same inputs. With the option `dense` it is LIGER (arXiv 2411.18814): a
dense head that reads the decoder's first state. There it reads the encoder's last one, and items'
text goes through layers too.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from service.decoding import Catalogue
from training.config import ModelConfig, Section
from training.families.network import (
    NEVER,
    DenseHead,
    Dropout,
    Network,
    TransformerLayer,
    bias_of,
    initialise,
    logits_at,
    logits_of,
    split_heads,
)

TEMPERATURE = 0.07  # of the dense head, as published


class Options(Section):
    """`model.options` of this family."""

    dense: bool = Field(
        False,
        description="the network also learns to retrieve the next item by its content (LIGER); "
        "needs model.item_vectors",
    )


class Remembered(NamedTuple):
    """What the decoder attends to.

    keys, values: (jobs, layers, heads, tokens, width / heads); bias: (jobs, 1, 1, tokens)
    """

    keys: Tensor
    values: Tensor
    bias: Tensor


class Layer(TransformerLayer):
    """Self-attention over a history or over the codes of a SID."""

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x: (n, tokens, width); bias: what is added to scores, broadcast to (n, 1, tokens, tokens)

        It hides filler from a history, and from each code of a SID those behind it.
        """
        query, key, value = self.projected(x)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        return self.rest(x, attended)


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


class Tiger(Network):
    """Code embeddings, encoder, decoder, one softmax per position over its codes."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_subspaces: int,
        num_codes: int,
        vector_dims: int,
        dense: DenseHead | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.num_subspaces = num_subspaces
        self.num_codes = num_codes
        self.vector_dims = vector_dims
        self.dense = dense
        self.uses_vectors = config.item_vectors
        width = config.width
        # The last of each position's rows is MASK there.
        self.code_embedding = nn.Embedding(num_subspaces * (num_codes + 1), width)
        self.vector_projection = nn.Linear(vector_dims, width) if config.item_vectors else None
        self.age_embedding = nn.Embedding(config.history_length, width)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embedding = nn.Embedding(num_subspaces, width)
        self.embedding_dropout = Dropout(config.dropout)
        self.encoder = nn.ModuleList(Layer(config) for _ in range(config.encoder_layers))
        self.encoder_norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(Layer(config) for _ in range(config.decoder_layers))
        self.cross = nn.ModuleList(CrossAttention(config) for _ in range(config.decoder_layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.head = None if config.tied_head else nn.Embedding(num_subspaces * num_codes, width)
        self.bias = nn.Parameter(torch.zeros(num_subspaces, num_codes))
        # An autoregressive network has no score of a row, so nothing learns this. It stays 0.
        self.repeat_bias = nn.Parameter(torch.zeros(()), requires_grad=False)
        offsets = torch.arange(num_subspaces) * (num_codes + 1)
        self.register_buffer("offsets", offsets, persistent=False)
        hidden = torch.ones(num_subspaces, num_subspaces, dtype=torch.bool).triu(1)
        causal = torch.zeros(num_subspaces, num_subspaces).masked_fill(hidden, NEVER)
        self.register_buffer("causal", causal[None, None], persistent=False)
        kept = 2 * config.decoder_layers * num_subspaces * width
        self.memory_size = config.history_length * (kept + 1)
        self.apply(initialise)
        nn.init.normal_(self.first, std=0.05)
        if self.vector_projection is not None:  # unit vectors: as large as a code
            nn.init.normal_(self.vector_projection.weight, std=0.05)

    def encoded(self, codes: Tensor, vectors: Tensor, is_item: Tensor) -> Remembered:
        """Run the encoder, and project its states for each decoder layer."""
        age = (is_item.sum(dim=1, keepdim=True) - 1 - torch.arange(codes.shape[1])).clamp(min=0)
        item = self.age_embedding(age)
        if self.vector_projection is not None:
            item = item + self.vector_projection(vectors)
        x = self.code_embedding(codes + self.offsets) + self.position_embedding.weight
        x = self.embedding_dropout(x + item[:, :, None]).flatten(1, 2)
        is_token = is_item.repeat_interleave(self.num_subspaces, dim=1)
        bias = bias_of(is_token)
        for layer in self.encoder:
            x = layer(x, bias)
        # Filler has zeros, so that a user without a history gets the same whatever the batch is.
        x = self.encoder_norm(x) * is_token[:, :, None]
        kept = [split_heads(cross.key_value(x), 2, self.config.num_heads) for cross in self.cross]
        keys, values = torch.stack(kept, dim=2)
        shown = is_token[:, None, None, :, None]
        return Remembered(keys * shown, values * shown, bias)

    def states(self, partial_sids: Tensor, history: Remembered) -> Tensor:
        """(n, L), of equally many beams for each job -> (n, L, width), of the decoder.

        The state of a position knows the codes before it.
        """
        before = self.code_embedding(partial_sids[:, :-1] + self.offsets[:-1])
        first = self.first.expand(partial_sids.shape[0], -1, -1)
        x = torch.cat((first, before), dim=1) + self.position_embedding.weight
        x = self.embedding_dropout(x)
        for number, (layer, cross) in enumerate(zip(self.decoder, self.cross, strict=True)):
            x = cross(x, history.keys[:, number], history.values[:, number], history.bias)
            x = layer(x, self.causal)
        normed: Tensor = self.decoder_norm(x)
        return normed

    def logits(self, x: Tensor, asked: Tensor | None = None) -> Tensor:
        """x: states, (n, L, width); asked: (n, m) int64, positions.

        Returns (n, L, num_codes), or (n * m, num_codes) of what is asked for.
        """
        if self.head is None:
            table = self.code_embedding.weight.unflatten(0, (self.num_subspaces, -1))[:, :-1]
        else:
            table = self.head.weight.unflatten(0, (self.num_subspaces, -1))
        if asked is None:
            return logits_of(x, table, self.bias)
        rows = torch.arange(x.shape[0])[:, None]
        return logits_at(x[rows, asked], asked, table, self.bias)

    def remember(self, codes: Tensor, vectors: Tensor, mask: Tensor) -> Tensor:
        history = self.encoded(codes, vectors, mask)
        # Of `history_length` items, whatever the length of these histories.
        missing = self.config.history_length - codes.shape[1]
        kept = torch.stack((history.keys, history.values), dim=1)
        kept = F.pad(kept, (0, 0, 0, missing * self.num_subspaces))
        is_item = F.pad(mask.to(kept.dtype), (0, missing))
        return torch.cat((kept.flatten(1), is_item), dim=1)

    def denoise(
        self, partial_sids: Tensor, memory: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        jobs, beams, _ = partial_sids.shape
        asked = None if positions is None else positions.flatten(0, 1)
        states = self.states(partial_sids.flatten(0, 1), self._remembered(memory))
        return self.logits(states, asked).reshape(jobs, beams, -1, self.num_codes)

    def query(self, memory: Tensor) -> Tensor:
        masks = torch.full((memory.shape[0], self.num_subspaces), self.num_codes)
        return self.queries(self.states(masks, self._remembered(memory)))

    def queries(self, states: Tensor) -> Tensor:
        """Of the first states, which know no code: (n, L, width) -> (n, dims)."""
        assert self.dense is not None
        queries: Tensor = self.dense(states[:, 0])
        return queries

    def _remembered(self, memory: Tensor) -> Remembered:
        """What `remember` has put into the memory."""
        jobs, num_subspaces = memory.shape[0], self.num_subspaces
        length, heads = self.config.history_length, self.config.num_heads
        is_item = memory[:, -length:] > 0
        # Other places are filler in all histories. The first stays, so that there is something.
        is_place = torch.cat((is_item.new_ones(1), is_item.any(dim=0)[1:]))
        places = is_place.nonzero()[:, 0]
        kept = memory[:, :-length].reshape(
            jobs, 2 * len(self.decoder), heads, length, num_subspaces, -1
        )
        kept = kept[:, :, :, places].flatten(3, 4).unflatten(1, (2, -1))
        is_token = is_item[:, places].repeat_interleave(num_subspaces, dim=1)
        return Remembered(kept[:, 0], kept[:, 1], bias_of(is_token))


def build(catalogue: Catalogue, config: ModelConfig) -> Tiger:
    """An untrained model of the catalogue's sizes."""
    dense = None
    if Options.model_validate(config.options).dense:
        dense = DenseHead(config.width, catalogue, TEMPERATURE)
    return Tiger(
        config,
        num_subspaces=catalogue.num_subspaces,
        num_codes=catalogue.num_codes,
        vector_dims=catalogue.vectors.shape[1],
        dense=dense,
    )
