"""The grid of decoding settings: its points, what is measured, and which point ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from tiny_bundle import write_tiny_bundle

from service.bundles.bundle import Bundle, DecodingDefaults
from service.decoding import Catalogue, Decoder, Histories, SidTrie
from training.config import EvaluationConfig, ScheduleConfig
from training.data.splits import Windows
from training.evaluation.decoding_grid import best_point, grid_of, measure_grid, schedules_of
from training.evaluation.evaluation import schedule_of
from training.evaluation.report import _settings
from training.preset import load_config

ONE_CALL, TWO, PAPER = (ScheduleConfig(r_warm=n, m_par=m) for n, m in ((0, None), (1, 3), (2, 1)))


def grid(**fields: Any) -> list[tuple[int, int, int, str, int]]:
    """The points of a configuration for SIDs of 4 positions and 500 items, all of one order."""
    points = grid_of(EvaluationConfig(**fields), 4, 500, "rows")
    assert {point.order for point in points} == {"confidence"}
    return [tuple(point.model_dump(exclude={"order"}).values()) for point in points]


def test_points_that_cannot_differ_are_one() -> None:
    axes = {"beam_widths": (10, 40), "rankings": ("path", "rows"), "finish_rows": (0, 60, 500)}
    points = grid(schedules=(ONE_CALL, TWO), **axes)
    assert points[0] == (0, 4, 40, "rows", 0)  # for any schedule that 500 rows cut to one call
    assert points[1:] == [
        (1, 3, beam_width, ranking, finish_rows)
        for beam_width in (10, 40)
        for ranking in ("path", "rows")
        for finish_rows in (0, 60)
    ]
    assert grid(schedules=(ONE_CALL,), rankings=("best", "path")) == [(0, 4, 50, "best", 0)]
    assert grid(schedules=(ScheduleConfig(r_warm=4, m_par=3), PAPER, PAPER), **axes) == [
        (4, 3, 10, "path", 0),
        (4, 3, 10, "path", 60),
        (0, 4, 40, "rows", 0),
        *((4, 3, *others, finish) for others in ((10, "rows"), (40, "path"), (40, "rows"))
          for finish in (0, 60)),
    ]  # fmt: skip


def test_orders_are_tried_where_they_can_be_followed() -> None:
    config = EvaluationConfig(
        schedules=(ONE_CALL, TWO),
        beam_widths=(10,),
        rankings=("rows", "path"),
        finish_rows=(0,),
        orders=("entropy", "raw_confidence"),
    )
    found = [(one.r_warm, one.ranking, one.order) for one in grid_of(config, 4, 500, "rows")]
    assert found == [
        (0, "rows", "confidence"),  # one call fills all positions: no order, so the usual one
        (1, "rows", "entropy"),
        (1, "path", "entropy"),
        (1, "path", "raw_confidence"),
    ]


def test_remasking_and_guidance_are_tried_where_they_can_be_followed() -> None:
    config = EvaluationConfig(
        schedules=(ONE_CALL, TWO),
        beam_widths=(10,),
        rankings=("rows",),
        finish_rows=(0,),
        remasks=(0, 2, 4),
        guidances=(0.0, 1.5),
    )

    def found(num_subspaces: int, history_dropout: float) -> list[tuple[int, int, float]]:
        points = grid_of(config, num_subspaces, 500, "rows", history_dropout=history_dropout)
        return [(one.r_warm, one.remask, one.guidance) for one in points]

    assert found(4, 0.0) == [(0, 0, 0), (0, 2, 0), (1, 0, 0), (1, 2, 0)]
    assert found(4, 0.1) == [
        (r_warm, remask, guidance)
        for r_warm in (0, 1)
        for remask in (0, 2)
        for guidance in (0, 1.5)
    ]
    assert len(found(5, 0.1)) == 2 * 3 * 2
    next_code = grid_of(config, 4, 500, "path", autoregressive=True, history_dropout=0.1)
    assert [(one.remask, one.guidance) for one in next_code] == [(0, 0), (0, 1.5)]


def test_a_network_of_the_next_code_has_one_point_for_each_beam_width() -> None:
    config = load_config("default").evaluation
    points = grid_of(config, 4, 500, "path", autoregressive=True)
    assert [tuple(point.model_dump().values()) for point in points] == [
        (4, 1, beam_width, "path", 0, "left_to_right") for beam_width in config.beam_widths
    ]


def test_retrievals_that_are_asked_for_are_tried() -> None:
    config = EvaluationConfig(
        schedules=(ONE_CALL, TWO), beam_widths=(10, 50), rankings=("rows",), finish_rows=(0,)
    )
    tried = config.model_copy(update={"retrievals": ("generate", "dense", "fused")})
    for autoregressive in (False, True):
        searches = grid_of(config, 4, 500, "rows", autoregressive=autoregressive)
        points = grid_of(tried, 4, 500, "rows", autoregressive=autoregressive)
        assert points[: len(searches)] == searches
        assert points[len(searches)].retrieval == "dense"
        fused = [one.model_copy(update={"retrieval": "fused"}) for one in searches]
        assert points[len(searches) + 1 :] == fused
        dense = points[len(searches)].model_copy(update={"retrieval": "generate"})
        assert dense in searches  # a setting that the bundle can follow
    assert "retrieval" not in searches[0].model_dump()


def test_a_report_has_the_schedules_that_the_bundle_can_follow(tmp_path: Path) -> None:
    config = EvaluationConfig(schedules=(ONE_CALL, TWO, ScheduleConfig(r_warm=4, m_par=1)))
    for autoregressive, steps in ((False, [(4,), (1, 3), (1,) * 4, (1, 1, 2)]), (True, [(1,) * 4])):
        path = write_tiny_bundle(tmp_path / str(autoregressive), autoregressive=autoregressive)
        manifest = Bundle.load(path).manifest
        settings = _settings(config, manifest.decoding, manifest)
        assert [schedule_of(one, 4).steps for one in settings] == steps
        assert {one.order for one in settings} == {manifest.decoding.order}


def test_the_default_grid_is_small() -> None:
    config = load_config("default").evaluation
    assert len(grid_of(config, 8, 10_000, "rows")) == 1 + 4 * 2 * 3 * 2
    assert len(grid_of(config, 8, 900, "rows")) == 1 + 4 * 2 * 3


def test_the_table_has_a_one_call_schedule_for_any_number_of_subspaces() -> None:
    config = load_config("default").evaluation
    assert schedules_of(config, 16) == [(0, 16), (1, 15), (4, 4), (4, 2), (8, 1)]
    assert schedules_of(config, 4) == [(0, 4), (1, 3), (4, 4)]


def hits_of(*found: int, shift: int = 0) -> np.ndarray:
    """Hits of 1000 users: the first `number` of each point, of the last point moved by `shift`."""
    hits = np.stack([np.arange(1000) < number for number in found])
    hits[-1] = np.roll(hits[-1], shift)
    return hits


@pytest.mark.parametrize(
    ("hits", "milliseconds", "nfe", "chosen"),
    [
        (hits_of(100, 100), [2, 1], [1, 6], 1),  # as good, and faster
        (hits_of(60, 100), [1, 9], [1, 6], 1),  # fast and clearly worse
        (hits_of(100, 101, shift=50), [2, 9], [6, 1], 0),  # many users differ, all chance
        (hits_of(100, 100), [1, 1.05], [6, 1], 1),  # a near tie: fewer calls
        (hits_of(100, 101), [1.05, 1], [2, 2], 1),  # and as many: the higher recall
        (hits_of(60, 100, 100), [1, 3, 2], [1, 2, 2], 2),  # near ties are of the good ones
    ],
)
def test_the_fastest_within_two_standard_errors_ships(
    hits: np.ndarray, milliseconds: list[float], nfe: list[float], chosen: int
) -> None:
    assert best_point(hits, milliseconds, nfe) == chosen


class _Favourites:
    """The same random log-probs for every user."""

    num_subspaces, num_codes, history_length, repeat_bias = 4, 4, 5, 0.0
    table = np.log(np.random.default_rng(1).dirichlet(np.ones(4), 4)).astype(np.float32)

    def encode(self, histories: Histories) -> int:
        return len(histories.codes)

    def select(self, memory: int, jobs: np.ndarray) -> int:
        return len(jobs)

    def denoise(self, memory: int, partial_sids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return self.table[positions]


def test_every_point_is_measured_on_the_same_users() -> None:
    random = np.random.default_rng(0)
    codes = random.integers(0, 4, (80, 4)).astype(np.uint16)
    item_ids = tuple(f"item-{row}" for row in range(80))
    catalogue = Catalogue(item_ids, codes, 4, np.zeros(80, np.int64))
    decoder = Decoder(SidTrie(catalogue), _Favourites())
    ends = np.arange(3, 160, 4)  # users of four items each
    rows = random.integers(0, 80, 160).astype(np.int32)
    windows = Windows(rows, np.arange(40, dtype=np.int32), ends - 3, ends)
    config = EvaluationConfig(
        schedules=(ONE_CALL, ScheduleConfig(r_warm=4, m_par=1)),
        beam_widths=(10,),
        rankings=("rows",),
        finish_rows=(0, 60, 70),
        schedule_users=25,
        timing_users=3,
    )
    told: list[tuple[str, int, int]] = []
    found = measure_grid(decoder, windows, config, "rows", advance=lambda *said: told.append(said))
    assert (found.users, found.timing_users, found.exclude_seen) == (25, 3, True)
    assert [point.decoding.finish_rows for point in found.points] == [0, 0, 60, 70]
    assert [point.steps for point in found.points] == [(4,)] + 3 * [(1, 1, 1, 1)]
    one_call, whole, *early = found.points
    assert (one_call.nfe, whole.nfe) == (1, 4)
    assert all(1 < point.nfe < 4 for point in early)
    assert min(point.milliseconds for point in found.points) > 0
    assert min(point.behind for point in found.points) == 0
    assert found.default == found.points[found.chosen].decoding
    assert isinstance(found.default, DecodingDefaults)
    assert told == [("ranked", n, 4) for n in (1, 2, 3, 4)] + [("timed", n, 3) for n in (1, 2, 3)]
    said = found.as_json()
    assert said["chosen"] == found.chosen
    assert said["points"][2]["finish_rows"] == 60


def test_a_grid_of_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="raw_confidence cannot rank by rows"):
        EvaluationConfig(orders=("raw_confidence",), rankings=("rows",))
    EvaluationConfig(orders=("raw_confidence",), rankings=("rows", "path"))
