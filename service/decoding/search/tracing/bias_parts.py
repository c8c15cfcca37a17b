"""What a row's score gains besides its codes, in parts, and which history items it comes from.

The same sums as in `row_biases`: each history item is asked alone, as if it were the whole history.
Knows no calls and no beams.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from service.decoding.arrays import Doubles
from service.decoding.catalogue import NeighbourPrior
from service.decoding.job import Job
from service.decoding.search.row_biases import RowBiases


@dataclass(frozen=True, eq=False)
class BiasParts:
    """What is added to the score of one row.

    neighbour_prior, repeat_bias, boost: these are all
    shares: (len(history),) float64, of each item of the history in what the prior remembers of the
        row; the sum is 1, or 0 if the prior gives it nothing
    """

    neighbour_prior: float
    repeat_bias: float
    boost: float
    shares: Doubles


def bias_parts(
    job: Job, prior: NeighbourPrior | None, repeat_bias: float, num_items: int, row: int
) -> BiasParts:
    """The parts of a row's bias. prior, repeat_bias: those that the job was decoded with"""
    nothing, biases = np.empty(0, np.int32), RowBiases(num_items)
    alone = replace(job, excluded=nothing, boosted=nothing, boosts=nothing.astype(np.float32))
    memories = np.zeros(len(job.history))
    gained = 0.0
    if prior is not None and prior.weight:
        biases.fill(alone, prior, 0.0)
        gained = float(biases.values[row])
    if gained > 0 and prior is not None:
        newest = range(len(job.history))[-prior.history_length :]
        for place in newest:
            biases.fill(replace(alone, history=job.history[place : place + 1]), prior, 0.0)
            memory = prior.scale * np.expm1(float(biases.values[row]) / prior.weight)
            memories[place] = memory * prior.decay ** (len(job.history) - 1 - place)
        memories /= memories.sum()
    boost = float(job.boosts[job.boosted == row].sum())
    repeated = repeat_bias if np.any(job.history == row) else 0.0
    return BiasParts(gained, repeated, boost, memories)
