"""Which metrics a PromQL expression reads, and which metrics exist."""

from __future__ import annotations

import re
from collections.abc import Iterable

from service.telemetry.metrics import Metrics

KEYWORDS = {
    "and",
    "or",
    "unless",
    "offset",
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "bool",
}
OF_OTHERS = re.compile(r"up|haproxy_\w+")


def metrics_of(expr: str) -> set[str]:
    """Every identifier that may be a metric: not a function, a label or a keyword."""
    bare = re.sub(r'"(\\.|[^"\\])*"', '""', expr)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    bare = re.sub(r"\boffset\s+\w+", " ", bare)
    names = re.findall(r"(?<![\w.:])([a-zA-Z_:][\w:]*)\b(?!\s*\()", bare)
    return set(names) - KEYWORDS


def exposed() -> set[str]:
    """Names of the series that the service exposes."""
    names = set()
    for family in Metrics().registry.collect():
        names |= {f"{family.name}_total"} if family.type == "counter" else set()
        names |= {family.name} if family.type == "gauge" else set()
        if family.type == "histogram":
            names |= {f"{family.name}_{end}" for end in ("bucket", "sum", "count")}
    return names


def unknown(exprs: Iterable[str], recorded: set[str]) -> set[str]:
    """Metrics of these expressions that nothing exposes."""
    read = set().union(*map(metrics_of, exprs))
    return {name for name in read - exposed() - recorded if not OF_OTHERS.fullmatch(name)}
