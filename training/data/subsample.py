"""Data sets with less in them: fewer training interactions, or some items missing altogether.

`thin` removes training interactions at random: how much recall does a model keep on sparser data?
The histories at validation and test and the catalogue stay whole. All models get the same draw.
What a stronger thinning keeps is a subset of what a weaker one keeps. `without_items` removes items
with all their interactions: nothing that is fitted can know them. Knows no model.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from training.data.interactions import Dataset
from training.data.splits import Interactions, Windows, split_at
from training.errors import DataError

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


def without_items(dataset: Dataset, removed: NDArray[np.int32]) -> Dataset:
    """The data set of a shop that has never had these items. removed: their rows

    They are missing in the catalogue and in every history. A window of validation or test is left
    out if its target is one of them, or if nothing is left of its history. The split stays where it
    was: what was held out is not trained on. Users keep their numbers, also those without any item.
    Later rows move up, which keeps them ordered by training popularity.
    Raises DataError when nothing is left to train on, or to hold out.
    """
    there = np.ones(dataset.split.train.num_items, dtype=bool)
    there[removed] = False
    kept_rows = np.flatnonzero(there)
    new_row_of = (np.cumsum(there) - 1).astype(np.int32)

    def of_log(log: Interactions) -> Interactions:
        left = log.only(there[log.rows])
        item_ids = tuple(log.item_ids[row] for row in kept_rows)
        return replace(left, item_ids=item_ids, rows=new_row_of[left.rows])

    def of_windows(windows: Windows) -> Windows:
        kept = there[windows.rows]
        places = _kept_before(kept)
        starts, ends = places[windows.starts], places[windows.ends]
        stays = there[windows.targets] & (ends > starts)
        rows = new_row_of[windows.rows[kept]]
        return Windows(rows, windows.users[stays], starts[stays], ends[stays])

    split = dataset.split
    left = replace(
        split,
        train=of_log(split.train),
        before_test=of_log(split.before_test),
        everything=of_log(split.everything),
        validation=of_windows(split.validation),
        test=of_windows(split.test),
    )
    if not (left.train.num_windows and len(left.validation) and len(left.test)):
        raise DataError(
            f"without {len(removed):,} of {len(there):,} items too few interactions are left to "
            "train on, to validate and to test; give more data"
        )
    return replace(
        dataset,
        split=left,
        items=tuple(dataset.items[row] for row in kept_rows),
        embeddings=None if dataset.embeddings is None else dataset.embeddings[kept_rows],
        texts=tuple(dataset.texts[row] for row in kept_rows) if dataset.texts else (),
    )


def _kept_before(kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(n + 1,) int64: how many places before each place are kept."""
    return np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
