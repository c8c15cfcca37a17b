"""What a model family provides, and how a run finds it by its name.

The training loop, the export stage and validation use a `Family` and know no family by name. The
production decoder fixes the rest: a network gives log-probs of codes at masked positions of a SID.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from service.decoding import Catalogue, Denoiser, SidTrie
from training.config import FitConfig, MaskingConfig, ModelConfig, RunConfig, Section
from training.data import Split
from training.errors import ConfigError

# Only the objective that made a minibatch looks into it. Several processes cut it into shares, as
# a sequence: `minibatch[1::2]`.
Minibatch = Any
Counts = Callable[[NDArray[np.float64]], NDArray[np.float64]]


class Objective(Protocol):
    """What a network learns in a run: samples, and the loss of some of them.

    num_samples: of one epoch
    dtype: in which a step multiplies matrices, torch.float32 or torch.bfloat16
    Random numbers come from the generator that is given, or from torch's own. Both are in the
    checkpoint, so a resumed run draws the same ones. An objective keeps no other state.

    of_all: what counts of a minibatch are in the whole of it; the same counts, if it is the whole.
        Where processes have shares of a minibatch it adds up theirs, and the sum of their losses
        is the mean loss of the whole. `loss` calls it once
    """

    num_samples: int
    dtype: torch.dtype
    of_all: Counts

    def minibatches(self, size: int, generator: torch.Generator) -> Iterator[Minibatch]:
        """All samples of an epoch, in random order, in minibatches of about `size` samples."""
        ...

    def num_samples_of(self, minibatch: Minibatch) -> int:
        """How many samples a minibatch has."""
        ...

    def loss(self, minibatch: Minibatch, progress: float, generator: torch.Generator) -> Tensor:
        """The mean loss of a minibatch: a scalar with gradients.

        progress: the share of the run that is done, in [0, 1]
        """
        ...


class MakeObjective(Protocol):
    """Makes the objective of one run."""

    def __call__(
        self,
        model: nn.Module,
        split: Split,
        trie: SidTrie,
        *,
        model_config: ModelConfig,
        masking: MaskingConfig,
        config: FitConfig,
    ) -> Objective:
        """model: the network that is trained; trie: of the catalogue."""
        ...


class Graphs(NamedTuple):
    """A network as a bundle ships it.

    difference: the largest one between the graphs and the network, in log-probs or queries
    dense: dense.onnx, if the network has a dense head
    """

    encoder: bytes
    decoder: bytes
    difference: float
    dense: bytes | None = None


class NoOptions(Section):
    """The options of a family that has none: every option is refused."""


@dataclass(frozen=True)
class Family:
    """A kind of network. All parts get or return the network that `build` made.

    build: an untrained network of a catalogue's sizes; torch's random state draws its weights
    objective: what the network learns in a run
    denoiser: the network as the production decoder calls it
    export: the network as graphs. It raises TrainingError when they differ too much from it
    options: the settings in `model.options`, with their types and bounds
    autoregressive: whether the network knows only the next code of a SID, from left to right
    unused: settings that it does not read, "section.key"
    refuse: raises ConfigError for a configuration that it cannot learn by
    """

    build: Callable[[Catalogue, ModelConfig], nn.Module]
    objective: MakeObjective
    denoiser: Callable[[Any], Denoiser]
    export: Callable[[Any], Graphs]
    options: type[Section] = NoOptions
    autoregressive: bool = False
    unused: tuple[str, ...] = ()
    refuse: Callable[[RunConfig], None] = lambda config: None

    def check(self, config: ModelConfig) -> None:
        """Raise ConfigError when `model.options` holds what this family does not take."""
        try:
            self.options.model_validate(config.options)
        except ValidationError as error:
            told = []
            for item in error.errors():
                name = ".".join(map(str, ("model.options", *item["loc"])))
                is_unknown = item["type"] == "extra_forbidden"
                what = (
                    f"family {config.family} has no such option"
                    if is_unknown
                    else item["msg"].removeprefix("Value error, ")
                )
                told.append(f"{name}: {what}")
            raise ConfigError("; ".join(told)) from error

    def check_run(self, config: RunConfig) -> None:
        """Raise ConfigError when the family cannot learn or be measured by a configuration."""
        self.check(config.model)
        self.refuse(config)
        _check_dense(config)

    def ignored(self, config: RunConfig) -> list[str]:
        """Which settings somebody has changed although this family does not read them."""
        values = [
            [reduce(getattr, name.split("."), one) for name in self.unused]
            for one in (config, RunConfig())
        ]
        return [name for name, *two in zip(self.unused, *values, strict=True) if two[0] != two[1]]


def _check_dense(config: RunConfig) -> None:
    """Raise ConfigError when a dense head lacks what it needs, or is needed and not there."""
    if config.model.options.get("dense"):
        if not config.model.item_vectors:
            raise ConfigError(
                "model.options.dense: the dense head compares with items' vectors; set "
                "model.item_vectors=true"
            )
        if not config.embeddings.content_dims:
            raise ConfigError(
                "model.options.dense: the dense head compares with items' content; set "
                "embeddings.content_dims above 0"
            )
    elif set(config.evaluation.retrievals) != {"generate"}:
        raise ConfigError(
            "evaluation.retrievals: dense and fused need a network with a dense head; set "
            "model.options.dense=true, which maskgr and tiger have"
        )


def family_of(name: str) -> Family:
    """The family in the folder `training/families/<name>`.

    Raises ConfigError, with the families that exist, when there is no such folder.
    """
    there = family_names()
    if not re.fullmatch(r"[a-z0-9_]+", name) or name not in there:
        raise ConfigError(f"model.family: no family {name!r}; there are: {', '.join(there)}")
    family = getattr(importlib.import_module(f"training.families.{name}"), "FAMILY", None)
    if not isinstance(family, Family):
        raise ConfigError(f"model.family: training.families.{name} has no FAMILY that is a Family")
    return family


def family_names() -> list[str]:
    """Names of the folders of `training.families`, sorted."""
    folders = importlib.import_module("training.families").__path__
    return sorted(module.name for module in pkgutil.iter_modules(folders) if module.ispkg)
