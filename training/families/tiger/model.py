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

import torch
from pydantic import Field
from torch import Tensor, nn

from service.decoding import Catalogue
from training.config import ModelConfig, Section
from training.families.cross_attention import (
    CrossAttention,
    Remembered,
    SelfAttentionLayer,
    from_memory,
    memory_size,
    remembered,
    to_memory,
)
from training.families.network import (
    NEVER,
    DenseHead,
    DenseNetwork,
    Dropout,
    bias_of,
    initialise,
    logits_at,
    logits_of,
)

TEMPERATURE = 0.07  # of the dense head, as published


class Options(Section):
    """`model.options` of this family."""

    dense: bool = Field(
        False,
        description="the network also learns to retrieve the next item by its content (LIGER); "
        "needs model.item_vectors",
    )


class Tiger(DenseNetwork):
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
        self.encoder = nn.ModuleList(
            SelfAttentionLayer(config) for _ in range(config.encoder_layers)
        )
        self.encoder_norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(
            SelfAttentionLayer(config) for _ in range(config.decoder_layers)
        )
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
        self.memory_size = memory_size(config, num_subspaces)
        self.apply(initialise)
        nn.init.normal_(self.first, std=0.05)
        if self.vector_projection is not None:  # unit vectors: as large as a code
            nn.init.normal_(self.vector_projection.weight, std=0.05)

    def encoded(self, codes: Tensor, vectors: Tensor, is_item: Tensor) -> Remembered:
        """Run the encoder, and project its states for each decoder layer."""
        place = torch.arange(codes.shape[1], device=codes.device)
        age = (is_item.sum(dim=1, keepdim=True) - 1 - place).clamp(min=0)
        item = self.age_embedding(age)
        if self.vector_projection is not None:
            item = item + self.vector_projection(vectors)
        x = self.code_embedding(codes + self.offsets) + self.position_embedding.weight
        x = self.embedding_dropout(x + item[:, :, None]).flatten(1, 2)
        is_token = is_item.repeat_interleave(self.num_subspaces, dim=1)
        bias = bias_of(is_token)
        for layer in self.encoder:
            x = layer(x, bias)
        return remembered(self.encoder_norm(x), is_token, self.cross, self.config.num_heads)

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
        rows = torch.arange(x.shape[0], device=x.device)[:, None]
        return logits_at(x[rows, asked], asked, table, self.bias)

    def remember(self, codes: Tensor, vectors: Tensor, mask: Tensor) -> Tensor:
        history = self.encoded(codes, vectors, mask)
        return to_memory(history, mask, self.config, self.num_subspaces)

    def denoise(
        self, partial_sids: Tensor, memory: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        jobs, beams, num_subspaces = partial_sids.shape
        history = from_memory(memory, self.config, num_subspaces)
        asked = None if positions is None else positions.flatten(0, 1)
        states = self.states(partial_sids.flatten(0, 1), history)
        return self.logits(states, asked).reshape(jobs, beams, -1, self.num_codes)

    def query(self, memory: Tensor) -> Tensor:
        shape = memory.shape[0], self.num_subspaces
        masks = torch.full(shape, self.num_codes, device=memory.device)
        history = from_memory(memory, self.config, self.num_subspaces)
        return self.queries(self.states(masks, history))

    def queries(self, states: Tensor) -> Tensor:
        """Of the first states, which know no code: (n, L, width) -> (n, dims)."""
        assert self.dense is not None
        queries: Tensor = self.dense(states[:, 0])
        return queries


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
