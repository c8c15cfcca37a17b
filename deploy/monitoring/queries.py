"""The queries of the committed dashboards, with Grafana's variables filled in for Prometheus.

Reads the JSON files that ship, not the module that wrote them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DASHBOARDS = Path(__file__).parent / "grafana" / "dashboards"
RULES = Path(__file__).parent / "rules"
LEGEND = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True)
class Query:
    """One query of a panel. kind: the type of the panel as Grafana calls it."""

    board: str
    panel: str
    kind: str
    unit: str
    is_stacked: bool
    legend: str
    expr: str

    def filled(self, window: str) -> str:
        """The query for all replicas, bundles and events. window: of `rate`, such as 30s"""
        expr = self.expr.replace("$__rate_interval", window)
        expr = re.sub(r'=~"\$(instance|bundle|event_type)"', '=~".*"', expr)
        assert "$" not in expr, f"{self.panel}: a variable that nobody fills in: {expr}"
        return expr

    def name_of(self, labels: Mapping[str, str]) -> str:
        """The name of a series, from its labels."""
        return LEGEND.sub(lambda found: labels.get(found[1], ""), self.legend)


def dashboard_queries() -> list[Query]:
    """The queries of all committed dashboards, in their order on the page."""
    return [
        Query(
            board["title"],
            panel["title"],
            panel["type"],
            panel["fieldConfig"]["defaults"]["unit"],
            "stacking" in panel["fieldConfig"]["defaults"].get("custom", {}),
            target["legendFormat"],
            target["expr"],
        )
        for path in sorted(DASHBOARDS.glob("*.json"))
        for board in [json.loads(path.read_text())]
        for panel in board["panels"]
        for target in panel["targets"]
    ]
