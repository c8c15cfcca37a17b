"""Offline evaluation through the production decoder: what is measured is what ships.

Protocol (leave-last-out, one target a user, whole catalogue, nothing excluded): the item-level rank
of a target is its place in the list the service would return; the SID-level rank, shown beside it,
its SID's place among the distinct SIDs of that list. Knows denoisers and windows, not files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.decoding import Decoded, Denoiser, Job, Schedule, SidTrie, Timings, decode
from service.decoding.unconstrained import SidIndex, decode_unconstrained
from training.interactions import Windows

CUTOFFS = (5, 10, 40)
NOT_FOUND = np.iinfo(np.int32).max


@dataclass(frozen=True, eq=False)
class Ranks:
    """1-based ranks of the targets of n windows, NOT_FOUND where a target is not in the list.

    item, sid: (n,) int32. nfe: denoiser calls a user. invalid: SIDs returned that no item has, or
    items returned twice (must be 0). milliseconds: encode, denoise and search, per user.
    """

    item: NDArray[np.int32]
    sid: NDArray[np.int32]
    nfe: float
    invalid: int
    milliseconds: dict[str, float] = field(default_factory=dict)


def draw_windows(windows: Windows, num_users: int, seed: int) -> Windows:
    """A fixed random draw of windows, in their order; all of them when num_users is 0 or more."""
    if num_users == 0 or num_users >= len(windows):
        return windows
    drawn = np.random.default_rng(seed).choice(len(windows), num_users, replace=False)
    drawn.sort()
    return Windows(windows.rows, windows.users[drawn], windows.starts[drawn], windows.ends[drawn])


def ranks(
    windows: Windows,
    trie: SidTrie,
    denoiser: Denoiser,
    schedule: Schedule,
    *,
    k: int,
    beam_width: int,
    batch: int = 32,
    workers: int = 1,
    exclude_seen: bool = False,
    advance: Callable[[int], None] = lambda users: None,
) -> Ranks:
    """Decode every window and rank its target within k.

    workers: threads that decode batches side by side; advance: called with the users done.
    """
    sid_of = _sid_numbers(trie)
    found = Ranks(
        np.full(len(windows), NOT_FOUND, np.int32), np.full(len(windows), NOT_FOUND, np.int32), 0, 0
    )
    targets = windows.targets
    nfe = invalid = 0
    seconds = np.zeros(3)

    def decode_batch(start: int) -> tuple[range, list[Decoded], Timings]:
        indices = range(start, min(start + batch, len(windows)))
        jobs = _jobs(windows, indices, schedule, 2 * k, beam_width, exclude_seen)
        return indices, *decode(jobs, trie, denoiser)

    with ThreadPoolExecutor(workers) as pool:
        for indices, answers, timings in pool.map(decode_batch, range(0, len(windows), batch)):
            seconds += (timings.encode_s, timings.denoise_s, timings.search_s)
            for index, answer in zip(indices, answers, strict=True):
                nfe += answer.nfe
                invalid += _invalid(answer, trie)
                found.item[index] = _rank(answer.rows[:k], targets[index])
                _, first = np.unique(sid_of[answer.rows], return_index=True)
                distinct = sid_of[answer.rows][np.sort(first)][:k]
                found.sid[index] = _rank(distinct, sid_of[targets[index]])
            advance(len(answers))
    users = max(1, len(windows))
    milliseconds = dict(zip(("encode", "denoise", "search"), 1000 * seconds / users, strict=True))
    return Ranks(found.item, found.sid, nfe / users, invalid, milliseconds)


def popularity_ranks(windows: Windows, *, k: int) -> NDArray[np.int32]:
    """Ranks when everybody gets the most popular items: rows are ordered by popularity."""
    return np.where(windows.targets < k, windows.targets + 1, NOT_FOUND).astype(np.int32)


def recall_at(found: NDArray[np.int32], k: int) -> float:
    """Share of targets ranked within k."""
    return float((found <= k).mean())


def ndcg_at(found: NDArray[np.int32], k: int) -> float:
    """Mean of 1 / log2(rank + 1) over targets ranked within k, else 0."""
    return float(np.where(found <= k, 1 / np.log2(found.astype(np.float64) + 1), 0.0).mean())


def metrics(found: NDArray[np.int32]) -> dict[str, float]:
    """recall@k and ndcg@k for every cutoff."""
    values = {}
    for k in CUTOFFS:
        values[f"recall@{k}"] = round(recall_at(found, k), 5)
        values[f"ndcg@{k}"] = round(ndcg_at(found, k), 5)
    return values


@dataclass(frozen=True)
class ScheduleResult:
    """One line of the table over schedules."""

    r_warm: int
    m_par: int
    steps: tuple[int, ...]
    nfe: float
    item: dict[str, float]
    sid: dict[str, float]
    invalid_sids: int
    milliseconds: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"steps": list(self.steps)}


def evaluate_schedules(
    windows: Windows,
    trie: SidTrie,
    denoiser: Denoiser,
    params: Iterable[tuple[int, int]],
    *,
    beam_width: int,
    batch: int,
    workers: int = 1,
    advance: Callable[[int], None] = lambda users: None,
) -> tuple[list[ScheduleResult], list[Ranks]]:
    """The table over schedules: each (r_warm, m_par) on all windows, k = the largest cutoff."""
    results, all_ranks = [], []
    for r_warm, m_par in params:
        schedule = Schedule.from_params(
            num_subspaces=trie.catalogue.num_subspaces, r_warm=r_warm, m_par=m_par
        )
        found = ranks(
            windows,
            trie,
            denoiser,
            schedule,
            k=max(CUTOFFS),
            beam_width=beam_width,
            batch=batch,
            workers=workers,
            advance=advance,
        )
        results.append(
            ScheduleResult(
                r_warm,
                m_par,
                schedule.steps,
                found.nfe,
                metrics(found.item),
                metrics(found.sid),
                found.invalid,
                {stage: round(value, 3) for stage, value in found.milliseconds.items()},
            )
        )
        all_ranks.append(found)
    return results, all_ranks


def best_schedule(found: Sequence[Ranks]) -> int:
    """Index of the schedule to ship: fewest denoiser calls within one standard error of the best.

    The error is that of the paired difference in recall@10 over the same users.
    """
    hits = np.stack([ranks.item <= 10 for ranks in found]).astype(np.float64)
    best = int(hits.mean(axis=1).argmax())
    difference = hits[best] - hits
    error = difference.std(axis=1) / np.sqrt(hits.shape[1])
    within = np.flatnonzero(difference.mean(axis=1) <= error)
    return int(min(within, key=lambda index: (found[index].nfe, -hits[index].mean())))


def unconstrained_invalid_share(
    windows: Windows,
    trie: SidTrie,
    denoiser: Denoiser,
    schedule: Schedule,
    *,
    beam_width: int,
    batch: int,
) -> float:
    """Share of finished SIDs no item has when the search may leave the catalogue (the papers')."""
    made = invalid = 0
    index = SidIndex(trie.catalogue)
    for start in range(0, len(windows), batch):
        indices = range(start, min(start + batch, len(windows)))
        jobs = _jobs(windows, indices, schedule, 10, beam_width, False)
        for answer in decode_unconstrained(jobs, index, denoiser):
            made += answer.num_sids
            invalid += answer.num_invalid
    return invalid / max(1, made)


def _jobs(
    windows: Windows,
    indices: Iterable[int],
    schedule: Schedule,
    k: int,
    beam_width: int,
    exclude_seen: bool,
) -> list[Job]:
    histories = [windows.history_of(index) for index in indices]
    nothing = np.empty(0, np.int32)
    return [
        Job(history, k, schedule, beam_width, history if exclude_seen else nothing)
        for history in histories
    ]


def _rank(ranking: NDArray[np.int32], target: int) -> int:
    places = np.flatnonzero(ranking == target)
    return int(places[0]) + 1 if len(places) else int(NOT_FOUND)


def _invalid(answer: Decoded, trie: SidTrie) -> int:
    outside = (answer.rows < 0) | (answer.rows >= trie.catalogue.num_items)
    return int(outside.sum()) + len(answer.rows) - len(np.unique(answer.rows))


def _sid_numbers(trie: SidTrie) -> NDArray[np.int32]:
    """(num_items,) int32: rows with equal SIDs have equal numbers."""
    _, numbers = np.unique(trie.catalogue.codes, axis=0, return_inverse=True)
    return numbers.astype(np.int32).reshape(-1)
