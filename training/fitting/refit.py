"""The last learning before a bundle ships: a fitted network goes on, on all that is known by then.

Vectors, codes and so the SIDs stay. Nothing is chosen any more: the choices were made on validation
users, whose items the network now learns too. So there is no validation here, and no figure.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from torch import nn

from service.decoding import SidTrie
from training.config import FitConfig, MaskingConfig, ModelConfig
from training.data import Interactions, Split, Windows
from training.fitting.training_loop import Continuation, FitState, fit


def refit(
    fitted: nn.Module,
    split: Split,
    known: Interactions,
    trie: SidTrie,
    folder: Path,
    *,
    share: float,
    steps: int,
    model_config: ModelConfig,
    masking: MaskingConfig,
    config: FitConfig,
    console: Console,
    key: str = "",
) -> tuple[nn.Module, FitState]:
    """Train on `known`, as `fit` does, from the weights of `fitted`; it is interrupted likewise.

    known: the interactions to learn, by the rows of `trie`
    share: of the learning-rate schedule, its last part. steps: of the optimiser
    folder, key: as of `fit`
    """
    nobody = Windows(known.rows, np.empty(0, np.int32), *np.empty((2, 0), np.int64))
    return fit(
        replace(split, train=known, validation=nobody),
        trie,
        folder,
        model_config=model_config,
        masking=masking,
        config=config,
        console=console,
        key=key,
        after=Continuation(fitted.state_dict(), share, steps),
    )
