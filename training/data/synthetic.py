"""A synthetic world: a catalogue and users whose next item has a known distribution.

Every user has a *bookmark*, an item that moves over the catalogue as a Markov chain: mostly to the
next item of its line (a series or a set), sometimes to another line of the topic, now and then to a
neighbouring topic. With probability `noise` a step is an impulse: it shows an item drawn by
popularity, and the bookmark stays. Else the bookmark moves and is shown. Popularity is the
stationary distribution of the chain, the same at every `noise`. At noise = 1 a history says nothing
about the next item. `World.best_recall` is exactly the best recall of any model. Knows no models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from service.bundles import Item
from training.data.splits import Interactions
from training.data.synthetic_titles import LINE_LENGTHS, TOPICS, titles_of_lines
from training.errors import ConfigError

NEXT, SKIP, DRIFT = 0.65, 0.10, 0.10
"""Probabilities of the bookmark's next place: the next item of the line, the item after that, a
neighbouring topic. The rest, 0.15 or more at the end of a line, goes to other lines of the topic.
"""

LINE_DECAY = 0.4
"""For a bookmark from another line: the weight of an item divided by that of the item before it."""

MIN_ITEMS, MAX_ITEMS = 60, 3000  # the transition matrix is dense
ITEMS_PER_TOPIC = 24
HISTORY_LENGTHS = (5, 40)
MEAN_HISTORY_LENGTH = 14
DAY = 86_400
FIRST_DAY = 1_700_006_400  # Unix seconds of a midnight


@dataclass(frozen=True, eq=False)
class World:
    """Users and items, and the distributions they were drawn from.

    items:        num_items items in the order of the rows below
    interactions: rows are indices into `items`; the last item of a user is the test item
    transitions:  (num_items, num_items) float64, probabilities of the bookmark's next place; each
                  row sums to 1
    popularity:   (num_items,) float64, stationary distribution of `transitions`, sums to 1
    noise:        probability of an impulse
    """

    items: tuple[Item, ...]
    interactions: Interactions
    transitions: NDArray[np.float64]
    popularity: NDArray[np.float64]
    noise: float

    def best_recall(self, k: int) -> float:
        """Expected recall@k on the test items of the best model: it knows the world, not the draws.

        It is the mean over users of the sum of the k largest next-item probabilities, given the
        test history. It is exact for these histories; only the draw of the test items is averaged.
        """
        users = np.arange(self.interactions.num_users)
        best = [
            np.partition(self.next_item_probabilities(chunk), -k, axis=1)[:, -k:].sum(axis=1)
            for chunk in np.array_split(users, len(users) // 2000 + 1)
        ]
        return float(np.concatenate(best).mean())

    def popularity_recall(self, k: int) -> float:
        """Expected recall@k of the k most popular items; the same at every noise."""
        return float(np.sort(self.popularity)[-k:].sum())

    def next_item_probabilities(self, users: NDArray[np.int64]) -> NDArray[np.float64]:
        """Probabilities of the test item given all items before it, (len(users), num_items).

        Exact filtering. The bookmark is at one of the history's items, or it has not been shown
        yet. Then it is distributed like popularity, which a move does not change. So a belief is
        one weight for "not shown yet" and one for each history item. Bayes' rule updates it at each
        item.
        """
        items, lengths = self._test_histories(users)
        weights = np.zeros((len(users), items.shape[1] + 1))
        weights[:, 0] = 1
        for step in range(items.shape[1]):
            known = np.flatnonzero(step < lengths)
            item, before, belief = items[known, step], items[known, :step], weights[known]
            moved = belief[:, 0] * self.popularity[item]
            moved += (belief[:, 1 : step + 1] * self.transitions[before, item[:, None]]).sum(axis=1)
            belief *= self.noise * self.popularity[item][:, None]
            belief[:, step + 1] = (1 - self.noise) * moved
            weights[known] = belief / belief.sum(axis=1, keepdims=True)
        bookmarks = np.zeros((len(users), len(self.items)))
        np.add.at(bookmarks, (np.arange(len(users))[:, None], items), weights[:, 1:])
        moved = weights[:, :1] * self.popularity + bookmarks @ self.transitions
        return (1 - self.noise) * moved + self.noise * self.popularity

    def _test_histories(
        self, users: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Items before the test item, (len(users), longest) int32, filled with 0; their lengths."""
        starts = self.interactions.indptr[users]
        lengths = self.interactions.lengths()[users] - 1
        steps = np.arange(lengths.max())
        places = np.minimum(starts[:, None] + steps, self.interactions.num_interactions - 1)
        return np.where(steps < lengths[:, None], self.interactions.rows[places], 0), lengths


def make_world(num_users: int, num_items: int, noise: float, seed: int) -> World:
    """Draw a world. Items, transitions and popularity depend on num_items and seed, not on noise.

    noise: 0 = every item is a move of the bookmark, 1 = every item is an independent impulse
    Raises ConfigError for numbers out of range.
    """
    if num_users < 1:
        raise ConfigError(f"a world needs at least one user, not {num_users}")
    if not MIN_ITEMS <= num_items <= MAX_ITEMS:
        raise ConfigError(f"a world has {MIN_ITEMS} to {MAX_ITEMS} items, not {num_items}")
    if not 0 <= noise <= 1:
        raise ConfigError(f"noise must lie between 0 and 1, not {noise}")
    law_rng, title_rng, user_rng = (np.random.default_rng([seed, stream]) for stream in range(3))
    shelves = _Shelves.draw(num_items, law_rng)
    transitions = _transitions(shelves, law_rng)
    popularity = _stationary(transitions)
    items = _named_items(shelves, title_rng)
    indptr, rows = _walk(transitions, popularity, num_users, noise, user_rng)
    digits = len(str(num_users))
    interactions = Interactions(
        user_ids=tuple(f"user-{user:0{digits}}" for user in range(1, num_users + 1)),
        item_ids=tuple(item.item_id for item in items),
        indptr=indptr,
        rows=rows,
    )
    return World(items, interactions, transitions, popularity, noise)


def write_world(world: World, folder: Path) -> None:
    """Write `interactions.parquet` and `items.parquet`, as `load_dataset` reads them.

    There are no embeddings: training computes them from titles and categories.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = world.interactions
    users = log.users_of_interactions()
    positions = np.arange(log.num_interactions) - log.indptr[users]
    pl.DataFrame(
        {
            "user_id": np.array(log.user_ids)[users],
            "item_id": np.array(log.item_ids)[log.rows],
            "position": positions.astype(np.int32),
            "timestamp": FIRST_DAY + DAY * (users % 365 + 2 * positions),
        }
    ).write_parquet(folder / "interactions.parquet")
    pl.DataFrame(
        {
            "item_id": [item.item_id for item in world.items],
            "title": [item.title for item in world.items],
            "categories": [list(item.categories) for item in world.items],
        }
    ).write_parquet(folder / "items.parquet")


def synthesize(
    out: Path, num_users: int, num_items: int, noise: float, seed: int
) -> dict[str, object]:
    """The command `synthesize`: make a world, write it to `out`, return what it holds."""
    world = make_world(num_users, num_items, noise, seed)
    write_world(world, out)
    return {
        "out": str(out),
        "users": num_users,
        "items": num_items,
        "interactions": world.interactions.num_interactions,
        "noise": noise,
        "seed": seed,
        "best_recall@10": round(world.best_recall(10), 4),
        "popularity_recall@10": round(world.popularity_recall(10), 4),
    }


@dataclass(frozen=True, eq=False)
class _Shelves:
    """Topic, line and place of each item; items are ordered by these.

    topic, line, place: (num_items,) int64; lines are numbered over all topics, places from 0 in
                        each line
    """

    topic: NDArray[np.int64]
    line: NDArray[np.int64]
    place: NDArray[np.int64]

    @classmethod
    def draw(cls, num_items: int, rng: np.random.Generator) -> _Shelves:
        num_topics = min(num_items // ITEMS_PER_TOPIC + 1, len(TOPICS))
        topic: list[int] = []
        line: list[int] = []
        place: list[int] = []
        lines = 0
        for index, share in enumerate(np.array_split(np.arange(num_items), num_topics)):
            for length in _line_lengths(len(share), rng):
                topic += [index] * length
                line += [lines] * length
                place += range(length)
                lines += 1
        return cls(np.array(topic), np.array(line), np.array(place))


def _line_lengths(num_items: int, rng: np.random.Generator) -> Iterator[int]:
    """Random lengths within LINE_LENGTHS that add up to num_items (at least the shortest)."""
    shortest, longest = LINE_LENGTHS
    while num_items > longest:
        length = int(rng.integers(shortest, min(longest, num_items - shortest) + 1))
        num_items -= length
        yield length
    yield num_items


def _transitions(shelves: _Shelves, rng: np.random.Generator) -> NDArray[np.float64]:
    num_items = len(shelves.topic)
    num_topics, num_lines = shelves.topic[-1] + 1, shelves.line[-1] + 1
    topic_appeal = rng.permutation(1 / np.arange(1, num_topics + 1)) ** 0.5
    line_appeal = rng.permutation(1 / np.arange(1, num_lines + 1)) ** 0.5
    appeal = line_appeal[shelves.line] * LINE_DECAY**shelves.place
    same_topic = shelves.topic[:, None] == shelves.topic
    same_line = shelves.line[:, None] == shelves.line
    apart = (shelves.topic[:, None] - shelves.topic) % num_topics
    neighbour = (apart == 1) | (apart == num_topics - 1)

    transitions = np.zeros((num_items, num_items))
    for ahead, share in ((1, NEXT), (2, SKIP)):
        rows = np.flatnonzero(shelves.line[:-ahead] == shelves.line[ahead:])
        transitions[rows, rows + ahead] = share
    drift = np.where(neighbour, appeal * topic_appeal[shelves.topic], 0)
    transitions += DRIFT * drift / drift.sum(axis=1, keepdims=True)
    browse = np.where(same_topic & ~same_line, appeal, 0)
    rest = 1 - transitions.sum(axis=1, keepdims=True)
    transitions += rest * browse / browse.sum(axis=1, keepdims=True)
    return transitions


def _stationary(transitions: NDArray[np.float64]) -> NDArray[np.float64]:
    """The distribution p with p @ transitions == p; its sum is 1."""
    ones = np.ones_like(transitions)
    law: NDArray[np.float64] = np.linalg.solve(
        (np.eye(len(transitions)) - transitions + ones).T, ones[0]
    )
    law /= law.sum()
    return law


def _named_items(shelves: _Shelves, rng: np.random.Generator) -> tuple[Item, ...]:
    first = np.flatnonzero(shelves.place == 0)
    lengths = np.diff([*first, len(shelves.place)])
    lines = [(TOPICS[shelves.topic[i]], int(n)) for i, n in zip(first, lengths, strict=True)]
    titles = titles_of_lines(lines, rng)
    digits = len(str(len(titles)))
    return tuple(
        Item(f"item-{number:0{digits}}", title, (TOPICS[topic].category,))
        for number, (title, topic) in enumerate(zip(titles, shelves.topic, strict=True), start=1)
    )


def _walk(
    transitions: NDArray[np.float64],
    popularity: NDArray[np.float64],
    num_users: int,
    noise: float,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Histories of all users as (indptr, rows); see Interactions."""
    shortest, longest = HISTORY_LENGTHS
    extra = rng.geometric(1 / (MEAN_HISTORY_LENGTH - shortest + 1), num_users) - 1
    lengths = np.minimum(shortest + extra, longest)
    num_items = len(popularity)
    # The cumulative probabilities of all rows, end to end: row r is in (r, r + 1]. So one search
    # draws for all users.
    cumulative = (np.cumsum(transitions, axis=1) + np.arange(num_items)[:, None]).ravel()
    impulses = np.searchsorted(np.cumsum(popularity), rng.random((num_users, longest)))
    impulses = np.minimum(impulses, num_items - 1)
    is_impulse = rng.random((num_users, longest)) < noise
    bookmark = np.searchsorted(np.cumsum(popularity), rng.random(num_users))
    bookmark = np.minimum(bookmark, num_items - 1)
    shown = np.empty((num_users, longest), dtype=np.int32)
    for step in range(longest):
        place = np.searchsorted(cumulative, bookmark + rng.random(num_users))
        moved = np.clip(place - bookmark * num_items, 0, num_items - 1)
        bookmark = np.where(is_impulse[:, step], bookmark, moved)
        shown[:, step] = np.where(is_impulse[:, step], impulses[:, step], moved)
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return indptr, shown[np.arange(longest) < lengths[:, None]]
