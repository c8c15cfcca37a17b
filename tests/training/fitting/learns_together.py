"""For test_team: what torchrun starts.

learns_together.py FILE ARGUMENTS...   FILE gets the gradients; ARGUMENTS are of `training`

First the command runs; then a trainer of the team makes gradients; then the command runs again in
another folder, and the first process meets a full disk in the middle of its third epoch.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from service.decoding import Catalogue, SidTrie
from training.__main__ import main
from training.config import FitConfig, MaskingConfig, ModelConfig
from training.data.splits import Interactions, leave_last_out
from training.fitting.team import led, tell
from training.fitting.training_loop import Trainer, _follow

MINIBATCHES = [np.arange(start, stop) for start, stop in ((0, 9), (9, 20), (20, 21))]


def gradients(*, alone: bool) -> list[tuple[float, list[torch.Tensor | None]]]:
    """Loss and gradients of each minibatch; nothing is drawn, so they are the same for any team."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 12, 30)
    rows = rng.integers(0, 40, lengths.sum()).astype(np.int32)
    item_ids = tuple(map(str, range(40)))
    log = Interactions(
        tuple(map(str, range(30))), item_ids, np.concatenate(([0], np.cumsum(lengths))), rows
    )
    codes = rng.integers(0, 5, (40, 4)).astype(np.uint16)
    vectors = rng.standard_normal((40, 8)).astype(np.float16)
    torch.manual_seed(3)
    trainer = Trainer(
        leave_last_out(log),
        SidTrie(Catalogue(item_ids, codes, 5, np.zeros(40, np.int64), vectors)),
        ModelConfig(width=16, num_heads=2, encoder_layers=1, history_length=5, dropout=0),
        MaskingConfig(full_share=1, partial_share=0),
        FitConfig(epochs=1, minibatch=16, threads=1, bf16=False, position_weight=0.5),
        alone=alone,
    )
    found = []
    for minibatch in MINIBATCHES:
        trainer.optimizer.zero_grad(set_to_none=True)
        loss = trainer.team.learn(minibatch, 0.5, trainer.generator)
        of_step = [None if p.grad is None else p.grad.clone() for p in trainer.model.parameters()]
        found.append((float(loss), of_step))
    return found


def on_a_full_disk(steps: Iterator[dict[str, float]]) -> Iterator[dict[str, float]]:
    """Steps of an epoch, until a line is to be written."""
    for scalars in steps:
        if scalars:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "scalars.jsonl")
        yield scalars


def lead(file: Path, words: list[str]) -> int:
    sys.argv = ["training", *words]
    assert main() == 0
    tell("gradients")
    torch.save(gradients(alone=False), file)
    sys.argv[sys.argv.index("--out") + 1] += "-on-a-full-disk"
    steps_of = Trainer.epoch
    Trainer.epoch = (  # type: ignore[method-assign]
        lambda self: on_a_full_disk(steps_of(self)) if self.state.epoch == 2 else steps_of(self)
    )
    return main()


def follow(said: Any) -> Any:
    if said != "gradients":
        return _follow(said)
    gradients(alone=False)
    return said


if __name__ == "__main__":
    where, *of_training = sys.argv[1:]
    sys.exit(led(lambda: lead(Path(where), of_training), follow))
