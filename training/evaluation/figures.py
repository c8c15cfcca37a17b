"""Figures for tables: differences over the same users, standard errors, verdicts, Markdown.

Knows ranks, and no system.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from training.evaluation.evaluation import recall_at
from training.evaluation.ranks_store import TargetRanks

Verdict = Literal["better", "worse", "tie"]


@dataclass(frozen=True)
class Difference:
    """Of two recalls over the same users: mean of the users' differences and its standard error."""

    mean: float
    standard_error: float

    @property
    def verdict(self) -> Verdict:
        """A tie when the difference is below two standard errors."""
        if not self.mean or abs(self.mean) < 2 * self.standard_error:
            return "tie"
        return "better" if self.mean > 0 else "worse"

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ± {self.standard_error:.4f}"


def paired_difference(found: TargetRanks, reference: TargetRanks, k: int = 10) -> Difference:
    """recall@k of `found` minus that of `reference`, the same users in the same order."""
    differences = (found <= k).astype(np.float64) - (reference <= k)
    return Difference(
        float(differences.mean()), float(differences.std() / math.sqrt(len(differences)))
    )


def paired_share(
    found: TargetRanks, reference: TargetRanks, k: int = 10
) -> tuple[float, float] | None:
    """recall@k of `found` as a share of that of `reference`, and its standard error.

    The same users in the same order; the error is that of the ratio of two paired means, to first
    order. None when the reference finds nothing.
    """
    hits, of_reference = found <= k, reference <= k
    whole = float(of_reference.mean())
    if not whole:
        return None
    share = float(hits.mean()) / whole
    spread = (hits - share * of_reference).std()
    return share, float(spread / whole / math.sqrt(len(hits)))


def standard_error(found: TargetRanks, k: int = 10) -> float:
    """Of recall@k over these users: sqrt(p (1 - p) / n)."""
    recall = recall_at(found, k)
    return math.sqrt(recall * (1 - recall) / len(found))


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left, the others to the right."""
    ruler = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ruler, *lines))
