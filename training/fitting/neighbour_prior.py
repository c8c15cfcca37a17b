"""The neighbour prior of a bundle: counted from training interactions, weighed on validation.

Items call for what was bought after them, and for what is like them. An item that nobody has
bought yet shares in what was counted for items that it is like, as new items do in the service.
Counting takes seconds. How much the prior adds beside the network, from which memory on, and how
much it favours popular items, is chosen by asking the production decoder about validation users.
Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import faiss
import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray
from scipy import sparse

from service.bundles import DecodingDefaults
from service.decoding import Decoder, NeighbourPrior
from service.decoding.catalogue import RESEMBLANCE, most_alike, typical_affinity
from training.config import NeighboursConfig
from training.data import Interactions, Windows, with_followers
from training.evaluation import ndcg_at, ranks_at

MOST_COMPARED = 100_000  # items; among more, nearest ones are looked for in a few cells only
CELLS_PROBED = 32

# "rarity_power", "likeness_weight", "weight", "scale" and "decay"; the scale in median affinities.
Settings = dict[str, float]
Priors = Mapping[tuple[float, float], NeighbourPrior]  # by rarity power and likeness weight


def fit_priors(
    train: Interactions, content: NDArray[np.floating], config: NeighboursConfig
) -> Priors:
    """A prior for each of `config.rarity_powers` and each of `config.likeness_weights`.

    content: (num_items, d) embeddings, what items are alike by, see `likeness`
    Their weight is 1, their scale the median affinity kept. An item has its strongest neighbours by

        affinity[i, j] + likeness_weight * median affinity * likeness[i, j]

    with the affinities of `follower_affinities`; an item without interactions has those of
    `inherited`.
    """
    alike = likeness(content, config.num_alike)
    seen = train.popularity() > 0
    priors: dict[tuple[float, float], NeighbourPrior] = {}
    for power in config.rarity_powers:
        counted = follower_affinities(
            train, window=config.window, gap_decay=config.gap_decay, rarity_power=power
        )
        typical = np.median(counted.data) if counted.nnz else 1.0
        for weight in config.likeness_weights:
            affinity = sparse.csr_array(counted + weight * typical * alike)
            kept = typical_affinity(_strongest(affinity, config.num_neighbours)[1])
            cold = inherited(counted, content, seen, RESEMBLANCE * kept)
            priors[power, weight] = _prior(sparse.csr_array(affinity + cold), config)
    return priors


def follower_affinities(
    train: Interactions, *, window: int, gap_decay: float, rarity_power: float
) -> sparse.csr_array:
    """How strongly item i calls for item j, (num_items, num_items) sparse float32, zero diagonal.

        affinity[i, j] = followers[i, j] / (sqrt(popularity_i) * popularity_j ** rarity_power)

    followers: each time j follows i at a distance of d <= window positions adds
        gap_decay ** (d - 1). What came before an item says less about what comes next.
    """
    none = sparse.csr_array((train.num_items, train.num_items), dtype=np.float32)
    followers = with_followers(none, train, gap_decay ** np.arange(window))
    popularity = np.maximum(train.popularity(), 1).astype(np.float32)
    calling = sparse.diags_array(1 / np.sqrt(popularity))
    called = sparse.diags_array(popularity ** np.float32(-rarity_power))
    affinity = sparse.csr_array(calling @ followers @ called)
    affinity.setdiag(0)
    affinity.eliminate_zeros()
    affinity.sort_indices()
    return affinity


def inherited(
    counted: sparse.csr_array,
    content: NDArray[np.floating],
    seen: NDArray[np.bool_],
    strength: float,
) -> sparse.csr_array:
    """What items without interactions have of the items they are like: as `NeighbourPrior.new`.

    counted: (num_items, num_items) affinities. Returns as much, in their rows and columns alone.
    seen: (num_items,) bool, items with interactions
    strength: affinity of an item to one that is like it alone
    """
    rows, shares = most_alike(content[~seen], content[seen])
    cold = np.broadcast_to(np.flatnonzero(~seen)[:, None], rows.shape)
    is_part = shares > 0
    places = cold[is_part], np.flatnonzero(seen)[rows[is_part]]
    share = sparse.csr_array((shares[is_part], places), shape=counted.shape)
    called, calling = share @ counted, counted @ share.T
    return sparse.csr_array(called + calling + strength * (share + share.T))


def likeness(content: NDArray[np.floating], num_alike: int) -> sparse.csr_array:
    """Cubed cosines of each item's nearest others, (num_items, num_items) sparse float32.

    content: (num_items, d); a row of zeros is like nothing. The cube favours the very near ones.
    """
    directions = np.array(content, np.float32, order="C")
    known = np.flatnonzero(directions.any(axis=1))
    num_items, d = directions.shape
    if len(known) < 2 or not num_alike:
        return sparse.csr_array((num_items, num_items), dtype=np.float32)
    directions = directions[known]
    faiss.normalize_L2(directions)
    if len(known) <= MOST_COMPARED:
        index = faiss.IndexFlatIP(d)
    else:
        cells = int(4 * np.sqrt(len(known)))
        index = faiss.index_factory(d, f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
        index.nprobe = CELLS_PROBED
        index.train(directions)
    index.add(directions)
    cosines, found = index.search(directions, min(num_alike + 1, len(known)))
    items = np.broadcast_to(np.arange(len(known))[:, None], found.shape)
    kept = (found >= 0) & (found != items) & (cosines > 0)
    places = known[items[kept]], known[found[kept]]
    return sparse.csr_array((cosines[kept] ** 3, places), shape=(num_items, num_items))


def _prior(affinity: sparse.csr_array, config: NeighboursConfig) -> NeighbourPrior:
    neighbours, affinities = _strongest(affinity, config.num_neighbours)
    positive = affinities[affinities > 0]
    return NeighbourPrior(
        neighbours,
        affinities,
        history_length=config.history_length,
        decay=config.decays[0],
        scale=float(np.median(positive)) if len(positive) else 1.0,
        weight=1.0,
    )


def _strongest(
    affinity: sparse.csr_array, num_neighbours: int
) -> tuple[NDArray[np.int32], NDArray[np.float16]]:
    """The strongest neighbours of every item, of equals the lower rows; and how strong they are."""
    affinity.sort_indices()
    num_items = affinity.shape[0]
    num_neighbours = min(num_neighbours, num_items)
    neighbours = np.zeros((num_items, num_neighbours), np.int32)
    affinities = np.zeros((num_items, num_neighbours), np.float16)
    for row in range(num_items):
        own = slice(affinity.indptr[row], affinity.indptr[row + 1])
        strongest = np.argsort(-affinity.data[own], kind="stable")[:num_neighbours]
        neighbours[row, : len(strongest)] = affinity.indices[own][strongest]
        affinities[row, : len(strongest)] = affinity.data[own][strongest]
    return neighbours, affinities


def weigh_prior(
    decoder: Decoder,
    priors: Priors,
    validation: Windows,
    decoding: DecodingDefaults,
    config: NeighboursConfig,
    *,
    exclude_seen: bool,
) -> tuple[Settings, list[dict[str, float]]]:
    """The settings of the best validation ndcg@10 beside a network, and the trials that found them.

    priors: see `fit_priors`
    decoding: of the network
    """

    def ndcg_of(settings: Settings) -> float:
        found = ranks_at(
            validation,
            replace(decoder, prior=prior_at(priors, settings)),
            decoding,
            k=10,
            workers=cpu_count(),
            exclude_seen=exclude_seen,
        )
        return ndcg_at(found.item, 10)

    return best_settings(config, ndcg_of)


def best_settings(
    config: NeighboursConfig, ndcg_of: Callable[[Settings], float]
) -> tuple[Settings, list[dict[str, float]]]:
    """The settings of the best ndcg@10, whatever the prior is added to.

    For each rarity power: weight, likeness weight, scale and decay one after the other, from the
    first values of the configuration, then the weight once more. The best scale and weight depend
    so much on the power that it cannot be one of this row. Returns the settings with the trials,
    each the settings and their "ndcg@10". Of equals the first tried wins, weights in ascending
    order, so a prior that adds nothing is off (weight 0).
    """
    trials: dict[tuple[float, ...], float] = {}

    def ndcg(settings: Settings) -> float:
        key = tuple(settings.values())
        if key not in trials:
            trials[key] = round(ndcg_of(settings), 5)
        return trials[key]

    best = max((_best_at(power, config, ndcg) for power in config.rarity_powers), key=ndcg)
    return best, [
        dict(zip((*best, "ndcg@10"), (*key, value), strict=True)) for key, value in trials.items()
    ]


def _best_at(
    rarity_power: float, config: NeighboursConfig, ndcg: Callable[[Settings], float]
) -> Settings:
    weights = tuple(sorted(config.weights))
    best = {
        "rarity_power": rarity_power,
        "likeness_weight": config.likeness_weights[0],
        "weight": weights[-1],
        "scale": config.scales[0],
        "decay": config.decays[0],
    }
    for setting, values in (
        ("weight", weights),
        ("likeness_weight", config.likeness_weights),
        ("scale", config.scales),
        ("decay", config.decays),
        ("weight", weights),
    ):
        best = max((best | {setting: value} for value in values), key=ndcg)
        if best["weight"] == 0:
            break
    return best


def count_again(
    log: Interactions,
    content: NDArray[np.floating],
    config: NeighboursConfig,
    settings: Settings,
) -> NeighbourPrior:
    """The prior with the counts of another log, at settings that were chosen before."""
    only = config.model_copy(
        update={
            "rarity_powers": (settings["rarity_power"],),
            "likeness_weights": (settings["likeness_weight"],),
        }
    )
    return prior_at(fit_priors(log, content, only), settings)


def prior_at(priors: Priors, settings: Settings) -> NeighbourPrior:
    """The prior at these settings. priors: see `fit_priors`"""
    prior = priors[settings["rarity_power"], settings["likeness_weight"]]
    return replace(
        prior,
        weight=settings["weight"],
        scale=settings["scale"] * prior.scale,
        decay=settings["decay"],
    )
