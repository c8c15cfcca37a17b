"""Do requests get slower while items are added? Times the kernel beside `Decoder.with_items`.

`python -m loadtest.bench.growth --items 1000000 --added 10000` decodes the same jobs again and
again in one thread, as the service does. Another thread adds items in every round and swaps the
decoder. The time of a job is compared with the median of its own times while nothing is added. The
catalogue is synthetic, with item vectors as wide as those of a trained bundle. The network costs
almost nothing, so the times are those of the search. It needs two processors. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Thread
from time import perf_counter, sleep
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from loadtest.bench.decode_bench import K, Rows
from loadtest.bench.options import at_least_one, params_of
from loadtest.bench.synthetic import (
    RandomDenoiser,
    catalogue_of,
    code_frequencies,
    random_histories,
    synthetic_codes,
)
from service.decoding import (
    Codebook,
    ContentProjection,
    Decoder,
    Job,
    ProductCodebook,
    Ranking,
    Schedule,
    SidTrie,
)

EMBEDDING_DIMS, CONTENT_DIMS, VECTOR_DIMS = 384, 128, 256
NUM_SUBSPACES, NUM_CODES = 8, 300
QUIET_S = 1.0  # between rounds
SWITCH_INTERVAL_S = 0.0001  # as in the service: how soon another thread gets the interpreter
AFTER_S = 0.1  # after a swap, while the new decoder's memory is read for the first time


@dataclass
class Swapped:
    """The decoder in use; `is_over` ends the thread that decodes."""

    decoder: Decoder
    is_over: bool = False


def synthetic_decoder(
    num_items: int, num_users: int, random: np.random.Generator
) -> tuple[Decoder, list[Rows]]:
    """A decoder of a synthetic catalogue with item vectors, and histories for it."""
    frequencies = code_frequencies(NUM_SUBSPACES, NUM_CODES, random)
    catalogue = catalogue_of(synthetic_codes(num_items, frequencies, random), NUM_CODES)
    catalogue = replace(
        catalogue,
        item_ids=tuple(catalogue.item_ids),
        vectors=random.random((num_items, VECTOR_DIMS), np.float32).astype(np.float16),
    )
    histories = random_histories(num_users, num_items, random)
    return Decoder(SidTrie(catalogue.with_room()), RandomDenoiser(frequencies)), histories


def random_codebook(random: np.random.Generator) -> Codebook:
    """A codebook that encodes content embeddings; the codes themselves do not matter."""
    rotation, _ = np.linalg.qr(random.standard_normal((VECTOR_DIMS, VECTOR_DIMS)))
    shape = NUM_SUBSPACES, NUM_CODES, VECTOR_DIMS // NUM_SUBSPACES
    content = ContentProjection(
        np.zeros(EMBEDDING_DIMS, np.float32),
        random.standard_normal((CONTENT_DIMS, EMBEDDING_DIMS), np.float32),
        0.5,
    )
    centroids = random.standard_normal(shape, np.float32)
    return ProductCodebook(rotation.astype(np.float32), centroids, content=content)


def decode_on(swapped: Swapped, jobs: Sequence[Job], log: list[tuple[int, float, float]]) -> None:
    """Decode one job after the other until `is_over`; log (job, start, stop) in seconds."""
    while not swapped.is_over:
        for number, job in enumerate(jobs):
            started = perf_counter()
            swapped.decoder.decode([job])
            log.append((number, started, perf_counter()))


def measure(
    decoder: Decoder, jobs: Sequence[Job], added: int, rounds: int, random: np.random.Generator
) -> dict[str, Any]:
    """How long adding took, and the times of jobs meanwhile as multiples of their quiet median."""
    codebook = random_codebook(random)
    for job in jobs:  # so that everything is compiled
        decoder.decode([job])
    swapped = Swapped(decoder)
    log: list[tuple[int, float, float]] = []
    spans: list[tuple[float, float]] = []
    thread = Thread(target=decode_on, args=(swapped, jobs, log))
    thread.start()
    try:
        for number in range(rounds + 1):  # the first round does not count
            sleep(QUIET_S)
            item_ids = [f"new-{number}-{item}" for item in range(added)]
            embeddings = random.standard_normal((added, EMBEDDING_DIMS), np.float32)
            started = perf_counter()
            swapped.decoder = swapped.decoder.with_items(item_ids, embeddings, codebook)
            spans.append((started, perf_counter()))
        sleep(QUIET_S)
    finally:
        swapped.is_over = True
        thread.join()
    return figures(np.array(log), np.array(spans))


def figures(log: NDArray[np.float64], spans: NDArray[np.float64]) -> dict[str, Any]:
    """The figures of a run.

    log:   (n, 3) float64, job, start and stop of each decode, in seconds
    spans: (rounds + 1, 2) float64, start and stop of each time items were added, in seconds
    Raises ValueError if a job was never decoded while nothing was added.
    """
    jobs, starts, stops = log[:, 0].astype(int), log[:, 1, None], log[:, 2, None]
    seconds = (stops - starts)[:, 0]
    overlaps = (stops > spans[:, 0]) & (starts < spans[:, 1] + AFTER_S)
    is_quiet = ~np.logical_or.reduce(overlaps, axis=1)
    if len(np.unique(jobs[is_quiet])) < len(np.unique(jobs)):
        raise ValueError("some jobs never came while nothing was added: ask for fewer --users")
    medians = np.array([np.median(seconds[is_quiet & (jobs == job)]) for job in np.unique(jobs)])
    counts = starts[:, 0] > spans[0, 1] + AFTER_S
    times = (seconds / medians[jobs])[counts]
    seconds, is_quiet = seconds[counts], is_quiet[counts]
    adding_s = np.diff(spans[1:])[:, 0]
    return {
        "adding_s": {"median": float(np.median(adding_s)), "worst": float(adding_s.max())},
        "quiet_ms": float(1000 * np.median(seconds[is_quiet])),
        "jobs": {"quiet": int(is_quiet.sum()), "meanwhile": int((~is_quiet).sum())},
        "times_quiet_median": {
            name: {
                "p50": float(np.quantile(of, 0.5)),
                "p99": float(np.quantile(of, 0.99)),
                "worst": float(of.max()),
                "share_above_2": float((of > 2).mean()),
            }
            for name, of in (("quiet", times[is_quiet]), ("meanwhile", times[~is_quiet]))
        },
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: prints a few sentences, then a line of JSON. 1 if it cannot run."""
    options = _parser().parse_args(arguments)
    random = np.random.default_rng((options.seed, options.items))
    decoder, histories = synthetic_decoder(options.items, options.users, random)
    r_warm, m_par = options.schedule
    schedule = Schedule.from_params(num_subspaces=NUM_SUBSPACES, r_warm=r_warm, m_par=m_par)
    jobs = [
        Job(history, K, schedule, options.beam_width, ranking=options.ranking)
        for history in histories
    ]
    gc.freeze()  # as in the service: the garbage collector ignores the catalogue
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    threadpool_limits(1, user_api="blas")  # as the service does
    try:
        found = measure(decoder, jobs, options.added, options.rounds, random)
    except ValueError as error:
        print(f"Cannot run: {error}", file=sys.stderr)
        return 1
    adding_s = found["adding_s"]
    print(
        f"{options.added:,} items added to {options.items:,} in {adding_s['median']:.2f} s "
        f"(worst of {options.rounds}: {adding_s['worst']:.2f} s)"
    )
    for name, of in found["times_quiet_median"].items():
        print(
            f"{found['jobs'][name]:,} jobs {name}: {of['p50']:.2f} times their quiet median, p99 "
            f"{of['p99']:.2f}, worst {of['worst']:.2f}, {of['share_above_2']:.2%} above 2"
        )
    settings = {name: value for name, value in vars(options).items() if name != "schedule"}
    print(json.dumps({**settings, "r_warm": r_warm, "m_par": m_par, **found}))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench.growth", description=__doc__)
    parser.add_argument("--items", type=at_least_one, default=1_000_000, help="of the catalogue")
    parser.add_argument("--added", type=at_least_one, default=10_000, help="in each round")
    parser.add_argument("--rounds", type=at_least_one, default=5)
    parser.add_argument("--users", type=at_least_one, default=20)
    parser.add_argument("--schedule", type=params_of, default=(4, 2), metavar="R_WARM,M_PAR")
    parser.add_argument("--beam-width", type=at_least_one, default=50)
    parser.add_argument("--ranking", choices=get_args(Ranking), default="path")
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
