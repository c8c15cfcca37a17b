"""What a filter costs beside a request without one, on a synthetic catalogue with attributes.

`OMP_NUM_THREADS=1 python -m loadtest.bench.filter_bench --items 1000000` times the look-up of the
rows that a filter allows and the search that starts from them, in processor time. Every filter is
timed at its first request (cold: nothing is known of it) and when it comes again (warm). Requests
with and without the filter take turns, and a ratio is taken within a round, so a machine that slows
down slows both. The network costs almost nothing. It prints a table, then a line of JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from time import process_time
from typing import Any, get_args, overload

import numpy as np

from loadtest.bench.decode_bench import K, Rows
from loadtest.bench.options import at_least_one, params_of
from loadtest.bench.synthetic import (
    RandomDenoiser,
    catalogue_of,
    code_frequencies,
    random_histories,
    synthetic_codes,
)
from service.bundles import AttributeIndex, Condition, Item
from service.decoding import Decoder, Job, Ranking, Schedule, SidTrie

NUM_SUBSPACES, NUM_CODES = 8, 300
NUM_CATEGORIES = 1000
DAYS = 1000  # items came out on one of so many days
FIRST_DAY = 1_700_000_000.0  # seconds since 1970
A_DAY = 86_400.0
SHARES = (0.9, 0.6, 0.25, 0.01, 0.001)
Filter = Mapping[str, Condition]
NOTHING: Filter = {"category": Condition([])}


class SyntheticItems(Sequence[Item]):
    """Items with a category, a price and a date each, made when they are read.

    A category is a number below NUM_CATEGORIES, a price one in [0, 1), a date one of DAYS days.
    """

    def __init__(self, num_items: int, random: np.random.Generator) -> None:
        self._category = random.integers(NUM_CATEGORIES, size=num_items)
        self._price = random.random(num_items)
        self._day = random.integers(DAYS, size=num_items)

    def __len__(self) -> int:
        return len(self._price)

    def __iter__(self) -> Iterator[Item]:
        columns = self._category.tolist(), self._price.tolist(), self._day.tolist()
        for category, price, day in zip(*columns, strict=True):
            yield _item(category, price, day)

    @overload
    def __getitem__(self, row: int) -> Item: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[Item]: ...
    def __getitem__(self, row: int | slice) -> Item | Sequence[Item]:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        return _item(int(self._category[row]), float(self._price[row]), int(self._day[row]))


def _item(category: int, price: float, day: int) -> Item:
    date = str(np.datetime64(int(FIRST_DAY + day * A_DAY), "s"))
    return Item("item", "", (f"c{category}",), {"price": price, "released": date})


def filters_of(shares: Sequence[float]) -> dict[str, Filter]:
    """A filter of each kind for each share of the catalogue, and some that exclude values."""
    found: dict[str, Filter] = {}
    for share in shares:
        categories = [f"c{number}" for number in range(max(1, round(share * NUM_CATEGORIES)))]
        last = FIRST_DAY + max(1, round(share * DAYS)) * A_DAY
        found[f"category {share:g}"] = {"category": Condition(categories)}
        found[f"price {share:g}"] = {"price": Condition(bounds={"lt": share})}
        found[f"date {share:g}"] = {"released": Condition(bounds={"lt": last})}
    for number in (1, 100):
        categories = [f"c{place}" for place in range(number)]
        found[f"not {number} categories"] = {"category": Condition(none_of=categories)}
    found["category .6, price .9, date .9"] = {
        "category": Condition([f"c{place}" for place in range(600)]),
        "price": Condition(bounds={"lt": 0.9}),
        "released": Condition(bounds={"lt": FIRST_DAY + 900 * A_DAY}),
    }
    return found


@dataclass(frozen=True)
class Measured:
    """Processor seconds of a request with a filter, and of the same one without, in turns.

    Each is of one round, the mean over its requests.
    """

    look_up: float
    search: float
    unfiltered: float


class FilterBench:
    """A catalogue, its attributes, and the histories that are decoded in turn."""

    def __init__(self, options: argparse.Namespace) -> None:
        random = np.random.default_rng((options.seed, options.items))
        frequencies = code_frequencies(NUM_SUBSPACES, NUM_CODES, random)
        codes = synthetic_codes(options.items, frequencies, random)
        self.trie = SidTrie(catalogue_of(codes, NUM_CODES))
        self.denoiser = RandomDenoiser(frequencies, seed=options.seed)
        self.histories = random_histories(options.users, options.items, random)
        r_warm, m_par = options.schedule
        self.schedule = Schedule.from_params(
            num_subspaces=NUM_SUBSPACES, r_warm=r_warm, m_par=m_par
        )
        self.beam_width, self.ranking = options.beam_width, options.ranking
        types: Any = {"price": "number", "released": "date"}
        self.index = AttributeIndex.of(SyntheticItems(options.items, random), types)

    def measured(
        self, wanted: Filter, histories: Sequence[Rows], index: AttributeIndex, trie: SidTrie
    ) -> Measured:
        """Time a request for each history, with and without the filter."""
        decoder = Decoder(trie, self.denoiser)
        seconds = np.zeros(3)
        for history in histories:
            job = Job(
                history,
                K,
                self.schedule,
                self.beam_width,
                excluded=np.unique(history),
                ranking=self.ranking,
            )
            times = [process_time()]
            decoder.decode([job])
            times.append(process_time())
            filtered = replace(job, allowed=index.allowed(wanted))
            times.append(process_time())
            decoder.decode([filtered])
            times.append(process_time())
            seconds += np.diff(times)
        unfiltered, look_up, search = (seconds / len(histories)).tolist()
        return Measured(look_up, search, unfiltered)

    def forgotten(self) -> tuple[AttributeIndex, SidTrie]:
        """The same index and trie, which know nothing of any filter."""
        trie = self.trie
        fresh = SidTrie(trie.catalogue, (trie.indptr, trie.rows), trie.pairs)
        return self.index.forgetting(), fresh


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time all filters of one catalogue; returns their figures."""
    bench = FilterBench(options)
    filters = filters_of(options.shares)
    first = bench.histories[:1]
    shares = {}
    for name, wanted in filters.items():  # compiles, and says how much each leaves
        bench.measured(wanted, first, bench.index, bench.trie)
        shares[name] = len(bench.index.allowed(wanted)) / options.items
    found: dict[tuple[str, str], list[Measured]] = {
        (name, when): [] for name in filters for when in ("cold", "warm")
    }
    for _ in range(options.rounds):
        for name, wanted in filters.items():
            index, trie = bench.forgotten()
            bench.measured(NOTHING, first, index, trie)  # the search has its working memory
            gc.collect()
            found[name, "cold"].append(bench.measured(wanted, first, index, trie))
            bench.measured(wanted, first, index, trie)
            found[name, "warm"].append(bench.measured(wanted, bench.histories, index, trie))
    return {
        "items": options.items,
        "users": options.users,
        "rounds": options.rounds,
        "seed": options.seed,
        "ranking": options.ranking,
        "r_warm": options.schedule[0],
        "m_par": options.schedule[1],
        "beam_width": options.beam_width,
        "unfiltered_ms": _ms(
            [one.unfiltered for (_, when), many in found.items() if when == "warm" for one in many]
        ),
        "cases": [
            {
                "filter": name,
                "when": when,
                "share": round(shares[name], 5),
                "look_up_ms": _ms([one.look_up for one in many]),
                "search_ms": _ms([one.search for one in many]),
                "against_unfiltered": round(
                    median((one.look_up + one.search) / one.unfiltered for one in many), 3
                ),
            }
            for (name, when), many in found.items()
        ],
    }


def _ms(seconds: Sequence[float]) -> float:
    return round(1000 * median(seconds), 3)


def table(found: dict[str, Any]) -> str:
    """The results as an aligned table, a row for each filter."""
    rows = [["filter", "left", "cold: look-up", "search ms", "ratio", "warm: look-up", "search ms"]]
    rows[0].append("ratio")
    cases = {(case["filter"], case["when"]): case for case in found["cases"]}
    for name in dict.fromkeys(case["filter"] for case in found["cases"]):
        cold, warm = cases[name, "cold"], cases[name, "warm"]
        row = [name, f"{cold['share']:.2%}"]
        for case in (cold, warm):
            row += [f"{case['look_up_ms']:.2f}", f"{case['search_ms']:.2f}"]
            row.append(f"{case['against_unfiltered']:.2f}")
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    heading = (
        f"{found['items']:,} items, ({found['r_warm']},{found['m_par']}) by {found['ranking']}, "
        f"{found['beam_width']} beams: {found['unfiltered_ms']:.2f} ms without a filter"
    )
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return "\n".join([heading, *lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: prints a table, then a line of JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.bench.filter_bench",
        description="Time requests with filters of three kinds of attributes against one without.",
    )
    parser.add_argument("--items", type=at_least_one, required=True, help="size of the catalogue")
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES))
    parser.add_argument("--schedule", type=params_of, default=(0, 8), metavar="R_WARM,M_PAR")
    parser.add_argument("--ranking", choices=get_args(Ranking), default="rows")
    parser.add_argument("--beam-width", type=at_least_one, default=50)
    parser.add_argument("--users", type=at_least_one, default=10, help="warm requests of a round")
    parser.add_argument("--rounds", type=at_least_one, default=9)
    parser.add_argument("--seed", type=int, default=0)
    found = measure(parser.parse_args(arguments))
    print(table(found), flush=True)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
