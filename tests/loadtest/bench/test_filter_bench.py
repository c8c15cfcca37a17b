"""filter_bench runs as a command, and its items are what its filters ask for."""

from __future__ import annotations

import json

import numpy as np
import pytest

from loadtest.bench.filter_bench import SyntheticItems, filters_of, main
from service.bundles import AttributeIndex


def test_a_table_and_a_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--items", "500", "--rounds", "1", "--users", "2", "--beam-width", "10")
    assert main([*sizes, "--shares", ".9", ".25", "--schedule", "4,2", "--ranking", "path"]) == 0
    heading, *rows, last = capsys.readouterr().out.splitlines()
    assert heading.startswith("500 items, (4,2) by path, 10 beams: ")
    found = json.loads(last)
    cases = [(case["filter"], case["when"]) for case in found["cases"]]
    assert len(cases) == len(set(cases)) == 2 * 9
    assert len(rows) == 1 + 9 + 1
    assert {when for _, when in cases} == {"cold", "warm"}
    for case in found["cases"]:
        assert min(case["search_ms"], case["against_unfiltered"]) > 0
        assert case["look_up_ms"] >= 0  # of a microsecond or two: a clock may not see it
        if case["filter"].endswith((" 0.9", " 0.25")):
            assert case["share"] == pytest.approx(float(case["filter"].split()[-1]), abs=0.1)


def test_filters_leave_the_shares_that_they_are_named_after() -> None:
    items = SyntheticItems(20_000, np.random.default_rng(0))
    assert items[7] == list(items)[7] == items[5:9][2]
    index = AttributeIndex.of(items, {"price": "number", "released": "date"})
    wanted = filters_of([0.9, 0.01])
    left = {name: len(index.allowed(one)) / 20_000 for name, one in wanted.items()}
    for kind in ("category", "price", "date"):
        assert left[f"{kind} 0.9"] == pytest.approx(0.9, abs=0.01)
        assert left[f"{kind} 0.01"] == pytest.approx(0.01, abs=0.005)
    assert left["not 100 categories"] == pytest.approx(0.9, abs=0.01)
