"""Interactions, the only input of training: reading, k-core filter and split.

Turns files into arrays: users' histories and a split of them, items and content embeddings by row.
The order of the rows is decided here: by training popularity (most first), then by `item_id`. Only
a bundle that has counted more orders its rows anew. Knows nothing of vectors, codes or models.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from service.bundles import Item
from training.config import InteractionsConfig, ItemsConfig
from training.data.files.columns import ranked
from training.data.files.item_files import read_items
from training.data.files.log_files import read_log
from training.data.files.table import shown
from training.data.files.table_files import find_file, unused_files
from training.data.files.vectors import find_vectors, read_vectors
from training.data.repeats import Repeats, without_repeats
from training.data.splits import (
    Interactions,
    Split,
    Windows,
    indptr_of,
    leave_last_out,
    split_by_time,
)
from training.errors import DataError


@dataclass(frozen=True, eq=False)
class Dataset:
    """All input of training, by catalogue row (training popularity, most first; then item_id).

    split:      train, validation, test
    items:      num_items items, by row
    embeddings: (num_items, d) float32 content embeddings, zeros for an item without one; or None
    texts:      num_items texts that are embedded behind title and categories, by row; empty = none
    warnings:   sentences for the person who started the run, about what may be a mistake
    notes:      sentences about how the files were read
    """

    split: Split
    items: tuple[Item, ...]
    embeddings: NDArray[np.float32] | None
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    def reordered(self, order: NDArray[np.intp]) -> Dataset:
        """The same with new row numbers: row i is what row `order[i]` was."""
        return replace(
            self,
            split=self.split.reordered(order),
            items=tuple(self.items[row] for row in order),
            embeddings=None if self.embeddings is None else self.embeddings[order],
            texts=tuple(self.texts[row] for row in order) if self.texts else (),
        )


def read_interactions(
    path: Path,
    config: InteractionsConfig = InteractionsConfig(),  # noqa: B008 (immutable)
    notes: list[str] | None = None,
    warnings: list[str] | None = None,
) -> Interactions:
    """Read a file of interactions (see training.data.files.log_files).

    Users and items are ordered by id. Repeats are left out if `config.collapse_repeats` is true. If
    there are repeats, `notes` gets a sentence about them.
    """
    notes = [] if notes is None else notes
    frame = read_log(path, config, notes, warnings)  # with times if the split needs them
    frame, repeats = counted_once(frame, config)
    if said := repeats.said(collapsed=config.collapse_repeats):
        notes.append(f"{path.name}: {said}")
    return as_arrays(frame)


def counted_once(frame: pl.DataFrame, config: InteractionsConfig) -> tuple[pl.DataFrame, Repeats]:
    """The log without repeats, if `config.collapse_repeats` says so, and how many there are."""
    collapsed, repeats = without_repeats(frame)
    return (collapsed if config.collapse_repeats else frame), repeats


def as_arrays(frame: pl.DataFrame) -> Interactions:
    """An ordered log (see training.data.files.log_files) as arrays."""
    users = frame["user_id"].rle().struct.unnest()
    item_ids, rows = ranked(frame["item_id"])
    return Interactions(
        user_ids=tuple(users["value"].cast(pl.String)),
        item_ids=tuple(item_ids),
        indptr=indptr_of(users["len"].to_numpy()),
        rows=rows.view(np.int32),
        **{
            field: frame[name].to_numpy() if name in frame.columns else None
            for field, name in (("times", "time"), ("weights", "weight"), ("targets", "is_target"))
        },
    )


def k_core(interactions: Interactions, core: int) -> Interactions:
    """Drop users and items with fewer than `core` interactions, again and again until none is left.

    A repeat counts as an interaction. Dropped users and items are no longer in `user_ids` and
    `item_ids`. Raises DataError if nothing is left.
    """
    users, rows = interactions.users_of_interactions(), interactions.rows
    places = np.arange(len(rows))
    while True:
        by_user = np.bincount(users, minlength=interactions.num_users)
        by_item = np.bincount(rows, minlength=interactions.num_items)
        keep = (by_user[users] >= core) & (by_item[rows] >= core)
        if keep.all():
            break
        users, rows, places = users[keep], rows[keep], places[keep]
    if not len(rows):
        raise DataError(f"no interaction is left by core = {core}; choose a smaller core")
    kept_users, kept_items = np.flatnonzero(by_user), np.flatnonzero(by_item)
    return Interactions(
        user_ids=tuple(interactions.user_ids[user] for user in kept_users),
        item_ids=tuple(interactions.item_ids[row] for row in kept_items),
        indptr=indptr_of(by_user[kept_users]),
        rows=np.searchsorted(kept_items, rows).astype(np.int32),
        **interactions.told(places),
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
    `.jsonl`, ..., or RecBole's `.inter` and `.item`), with `item_embeddings*.npy`, whose row k
    belongs to row k of the items file. A path given as an argument wins over the file of the
    folder. If the items come from elsewhere, the embeddings of the folder are not used. Items
    without an interaction are kept if the items file has them and `config.cold_items` is true.
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

    log = read_interactions(interactions, config, notes, warnings)
    listed_texts: list[str] = []
    listed = read_items(items, items_config, notes, warnings, listed_texts) if items else ()
    if items_config.text_columns and (embeddings or not items):
        lacks = f"the embeddings of {embeddings} are taken" if embeddings else "no items are given"
        warnings.append(f"items.text_columns is not used, because {lacks}")
        listed_texts = []
    line_of = {item.item_id: line for line, item in enumerate(listed)}
    if items:
        check_same_ids(items, line_of, interactions, log.item_ids)
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

    log = replace(log, item_ids=(*log.item_ids, *cold))
    split = held_out(log, config, interactions, notes)
    split = split.reordered(split.train.popular_first())
    log = split.everything
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
        texts=tuple(listed_texts[line] if line >= 0 else "" for line in lines)
        if items_config.text_columns and listed_texts
        else (),
    )


def held_out(log: Interactions, config: InteractionsConfig, path: Path, notes: list[str]) -> Split:
    """The split that the configuration asks for.

    Raises DataError that names the file if nothing can be held out, or nothing is left to learn.
    """
    if config.split == "time":
        split = split_by_time(log, config.test_share, config.validation_share)
        notes.append(f"split {split.sentence}")
        if not len(split.test) or not len(split.validation):
            raise DataError(
                f"{path}: split {split.sentence}; so there is nobody to test or validate "
                "with: choose other interactions.test_share and interactions.validation_share"
            )
    else:
        split = leave_last_out(log)
        if log.targets is None and not len(split.test):
            raise DataError(f"{path}: no user has three interactions, so none can be held out")
        if log.targets is not None:
            notes.append(f"split {split.sentence}")
            if not len(split.validation):
                raise DataError(
                    f"{path}: no user has two interactions of {' or '.join(config.targets)} with "
                    "something before them, so none can be held out for validation; name more "
                    "event types in interactions.targets, or say interactions.split=time"
                )
    if log.targets is not None and (had := had_before(log, split.test)):
        notes.append(
            f"of {len(split.test):,} test users, {had:,} had the target before, perhaps as an "
            "event of another type: as the service leaves out what a user has had, nothing finds "
            "these; with exclude_seen=false in requests it would, which "
            "evaluation.exclude_seen=false measures"
        )
    if not split.train.num_windows:
        raise DataError(
            f"{path}: nothing is left to train on, because no user has two items after "
            "those of validation and test are held out; give longer histories"
        )
    return split


def had_before(log: Interactions, windows: Windows) -> int:
    """Of how many windows the history holds the target already."""
    pairs = log.users_of_interactions().astype(np.int64) * log.num_items + log.rows
    _, firsts, which = np.unique(pairs, return_index=True, return_inverse=True)
    return int((firsts[which[windows.ends]] < windows.ends).sum())


def check_same_ids(
    items: Path, listed: Mapping[str, int], interactions: Path, logged: Sequence[str]
) -> None:
    """Refuse files that have no item in common, and an item whose id each writes in its own way.

    listed, logged: ids of the two files
    """
    if not listed.keys() & set(logged):
        raise DataError(
            f"{items} has none of the items of {interactions}: it writes "
            f"{shown(next(iter(listed)))} where the other writes {shown(logged[0])}; write the same"
            " ids in both"
        )
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
