"""Prometheus accepts the rules. Every alert fires and is silent when it should, and has a page."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from promql import metrics_of, unknown

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
RULES = sorted((MONITORING / "rules").glob("*.yml"))
TESTS = sorted((MONITORING / "tests").glob("*.yml"))
RUNBOOK = ROOT / "docs" / "runbook.md"

needs_prometheus = pytest.mark.usefixtures("prometheus_package")


def rules() -> list[dict[str, Any]]:
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def recorded() -> set[str]:
    return {rule["record"] for rule in rules() if "record" in rule}


@needs_prometheus
def test_prometheus_takes_the_configuration_with_the_rules(tmp_path: Path) -> None:
    config = (MONITORING / "prometheus.yml").read_text()
    assert "/etc/prometheus/rules/*.yml" in config
    (tmp_path / "prometheus.yml").write_text(
        config.replace("/etc/prometheus/rules", str(MONITORING / "rules"))
    )
    done = subprocess.run(
        ["promtool", "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"{len(alerts())} rules found" in done.stdout
    assert f"{len(recorded())} rules found" in done.stdout


@needs_prometheus
def test_the_rules_do_what_their_tests_say() -> None:
    """All files in one call: each takes a second or two."""
    running = [
        subprocess.Popen(
            ["promtool", "test", "rules", path],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for path in TESTS
    ]
    outputs = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(TESTS), "\n".join(outputs)


def test_every_alert_is_tested_firing_and_silent() -> None:
    """By name and labels, so that each window of an alert is tested."""
    cases: list[tuple[str, bool]] = []  # what is asked for, and whether it fires
    for path in TESTS:
        for test in yaml.safe_load(path.read_text())["tests"]:
            for case in test.get("promql_expr_test", []):
                fires = case.get("exp_samples", [])
                cases += [(sample["labels"], True) for sample in fires]
                cases += [(case["expr"], False)] if not fires else []
            for case in test.get("alert_rule_test", []):
                cases.append((f'alertname="{case["alertname"]}"', bool(case.get("exp_alerts"))))
    for alert in alerts():
        wanted = [f'alertname="{alert["alert"]}"']
        wanted += [f'window="{alert["labels"]["window"]}"'] if "window" in alert["labels"] else []
        found = {fires for text, fires in cases if all(part in text for part in wanted)}
        assert found == {True, False}, wanted


def test_every_metric_of_a_rule_exists() -> None:
    assert unknown([rule["expr"] for rule in rules()], recorded()) == set()
    assert unknown(["rate(unmask_redy[5m])", "process_cpu_seconds_totl"], recorded()) == {
        "unmask_redy",
        "process_cpu_seconds_totl",
    }


@pytest.mark.parametrize(
    ("expr", "metrics"),
    [
        (
            'sum by (le, job) (rate(a_bucket{le="0.1", b=~"c|d"}[5m] offset 1h)) > 14.4',
            {"a_bucket"},
        ),
        ("x / on (job) group_left () job:y:z unless w == 1e3", {"x", "job:y:z", "w"}),
        ("time() - max(up) or vector(0)", {"up"}),
    ],
)
def test_metrics_are_found_in_expressions(expr: str, metrics: set[str]) -> None:
    assert metrics_of(expr) == metrics


def test_alerts_say_who_is_told_and_where_to_read_on() -> None:
    for alert in alerts():
        assert alert["labels"]["severity"] in ("page", "ticket"), alert["alert"]
        notes = alert["annotations"]
        assert set(notes) == {"summary", "description", "runbook_url"}
        assert notes["runbook_url"] == f"docs/runbook.md#{alert['alert'].lower()}"
        assert notes["description"].endswith(".")


def test_the_runbook_has_a_section_for_every_alert_and_no_other() -> None:
    headings = re.findall(r"^### (Unmask\w+)$", RUNBOOK.read_text(), re.M)
    assert sorted(headings) == sorted({alert["alert"] for alert in alerts()})
    sections = re.split(r"^### Unmask\w+$", RUNBOOK.read_text(), flags=re.M)[1:]
    severities = {alert["alert"]: set() for alert in alerts()}
    for alert in alerts():
        severities[alert["alert"]].add(alert["labels"]["severity"])
    for name, section in zip(headings, sections, strict=True):
        named = set(re.findall(r"\b(page|ticket)\b", section.strip().splitlines()[0].lower()))
        assert named == severities[name], f"{name}: its first line says who is told"
