"""What is counted for an answer, besides its time: calls saved, rows left, invalid SIDs."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from running_service import Service
from tiny_bundle import NUM_ITEMS

from service.bundles.decoding_defaults import DecodingDefaults
from service.decoding import Decoded, Schedule
from service.recommending.jobs import Inputs
from service.recommending.planning import Plan
from service.recommending.recommender import count_decoded
from service.schemas.recommend import DegradedReason
from service.telemetry.metrics import Metrics

HISTORY = ["item-3", "item-40"]
ROWS = [f"item-{row}" for row in range(NUM_ITEMS)]


def test_a_search_that_ends_early_saves_calls(served: Service) -> None:
    before = served.samples()
    answer = served.recommend(user_id="c", history=HISTORY, r_warm=4, m_par=1, finish_rows=200)
    assert answer.json()["decoding"]["nfe"] == 1
    after = served.samples()
    grown = {name: after[name] - before[name] for name in before if name in after}
    assert grown["unmask_nfe_saved_total"] == 3
    assert grown["unmask_denoiser_calls_total"] == grown["unmask_nfe_sum"] == 1
    assert grown["unmask_survivors_sum"] == NUM_ITEMS - len(HISTORY)  # not asked to exclude others


@pytest.mark.parametrize(
    ("reason", "fields"),
    [
        ("filter", {"filter": {"category": ["rare"]}, "k": 10}),
        ("exclusions", {"exclude_items": ROWS[:195], "k": 10}),
        ("exclusions", {"filter": {"category": ["rare"]}, "exclude_items": ROWS[:1], "k": 4}),
        ("filter", {"candidates": ROWS[:4], "max_per": {"category": 1}, "k": 5}),
        ("caps", {"filter": {"category": ["rare"]}, "max_per": {"category": 1}, "k": 3}),
    ],
)
def test_short_lists_say_why(served: Service, reason: str, fields: dict) -> None:
    def short() -> dict[str, float]:
        counts = served.samples().items()
        return {name: n for name, n in counts if name.startswith("unmask_short_lists_total")}

    before = short()
    answer = served.recommend(user_id="c", history=HISTORY, exclude_seen=False, **fields)
    assert len(answer.json()["items"]) < fields["k"]
    grown = {name: n - before[name] for name, n in short().items() if n != before[name]}
    assert grown == {f'unmask_short_lists_total{{reason="{reason}"}}': 1}


def test_a_list_that_need_not_be_short_is_the_searchs_fault() -> None:
    """Over HTTP a beam width below k is refused, so no request leads here."""
    nothing = np.empty(0, np.int32)
    assert Inputs(nothing, nothing, None).short_because(10, 5) == "catalogue"
    assert Inputs(nothing, nothing, None).short_because(10, 10) == "beam"
    assert Inputs(nothing, nothing, None).short_because(10, 10, is_capped=True) == "caps"


@pytest.mark.parametrize(
    ("rows", "invalid"), [([4, 0, 2], 0), ([4, 4, 2], 1), ([-1, 5, 5], 3), ([], 0)]
)
def test_rows_that_are_none_or_come_twice_are_invalid(rows: list[int], invalid: int) -> None:
    """No search makes such an answer. If one ever does, it is counted."""
    metrics = Metrics()
    plan = Plan(DecodingDefaults(r_warm=2, m_par=2, beam_width=10), Schedule((1, 1, 2)))
    decoded = Decoded(np.array(rows, np.int32), np.zeros(len(rows), np.float32), 2, survivors=7)
    count_decoded(metrics, decoded, plan, num_items=5)
    values = {
        name: metrics.registry.get_sample_value(f"unmask_{name}")
        for name in ("invalid_sids_total", "nfe_sum", "nfe_saved_total", "survivors_sum")
    }
    assert values == {
        "invalid_sids_total": invalid,
        "nfe_sum": 2,
        "nfe_saved_total": 1,
        "survivors_sum": 7,
    }


def test_counters_whose_labels_are_known_begin_at_zero() -> None:
    value = Metrics().registry.get_sample_value
    for reason in get_args(DegradedReason):
        assert value("unmask_fallbacks_total", {"reason": reason}) == 0
    for reason in ("filter", "exclusions", "catalogue", "caps", "beam"):
        assert value("unmask_short_lists_total", {"reason": reason}) == 0
    labels = {"operation": "reload", "result": "failed"}
    assert value("unmask_bundle_operations_total", labels) == 0
