"""Which decoding a request gets: what it asks for, or the best rung that is in time."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from service.bundles.decoding_defaults import DecodingDefaults
from service.bundles.ladder import ladder_of
from service.bundles.manifest import Manifest, PriorWeights
from service.errors import InvalidRequest
from service.recommending.planning import Plan, fixed_plan, plan_in_time
from service.schemas.recommend import DECODING_FIELDS, RecommendRequest

DEFAULT = DecodingDefaults(r_warm=4, m_par=2, beam_width=50)


def point(r_warm: int, m_par: int, beam_width: int, ms: float, recall: float) -> dict[str, Any]:
    decoding = DecodingDefaults(r_warm=r_warm, m_par=m_par, beam_width=beam_width)
    return {**decoding.model_dump(), "milliseconds": ms, "recall@10": recall, "nfe": 1.0}


def manifest(
    grid: Any, decoding: DecodingDefaults = DEFAULT, *, autoregressive: bool = False
) -> Manifest:
    return Manifest(
        format_version=3,
        name="one",
        version="1",
        created_at="2026-01-01",
        num_items=100,
        num_subspaces=8,
        num_codes=16,
        history_length=20,
        repeat_bias=0.0,
        prior=PriorWeights(history_length=4, decay=0.5, scale=1.0, weight=0.0),
        content=None,
        decoding=decoding,
        autoregressive=autoregressive,
        files={},
        facts={} if grid is None else {"grid": grid},
    )


POINTS = [
    point(0, 8, 50, 1.0, 0.08),
    point(4, 2, 50, 10.0, 0.1),
    point(8, 1, 50, 20.0, 0.11),  # better, and slower than the default: not below it
    point(1, 7, 50, 4.0, 0.095),
    point(2, 2, 50, 8.0, 0.094),  # worse and slower than (1, 7)
    point(0, 4, 50, 3.9, 0.09),  # hardly faster than (1, 7)
]


def rungs(grid: Any) -> list[tuple[int, int]]:
    return [(rung.r_warm, rung.m_par) for rung in ladder_of(manifest(grid))]


def test_the_ladder_goes_from_the_default_to_ever_faster_points() -> None:
    assert rungs({"points": POINTS}) == [(4, 2), (1, 7), (0, 8)]


@pytest.mark.parametrize(
    "grid",
    [
        None,
        [],
        {"points": "none"},
        {"points": []},
        {"points": POINTS[:1]},  # the default was not measured
        {"points": [None, {"r_warm": 1}, point(4, 2, 50, 10.0, 0.1)]},
    ],
)
def test_a_bundle_without_a_usable_grid_has_one_rung(grid: Any) -> None:
    assert rungs(grid) == [(4, 2)]


def test_the_ladder_of_an_older_bundle_has_its_rungs() -> None:
    """Its grid was measured when there was only one order."""
    older = [{name: one[name] for name in one if name != "order"} for one in POINTS]
    assert rungs({"points": older}) == rungs({"points": POINTS})


NEXT_CODE = DecodingDefaults(
    r_warm=8, m_par=1, beam_width=50, ranking="path", order="left_to_right"
)


def test_the_ladder_of_a_network_of_the_next_code_has_nothing_else() -> None:
    narrow = NEXT_CODE.model_copy(update={"beam_width": 10})
    points = [
        *POINTS,
        {**NEXT_CODE.model_dump(), "milliseconds": 30.0, "recall@10": 0.12},
        {**narrow.model_dump(), "milliseconds": 9.0, "recall@10": 0.1},
        {**narrow.model_dump(), "order": "entropy", "milliseconds": 8.0, "recall@10": 0.1},
    ]
    of_next_code = manifest({"points": points}, NEXT_CODE, autoregressive=True)
    assert ladder_of(of_next_code) == (NEXT_CODE, narrow)


def test_a_manifest_is_refused_if_its_network_cannot_follow_its_default() -> None:
    with pytest.raises(ValidationError, match=r"decoding.order: .* must be left_to_right"):
        manifest(None, autoregressive=True)
    raw = DEFAULT.model_copy(update={"order": "raw_confidence"})
    with pytest.raises(ValidationError, match=r'decoding.order: .* for the ranking "path"'):
        manifest(None, raw)


def chosen(within_s: float, seconds: dict[int, float], k: int = 10) -> Plan:
    ladder = ladder_of(manifest({"points": POINTS}))
    return plan_in_time(ladder, 8, k, lambda plan: seconds[plan.schedule.nfe], within_s)


def test_auto_takes_the_first_rung_in_time_and_else_the_fastest() -> None:
    seconds = {6: 0.010, 2: 0.004, 1: 0.001}
    best = chosen(0.02, seconds)
    assert (best.schedule.nfe, best.adjusted) == (6, False)
    assert best.decoding == DEFAULT
    less = chosen(0.005, seconds)
    assert (less.schedule.nfe, less.adjusted) == (2, True)
    least = chosen(0.0001, seconds)
    assert (least.schedule.nfe, least.adjusted) == (1, True)


def test_beams_are_as_many_as_the_items_wanted() -> None:
    assert chosen(1, {6: 0.0}, k=80).decoding.beam_width == 80
    asked = fixed_plan(RecommendRequest(user_id="u", k=80), DEFAULT, manifest(None))
    assert asked.decoding.beam_width == 80


def test_a_request_gets_what_it_asks_for_and_the_rest_from_the_default() -> None:
    request = RecommendRequest(user_id="u", r_warm=0, beam_width=20, ranking="path")
    plan = fixed_plan(request, DEFAULT, manifest(None))
    assert plan.decoding == DecodingDefaults(r_warm=0, m_par=2, beam_width=20, ranking="path")
    assert plan.schedule.steps == (2, 2, 2, 2)
    assert not plan.adjusted
    assert (plan.work.calls, plan.work.rows) == (4, 61)


@pytest.mark.parametrize("param", ["r_warm", "m_par"])
def test_more_positions_than_there_are_is_refused(param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        fixed_plan(RecommendRequest(user_id="u", **{param: 9}), DEFAULT, manifest(None))
    assert refused.value.param == param


def test_a_request_pins_what_a_bundle_has_defaults_for() -> None:
    assert set(DECODING_FIELDS) == set(DecodingDefaults.model_fields)
