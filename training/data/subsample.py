"""Removes training interactions at random: how much recall does a model keep on sparser data?

Only training interactions are removed. The histories at validation and test and the catalogue stay
whole. All models get the same draw. What a stronger thinning keeps is a subset of what a weaker one
keeps. Knows no model.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from training.data.interactions import Dataset, Split, Windows

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

    popularity = np.bincount(train.rows[kept], minlength=train.num_items)
    old_rows = sorted(
        range(train.num_items), key=lambda row: (-popularity[row], train.item_ids[row])
    )
    new_row_of = np.empty(train.num_items, dtype=np.int32)
    new_row_of[old_rows] = np.arange(train.num_items, dtype=np.int32)

    def renumbered(windows: Windows) -> Windows:
        return replace(windows, rows=new_row_of[windows.rows])

    kept_train = replace(
        train,
        item_ids=tuple(train.item_ids[row] for row in old_rows),
        indptr=np.concatenate([[0], np.cumsum(left)]).astype(np.int64),
        rows=new_row_of[train.rows[kept]],
    )
    validation, test = renumbered(dataset.split.validation), renumbered(dataset.split.test)
    before_test = kept_train.with_targets(validation)
    return replace(
        dataset,
        split=Split(
            train=kept_train,
            before_test=before_test,
            everything=before_test.with_targets(test),
            validation=validation,
            test=test,
        ),
        items=tuple(dataset.items[row] for row in old_rows),
        embeddings=None if dataset.embeddings is None else dataset.embeddings[old_rows],
    )
