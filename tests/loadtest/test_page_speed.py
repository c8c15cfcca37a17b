"""How fast the page is: a real service, a real browser, a few moves; orders, and no clocks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_bundle import write_tiny_bundle

from loadtest.page_speed import main


def test_each_turn_has_what_was_seen_in_the_browser(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny", has_map=True)
    few = ["--turns", "1", "--moves", "6", "--drags", "1"]
    assert main(["--bundle", str(bundle), *few]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    summary = json.loads(last)
    assert (summary["bundle"], summary["items"]) == ("tiny@1", 200)
    [turn] = summary["turns"]
    assert min(turn["first_paint_ms"], turn["first_list_ms"]) > 0
    assert len(turn["moves_ms"]) == len(turn["requests_ms"]) == 6
    assert min(turn["requests_ms"]) > 0
    assert sum(turn["requests_ms"]) < sum(turn["moves_ms"])  # each is a part of its move
    assert turn["draws"] > 1
    assert turn["frames_a_second"] == pytest.approx(turn["draws"] / turn["drag_s"])


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", "http://127.0.0.1:9", "--chromium", "any"]) == 1
    assert "http://127.0.0.1:9 does not answer" in capsys.readouterr().err
    assert main(["--url", "http://127.0.0.1:9", "--chromium", ""]) == 1
    assert "this needs Chromium" in capsys.readouterr().err
