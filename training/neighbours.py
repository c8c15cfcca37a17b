"""The neighbour prior of a bundle: counted from training interactions, weighed on validation.

Counting takes seconds. How much the prior adds beside the network, and from which memory on, is
chosen by asking the production decoder about validation users. Knows nothing of files.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

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
    num_items = train.num_items
    num_neighbours = min(config.num_neighbours, num_items)
    owner = np.repeat(np.arange(num_items), np.diff(affinity.indptr))
    order = np.lexsort((affinity.indices, -affinity.data, owner))  # strongest first, ties by row
    rank = np.arange(len(order)) - np.repeat(affinity.indptr[:-1], np.diff(affinity.indptr))
    kept = order[rank < num_neighbours]
    place = (owner[kept], rank[rank < num_neighbours])
    neighbours = np.zeros((num_items, num_neighbours), np.int32)
    affinities = np.zeros((num_items, num_neighbours), np.float16)
    neighbours[place], affinities[place] = affinity.indices[kept], affinity.data[kept]
    positive = affinities[affinities > 0]
    return NeighbourPrior(
        neighbours,
        affinities,
        history_length=config.history_length,
        decay=config.decay,
        scale=float(np.median(positive)) if len(positive) else 1.0,
        weight=1.0,
    )


def weigh_prior(
    decoder: Decoder, validation: Windows, schedule: Schedule, config: NeighboursConfig
) -> tuple[NeighbourPrior, list[dict[str, float]]]:
    """The decoder's prior with the weight and scale of the best validation ndcg@10.

    Returns it with one entry per trial: {"weight", "scale", "ndcg@10"}. Of equals the smaller
    weight wins, so a prior that adds nothing is switched off (weight 0).
    """
    prior = decoder.prior
    assert prior is not None
    trials, best, highest = [], replace(prior, weight=0.0), -1.0
    for weight in sorted(config.weights):
        for share in config.scales if weight else config.scales[:1]:
            tried = replace(prior, weight=weight, scale=share * prior.scale)
            found = ranks(validation, replace(decoder, prior=tried), schedule, k=10, beam_width=10)
            ndcg = ndcg_at(found.item, 10)
            trials.append({"weight": weight, "scale": tried.scale, "ndcg@10": round(ndcg, 5)})
            if ndcg > highest:
                best, highest = tried, ndcg
    return best, trials


def memory_scores(
    prior: NeighbourPrior, histories: list[NDArray[np.int32]], num_items: int
) -> NDArray[np.float32]:
    """The prior alone as a recommender: (histories, num_items) float32."""
    scores = np.zeros((len(histories), num_items), np.float32)
    for scored, history in zip(scores, histories, strict=True):
        rows, memory = prior.memory(history)
        scored[rows] = memory
    return scores
