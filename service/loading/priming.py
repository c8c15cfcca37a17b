"""Priming: a bundle decodes its recorded requests before the first client's request.

So no client meets a cold start. A graph that takes shorter histories than the manifest says is
found. And the latency model has seen batches of every size. Knows nothing of queues.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from service.batching import LatencyModel, Work
from service.bundles import Bundle, ladder_of
from service.decoding import Decoder, Job, Ranking, Retrieval, Schedule
from service.decoding.search import followed
from service.errors import BundleInvalid, BundleLoadTimedOut

SIZES = (1, 2, 4, 8, 16)
MAX_RUNGS = 4


def prime(bundle: Bundle, latency: LatencyModel, until: float = inf) -> None:
    """Decode held-out histories in batches of the usual sizes, by every rung of the ladder.

    All batches are decoded twice, and `latency` learns the times of the second run. Before that,
    one history of full length is decoded, and jobs that need what the default setting never calls.
    until: seconds of time.monotonic(), when nobody waits any more
    Raises BundleInvalid when decoding fails, and BundleLoadTimedOut when it is too late.
    """
    manifest = bundle.manifest
    decoder = replace(bundle.decoder, encoder_cache=0)  # every batch must run the encoder
    histories = [bundle.catalogue.rows_of(user.history) for user in bundle.held_out[:16]]
    histories = [rows for rows in histories if len(rows)] or [np.zeros(1, np.int32)]
    rungs = ladder_of(manifest)[:MAX_RUNGS]
    batches = []
    for size in SIZES:
        for rung in rungs:
            schedule = rung.schedule(manifest.num_subspaces)
            job = rung.job(histories[0], rung.beam_width, schedule)
            batches.append(
                [replace(job, history=histories[i % len(histories)]) for i in range(size)]
            )
    longest = np.resize(histories[0], manifest.history_length)  # repeats the rows
    width = manifest.decoding.beam_width
    try:
        _check(bundle, decoder, [replace(batches[0][0], history=longest)])
        rare = _rare_jobs(bundle, longest, width)
        _check(bundle, decoder, rare)
        _explain(decoder, rare)
        for horizon in {2, manifest.max_horizon} if manifest.max_horizon > 1 else ():
            _check_several(bundle, decoder, longest, horizon)
        for is_timed in (False, True):
            for batch in batches:
                if time.monotonic() > until:
                    raise BundleLoadTimedOut(f"bundle {manifest.ref} was not primed in time")
                started = time.perf_counter()
                _check(bundle, decoder, batch)
                if is_timed:
                    work = Work.together(map(Work.of_job, batch))
                    latency.observe(work, time.perf_counter() - started)
    except BundleLoadTimedOut:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise BundleInvalid(f"bundle {manifest.ref} cannot decode: {reason}") from error


def _check(bundle: Bundle, decoder: Decoder, jobs: Sequence[Job]) -> None:
    for job, answer in zip(jobs, decoder.decode(jobs)[0], strict=True):
        left = bundle.catalogue.num_items if job.allowed is None else len(job.allowed)
        if len(answer.rows) < min(job.k, left):
            raise ValueError("a held-out user gets too few items")
        if not np.isfinite(answer.scores).all():
            raise ValueError("a held-out user gets scores that are no numbers")


def _explain(decoder: Decoder, jobs: Sequence[Job]) -> None:
    """Follow the best row of a job of each ranking, as an explanation does."""
    by_ranking = {
        job.ranking: replace(job, trace=True)
        for job in jobs
        if job.allowed is None and job.retrieval == "generate" and len(job.schedule.steps) > 1
    }
    traced = list(by_ranking.values())
    for job, answer in zip(traced, decoder.decode(traced)[0], strict=True):
        followed(answer.trace, job, decoder.trie, int(answer.rows[0]), most=1)


def _check_several(
    bundle: Bundle, decoder: Decoder, history: NDArray[np.int32], horizon: int
) -> None:
    """Decode sequences, with jobs that need all compiled code of their search."""
    num_items, num_positions = bundle.catalogue.num_items, horizon * bundle.catalogue.num_subspaces
    decoding = bundle.manifest.decoding.for_several(horizon)
    steps = {(decoding.r_warm, decoding.m_par), (0, num_positions), (1, num_positions)}
    jobs = [
        Job(
            history,
            1,
            Schedule.from_params(num_subspaces=num_positions, r_warm=r_warm, m_par=m_par),
            decoding.beam_width,
            ranking=decoding.ranking,
            order=decoding.order,
            horizon=horizon,
        )
        for r_warm, m_par in sorted(steps)
    ]
    for answer in decoder.decode(jobs)[0]:
        if not len(answer.rows) and num_items >= horizon:
            raise ValueError("a held-out user gets no sequence of items")
        if not np.isfinite(answer.scores).all():
            raise ValueError("a held-out user gets scores that are no numbers")


def _rare_jobs(bundle: Bundle, history: NDArray[np.int32], width: int) -> list[Job]:
    """Jobs that need compiled code which the bundle's default schedule may not need."""
    num_items, num_subspaces = bundle.catalogue.num_items, bundle.catalogue.num_subspaces
    default = bundle.manifest.decoding
    settings = [
        default.model_copy(
            update={
                "r_warm": r_warm,
                "m_par": min(m_par, num_subspaces),
                "ranking": ranking,
                "order": "left_to_right" if bundle.manifest.autoregressive else "confidence",
            }
        )
        for r_warm, m_par in [(0, 1), (0, 2), (0, num_subspaces), (1, 2), (1, num_subspaces)]
        for ranking in get_args(Ranking)
    ]
    settings.append(settings[0].model_copy(update={"remask": 1, "guidance": 0.0}))
    if bundle.manifest.dense:
        found_by = get_args(Retrieval)
        settings += [default.model_copy(update={"retrieval": one}) for one in found_by]
    asked = [one for one in settings if bundle.manifest.misfit(one) is None]
    to_the_end = [one.model_copy(update={"beam_width": width, "finish_rows": 0}) for one in asked]
    few = np.arange(max(1, num_items // 4), dtype=np.int32)
    most = np.arange(max(1, num_items - num_items // 4), dtype=np.int32)
    return [
        one.job(history, width, one.schedule(num_subspaces), allowed=allowed)
        for one in to_the_end
        for allowed in (None, few, most)
    ]
