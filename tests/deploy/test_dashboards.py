"""The committed dashboards are what their module makes; Prometheus accepts all their queries."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from promql import unknown
from test_rules import recorded

from deploy.monitoring.dashboards import BOARDS, COLUMNS, FOLDER, Board, json_of
from deploy.monitoring.queries import dashboard_queries

each_board = pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)


@each_board
def test_the_committed_file_is_what_the_module_makes(board: Board) -> None:
    path = FOLDER / f"{board.uid}.json"
    assert path.read_text() == json_of(board), "run python -m deploy.monitoring.dashboards"


def test_no_other_file_is_provisioned() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {f"{board.uid}.json" for board in BOARDS}


@each_board
def test_grafanas_model_knows_every_key(board: Board) -> None:
    """Grafana's own classes read the file and write the same."""
    read = json.loads((FOLDER / f"{board.uid}.json").read_text())
    assert json.loads(json.dumps(Dashboard.from_json(read), cls=JSONEncoder)) == read


def overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return (
        one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    )


@each_board
def test_panels_say_what_they_show_and_lie_side_by_side(board: Board) -> None:
    panels = json.loads((FOLDER / f"{board.uid}.json").read_text())["panels"]
    places = [panel["gridPos"] for panel in panels]
    assert not [pair for pair in itertools.combinations(places, 2) if overlap(*pair)]
    assert all(sum(panel.width for panel in row) == COLUMNS for row in board.rows)
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]


@pytest.mark.usefixtures("prometheus_package")
def test_prometheus_takes_every_query(tmp_path: Path) -> None:
    """Each query is checked as a recording rule, because promtool checks expressions there."""
    queries = dashboard_queries()
    assert len(queries) > 60
    rules = [
        {"record": f"q{place}", "expr": query.filled("1m")} for place, query in enumerate(queries)
    ]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{len(queries)} rules found" in done.stdout


def test_every_metric_of_a_query_exists() -> None:
    assert unknown([query.filled("1m") for query in dashboard_queries()], recorded()) == set()
