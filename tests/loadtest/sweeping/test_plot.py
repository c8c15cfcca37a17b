"""The picture of the committed sweep: every name is there, and no name lies on another."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from loadtest.sweeping.__main__ import main
from loadtest.sweeping.labels import Label, boxes_of, place_labels
from loadtest.sweeping.plot import MDGR_NAMED, draw_sweep
from loadtest.sweeping.results import read_results

COMMITTED = Path("docs/results/sweep")


def test_no_two_names_overlap_in_the_committed_sweep() -> None:
    setting, measured = read_results(COMMITTED)
    widest = [one for one in measured if one.case.beam_width == 50]
    figure, [left, right] = draw_sweep(measured, setting)
    assert sorted(name.get_text() for name in left) == sorted(one.case.schedule for one in measured)
    assert len(right) == len(widest) + len(MDGR_NAMED)
    for axes, names in zip(figure.axes, (left, right), strict=True):
        boxes = boxes_of(names)
        legend = axes.get_legend()
        assert legend is not None
        for one, other in itertools.combinations([*boxes, legend.get_window_extent()], 2):
            assert not one.overlaps(other)
        inside = axes.get_window_extent()
        assert all(inside.x0 < box.x0 and box.x1 < inside.x1 for box in boxes)
        assert all(inside.y0 < box.y0 and box.y1 < inside.y1 for box in boxes)


def test_a_name_without_a_free_place_is_left_out() -> None:
    """Hundreds of names of one point: as many as there is room for, and none on another."""
    figure = Figure(figsize=(2, 2))
    axes = figure.add_subplot()
    axes.plot([1.0], [1.0], "o")
    names = place_labels(axes, [Label(f"({n}, {n})", 1.0, 1.0, "black") for n in range(100)])
    assert 10 < len(names) < 100
    assert [name.get_text() for name in axes.texts] == [name.get_text() for name in names]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes_of(names), 2))


def test_a_name_far_from_its_point_or_beside_two_has_a_line() -> None:
    figure = Figure(figsize=(4, 4))
    axes = figure.add_subplot()
    axes.plot([0.0, 0.98, 1.0, 1.02], [0.0, 1.0, 1.0, 1.0], "o")
    alone, crowded = place_labels(
        axes, [Label("alone", 0.0, 0.0, "black"), Label("crowded", 1.0, 1.0, "black")]
    )
    assert alone.arrow_patch is None
    assert crowded.arrow_patch is not None


def test_the_picture_is_drawn_again_from_the_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 1
    assert "does not hold the results of a sweep" in capsys.readouterr().err
    results = (COMMITTED / "sweep.jsonl").read_bytes()
    (tmp_path / "sweep.jsonl").write_bytes(results)
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert b"MDGR, Table 3" in (tmp_path / "sweep.svg").read_bytes()
    assert (tmp_path / "sweep.jsonl").read_bytes() == results
