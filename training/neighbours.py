"""The neighbour prior of a bundle: counted from training interactions, weighed on validation.

Counting takes seconds. How much the prior adds beside the network, and from which memory on, is
chosen by asking the production decoder about validation users. Knows nothing of files.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from joblib import cpu_count

from service.decoding import Decoder, NeighbourPrior, Schedule
from training.config import NeighboursConfig
from training.embeddings import item_affinities
from training.evaluation import ndcg_at, ranks
from training.interactions import Interactions, Windows


def fit_prior(train: Interactions, config: NeighboursConfig) -> NeighbourPrior:
    """The strongest neighbours of every item; weight 1, scale = the median affinity kept."""
    affinity = item_affinities(
        train, window=config.window, transition_weight=config.transition_weight
    )
    num_neighbours = min(config.num_neighbours, train.num_items)
    neighbours = np.zeros((train.num_items, num_neighbours), np.int32)
    affinities = np.zeros((train.num_items, num_neighbours), np.float16)
    for row in range(train.num_items):
        own = slice(affinity.indptr[row], affinity.indptr[row + 1])
        strongest = np.argsort(-affinity.data[own], kind="stable")[:num_neighbours]  # ties by row
        neighbours[row, : len(strongest)] = affinity.indices[own][strongest]
        affinities[row, : len(strongest)] = affinity.data[own][strongest]
    positive = affinities[affinities > 0]
    return NeighbourPrior(
        neighbours,
        affinities,
        history_length=config.history_length,
        decay=config.decays[0],
        scale=float(np.median(positive)) if len(positive) else 1.0,
        weight=1.0,
    )


def weigh_prior(
    decoder: Decoder, validation: Windows, schedule: Schedule, config: NeighboursConfig
) -> tuple[NeighbourPrior, list[dict[str, float]]]:
    """The decoder's prior with the weight, scale and decay of the best validation ndcg@10.

    One after the other, from the first scale and decay of the configuration, then the weight once
    more. Returns it with the trials: {"weight", "scale", "decay", "ndcg@10"}. Of equals the first
    tried wins, weights in ascending order, so a prior that adds nothing is off (weight 0).
    """
    prior = decoder.prior
    assert prior is not None
    weights = tuple(sorted(config.weights))
    scales = tuple(share * prior.scale for share in config.scales)
    best = replace(prior, weight=weights[-1], scale=scales[0], decay=config.decays[0])
    trials: dict[tuple[float, float, float], float] = {}
    for field, values in (
        ("weight", weights),
        ("scale", scales),
        ("decay", config.decays),
        ("weight", weights),
    ):
        highest = -1.0
        for value in values:
            tried = replace(best, **{field: value})
            settings = (tried.weight, tried.scale, tried.decay)
            if settings not in trials:
                asked = replace(decoder, prior=tried)
                found = ranks(validation, asked, schedule, k=10, beam_width=10, workers=cpu_count())
                trials[settings] = round(ndcg_at(found.item, 10), 5)
            if trials[settings] > highest:
                winner, highest = tried, trials[settings]
        best = winner
        if best.weight == 0:
            break
    names = ("weight", "scale", "decay", "ndcg@10")
    return best, [
        dict(zip(names, (*settings, ndcg), strict=True)) for settings, ndcg in trials.items()
    ]
