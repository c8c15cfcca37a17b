"""Users' histories as arrays, and what of them is learnt, validated and tested.

The log is in CSR form over catalogue rows. A split says for each user how many of the oldest
interactions are known when. Knows no file and no item but its row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.bundles import HISTORY_CAP
from training.errors import DataError

SplitName = Literal["leave_last_out", "time"]


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

    def reordered(self, order: NDArray[np.intp]) -> Windows:
        """The same with new row numbers: row i is what row `order[i]` was."""
        return replace(self, rows=_inverse(order)[self.rows])


@dataclass(frozen=True, eq=False)
class Interactions:
    """Users' items in CSR form. A history may hold an item twice.

    user_ids: num_users distinct strings
    item_ids: num_items distinct strings, by row
    indptr:   (num_users + 1,) int64, the rows of user u are rows[indptr[u]:indptr[u + 1]]
    rows:     (num_interactions,) int32, each user's items, oldest to newest
    times:    (num_interactions,) when they happened, as values that can be compared; None = unknown
    weights:  (num_interactions,) float32, what each counts where pairs of items are counted; None =
              alike
    targets:  (num_interactions,) bool, which may be held out; None = all
    Raises DataError if the arrays do not fit together.
    """

    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    indptr: NDArray[np.int64]
    rows: NDArray[np.int32]
    times: NDArray[Any] | None = None
    weights: NDArray[np.float32] | None = None
    targets: NDArray[np.bool_] | None = None

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

    def oldest(self, lengths: NDArray[np.int64]) -> Interactions:
        """The oldest interactions of each user, as many as `lengths`, (num_users,), says."""
        begins = self.indptr[:-1]
        steps = np.zeros(self.num_interactions + 1, np.int8)
        np.add.at(steps, begins, 1)
        np.add.at(steps, begins + lengths, -1)
        kept = steps.cumsum(dtype=np.int8)[:-1].astype(np.bool_)
        return replace(self, indptr=indptr_of(lengths), rows=self.rows[kept], **self.told(kept))

    def only(self, kept: NDArray[np.bool_]) -> Interactions:
        """Some of the interactions; kept: (num_interactions,). All users and items stay."""
        users = self.users_of_interactions()[kept]
        return replace(
            self,
            indptr=indptr_of(np.bincount(users, minlength=self.num_users)),
            rows=self.rows[kept],
            **self.told(kept),
        )

    def told(self, places: NDArray[np.integer] | NDArray[np.bool_]) -> dict[str, Any]:
        """What is known of some interactions beside user and item, for `replace`."""
        arrays = {"times": self.times, "weights": self.weights, "targets": self.targets}
        return {name: None if each is None else each[places] for name, each in arrays.items()}

    def reordered(self, order: NDArray[np.intp]) -> Interactions:
        """The same with new row numbers: row i is what row `order[i]` was."""
        item_ids = tuple(self.item_ids[row] for row in order)
        return replace(self, item_ids=item_ids, rows=_inverse(order)[self.rows])

    def popular_first(self) -> NDArray[np.intp]:
        """(num_items,): the rows by popularity, most first, then by item_id."""
        popularity = self.popularity()
        return np.array(
            sorted(range(self.num_items), key=lambda row: (-popularity[row], self.item_ids[row]))
        )

    @property
    def num_windows(self) -> int:
        """How many `windows` there are."""
        return int(np.maximum(self.lengths() - 1, 0).sum())

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
    """What is learnt, what choices are made by, and what is measured.

        interactions   A B C D E         leave-last-out, a user with >= 3 interactions
        train          A B C             windows: A -> B, A B -> C
        validation     A B C   -> D
        test           A B C D -> E      the history at test holds the validation item

        interactions   A B | C D | E F   by time, | = a period of the whole log begins
        train          A B               windows: A -> B
        validation     A B     -> C
        test           A B C D -> E

    Leave-last-out: users with fewer than three interactions are only in `train`. By time: a user
    has a window in a period if there is an interaction in it, and one before it.

        interactions   a b C d E f       where only some may be held out (capital letters)
        train          a b
        validation     a b     -> C
        test           a b C d -> E      f is known to what ships only

    A user with one such interaction has it for the test. By time: the first such of the period is
    predicted from all before it, be it in the period or not.

    train:       the same users and items as the log that was split
    before_test: all that is known at the test
    everything:  the whole log: what is known when the bundle is shipped
    validation, test: at most one window a user, in user order
    name, sentence: which split this is, for reports
    """

    train: Interactions
    before_test: Interactions
    everything: Interactions
    validation: Windows
    test: Windows
    name: SplitName = "leave_last_out"
    sentence: str = (
        "leave-last-out: a user's last item is the target, the last but one is for validation"
    )

    def reordered(self, order: NDArray[np.intp]) -> Split:
        """The same with new row numbers: row i is what row `order[i]` was."""
        return replace(
            self,
            train=self.train.reordered(order),
            before_test=self.before_test.reordered(order),
            everything=self.everything.reordered(order),
            validation=self.validation.reordered(order),
            test=self.test.reordered(order),
        )


def leave_last_out(interactions: Interactions) -> Split:
    """Split off the last two items of every user who has at least three (see Split).

    Where only some may be held out: the last two of these that have something before them.
    """
    lengths = interactions.lengths()
    if interactions.targets is None:
        has_three = lengths >= 3
        return split_at(interactions, lengths - 2 * has_three, lengths - has_three)
    places = np.flatnonzero(interactions.targets)
    users = interactions.users_of_interactions()[places]
    within = places - interactions.indptr[users]
    users, within = users[within > 0], within[within > 0]
    of_user = np.bincount(users, minlength=interactions.num_users)
    last = np.cumsum(of_user) - 1
    before_test, in_train = lengths.copy(), lengths.copy()
    before_test[of_user > 0] = within[last[of_user > 0]]
    in_train[of_user > 0] = within[last[of_user > 0] - (of_user[of_user > 0] > 1)]
    split = split_at(interactions, in_train, before_test)
    without = interactions.num_users - len(split.test)
    return replace(
        split,
        sentence="leave-last-out: a user's last item of an event type that interactions.targets "
        "names is the target, the one of these before is for validation; "
        f"{without:,} of {interactions.num_users:,} users have none with something before it",
    )


def split_by_time(interactions: Interactions, test: float, validation: float) -> Split:
    """Hold out the newest interactions of all users: `test` and `validation` are shares of all.

    All that happened at one time is on the same side, in the later period, so a period may hold
    more than its share. Raises DataError when there is nothing left of a period.
    """
    times = interactions.times
    assert times is not None  # read with such a configuration
    ordered = np.sort(times)
    test_from, validation_from = (
        ordered[int((1 - share) * len(ordered))] for share in (test, test + validation)
    )
    first, second = _shown(validation_from), _shown(test_from)
    if not ordered[0] < validation_from < test_from:
        raise DataError(
            "interactions.split=time: too many interactions have the same time, so a period of "
            f"training, validation (from {first}) or test (from {second}) is empty; "
            "choose other interactions.test_share and interactions.validation_share, or "
            "interactions.split=leave_last_out"
        )
    users = interactions.users_of_interactions()
    in_train, before_test = (
        np.bincount(users[times < start], minlength=interactions.num_users)
        for start in (validation_from, test_from)
    )
    split = split_at(interactions, in_train, before_test)
    without = interactions.num_users - len(split.test)
    item = "item" if interactions.targets is None else "item of interactions.targets"
    return replace(
        split,
        name="time",
        sentence=f"by time: a user's first {item} from {second} on is the target, the first from "
        f"{first} until then is for validation; {without:,} of "
        f"{interactions.num_users:,} users have no target, because they have nothing from then on "
        "or nothing before it",
    )


def split_at(
    interactions: Interactions, in_train: NDArray[np.int64], before_test: NDArray[np.int64]
) -> Split:
    """A split by how many of each user's oldest interactions are known when, (num_users,) each.

    A user has a window where there is something in its period that may be held out, and something
    before that: validation from `in_train` to `before_test`, test from there to the end.
    """
    starts = interactions.indptr[:-1]
    may = interactions.targets

    def windows(known: NDArray[np.int64], until: NDArray[np.int64]) -> Windows:
        ends = starts + known
        if may is not None:  # the first from there on that may be held out
            places = np.where(may, np.arange(len(may)), len(may))
            following = np.append(np.minimum.accumulate(places[::-1])[::-1], len(may))
            ends = following[ends]
        users = np.flatnonzero((ends > starts) & (ends < starts + until)).astype(np.int32)
        return Windows(interactions.rows, users, starts[users], ends[users])

    return Split(
        train=interactions.oldest(in_train),
        before_test=interactions.oldest(before_test),
        everything=interactions,
        validation=windows(in_train, before_test),
        test=windows(before_test, interactions.lengths()),
    )


def _inverse(order: NDArray[np.intp]) -> NDArray[np.int32]:
    new_row_of = np.empty(len(order), dtype=np.int32)
    new_row_of[order] = np.arange(len(order), dtype=np.int32)
    return new_row_of


def _shown(time: Any) -> str:
    if isinstance(time, np.datetime64):
        return np.datetime_as_string(time, "s").removesuffix("T00:00:00")
    return str(time)


def indptr_of(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
