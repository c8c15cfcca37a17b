"""How the models that Unmask is compared with are fitted, and what is chosen on validation.

A fitted model can be counted on another log: all choices and learned weights stay, only its counts
are made again. Knows no bundle and no table.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.baselines import (
    ItemKNN,
    Popularity,
    Scorer,
    SequentialMemory,
    SequentialRules,
    Transitions,
    WithPrior,
)
from training.baselines import ranks as ranks_by_score
from training.config import NeighboursConfig
from training.data import Interactions, Split
from training.evaluation import draw_windows, ndcg_at
from training.fitting import Settings, best_settings, count_again, fit_priors, prior_at

DECAYS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Counting:
    """A model that counts interactions. decays: of a history's older items, tried on validation"""

    model: Callable[..., Any]  # makes a Scorer of a log
    name: str
    decays: tuple[float, ...] = ()


POPULARITY = Counting(Popularity, Popularity.name)
ITEM_KNN = Counting(ItemKNN, ItemKNN.name)
MEMORY = Counting(SequentialMemory, SequentialMemory.name, DECAYS)
TRANSITIONS = Counting(Transitions, Transitions.name, DECAYS)
RULES = Counting(SequentialRules, SequentialRules.name)
PAIRWISE = (ITEM_KNN, MEMORY, TRANSITIONS, RULES)
COUNTING = (POPULARITY, *PAIRWISE)


@dataclass(frozen=True)
class Fitted:
    """A model whose choices are made.

    counted_on: the model with the counts of a log; the same for all logs if it does not count
    note:       for the reader of the table
    minutes:    to make the choices, and to learn
    """

    counted_on: Callable[[Interactions], Scorer]
    note: str = ""
    minutes: float = 0.0


def minutes_since(started: float) -> float:
    """started: as `time.monotonic` said then"""
    return (time.monotonic() - started) / 60


def fit_counting(counting: Counting, split: Split, *, exclude_seen: bool) -> Fitted:
    """Choose the decay of the best validation ndcg@10, if the model has one."""
    if not counting.decays:
        return Fitted(counting.model)
    started = time.monotonic()
    scorer = counting.model(split.train)  # counted once

    def ndcg(decay: float) -> float:
        scorer.decay = decay
        return ndcg_at(
            ranks_by_score(split.validation, scorer, k=10, exclude_seen=exclude_seen), 10
        )

    decay = max(counting.decays, key=ndcg)
    tried = ", ".join(map(str, counting.decays))
    note = f"decay {decay:g}, the best validation ndcg@10 of {tried}"
    return Fitted(partial(counting.model, decay=decay), note, minutes_since(started))


def fit_with_prior(
    model: Fitted,
    split: Split,
    content: NDArray[np.floating],
    neighbours: NeighboursConfig,
    *,
    users: int,
    exclude_seen: bool,
) -> Fitted:
    """A model and the neighbour prior of our bundles, weighed as beside our network.

    The same counts, likeness of content, settings to try, validation users and order of trials.
    All items are scored. users: of validation, that choose
    """
    started = time.monotonic()
    scorer = model.counted_on(split.train)
    priors = fit_priors(split.train, content, neighbours)
    validation = draw_windows(split.validation, users, seed=0)

    def ndcg_of(settings: Settings) -> float:
        both = WithPrior(scorer, prior_at(priors, settings))
        found = ranks_by_score(validation, both, k=10, exclude_seen=exclude_seen)
        return ndcg_at(found, 10)

    settings, trials = best_settings(neighbours, ndcg_of)
    chosen = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in settings.items())
    note = f"{scorer.name}, {model.note}; prior: {chosen}, the best of {len(trials)} on validation"

    def counted_on(log: Interactions) -> Scorer:
        return WithPrior(scorer, count_again(log, content, neighbours, settings))

    return Fitted(counted_on, note, model.minutes + minutes_since(started))
