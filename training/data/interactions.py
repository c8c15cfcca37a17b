"""Interactions, the only input of training: reading, k-core filter and split.

Turns files into arrays: users' histories in CSR form over catalogue rows, a leave-last-out split,
items and content embeddings by row. The order of the rows is decided here and nowhere else: by
training popularity (most first), then by `item_id`. Knows nothing of vectors, codes or models.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.bundles import HISTORY_CAP, Item
from training.config import InteractionsConfig, ItemsConfig
from training.data.files.item_files import read_items
from training.data.files.log_files import read_log
from training.data.files.table import shown
from training.data.files.table_files import find_file, unused_files
from training.data.files.vectors import find_vectors, read_vectors
from training.data.repeats import without_repeats
from training.errors import DataError


@dataclass(frozen=True, eq=False)
class Windows:
    """Samples of a log: after the history `rows[starts[i]:ends[i]]` comes `rows[ends[i]]`.

    Only the newest HISTORY_CAP items of a history are used, because the service keeps no more.

    rows:   (num_interactions,) int32, the rows of the Interactions (not a copy)
    users:  (num_windows,) int32, index of the user of each window
    starts: (num_windows,) int64, first interaction of that user
    ends:   (num_windows,) int64, the interaction to predict
    """

    rows: NDArray[np.int32]
    users: NDArray[np.int32]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def targets(self) -> NDArray[np.int32]:
        """(num_windows,) int32: the row to predict for each window."""
        return self.rows[self.ends]

    def history_of(self, window: int) -> NDArray[np.int32]:
        """The newest rows before the target, oldest to newest; a view, never empty."""
        end = self.ends[window]
        return self.rows[max(self.starts[window], end - HISTORY_CAP) : end]

    def chosen(self, places: NDArray[np.integer] | NDArray[np.bool_]) -> Windows:
        """Some of the windows. places: their indices, or (num_windows,) bool"""
        return Windows(self.rows, self.users[places], self.starts[places], self.ends[places])


@dataclass(frozen=True, eq=False)
class Interactions:
    """Users' items in CSR form. A history may hold an item twice.

    user_ids: num_users distinct strings
    item_ids: num_items distinct strings, by row
    indptr:   (num_users + 1,) int64, the rows of user u are rows[indptr[u]:indptr[u + 1]]
    rows:     (num_interactions,) int32, each user's items, oldest to newest
    Raises DataError if the arrays do not fit together.
    """

    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    indptr: NDArray[np.int64]
    rows: NDArray[np.int32]

    def __post_init__(self) -> None:
        if len(self.indptr) != len(self.user_ids) + 1 or self.indptr[0] != 0:
            raise DataError("indptr must start at 0 and have one entry more than there are users")
        if np.any(np.diff(self.indptr) < 0) or self.indptr[-1] != len(self.rows):
            raise DataError("indptr must never decrease and must end at the number of interactions")
        if len(self.rows) and not 0 <= self.rows.min() <= self.rows.max() < len(self.item_ids):
            raise DataError("every row must be at least 0 and below the number of items")

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    @property
    def num_interactions(self) -> int:
        return len(self.rows)

    def history_of(self, user: int) -> NDArray[np.int32]:
        """Rows of a user, given by index, oldest to newest; a view."""
        return self.rows[self.indptr[user] : self.indptr[user + 1]]

    def lengths(self) -> NDArray[np.int64]:
        """(num_users,) int64: interactions of each user."""
        return np.diff(self.indptr)

    def popularity(self) -> NDArray[np.int64]:
        """(num_items,) int64: interactions of each row."""
        return np.bincount(self.rows, minlength=self.num_items).astype(np.int64)

    def users_of_interactions(self) -> NDArray[np.int32]:
        """(num_interactions,) int32: index of the user of each interaction."""
        return np.repeat(np.arange(self.num_users, dtype=np.int32), self.lengths())

    def with_targets(self, windows: Windows) -> Interactions:
        """Each window's target behind the history of its user; at most one window a user."""
        added = np.zeros(self.num_users, dtype=np.int64)
        added[windows.users] = 1
        rows = np.insert(self.rows, self.indptr[windows.users + 1], windows.targets)
        return replace(self, indptr=self.indptr + _indptr(added), rows=rows)

    def windows(self) -> Windows:
        """Training samples: every prefix of at least one item predicts the next item.

        a history  A B C D  gives  A -> B,  A B -> C,  A B C -> D
        """
        users = self.users_of_interactions()
        starts = self.indptr[users]
        ends = np.flatnonzero(np.arange(self.num_interactions) > starts).astype(np.int64)
        return Windows(self.rows, users[ends], starts[ends], ends)


@dataclass(frozen=True, eq=False)
class Split:
    """Leave-last-out: a user's last item is for the test, the item before it for validation.

        interactions   A B C D E         a user with >= 3 interactions
        train          A B C             windows: A -> B, A B -> C
        validation     A B C   -> D
        test           A B C D -> E      the history at test holds the validation item

    Users with fewer than three interactions are only in `train`.

    train:       the same users and items as the log that was split
    before_test: all that is known at the test: `train` and what validation held out
    everything:  the whole log: what is known when the bundle is shipped
    validation:  one window per user with >= 3 interactions, in user order
    test:        the same users in the same order
    """

    train: Interactions
    before_test: Interactions
    everything: Interactions
    validation: Windows
    test: Windows


@dataclass(frozen=True, eq=False)
class Dataset:
    """All input of training, by catalogue row (training popularity, most first; then item_id).

    split:      train, validation, test
    items:      num_items items, by row
    embeddings: (num_items, d) float32 content embeddings, zeros for an item without one; or None
    warnings:   sentences for the person who started the run, about what may be a mistake
    notes:      sentences about how the files were read
    """

    split: Split
    items: tuple[Item, ...]
    embeddings: NDArray[np.float32] | None
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_interactions(
    path: Path,
    config: InteractionsConfig = InteractionsConfig(),  # noqa: B008 (immutable)
    notes: list[str] | None = None,
) -> Interactions:
    """Read a file of interactions (see training.data.files.log_files).

    Users and items are ordered by id. Repeats are left out if `config.collapse_repeats` is true. If
    there are repeats, `notes` gets a sentence about them.
    """
    notes = [] if notes is None else notes
    frame = read_log(path, config, notes)
    collapsed, repeats = without_repeats(frame)
    if said := repeats.said(collapsed=config.collapse_repeats):
        notes.append(f"{path.name}: {said}")
    if config.collapse_repeats:
        frame = collapsed
    by_user = frame.group_by("user_id", maintain_order=True).len()
    item_ids = frame["item_id"].unique().sort()
    return Interactions(
        user_ids=tuple(by_user["user_id"]),
        item_ids=tuple(item_ids),
        indptr=_indptr(by_user["len"].to_numpy()),
        rows=item_ids.search_sorted(frame["item_id"]).to_numpy().astype(np.int32),
    )


def k_core(interactions: Interactions, core: int) -> Interactions:
    """Drop users and items with fewer than `core` interactions, again and again until none is left.

    A repeat counts as an interaction. Dropped users and items are no longer in `user_ids` and
    `item_ids`. Raises DataError if nothing is left.
    """
    users, rows = interactions.users_of_interactions(), interactions.rows
    while True:
        by_user = np.bincount(users, minlength=interactions.num_users)
        by_item = np.bincount(rows, minlength=interactions.num_items)
        keep = (by_user[users] >= core) & (by_item[rows] >= core)
        if keep.all():
            break
        users, rows = users[keep], rows[keep]
    if not len(rows):
        raise DataError(f"no interaction is left by core = {core}; choose a smaller core")
    kept_users, kept_items = np.flatnonzero(by_user), np.flatnonzero(by_item)
    return Interactions(
        user_ids=tuple(interactions.user_ids[user] for user in kept_users),
        item_ids=tuple(interactions.item_ids[row] for row in kept_items),
        indptr=_indptr(by_user[kept_users]),
        rows=np.searchsorted(kept_items, rows).astype(np.int32),
    )


def leave_last_out(interactions: Interactions) -> Split:
    """Split off the last two items of every user who has at least three (see Split)."""
    lengths = interactions.lengths()
    users = np.flatnonzero(lengths >= 3).astype(np.int32)
    starts, stops = interactions.indptr[users], interactions.indptr[users + 1]
    in_train = np.ones(interactions.num_interactions, dtype=bool)
    in_train[stops - 1] = in_train[stops - 2] = False
    train_lengths = np.where(lengths >= 3, lengths - 2, lengths)
    rows = interactions.rows
    train = replace(interactions, indptr=_indptr(train_lengths), rows=rows[in_train])
    validation = Windows(rows, users, starts, stops - 2)
    return Split(
        train=train,
        before_test=train.with_targets(validation),
        everything=interactions,
        validation=validation,
        test=Windows(rows, users, starts, stops - 1),
    )


def load_dataset(
    data_dir: Path | None = None,
    interactions: Path | None = None,
    items: Path | None = None,
    embeddings: Path | None = None,
    config: InteractionsConfig = InteractionsConfig(),  # noqa: B008 (immutable)
    items_config: ItemsConfig = ItemsConfig(),  # noqa: B008 (immutable)
) -> Dataset:
    """Read, filter, split and order everything that training needs.

    data_dir holds one `interactions` file and optionally one `items` file (`.parquet`, `.csv`,
    `.jsonl`, ...) with `item_embeddings*.npy`, whose row k belongs to row k of the items file. A
    path given as an argument wins over the file of the folder. If the items come from elsewhere,
    the embeddings of the folder are not used. Items without an interaction are kept if the items
    file has them and `config.cold_items` is true.
    Raises DataError with a sentence that names the file and says what is wrong with it.
    """
    warnings: list[str] = []
    notes: list[str] = []
    if data_dir is not None:
        interactions = interactions or find_file(data_dir, "interactions")
        found, unread = find_vectors(data_dir) if embeddings is None else (None, None)
        warnings.extend(unused_files(data_dir))
        if unread:
            warnings.append(unread)
        if items is None:
            items = find_file(data_dir, "items")
            embeddings = embeddings or (found if items else None)
            if found and not items:
                warnings.append(f"{found} is not used, because {data_dir} has no items file")
        elif found:
            warnings.append(f"{found} is not used, because the items come from {items}")
    if interactions is None:
        where = f"{data_dir} has no interactions.parquet or .csv" if data_dir else "no data given"
        if data_dir is not None and not data_dir.is_dir():
            where = f"there is no folder {data_dir}"
        raise DataError(f"{where}; name a data folder or an interactions file")
    if embeddings is not None and items is None:
        raise DataError(f"{embeddings} needs an items file that says which row is which item")

    log = read_interactions(interactions, config, notes)
    listed = read_items(items, items_config, notes, warnings) if items else ()
    line_of = {item.item_id: line for line, item in enumerate(listed)}
    if items and not line_of.keys() & set(log.item_ids):
        raise DataError(
            f"{items} has none of the items of {interactions}: it writes {shown(listed[0].item_id)}"
            f" where the other writes {shown(log.item_ids[0])}; write the same ids in both"
        )
    if items:
        _check_spellings(items, line_of.keys(), interactions, log.item_ids)
    if config.core:
        log = k_core(log, config.core)
    unlisted = [item_id for item_id in log.item_ids if item_id not in line_of]
    if items and unlisted:
        warnings.append(
            f"items with interactions that {items.name} lacks: {len(unlisted):,} of "
            f"{log.num_items:,}, for instance {shown(unlisted[0])}; they are kept without title, "
            "categories and content embedding"
        )
    cold = sorted(line_of.keys() - set(log.item_ids)) if config.cold_items else []
    if cold:
        warnings.append(
            f"items without any interaction, kept in the catalogue: {len(cold):,}; "
            "interactions.cold_items=false leaves them out"
        )

    log = _order_by_training_popularity(replace(log, item_ids=(*log.item_ids, *cold)))
    split = leave_last_out(log)
    if not len(split.test):
        raise DataError(f"{interactions}: no user has three interactions, so none can be held out")
    if not len(split.train.windows()):
        raise DataError(
            f"{interactions}: nothing is left to train on, because no user has two items after the "
            "last two of users with three or more are held out; give longer histories"
        )
    lines = np.array([line_of.get(item_id, -1) for item_id in log.item_ids], dtype=np.int64)
    vectors = read_vectors(embeddings, len(listed), lines) if embeddings else None
    if vectors is not None and (without := (~vectors.any(axis=1) & (lines >= 0)).sum()):
        warnings.append(
            f"{embeddings}: items whose vector is all zeros: {without:,} of {len(listed):,}; they "
            "count as items without content embedding"
        )
    return Dataset(
        split=split,
        items=tuple(
            listed[line] if line >= 0 else Item(item_id, "", ())
            for item_id, line in zip(log.item_ids, lines, strict=True)
        ),
        embeddings=vectors,
        warnings=tuple(warnings),
        notes=tuple(notes),
    )


def _check_spellings(
    items: Path, listed: Collection[str], interactions: Path, logged: Collection[str]
) -> None:
    """Refuse an item whose id each of the two files writes in its own way."""
    only_listed = {_plain_id(each): each for each in set(listed).difference(logged)}
    for item_id in logged:
        if item_id not in listed and (other := only_listed.get(_plain_id(item_id))):
            raise DataError(
                f"{items} writes {shown(other)} where {interactions} writes {shown(item_id)}; write"
                " the same ids in both, or, if these are two items, give each a line in the items "
                "file"
            )


def _plain_id(item_id: str) -> str:
    """What is left of an id without what programs add and take away on the way."""
    visible = "".join(letter for letter in item_id if letter.isprintable())
    plain = unicodedata.normalize("NFC", visible).casefold().removesuffix(".0")
    return plain.lstrip("0") or "0"


def _order_by_training_popularity(log: Interactions) -> Interactions:
    """The same log with new row numbers. Only this function decides the order of the catalogue."""
    popularity = leave_last_out(log).train.popularity()
    order = sorted(range(log.num_items), key=lambda row: (-popularity[row], log.item_ids[row]))
    new_row_of = np.empty(log.num_items, dtype=np.int32)
    new_row_of[order] = np.arange(log.num_items, dtype=np.int32)
    item_ids = tuple(log.item_ids[row] for row in order)
    return replace(log, item_ids=item_ids, rows=new_row_of[log.rows])


def _indptr(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
