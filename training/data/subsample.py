"""Removes training interactions at random: how much recall does a model keep on sparser data?

Only training interactions are removed. The histories at validation and test and the catalogue stay
whole. All models get the same draw. What a stronger thinning keeps is a subset of what a weaker one
keeps. Knows no model.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from training.data.interactions import Dataset
from training.data.splits import split_at

LEAST_LEFT = 2  # training interactions of a user: one item and what came next


def thin(dataset: Dataset, dropped: float, *, seed: int = 0) -> Dataset:
    """Drop a random share `dropped` of every user's training interactions.

    A user keeps at least LEAST_LEFT of them, or all if there are fewer. Rows get new numbers, by
    the training popularity of what is kept.
    """
    train = dataset.split.train
    lengths = train.lengths()
    left = np.maximum(np.minimum(lengths, LEAST_LEFT), lengths - np.rint(dropped * lengths))
    left = left.astype(np.int64)
    users = train.users_of_interactions()
    priority = np.random.default_rng(seed).random(train.num_interactions)
    order = np.lexsort((priority, users))  # by user, and in random order for each user
    place = np.arange(len(order)) - train.indptr[users]
    kept = np.zeros(len(order), dtype=bool)
    kept[order[place < left[users]]] = True

    split = dataset.split
    in_train = np.zeros(split.everything.num_interactions, dtype=bool)
    begins = np.repeat(split.everything.indptr[:-1] - train.indptr[:-1], lengths)
    in_train[begins + np.arange(train.num_interactions)] = True
    kept_of_all = ~in_train
    kept_of_all[in_train] = kept
    everything = split.everything.only(kept_of_all)
    later = split.before_test.lengths() - lengths
    thinned = replace(  # the windows have whole histories
        split_at(everything, left, left + later),
        validation=split.validation,
        test=split.test,
        name=split.name,
        sentence=split.sentence,
    )
    return replace(dataset, split=thinned).reordered(thinned.train.popular_first())
