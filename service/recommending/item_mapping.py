"""From catalogue rows back to items: titles, scores, explanations, and the popular items.

Knows one bundle at a time, and nothing of deadlines, queues or stores.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from service.bundles import Bundle, Item
from service.decoding import Decoded, Trajectory
from service.schemas import (
    CodesInCommon,
    Explanation,
    ItemOfSequence,
    RecommendedItem,
    RecommendedSequence,
)

Rows = NDArray[np.int32]
MAX_IN_COMMON = 5


def decoded_items(
    bundle: Bundle, decoded: Decoded, places: Sequence[int], history: Rows, *, metadata: bool
) -> list[RecommendedItem]:
    """Some items of an answer, explained if it has a trajectory. history: oldest to newest."""
    own = np.array(places, np.int64)
    rows, scores = decoded.rows[own], decoded.scores[own].tolist()
    explanations: list[Explanation] | list[None] = [None] * len(scores)
    if decoded.trajectory is not None:
        explanations = _explanations(bundle, rows, decoded.trajectory.chosen(own), history)
    sids = bundle.catalogue.codes[rows].tolist()
    return [
        _item(bundle.items[row], sid, rank, round(score, 4), explanation, metadata=metadata)
        for rank, (row, sid, score, explanation) in enumerate(
            zip(rows.tolist(), sids, scores, explanations, strict=True), start=1
        )
    ]


def arranged(
    best: Sequence[RecommendedItem],
    new: Sequence[RecommendedItem],
    pinned: Mapping[int, RecommendedItem],
) -> list[RecommendedItem]:
    """An answer in which pinned items have their ranks, and new ones are spread over the others.

    best, new: best first, with ranks from 1. New ones are every n-th of the two, and the last one.
    pinned: by rank; those behind the end of the answer come last
    """
    if not new and not pinned:
        return list(best)
    num_others = len(best) + len(new)
    spread = {-(-n * num_others // len(new)) for n in range(1, len(new) + 1)}
    rest, new_ones = iter(best), iter(new)
    others = iter(
        [
            next(new_ones).model_copy(update={"explored": True}) if place in spread else next(rest)
            for place in range(1, num_others + 1)
        ]
    )
    order = [
        pinned.get(rank) or next(others, None) for rank in range(1, num_others + len(pinned) + 1)
    ]
    last = [pinned[rank] for rank in sorted(pinned) if rank > len(order)]
    items = [item for item in order if item is not None] + last
    return [item.model_copy(update={"rank": rank}) for rank, item in enumerate(items, start=1)]


def popular_rows(bundle: Bundle, most: int, excluded: Rows, allowed: Rows | None) -> Rows:
    """The most popular of the allowed rows. excluded: distinct rows, so that enough are left."""
    first = most + len(excluded)  # rows are ordered by popularity
    rows = np.arange(min(first, bundle.catalogue.num_items), dtype=np.int32)
    if allowed is not None:
        rows = allowed[:first]
    return rows[~np.isin(rows, excluded)][:most]


def items_of(
    bundle: Bundle, rows: Iterable[int], *, metadata: bool, pinned: bool = False
) -> list[RecommendedItem]:
    """Items without scores: popular ones, or those that are pinned."""
    items, codes = bundle.items, bundle.catalogue.codes
    return [
        _item(items[row], codes[row].tolist(), rank, None, None, metadata=metadata, pinned=pinned)
        for rank, row in enumerate(rows, start=1)
    ]


def decoded_sequences(
    bundle: Bundle, decoded: Decoded, *, metadata: bool
) -> list[RecommendedSequence]:
    """The sequences of an answer to a job of more items than one."""
    answered = zip(decoded.rows.tolist(), decoded.scores.tolist(), strict=True)
    return [
        _sequence(bundle, rows, rank, round(score, 4), metadata=metadata)
        for rank, (rows, score) in enumerate(answered, start=1)
    ]


def popular_sequences(
    bundle: Bundle, k: int, horizon: int, excluded: Rows, allowed: Rows | None, *, metadata: bool
) -> list[RecommendedSequence]:
    """At most k sequences: the most popular items, `horizon` by `horizon`; none comes twice."""
    rows = popular_rows(bundle, k * horizon, excluded, allowed)
    sequences = rows[: len(rows) // horizon * horizon].reshape(-1, horizon).tolist()
    return [
        _sequence(bundle, own, rank, None, metadata=metadata)
        for rank, own in enumerate(sequences, start=1)
    ]


def similar_items(bundle: Bundle, row: int, k: int) -> list[CodesInCommon]:
    """The k other items that share most codes with a row; of equal ones, the more popular first."""
    codes = bundle.catalogue.codes
    in_common = (codes == codes[row]).sum(axis=1, dtype=np.int16)
    in_common[row] = 0
    in_common[bundle.hidden.rows_at(time.time())] = 0
    most = min(k, len(in_common))
    fewest = max(1, int(np.partition(in_common, -most)[-most]))  # so that few rows are sorted
    rows = np.flatnonzero(in_common >= fewest).astype(np.int32)
    return most_codes_in_common(bundle, row, rows, k)


def most_codes_in_common(bundle: Bundle, row: int, among: Rows, most: int) -> list[CodesInCommon]:
    """The rows of `among` that share a code with a row: most codes first, then in that order."""
    codes = bundle.catalogue.codes
    in_common = (codes[among] == codes[row]).sum(axis=1)
    best = np.argsort(-in_common, kind="stable")[:most]
    return [
        CodesInCommon(item_id=bundle.items[among[place]].item_id, codes=int(in_common[place]))
        for place in best.tolist()
        if in_common[place]
    ]


def _item(
    item: Item,
    sid: list[int],
    rank: int,
    score: float | None,
    explanation: Explanation | None,
    *,
    metadata: bool,
    pinned: bool = False,
) -> RecommendedItem:
    return RecommendedItem(
        item_id=item.item_id,
        title=item.title,
        rank=rank,
        score=score,
        explored=False,
        pinned=pinned,
        sid=sid,
        categories=list(item.categories) if metadata else None,
        attributes=attributes_of(item) if metadata else None,
        explanation=explanation,
    )


def attributes_of(item: Item) -> dict[str, list[str] | float | str]:
    """An item's attributes as JSON has them."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in (item.attributes or {}).items()
    }


def _sequence(
    bundle: Bundle, rows: Sequence[int], rank: int, score: float | None, *, metadata: bool
) -> RecommendedSequence:
    items = [
        ItemOfSequence(
            item_id=bundle.items[row].item_id,
            title=bundle.items[row].title,
            sid=bundle.catalogue.codes[row].tolist(),
            categories=list(bundle.items[row].categories) if metadata else None,
            attributes=attributes_of(bundle.items[row]) if metadata else None,
        )
        for row in rows
    ]
    return RecommendedSequence(rank=rank, score=score, items=items)


def _explanations(
    bundle: Bundle, rows: Rows, trajectory: Trajectory, history: Rows
) -> list[Explanation]:
    newest_first = np.array(list(dict.fromkeys(history[::-1].tolist())), np.int32)
    return [
        Explanation(
            filled_by_call=trajectory.filled[place].tolist(),
            log_probs=_finite(trajectory.log_probs[place]),
            survivors=trajectory.survivors[place].tolist(),
            beam_scores=_finite(trajectory.beam_scores[place]),
            history_in_common=most_codes_in_common(bundle, row, newest_first, MAX_IN_COMMON),
        )
        for place, row in enumerate(rows.tolist())
    ]


def _finite(values: NDArray[np.float32]) -> list[float | None]:
    return [round(value, 4) if np.isfinite(value) else None for value in values.tolist()]
