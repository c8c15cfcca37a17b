"""The network: one transformer over the codes of a history and of the item to fill.

A sequence is flat: the codes of the oldest item, then those of the next one, and so on. The item to
fill stands at the end, the newest item directly before it. So filler is at the start; nothing
attends to it. `denoise` may be asked for up to MAX_HORIZON items to fill, side by side: they attend
to each other too. Attention is of one of three kinds:

full    all codes attend to all codes, as published. A history's memory is its embedded codes, and
        `denoise` runs the whole sequence for each beam.
prefix  codes of the history attend to the history only, codes of the item to fill attend to
        everything. So keys and values of the history do not depend on a beam: they are the memory,
        and `denoise` runs the L codes of the item.
causal  as prefix, and codes of a history attend to their own item and to older ones only. So each
        item of a sequence can be the one to fill, all in one pass (`states_of_copies`): a masked
        copy of an item attends to itself and to the items before it, as in block diffusion
        (arXiv 2503.09573). It never fills two items together.

`states` runs whole sequences, in training; `remember` and `denoise` give the same in two parts.

codes:     (n, items, L) int64, oldest first, MASK = num_codes where masked or filler
vectors:   (n, items, d) float32, the items' vectors; zeros where they are not given
is_item:   (n, items) bool, false for filler, which is at the start
states:    (n, items, L, width) float32
memory:    (jobs, memory_size) float32, always of `history_length` items
L = num_subspaces. After arXiv 2511.23021 and its public code: pre-norm, GELU, rotary positions, no
norm at the end, logits h·E / sqrt(width). A dense head reads the states of an item whose codes are
all masked, after three quarters of the layers, as published (6 of 8). Not from there: one softmax
per position (there, codes of other positions compete) and a bias for each code.
"""

from __future__ import annotations

import math
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from service.decoding import MAX_HORIZON, Catalogue
from training.config import ModelConfig, Section
from training.errors import ConfigError
from training.families.maskgr.layer import Layer, rotations
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

TEMPERATURE = 0.1  # of the dense head, as published


class Options(Section):
    """`model.options` of this family."""

    attention: Literal["prefix", "full", "causal"] = Field(
        "prefix",
        description="prefix: a history does not attend to the item that is filled, and is encoded "
        "once for each request; full: all attend to all, as published; causal: nor does an item of "
        "a history attend to later ones, and every item of a sequence is learnt in one pass",
    )
    target_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of sequences in which only the last item has masks, as in serving; the "
        "others have masks anywhere, as published; causal has none of these",
    )
    dense: bool = Field(
        False,
        description="the network also learns to retrieve the next item by its content; needs "
        "model.item_vectors",
    )
    dense_share: float = Field(
        0.2,
        gt=0,
        le=1,
        description="with dense, the share of sequences with masks anywhere in which whole items "
        "are masked; likewise",
    )

    @model_validator(mode="after")
    def _masks_anywhere(self) -> Self:
        shares = ("dense_share", "target_share")
        fields = type(self).model_fields
        unused = [name for name in shares if getattr(self, name) != fields[name].default]
        if self.attention == "causal" and unused:
            raise ValueError(
                f"{' and '.join(unused)}: with attention causal no sequence has masks anywhere; "
                "leave it out"
            )
        return self


class MaskGR(DenseNetwork):
    """Code embeddings, layers, one softmax per position over its codes, and the repeat bias."""

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
        check_width(config)
        self.config = config
        self.options = Options.model_validate(config.options)
        self.num_subspaces = num_subspaces
        self.num_codes = num_codes
        self.vector_dims = vector_dims
        self.dense = dense
        self.uses_vectors = config.item_vectors
        self.max_horizon = 1 if self.options.attention == "causal" else MAX_HORIZON
        width, history_length = config.width, config.history_length
        # The last of each position's rows is MASK there.
        self.code_embedding = nn.Embedding(num_subspaces * (num_codes + 1), width)
        self.vector_projection = (
            nn.Linear(vector_dims, num_subspaces * width, bias=False)
            if config.item_vectors
            else None
        )
        self.embedding_dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.encoder_layers))
        self.head = None if config.tied_head else nn.Embedding(num_subspaces * num_codes, width)
        self.bias = nn.Parameter(torch.zeros(num_subspaces, num_codes))
        self.repeat_bias = nn.Parameter(torch.zeros(()))
        self.dense_layers = -(-3 * config.encoder_layers // 4)
        offsets = torch.arange(num_subspaces) * (num_codes + 1)
        self.register_buffer("offsets", offsets, persistent=False)
        num_tokens = (history_length + MAX_HORIZON) * num_subspaces
        self.register_buffer(
            "rotation", rotations(num_tokens, width // config.num_heads), persistent=False
        )
        kept = width if self.is_full else 2 * config.encoder_layers * width
        self.memory_size = history_length * (num_subspaces * kept + 1)
        self.apply(initialise)
        for table in (self.code_embedding, self.head):
            if table is not None:
                nn.init.normal_(table.weight)  # logits are divided by sqrt(width)
        if self.vector_projection is not None:  # unit vectors: as large as a code
            nn.init.normal_(self.vector_projection.weight)

    @property
    def is_full(self) -> bool:
        return self.options.attention == "full"

    @property
    def is_causal(self) -> bool:
        return self.options.attention == "causal"

    def embed(self, codes: Tensor, vectors: Tensor | None = None) -> Tensor:
        """codes: (..., L), vectors: (..., d) -> (..., L, width)."""
        x = self.code_embedding(codes + self.offsets)
        if self.vector_projection is not None and vectors is not None:
            slices = self.vector_projection(vectors)
            x = x + slices.unflatten(-1, (self.num_subspaces, self.config.width))
        return self.embedding_dropout(x)

    def states(self, codes: Tensor, vectors: Tensor, is_item: Tensor) -> Tensor:
        """States of all codes; the last item of each sequence is the one to fill.

        Its vector must be zeros, and so that of every item which has a mask.
        """
        return self.both_states(codes, vectors, is_item)[0]

    def both_states(self, codes: Tensor, vectors: Tensor, is_item: Tensor) -> tuple[Tensor, Tensor]:
        """`states`, and those that the dense head reads."""
        items = codes.shape[1]
        item = torch.arange(items, device=codes.device).repeat_interleave(self.num_subspaces)
        bias = self._bias(is_item)
        if self.is_causal:
            bias = bias.masked_fill(item[:, None] < item, NEVER)
        elif not self.is_full:
            bias = bias.masked_fill((item[:, None] < items - 1) & (item == items - 1), NEVER)
        x = self.embed(codes, vectors).flatten(1, 2)
        x, lower = self._through(x, bias, self._rotation_of(items))
        return x.reshape(*codes.shape, -1), lower.reshape(*codes.shape, -1)

    def states_of_copies(
        self, codes: Tensor, vectors: Tensor, copies: Tensor, hears: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `both_states`, of every item as if it were the one to fill: with attention causal.

        codes: (n, items, L), the items; nothing attends to filler at the end of a sequence
        copies: (n, items, L), the same, with masks; hears: (n,) bool, whether its copies know what
            came before them
        """
        n, items, num_subspaces = codes.shape
        item = torch.arange(items, device=codes.device).repeat_interleave(num_subspaces)
        never = torch.ones(  # query, key
            n, 2, len(item), 2, len(item), dtype=torch.bool, device=codes.device
        )
        never[:, 0, :, 0] = item > item[:, None]
        never[:, 1, :, 0] = (item >= item[:, None]) | ~hears[:, None, None]
        never[:, 1, :, 1] = item != item[:, None]
        never = never.reshape(n, 1, 2 * len(item), 2 * len(item))
        bias = torch.zeros(never.shape, device=codes.device).masked_fill(never, NEVER)
        x = torch.cat((self.embed(codes, vectors), self.embed(copies)), dim=1).flatten(1, 2)
        x, lower = self._through(x, bias, self.rotation[: len(item)].repeat(2, 1, 1))
        shape = n, 2 * items, num_subspaces, -1
        return x.reshape(shape)[:, items:], lower.reshape(shape)[:, items:]

    def _through(self, x: Tensor, bias: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
        """States after all layers, and after those below the dense head."""
        lower = x
        for number, layer in enumerate(self.layers, start=1):
            x = layer(x, bias, rotation)
            lower = x if number == self.dense_layers else lower
        return x, lower

    def queries(self, lower: Tensor) -> Tensor:
        """States that the dense head reads, of items: (n, L, width) -> (n, dims)."""
        assert self.dense is not None
        queries: Tensor = self.dense(lower.flatten(1) / math.sqrt(self.config.width))
        return queries

    def logits(self, states: Tensor) -> Tensor:
        """(..., L, width) -> (..., L, num_codes)."""
        return logits_of(states.flatten(0, -3), *self._heads()).unflatten(0, states.shape[:-2])

    def remember(self, codes: Tensor, vectors: Tensor, mask: Tensor) -> Tensor:
        length = codes.shape[1]
        here = codes.device
        place = torch.arange(length, device=here) - (length - mask.sum(dim=1, keepdim=True))
        is_item = place >= 0
        jobs = torch.arange(codes.shape[0], device=here)[:, None]
        place = place.clamp(min=0)
        x = self.embed(codes[jobs, place], vectors[jobs, place]).flatten(1, 2)
        kept = x[:, None] if self.is_full else self._keys_and_values(x, is_item)
        # Of `history_length` items, whatever the length of these histories.
        kept_length = self.config.history_length
        place = torch.arange(kept_length, device=here) - (kept_length - length)
        is_item = is_item[:, place.clamp(min=0)] & (place >= 0)
        kept = kept.unflatten(-2, (length, self.num_subspaces))[..., place.clamp(min=0), :, :]
        return torch.cat((kept.flatten(1), is_item.to(kept.dtype)), dim=1)

    def denoise(
        self, partial_sids: Tensor, memory: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        jobs, beams, _ = partial_sids.shape
        asked = None if positions is None else positions.flatten(0, 1)
        x = self._filled(partial_sids, memory, asked, len(self.layers))
        heads, code_bias = self._heads()
        if asked is None:
            by_item = x.reshape(-1, self.num_subspaces, self.config.width)
            logits = logits_of(by_item, heads, code_bias)
        else:
            logits = logits_at(x, asked % self.num_subspaces, heads, code_bias)
        return logits.reshape(jobs, beams, x.shape[1], self.num_codes)

    def query(self, memory: Tensor) -> Tensor:
        shape = memory.shape[0], 1, self.num_subspaces
        masks = torch.full(shape, self.num_codes, dtype=torch.int64, device=memory.device)
        return self.queries(self._filled(masks, memory, None, self.dense_layers))

    def _filled(
        self, partial_sids: Tensor, memory: Tensor, asked: Tensor | None, num_layers: int
    ) -> Tensor:
        """States of items to fill after so many layers: (jobs * beams, m, width).

        asked: (jobs * beams, m) int64, positions; None = all of them
        """
        jobs, beams, num_positions = partial_sids.shape
        num_subspaces = self.num_subspaces
        length, width = self.config.history_length, self.config.width
        head_width = width // self.config.num_heads
        x = self.embed(partial_sids.unflatten(-1, (-1, num_subspaces))).flatten(2, 3).flatten(0, 1)
        kept, is_item = memory[:, :-length], memory[:, -length:] > 0
        places = is_item.any(dim=0).nonzero()[:, 0]  # others are filler in all histories
        bias = self._bias(is_item[:, places])
        if self.is_full:
            old = kept.reshape(jobs, length, num_subspaces, width)[:, places].flatten(1, 2)
            rotation = self.rotation.unflatten(0, (-1, num_subspaces))[places].flatten(0, 1)
            rotation = torch.cat((rotation, self._rotation_to_fill(num_positions)))
            x = self._whole_sequences(old, x, bias, rotation, beams, asked, num_layers)
        else:
            kept = kept.reshape(jobs, 2 * len(self.layers), -1, length, num_subspaces, head_width)
            kept = kept[:, :, :, places].flatten(3, 4)
            rotation = self._rotation_to_fill(num_positions)
            for number, layer in enumerate(self.layers[:num_layers]):
                last = number == num_layers - 1
                of_layer = kept[:, 2 * number], kept[:, 2 * number + 1]
                x = layer.fill(x, of_layer, bias, rotation, asked if last else None)
        return x

    def _rotation_of(self, items: int) -> Tensor:
        """Of the last `items` of a sequence whose last item is the one to fill."""
        end = (self.config.history_length + 1) * self.num_subspaces
        return self.rotation[end - items * self.num_subspaces : end]

    def _rotation_to_fill(self, num_positions: int) -> Tensor:
        """Of the first positions behind a history."""
        start = self.config.history_length * self.num_subspaces
        return self.rotation[start : start + num_positions]

    def _keys_and_values(self, x: Tensor, is_item: Tensor) -> Tensor:
        """Of all layers, for histories: (jobs, layers, 2, heads, tokens, width / heads)."""
        end = self.config.history_length * self.num_subspaces
        bias, rotation = self._bias(is_item), self.rotation[end - x.shape[1] : end]
        if self.is_causal:
            item = torch.arange(x.shape[1], device=x.device) // self.num_subspaces
            bias = bias.masked_fill(item[:, None] < item, NEVER)
        kept = []
        for number, layer in enumerate(self.layers):
            query, key, value = layer.heads(x, rotation)
            kept.append(torch.stack((key, value), dim=1))
            if number < len(self.layers) - 1:  # of the last layer, nothing else is needed
                x = layer.attend(x, query, key, value, bias)
        return torch.stack(kept, dim=1)

    def _whole_sequences(
        self,
        old: Tensor,
        x: Tensor,
        bias: Tensor,
        rotation: Tensor,
        beams: int,
        asked: Tensor | None,
        num_layers: int,
    ) -> Tensor:
        """States of the items to fill, each run with its history: (jobs * beams, m, width).

        old: (jobs, S, width); x: (jobs * beams, tokens, width); bias: (jobs, 1, 1, S);
        rotation: of S + tokens tokens
        """
        jobs, num_old, width = old.shape
        num_positions = x.shape[1]
        bias = F.pad(bias, (0, num_positions))
        bias = bias[:, None].expand(-1, beams, -1, -1, -1).flatten(0, 1)
        old = old[:, None].expand(-1, beams, -1, -1)
        x = x.reshape(jobs, beams, num_positions, width)
        x = torch.cat((old, x), dim=2).flatten(0, 1)
        if asked is None:
            asked = torch.arange(num_positions, device=x.device).expand(x.shape[0], -1)
        *layers, last = self.layers[:num_layers]
        for layer in layers:
            x = layer(x, bias, rotation)
        states: Tensor = last(x, bias, rotation, num_old + asked)
        return states

    def _bias(self, is_item: Tensor) -> Tensor:
        """What is added to the scores of keys: (n, 1, 1, items * L)."""
        return bias_of(is_item.repeat_interleave(self.num_subspaces, dim=1))

    def _heads(self) -> tuple[Tensor, Tensor]:
        """What states of a position are multiplied with, (L, num_codes, width), and the bias."""
        if self.head is None:
            table = self.code_embedding.weight.unflatten(0, (self.num_subspaces, -1))[:, :-1]
        else:
            table = self.head.weight.unflatten(0, (self.num_subspaces, -1))
        return table / math.sqrt(self.config.width), self.bias


def check_width(config: ModelConfig) -> None:
    """Raise ConfigError when heads cannot turn pairs of numbers."""
    if config.width % (2 * config.num_heads):
        raise ConfigError(
            f"model.width {config.width} with model.num_heads {config.num_heads}: family "
            "maskgr turns pairs of numbers, so width must be a multiple of 2 * num_heads"
        )


def build(catalogue: Catalogue, config: ModelConfig) -> MaskGR:
    """An untrained model of the catalogue's sizes."""
    dense = None
    if Options.model_validate(config.options).dense:
        dense = DenseHead(catalogue.num_subspaces * config.width, catalogue, TEMPERATURE)
    return MaskGR(
        config,
        num_subspaces=catalogue.num_subspaces,
        num_codes=catalogue.num_codes,
        vector_dims=catalogue.vectors.shape[1],
        dense=dense,
    )
