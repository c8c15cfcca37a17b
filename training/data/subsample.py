"""Removes training interactions at random: how much recall does a model keep on sparser data?

Only training interactions are removed. The histories at validation and test and the catalogue stay
whole. All models get the same draw. What a stronger thinning keeps is a subset of what a weaker one
keeps. Knows no model.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from training.data.interactions import Dataset, split_at

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
    lengths = split.everything.lengths()
    in_train = np.arange(split.everything.num_interactions) - np.repeat(
        split.everything.indptr[:-1], lengths
    ) < np.repeat(train.lengths(), lengths)
    kept_of_all = np.ones(len(in_train), dtype=bool)
    kept_of_all[in_train] = kept
    everything = replace(
        split.everything,
        indptr=np.concatenate([[0], np.cumsum(lengths - train.lengths() + left)]),
        rows=split.everything.rows[kept_of_all],
    )
    thinned = split_at(everything, left, split.before_test.lengths() - train.lengths() + left)
    thinned = replace(thinned, validation=split.validation, test=split.test)  # whole histories
    return replace(dataset, split=thinned).reordered(thinned.train.popular_first())
