"""Several items at once: the last items of a user are held out, and predicted together.

Protocol of MaskGR (arXiv 2511.23021), as far as it is published: the targets of a user are the last
`horizon` items, in their order; the history is all before them. A request for k sequences of
`horizon` items finds the target of a slot if one of its sequences has it in that slot. recall@k is
the share of targets found, for each slot and averaged over slots. No target was learnt: a user
counts if all of them are behind the interactions of training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray

from service.bundles import Bundle, DecodingDefaults
from service.decoding import MAX_HORIZON, Decoded, Decoder, Job
from training.config import EvaluationConfig
from training.data import Dataset, Split, Windows
from training.errors import ConfigError, DataError
from training.evaluation.evaluation import (
    NOT_FOUND,
    SHORT,
    draw_windows,
    popularity_ranks,
    schedule_of,
    setting_name,
)
from training.evaluation.figures import markdown_table

CUTOFFS = (5, SHORT)
_NOTHING = np.empty(0, np.int32)


@dataclass(frozen=True, eq=False)
class SlotRanks:
    """Where the targets of n users are among the sequences that answer.

    places: (n, horizon) int32, the first sequence that has the target in its slot, from 1;
        NOT_FOUND if there is none
    nfe:    denoiser calls for each user
    """

    places: NDArray[np.int32]
    nfe: float

    def figures(self) -> dict[str, Any]:
        """recall@k and its standard error, for each slot and averaged over slots."""
        values: dict[str, Any] = {"nfe": round(self.nfe, 3)}
        for k in CUTOFFS:
            hits = self.places <= k
            values[f"recall@{k}"] = [_figure(of_slot) for of_slot in hits.T.astype(np.float64)]
            values[f"average recall@{k}"] = _figure(hits.mean(axis=1))
        return values


def check_horizon(bundle: Bundle, dataset: Dataset, horizon: int) -> None:
    """Raise ConfigError if so many items cannot be predicted, DataError if too few were held out.

    A network that knows the next item only can still be asked for one after another.
    """
    default = bundle.manifest.decoding.for_several(horizon)
    if horizon > MAX_HORIZON:
        raise ConfigError(f"--horizon {horizon}: at most {MAX_HORIZON}")
    if bundle.manifest.max_horizon > 1 and (misfit := bundle.manifest.misfit(default, horizon)):
        raise ConfigError(f"--horizon {horizon}: {misfit.message}")
    held_out_sequences(dataset.split, horizon)


def held_out_sequences(split: Split, horizon: int) -> Windows:
    """The users whose last `horizon` items were not learnt; each window ends before these.

    Raises DataError when there are none. Leave-last-out holds two items of a user out.
    """
    log = split.everything
    ends = log.indptr[1:] - horizon
    num_before = ends - log.indptr[:-1]
    users = np.flatnonzero((num_before >= split.train.lengths()) & (num_before > 0))
    if not len(users):
        raise DataError(
            f"no user has {horizon} items that training has not learnt; ask for a smaller "
            "--horizon (leave_last_out holds out two items of a user), or split by time"
        )
    users = users.astype(np.int32)
    return Windows(log.rows, users, log.indptr[users], ends[users])


def targets_of(windows: Windows, horizon: int) -> NDArray[np.int32]:
    """(n, horizon) int32: the rows behind each window."""
    return windows.rows[windows.ends[:, None] + np.arange(horizon)]


def sequence_ranks(
    windows: Windows,
    decoder: Decoder,
    horizon: int,
    decoding: DecodingDefaults,
    *,
    num_slots: int | None = None,
    batch: int = 32,
    workers: int = 1,
    exclude_seen: bool = False,
    advance: Callable[[int], None] = lambda users: None,
) -> SlotRanks:
    """Ask for SHORT sequences for every window, through the production decoder.

    num_slots: with horizon 1, how many of the next items are looked for in the list; else horizon
    """
    decoding = decoding.wide_enough(SHORT)
    schedule = schedule_of(decoding, horizon * decoder.trie.catalogue.num_subspaces)
    targets = targets_of(windows, num_slots or horizon)
    places = np.full(targets.shape, NOT_FOUND, np.int32)

    def decode_batch(start: int) -> int:
        indices = range(start, min(start + batch, len(windows)))
        jobs = [
            decoding.job(
                history,
                SHORT,
                schedule,
                excluded=history if exclude_seen else _NOTHING,
                horizon=horizon,
            )
            for history in map(windows.history_of, indices)
        ]
        calls = 0
        for index, answer in zip(indices, decoder.decode(jobs)[0], strict=True):
            calls += answer.nfe
            places[index] = _places(answer.rows, targets[index])
        advance(len(indices))
        return calls

    return SlotRanks(places, _calls_of_a_user(decode_batch, len(windows), batch, workers))


def one_after_another(
    windows: Windows,
    decoder: Decoder,
    horizon: int,
    decoding: DecodingDefaults,
    *,
    batch: int = 32,
    workers: int = 1,
    exclude_seen: bool = False,
    advance: Callable[[int], None] = lambda users: None,
) -> SlotRanks:
    """The same from requests for one item: how a model that knows the next item makes sequences.

    The SHORT best items are found; each joins the history in a request of its own for the item
    after it, and so on. Of all sequences the SHORT of the largest sum of scores stay. The requests
    for one slot do not wait for each other, so `nfe` counts the calls of the longest of them.
    """
    decoding = decoding.wide_enough(SHORT)
    schedule = schedule_of(decoding, decoder.trie.catalogue.num_subspaces)
    targets = targets_of(windows, horizon)
    places = np.full(targets.shape, NOT_FOUND, np.int32)

    def job_of(history: NDArray[np.int32], rows: NDArray[np.int32]) -> Job:
        longer = np.concatenate((history, rows))
        return decoding.job(longer, SHORT, schedule, excluded=longer if exclude_seen else rows)

    def decode_batch(start: int) -> int:
        indices = range(start, min(start + batch, len(windows)))
        found = [_Sequences(np.empty((1, 0), np.int32), np.zeros(1)) for _ in indices]
        calls = 0
        for _ in range(horizon):
            jobs = [
                job_of(windows.history_of(index), rows)
                for index, one in zip(indices, found, strict=True)
                for rows in one.rows
            ]
            answers: list[Decoded] = []
            for some in range(0, len(jobs), batch):
                answers += decoder.decode(jobs[some : some + batch])[0]
            of_user = iter(answers)
            for number, one in enumerate(found):
                ends = list(islice(of_user, len(one.rows)))
                found[number] = one.followed_by(ends)
                calls += max((answer.nfe for answer in ends), default=0)
        for index, one in zip(indices, found, strict=True):
            places[index] = _places(one.rows, targets[index])
        advance(len(indices))
        return calls

    return SlotRanks(places, _calls_of_a_user(decode_batch, len(windows), batch, workers))


@dataclass(frozen=True, eq=False)
class _Sequences:
    """A user's best sequences so far. rows: (n, slots) int32; scores: (n,)"""

    rows: NDArray[np.int32]
    scores: NDArray[np.float64]

    def followed_by(self, answers: Sequence[Decoded]) -> _Sequences:
        """The best sequences that are one item longer. answers: the items after each of these"""
        ends = np.concatenate([_NOTHING, *(answer.rows for answer in answers)])
        parents = np.repeat(np.arange(len(answers)), [len(answer.rows) for answer in answers])
        scores = np.concatenate([np.empty(0), *(answer.scores for answer in answers)])
        scores += self.scores[parents]
        best = np.argsort(-scores, kind="stable")[:SHORT]
        return _Sequences(np.column_stack((self.rows[parents], ends))[best], scores[best])


def measure_several_items(
    bundle: Bundle, dataset: Dataset, config: EvaluationConfig, horizon: int
) -> dict[str, Any]:
    """Sequences by several schedules, beside one item after another, one list, and popularity.

    A network that cannot be asked for items together has no schedules here. "next item" is the list
    that a request for one item gets, looked through for the target of each slot: what is known of
    later items without asking for them.
    """
    windows = draw_windows(held_out_sequences(dataset.split, horizon), config.users, seed=0)
    default = bundle.manifest.decoding
    if config.beam_width:
        default = default.model_copy(update={"beam_width": config.beam_width})
    several = default.for_several(horizon)
    num_subspaces = bundle.catalogue.num_subspaces
    widths = dict.fromkeys((1, horizon, num_subspaces, horizon * num_subspaces))
    served: dict[str, Any] = {
        "exclude_seen": config.exclude_seen,
        "batch": config.batch,
        "workers": cpu_count(),
    }
    lines = []
    for m_par in widths if bundle.manifest.max_horizon >= horizon else ():
        setting = several.model_copy(update={"m_par": m_par})
        found = sequence_ranks(windows, bundle.decoder, horizon, setting, **served)
        name = f"sequences, ({setting.r_warm}, {m_par})"
        lines.append({"name": name, "is_default": setting == several, **found.figures()})
    by_beams = default.model_copy(update={"retrieval": "generate"})
    found = one_after_another(windows, bundle.decoder, horizon, by_beams, **served)
    lines.append({"name": "one after another", "is_default": False, **found.figures()})
    found = sequence_ranks(windows, bundle.decoder, 1, default, num_slots=horizon, **served)
    lines.append({"name": "next item", "is_default": False, **found.figures()})
    popular = [
        popularity_ranks(windows, k=SHORT, exclude_seen=config.exclude_seen, targets=targets)
        for targets in targets_of(windows, horizon).T
    ]
    found = SlotRanks(np.stack(popular, axis=1), 0)
    lines.append({"name": "popularity", "is_default": False, **found.figures()})
    return {
        "horizon": horizon,
        "users": len(windows),
        "exclude_seen": config.exclude_seen,
        "beam_width": several.wide_enough(SHORT).beam_width,
        "order": several.order,
        "lines": lines,
    }


def several_items_markdown(found: dict[str, Any]) -> str:
    """The section of the report."""
    horizon = found["horizon"]
    slots = [f"slot {slot}" for slot in range(1, horizon + 1)]
    header = ["", "NFE", *(f"{slot} @{k}" for k in CUTOFFS for slot in (*slots, "average"))]
    rows = [
        [
            line["name"] + " (default)" * line["is_default"],
            f"{line['nfe']:.3g}",
            *(
                _said(figure)
                for k in CUTOFFS
                for figure in (*line[f"recall@{k}"], line[f"average recall@{k}"])
            ),
        ]
        for line in found["lines"]
    ]
    return (
        f"## {horizon} items at once\n\nrecall@k of the last {horizon} items of "
        f"{found['users']:,} users, none of which training has learnt, with "
        f"{setting_name(exclude_seen=found['exclude_seen'])}. A target is found if one of the k "
        f"best sequences has it in its slot. Ranked by path, beam_width {found['beam_width']}, "
        f"order {found['order']}; a schedule (r_warm, m_par) is over the positions of all "
        f"{horizon} items. *One after another*: requests for one item at the bundle's default, by "
        f"beams; each of the {SHORT} best joins the history in a request for the next. *Next "
        f"item*: the list of a request for one item, for every slot. ± is one standard error.\n\n"
        f"{markdown_table(header, rows)}"
    )


def _calls_of_a_user(
    decode_batch: Callable[[int], int], num_users: int, batch: int, workers: int
) -> float:
    """Decode all users. decode_batch: gets the first one of a batch, returns its denoiser calls"""
    with ThreadPoolExecutor(workers) as pool:
        return sum(pool.map(decode_batch, range(0, num_users, batch))) / max(1, num_users)


def _places(rows: NDArray[np.int32], targets: NDArray[np.int32]) -> NDArray[np.int32]:
    """Of each slot's target among sequences, (n, horizon), or in one list of items, (n,)."""
    if not len(rows):
        return np.full(len(targets), NOT_FOUND, np.int32)
    found = rows.reshape(len(rows), -1) == targets
    return np.where(found.any(axis=0), found.argmax(axis=0) + 1, NOT_FOUND).astype(np.int32)


def _figure(hits: Sequence[float] | NDArray[np.float64]) -> dict[str, float]:
    hits = np.asarray(hits)
    error = float(hits.std()) / math.sqrt(len(hits))
    return {"recall": round(float(hits.mean()), 5), "error": round(error, 5)}


def _said(figure: dict[str, float]) -> str:
    return f"{figure['recall']:.4f} ± {figure['error']:.4f}"
