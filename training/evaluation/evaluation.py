"""Offline evaluation through the production decoder: what is measured is what ships.

Protocol: at most one target for each user, whole catalogue, histories as long as the service keeps
them. The item-level rank of a target is its place in the list that the service would return. The
SID-level rank is the place of its SID among the distinct SIDs of that list, which is continued to
twice its length. `exclude_seen` leaves out items of the history, as the service does by default.
Knows denoisers and windows, not files.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.bundles import DecodingDefaults
from service.decoding import (
    Catalogue,
    Decoded,
    Decoder,
    Denoiser,
    Histories,
    Job,
    Order,
    Ranking,
    Retrieval,
    Schedule,
    SidTrie,
    Timings,
)
from service.decoding.search import SidIndex, decode_unconstrained
from training.data import Windows

SHORT, LONG = 10, 40  # how many items the requests of a report ask for
CUTOFFS = (5, SHORT, LONG)
NOT_FOUND = np.iinfo(np.int32).max
_NOTHING = np.empty(0, np.int32)


@dataclass(frozen=True, eq=False)
class Ranks:
    """1-based ranks of the targets of n windows, NOT_FOUND if a target is not in the list.

    item, sid:    (n,) int32
    nfe:          denoiser calls for each user
    repeated:     items that came twice in one list (must be 0)
    milliseconds: time of encode, denoise and search for each user
    """

    item: NDArray[np.int32]
    sid: NDArray[np.int32]
    nfe: float
    repeated: int
    milliseconds: dict[str, float] = field(default_factory=dict)


def draw_windows(windows: Windows, num_users: int | None, seed: int) -> Windows:
    """A fixed random draw of windows, in their order; all of them if there are no more, or None."""
    if num_users is None or num_users >= len(windows):
        return windows
    drawn = np.random.default_rng(seed).choice(len(windows), num_users, replace=False)
    drawn.sort()
    return windows.chosen(drawn)


def ranks(
    windows: Windows,
    decoder: Decoder,
    schedule: Schedule,
    *,
    k: int,
    beam_width: int,
    ranking: Ranking = "rows",
    finish_rows: int = 0,
    order: Order = "confidence",
    remask: int = 0,
    guidance: float = 0.0,
    retrieval: Retrieval = "generate",
    batch: int = 32,
    workers: int = 1,
    exclude_seen: bool = False,
    advance: Callable[[int], None] = lambda users: None,
) -> Ranks:
    """Decode every window and rank its target within k.

    workers:      threads, each of which decodes one batch at a time
    advance:      called with the number of users done since the last call
    exclude_seen: leave out items of the history; a target among them is then never found
    """
    sid_of = _sid_numbers(decoder.trie.catalogue)
    found = Ranks(
        np.full(len(windows), NOT_FOUND, np.int32), np.full(len(windows), NOT_FOUND, np.int32), 0, 0
    )
    targets = windows.targets
    nfe = repeated = 0
    seconds = np.zeros(3)

    def decode_batch(start: int) -> tuple[range, list[Decoded], Timings]:
        indices = range(start, min(start + batch, len(windows)))
        jobs = [
            Job(
                history,
                2 * k,
                schedule,
                beam_width,
                history if exclude_seen else _NOTHING,
                finish_rows,
                ranking,
                order,
                remask,
                guidance,
                retrieval,
            )
            for history in map(windows.history_of, indices)
        ]
        return indices, *decoder.decode(jobs)

    with ThreadPoolExecutor(workers) as pool:
        for indices, answers, timings in pool.map(decode_batch, range(0, len(windows), batch)):
            seconds += (timings.encode_s, timings.denoise_s, timings.search_s)
            for index, answer in zip(indices, answers, strict=True):
                nfe += answer.nfe
                repeated += len(answer.rows) - len(np.unique(answer.rows))
                found.item[index] = _rank(answer.rows[:k], targets[index])
                _, first = np.unique(sid_of[answer.rows], return_index=True)
                distinct = sid_of[answer.rows][np.sort(first)][:k]
                found.sid[index] = _rank(distinct, sid_of[targets[index]])
            advance(len(answers))
    users = max(1, len(windows))
    milliseconds = dict(zip(("encode", "denoise", "search"), 1000 * seconds / users, strict=True))
    return Ranks(found.item, found.sid, nfe / users, repeated, milliseconds)


def popularity_ranks(
    windows: Windows,
    *,
    k: int,
    exclude_seen: bool = False,
    targets: NDArray[np.int32] | None = None,
) -> NDArray[np.int32]:
    """Ranks if every user gets the most popular items; rows are ordered by popularity.

    targets: (n,) rows to look for, if they are others than those of the windows
    """
    if targets is None:
        targets = windows.targets
    found = targets.astype(np.int64) + 1
    if exclude_seen:
        for index, target in enumerate(targets):
            seen = np.unique(windows.history_of(index))
            found[index] -= np.count_nonzero(seen < target)
            if target in seen:
                found[index] = NOT_FOUND
    return np.where(found <= k, found, NOT_FOUND).astype(np.int32)


def targets_seen(windows: Windows) -> NDArray[np.bool_]:
    """(n,) bool: is the target in the history? With seen items excluded it is then never found."""
    targets = windows.targets
    return np.array(
        [targets[index] in windows.history_of(index) for index in range(len(windows))], dtype=bool
    )


def setting_name(*, exclude_seen: bool) -> str:
    """The name of this setting in tables and sentences."""
    return "seen items excluded" if exclude_seen else "nothing excluded"


def recall_at(found: NDArray[np.int32], k: int) -> float:
    """Share of targets ranked within k."""
    return float((found <= k).mean())


def ndcg_at(found: NDArray[np.int32], k: int) -> float:
    """Mean over targets of 1 / log2(rank + 1), or 0 for a target that is not within k."""
    return float(np.where(found <= k, 1 / np.log2(found.astype(np.float64) + 1), 0.0).mean())


def metrics(found: NDArray[np.int32], of_long: NDArray[np.int32] | None = None) -> dict[str, float]:
    """recall@k and ndcg@k for every cutoff.

    of_long: the ranks for the cutoff LONG, if they are others than `found`
    """
    values = {}
    for k in CUTOFFS:
        of_request = found if of_long is None or k < LONG else of_long
        values[f"recall@{k}"] = round(recall_at(of_request, k), 5)
        values[f"ndcg@{k}"] = round(ndcg_at(of_request, k), 5)
    return values


def schedule_of(decoding: DecodingDefaults, num_subspaces: int) -> Schedule:
    """The schedule of a setting for SIDs with `num_subspaces` positions."""
    return decoding.schedule(num_subspaces)


def ranks_at(
    windows: Windows, decoder: Decoder, decoding: DecodingDefaults, **options: Any
) -> Ranks:
    """`ranks` with the parameters of a setting; options: the other arguments of `ranks`."""
    return ranks(
        windows,
        decoder,
        schedule_of(decoding, decoder.trie.catalogue.num_subspaces),
        beam_width=decoding.beam_width,
        ranking=decoding.ranking,
        finish_rows=decoding.finish_rows,
        order=decoding.order,
        remask=decoding.remask,
        guidance=decoding.guidance,
        retrieval=decoding.retrieval,
        **options,
    )


class AsServed(NamedTuple):
    """Ranks of requests for SHORT and for LONG items; the same object if one search gives both."""

    short: Ranks
    long: Ranks


def ranks_as_served(
    windows: Windows, decoder: Decoder, decoding: DecodingDefaults, **options: Any
) -> AsServed:
    """`ranks_at` with as many beams as the service would have: at least as many as items asked."""
    found = [
        ranks_at(windows, decoder, decoding.wide_enough(k), k=k, **options)
        for k in requests_of(decoding, decoder.trie.catalogue.num_subspaces)
    ]
    return AsServed(found[0], found[-1])


def requests_of(decoding: DecodingDefaults, num_subspaces: int) -> tuple[int, ...]:
    """The k that `ranks_as_served` asks for; only LONG if SHORT would be the same search."""
    one_call = schedule_of(decoding, num_subspaces).nfe == 1 and not decoding.remask
    one_call &= decoding.retrieval == "generate"
    one_call |= decoding.retrieval == "dense"
    return (LONG,) if one_call or decoding.beam_width >= LONG else (SHORT, LONG)


class _PartialSids:
    """A denoiser that checks every partial SID it gets: does any item agree with it?"""

    def __init__(self, denoiser: Denoiser, trie: SidTrie) -> None:
        self._denoiser, self._trie = denoiser, trie
        self.num_subspaces, self.num_codes = denoiser.num_subspaces, denoiser.num_codes
        self.history_length, self.repeat_bias = denoiser.history_length, denoiser.repeat_bias
        self.select, self.join = denoiser.select, denoiser.join
        self.asked = self.invalid = 0

    def encode(self, histories: Histories) -> Any:
        return self._denoiser.encode(histories)

    def denoise(
        self, memory: Any, partial_sids: NDArray[np.uint16], positions: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        for sid in partial_sids.reshape(-1, self.num_subspaces):
            filled = np.flatnonzero(sid < self.num_codes)
            if len(filled):
                position, code = int(filled[0]), int(sid[filled[0]])
                start, stop = self._trie.indptr[position, code : code + 2]
                rows = self._trie.rows[position, start:stop]
                agrees = (self._trie.catalogue.codes[rows][:, filled] == sid[filled]).all(axis=1)
                self.asked += 1
                self.invalid += not agrees.any()
        return self._denoiser.denoise(memory, partial_sids, positions)


def invalid_sid_shares(
    windows: Windows,
    decoder: Decoder,
    schedule: Schedule,
    *,
    beam_width: int,
    ranking: Ranking,
    batch: int,
    order: Order = "confidence",
) -> tuple[float, float]:
    """Shares of SIDs that no item has: in the production search, and in an unconstrained one.

    The first is the share of partial SIDs that the production search asks about (must be 0). The
    second is the share of finished SIDs if the search may leave the catalogue, as in the papers.
    """
    index = SidIndex(decoder.trie.catalogue)
    watched = _PartialSids(decoder.denoiser, decoder.trie)
    watching = replace(decoder, denoiser=watched)
    made = invalid = 0
    for start in range(0, len(windows), batch):
        indices = range(start, min(start + batch, len(windows)))
        jobs = [
            Job(history, 10, schedule, beam_width, ranking=ranking, order=order)
            for history in map(windows.history_of, indices)
        ]
        watching.decode(jobs)
        for answer in decode_unconstrained(jobs, index, decoder.denoiser):
            made += answer.num_sids
            invalid += answer.num_invalid
    return watched.invalid / max(1, watched.asked), invalid / max(1, made)


def _rank(ranking: NDArray[np.int32], target: int) -> int:
    places = np.flatnonzero(ranking == target)
    return int(places[0]) + 1 if len(places) else int(NOT_FOUND)


@lru_cache(maxsize=1)  # every call asks for the same catalogue
def _sid_numbers(catalogue: Catalogue) -> NDArray[np.int32]:
    """(num_items,) int32: rows with equal SIDs have equal numbers."""
    _, numbers = np.unique(catalogue.codes, axis=0, return_inverse=True)
    return numbers.astype(np.int32).reshape(-1)
