"""How fast training goes on a device: samples a second and the share of the GEMM peak reached.

Times real steps on real minibatches, in rounds, beside square matrix products of the same type and
threads. `first_losses` says what the first steps learn, to compare devices. Writes nothing.
"""

from __future__ import annotations

import itertools
import statistics
import time
from typing import Any

import torch
from joblib import cpu_count
from torch.utils.flop_counter import FlopCounterMode

from service.decoding import SidTrie
from training.config import RunConfig
from training.data import Split
from training.families import synchronise
from training.fitting.training_loop import Trainer

PEAK_SIZE = 2048  # rows and columns of the matrices of the peak


def step_time(
    split: Split, trie: SidTrie, config: RunConfig, *, steps: int = 20, rounds: int = 3
) -> dict[str, Any]:
    """Median over rounds of `steps` steps each, after one round that does not count.

    Matrix products only are counted as work; rows of the catalogue softmax are gathered and not.
    """
    trainer = _trainer(split, trie, config)
    objective, device = trainer.objective, trainer.device
    of_an_epoch = objective.minibatches(config.fit.minibatch, trainer.generator)
    minibatches = list(itertools.islice(itertools.cycle(of_an_epoch), steps))
    with FlopCounterMode(display=False) as counter:
        for minibatch in minibatches:
            trainer.step(minibatch)
    synchronise(device)
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        for minibatch in minibatches:
            trainer.step(minibatch)
        synchronise(device)
        seconds.append((time.perf_counter() - started) / steps)
    samples = sum(objective.num_samples_of(minibatch) for minibatch in minibatches) / steps
    step = statistics.median(seconds)
    peak = _gemm_peak(objective.dtype, device)
    flops = counter.get_total_flops() / steps
    memory = {}
    if device.type == "cuda":
        memory = {"peak_memory_mib": round(torch.cuda.max_memory_allocated(device) / 2**20)}
    return {
        "device": device.type,
        "threads": torch.get_num_threads(),
        "type": "bf16" if objective.dtype == torch.bfloat16 else "fp32",
        "seconds_per_step": round(step, 4),
        "seconds_per_step_range": [round(min(seconds), 4), round(max(seconds), 4)],
        "samples_per_second": round(samples / step),
        "gigaflops_per_second": round(flops / step / 1e9, 1),
        "gemm_peak_gigaflops_per_second": round(peak / 1e9, 1),
        "share_of_gemm_peak": round(flops / step / peak, 3),
        **memory,
    }


def first_losses(split: Split, trie: SidTrie, config: RunConfig, *, steps: int) -> list[float]:
    """Losses of the first steps: equal on all devices but for rounding, if nothing is dropped out.

    Masks and samples are drawn on the host; dropout would draw on the device.
    """
    exact = config.model_copy(
        update={
            "model": config.model.model_copy(update={"dropout": 0.0}),
            "fit": config.fit.model_copy(update={"bf16": False}),
        }
    )
    trainer = _trainer(split, trie, exact)
    minibatches = trainer.objective.minibatches(config.fit.minibatch, trainer.generator)
    losses = [trainer.step(minibatch) for minibatch in itertools.islice(minibatches, steps)]
    return torch.stack(losses).tolist()


def _trainer(split: Split, trie: SidTrie, config: RunConfig) -> Trainer:
    torch.set_num_threads(config.fit.threads or cpu_count())
    torch.manual_seed(config.fit.seed)
    return Trainer(split, trie, config.model, config.masking, config.fit)


def _gemm_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Flops a second of the best of five square matrix products."""
    left, right = torch.randn(2, PEAK_SIZE, PEAK_SIZE, device=device).to(dtype)
    times = []
    for _ in range(6):
        synchronise(device)
        started = time.perf_counter()
        left @ right
        synchronise(device)
        times.append(time.perf_counter() - started)
    return 2 * PEAK_SIZE**3 / min(times[1:])
