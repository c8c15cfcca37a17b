"""Times the kernel itself: encoder, denoiser calls and search, for each schedule and beam width.

`python -m loadtest.bench.decode_bench --bundle runs/beauty/bundle` times a bundle on its held-out
users. `--items 10000 1000000` times the search on synthetic catalogues of these sizes, with a
network of random numbers. All cases take turns in every round, so a machine that slows down slows
all of them; ratios are taken within a round. It prints a table, then a line of JSON. It does not
use HTTP (docs/decisions/011). The method is in loadtest/README.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from loadtest.bench.flops import (
    GEMM_SIZE,
    FlopCounter,
    RecordedDenoiser,
    gemm_flops_per_s,
    single_threaded,
)
from loadtest.bench.memory import index_bytes, rss_bytes
from loadtest.bench.options import at_least_one, params_of, share_of_one
from loadtest.bench.prefix_trie import PrefixTrie, decode_left_to_right
from loadtest.bench.report import Timed, case_figures, table
from loadtest.bench.synthetic import (
    RandomDenoiser,
    catalogue_of,
    code_frequencies,
    random_histories,
    synthetic_codes,
)
from service.bundles import Bundle
from service.decoding import Decoder, Denoiser, Job, Ranking, Schedule, SidTrie, Timings
from service.errors import StartError

K = 10
STAGES = 3  # encode, denoise, search
Rows = NDArray[np.int32]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Case:
    """One setting that is timed.

    names:  how the results identify it
    batch:  jobs decoded together
    decode: the histories of one batch -> the times of its stages
    """

    names: dict[str, Any]
    batch: int
    decode: Callable[[Sequence[Rows]], Timings]

    def pass_over(self, histories: Sequence[Rows]) -> Floats:
        """(STAGES,) seconds for each job, over all histories in batches."""
        seconds = np.zeros(STAGES)
        for start in range(0, len(histories), self.batch):
            timings = self.decode(histories[start : start + self.batch])
            seconds += timings.encode_s, timings.denoise_s, timings.search_s
        return seconds / len(histories)


def any_order_cases(decoder: Decoder, options: argparse.Namespace) -> Iterator[Case]:
    """Every combination of the options. Raises ValueError for a schedule that does not fit."""
    catalogue = decoder.trie.catalogue
    num_subspaces = catalogue.num_subspaces
    combinations = product(
        options.ranking,
        options.batch,
        options.beam_widths,
        schedules_of(options, num_subspaces),
        filters_of(options, catalogue.num_items).items(),
    )
    for ranking, batch, beam_width, (r_warm, m_par), (share, allowed) in combinations:
        schedule = Schedule.from_params(num_subspaces=num_subspaces, r_warm=r_warm, m_par=m_par)
        names = {
            "search": "any-order",
            "ranking": ranking,
            "r_warm": r_warm,
            "m_par": m_par,
            "nfe": schedule.nfe,
            "beam_width": beam_width,
            "batch": batch,
            "filter_share": share,
        }
        yield Case(names, batch, _decode_with(decoder, schedule, beam_width, ranking, allowed))


def filters_of(options: argparse.Namespace, num_items: int) -> dict[float | None, Rows | None]:
    """No filter (None), and for each share in the options as many random rows: int32, sorted."""
    random = np.random.default_rng(options.seed)
    filters: dict[float | None, Rows | None] = {None: None}
    for share in options.filter_shares:
        rows = random.choice(num_items, max(1, round(share * num_items)), replace=False)
        filters[share] = np.sort(rows).astype(np.int32)
    return filters


def _decode_with(
    decoder: Decoder,
    schedule: Schedule,
    beam_width: int,
    ranking: Ranking,
    allowed: Rows | None,
) -> Callable[[Sequence[Rows]], Timings]:
    def decode(histories: Sequence[Rows]) -> Timings:
        jobs = [
            Job(history, K, schedule, beam_width, ranking=ranking, allowed=allowed)
            for history in histories
        ]
        return decoder.decode(jobs)[1]

    return decode


def left_to_right_cases(
    trie: PrefixTrie, denoiser: Denoiser, options: argparse.Namespace
) -> Iterator[Case]:
    """The prefix-trie search at every beam width, one job at a time."""
    num_subspaces = trie.catalogue.num_subspaces
    schedule = Schedule((1,) * num_subspaces)
    for beam_width in options.beam_widths:

        def decode(histories: Sequence[Rows], beam_width: int = beam_width) -> Timings:
            [history] = histories
            job = Job(history, K, schedule, beam_width)
            return decode_left_to_right(job, trie, denoiser)[1]

        names = {
            "search": "left-to-right",
            "ranking": "path",
            "r_warm": num_subspaces,
            "m_par": 1,
            "nfe": num_subspaces,
            "beam_width": beam_width,
            "batch": 1,
            "filter_share": None,
        }
        yield Case(names, 1, decode)


def schedules_of(options: argparse.Namespace, num_subspaces: int) -> list[tuple[int, int]]:
    """The schedules of the options, and (num_subspaces, 1) if the left-to-right search runs."""
    added = [(num_subspaces, 1)] if options.left_to_right else []
    return list(dict.fromkeys([*options.schedules, *added]))


def measure(
    decoder: Decoder,
    histories: Sequence[Rows],
    options: argparse.Namespace,
    flops: FlopCounter | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Time all cases of one catalogue; returns their figures, and facts about the catalogue.

    flops: if given, the time of the denoiser is also compared with matrix products, which are timed
           in every round
    """
    recorded = RecordedDenoiser(decoder.denoiser)
    cases = list(any_order_cases(replace(decoder, denoiser=recorded), options))
    facts: dict[str, Any] = {"num_items": decoder.trie.catalogue.num_items}
    if options.left_to_right:
        started = perf_counter()
        prefix_trie = PrefixTrie(decoder.trie.catalogue)
        facts["prefix_trie_build_s"] = perf_counter() - started
        facts["prefix_trie_bytes_per_item"] = _per_item(prefix_trie.index_bytes, facts)
        cases += left_to_right_cases(prefix_trie, decoder.denoiser, options)

    # A pass that does not count: everything that is made at the first use is made now, and the
    # denoiser calls are recorded.
    calls = []
    started = perf_counter()
    for number, case in enumerate(cases):
        recorded.calls.clear()
        case.pass_over(histories)
        calls.append(list(recorded.calls))
        if number == 0:
            facts["first_pass_s"] = perf_counter() - started
    facts["index_bytes_per_item"] = _per_item(index_bytes(decoder.trie), facts)
    facts["rss_bytes"] = rss_bytes()

    seconds = np.zeros((options.rounds, len(cases), STAGES))
    peaks = np.zeros(options.rounds)
    matrix = np.ones((GEMM_SIZE, GEMM_SIZE), np.float32)
    if flops is not None:
        gemm_flops_per_s(matrix)
    for number in range(options.rounds):
        if flops is not None:
            peaks[number] = gemm_flops_per_s(matrix)
        for place, case in enumerate(cases):
            recorded.calls.clear()
            seconds[number, place] = case.pass_over(histories)
    if flops is not None:
        facts["gemm_flops_per_s"] = float(np.median(peaks))
    timed = [Timed(case.names, seconds[:, place]) for place, case in enumerate(cases)]
    if flops is not None:
        for entry, of_case in zip(timed, calls, strict=True):
            if not of_case:  # the left-to-right search, whose calls are not recorded
                continue
            per_job = sum(map(flops.of_call, of_case)) / len(histories)
            entry.gemm_shares = per_job / entry.seconds[:, 1] / peaks
    return case_figures(timed), facts


def _per_item(num_bytes: int, facts: dict[str, Any]) -> float:
    return float(num_bytes / facts["num_items"])


def measure_bundle(options: argparse.Namespace) -> dict[str, Any]:
    """Time a bundle's catalogue and network on the histories of its held-out users."""
    bundle = Bundle.load(options.bundle, precision=options.precision)
    if bundle.manifest.autoregressive:
        raise ValueError(
            f"{options.bundle} fills one position a call, so it has no schedules to compare"
        )
    users = bundle.held_out[: options.users]
    if not users:
        raise ValueError(f"{options.bundle} has no held-out users")
    histories = [bundle.catalogue.rows_of(user.history) for user in users]
    flops = None
    if not single_threaded():
        _say("No share of the GEMM peak: set OMP_NUM_THREADS=1 before the run.")
    else:
        try:
            flops = FlopCounter(options.bundle / "decoder.onnx")
        except ImportError:
            _say("No share of the GEMM peak: the package onnx is not installed.")
    cases, facts = measure(bundle.decoder, histories, options, flops)
    facts |= {"network": bundle.manifest.ref, "precision": bundle.precision}
    return {"users": len(users), **facts, "cases": cases}


def measure_synthetic(num_items: int, options: argparse.Namespace) -> dict[str, Any]:
    """Time a synthetic catalogue with `num_items` items and a random network."""
    random = np.random.default_rng((options.seed, num_items))
    frequencies = code_frequencies(options.num_subspaces, options.num_codes, random)
    codes = synthetic_codes(num_items, frequencies, random)
    histories = random_histories(options.users, num_items, random)
    before = rss_bytes()
    started = perf_counter()
    trie = SidTrie(catalogue_of(codes, options.num_codes))
    build_s = perf_counter() - started
    decoder = Decoder(trie, RandomDenoiser(frequencies, seed=options.seed))
    cases, facts = measure(decoder, histories, options)
    facts |= {"build_s": build_s, "rss_bytes_before_build": before}
    return {"network": "random", "users": options.users, **facts, "cases": cases}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: prints a table for each catalogue, then a line of JSON. 1 if it cannot run."""
    options = _parser().parse_args(arguments)
    if options.left_to_right and 1 not in options.batch:
        options.batch = [1, *options.batch]
    catalogues = []
    try:
        for num_items in options.items or [None]:
            found = (
                measure_bundle(options)
                if num_items is None
                else measure_synthetic(num_items, options)
            )
            print(table(found), flush=True)
            catalogues.append(found)
    except (StartError, ValueError) as error:
        _say(f"Cannot run: {error}")
        return 1
    settings = {
        "rounds": options.rounds,
        "seed": options.seed,
        "k": K,
        "num_codes": None if options.bundle else options.num_codes,
        "num_subspaces": None if options.bundle else options.num_subspaces,
    }
    print(json.dumps({**settings, "catalogues": catalogues}))
    return 0


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.bench.decode_bench",
        description="Time encoder, denoiser calls and search by schedule and beam width.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--bundle", type=Path, help="folder of a bundle with held-out users")
    source.add_argument(
        "--items", type=at_least_one, nargs="+", help="sizes of synthetic catalogues"
    )
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32")
    parser.add_argument("--num-codes", type=at_least_one, default=300, help="with --items")
    parser.add_argument("--num-subspaces", type=at_least_one, default=8, help="with --items")
    parser.add_argument(
        "--schedules",
        type=params_of,
        nargs="+",
        default=[(0, 8), (1, 7), (4, 4), (4, 2), (8, 1)],
        metavar="R_WARM,M_PAR",
    )
    parser.add_argument("--beam-widths", type=at_least_one, nargs="+", default=[10, 50])
    parser.add_argument(
        "--batch", type=at_least_one, nargs="+", default=[1, 8], help="jobs decoded together"
    )
    parser.add_argument(
        "--ranking", choices=get_args(Ranking), nargs="+", default=list(get_args(Ranking))
    )
    parser.add_argument(
        "--filter-shares",
        type=share_of_one,
        nargs="+",
        default=[],
        help="also time filters that leave such shares of the catalogue, random rows",
    )
    parser.add_argument("--users", type=at_least_one, default=100, help="jobs of a pass")
    parser.add_argument("--rounds", type=at_least_one, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--left-to-right",
        action="store_true",
        help="also time a prefix-trie search, at a batch of 1; adds the schedule it compares with",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
