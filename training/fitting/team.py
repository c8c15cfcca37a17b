"""Several processes that learn one network: each takes its share of every minibatch.

`torchrun` starts them. The first, the leader, runs the command as if it were alone; the others wait
in `led` until it begins a fit, take the same steps with it, and wait again. So only the leader
reads data, validates and writes files. Gradients are averaged by torch's DistributedDataParallel.
Knows no stage and no file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from joblib import cpu_count
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from training.errors import FitDiverged, TrainingError
from training.families import HOST, Objective

PATIENCE = timedelta(days=7)  # the others wait while the leader validates, decodes and writes
_lost = False  # then the others are not told of the end
_in_epoch = False  # nor while they wait for a gradient: they would not hear it
LOST = (
    "another process of this run has ended, or cannot be reached; run the same command again: it "
    "goes on from the last checkpoint"
)


def size() -> int:
    """How many processes learn together; 1 without torchrun."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is; the leader is 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def threads(asked: int) -> int:
    """torch's threads of this process: what is asked for, or its share of the processors."""
    return asked or max(1, cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def tell(said: Any = None) -> Any:
    """What the leader says, in every process. Raises TrainingError when one is lost."""
    if size() == 1:
        return said
    box = [said]
    try:
        distributed.broadcast_object_list(box, src=0, device=HOST)
    except RuntimeError as error:
        raise _lose(error) from error
    return box[0]


def taken(steps: Iterator[dict[str, float]]) -> Iterator[dict[str, float]]:
    """The leader's steps of an epoch, which the others take too, unless it leaves them early."""
    global _in_epoch
    _in_epoch = True
    try:
        yield from steps
    except FitDiverged:  # in all processes
        _in_epoch = False
        raise
    _in_epoch = False


def led(command: Callable[[], int], follow: Callable[[Any], Any]) -> int:
    """Run a command with the processes that torchrun has started; the exit status of this one.

    follow: what the others do with what the command tells them; it returns what they heard last,
        None if that was the end
    """
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=PATIENCE)
    if rank() == 0:
        status = command()
        if not (_lost or _in_epoch):
            tell()
        return status
    try:
        while (said := tell()) is not None and follow(said) is not None:
            pass
    except TrainingError as error:
        print(f"error: process {rank()}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


class _SharedLoss(nn.Module):
    """What this process adds to a minibatch's loss, as a module for DistributedDataParallel."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self._objective = model, objective
        objective.of_all = self._of_all
        self._has_share = True

    def forward(self, minibatch: Any, progress: float, generator: torch.Generator) -> Tensor:
        share = minibatch[rank() :: size()]
        self._has_share = bool(len(share))
        if self._has_share:
            return self._objective.loss(share, progress, generator)
        # A step needs a gradient from every process.
        return 0 * self._objective.loss(minibatch, progress, generator)

    def _of_all(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        summed = torch.from_numpy(counts * self._has_share)
        distributed.all_reduce(summed)
        return summed.numpy()


class Team:
    """How a trainer learns from a minibatch: alone, or a share of it in each process.

    size: how many processes; leads: whether this is the one that validates

    Shares are cut from a minibatch as from any sequence. What a loss is divided by is added up
    over them, so the gradient is that of the mean over the whole minibatch.
    """

    def __init__(self, model: nn.Module, objective: Objective, seed: int, *, alone: bool) -> None:
        self._model, self._objective, self._seed = model, objective, seed
        self.size = 1 if alone else size()
        self.leads = alone or rank() == 0
        self._shared: DistributedDataParallel | None = None

    def begin_epoch(self, number: int, generator: torch.Generator) -> torch.Generator:
        """What draws the order of an epoch's minibatches, the same one in all processes.

        generator: what a process draws in its steps. In a team that depends on nothing but seed,
            epoch and rank, so a checkpoint of the leader is enough for all that go on from it
        """
        if self.size == 1:
            return generator
        seeds = np.random.SeedSequence([self._seed, number]).generate_state(1 + self.size)
        own = int(seeds[1 + rank()])
        generator.manual_seed(own)
        torch.manual_seed(own)
        return torch.Generator().manual_seed(int(seeds[0]))

    def learn(self, minibatch: Any, progress: float, generator: torch.Generator) -> Tensor:
        """Give the parameters the gradient of a minibatch's mean loss; returns that loss.

        Raises TrainingError when a process of the team is lost.
        """
        if self.size == 1:
            loss = self._objective.loss(minibatch, progress, generator)
            loss.backward()
            return loss.detach()
        try:
            if self._shared is None:  # now, since all others are here too
                self._shared = DistributedDataParallel(
                    _SharedLoss(self._model, self._objective),
                    forward_sync_buffers=False,
                    find_unused_parameters=True,
                )
            loss = self._shared(minibatch, progress, generator)
            (loss * self.size).backward()  # of which it takes the mean
            loss = loss.detach()
            distributed.all_reduce(loss)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise _lose(error) from error
        return loss


def _lose(error: RuntimeError) -> TrainingError:
    global _lost
    _lost = True
    cause = str(error).strip().splitlines()[0][:200]
    return TrainingError(f"{LOST} ({cause})")
