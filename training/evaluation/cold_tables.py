"""Tables of new items: users whose target is one of them, and what all others lose.

Figures are made once, as JSON, and shown as Markdown, in a bundle's report and in comparisons.
Knows ranks, not how they came about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.evaluation.evaluation import SHORT, ndcg_at, recall_at
from training.evaluation.figures import (
    markdown_table,
    paired_difference,
    paired_share,
    standard_error,
)
from training.evaluation.ranks_store import SystemRanks

FAR = 100  # items, of the second request of a user whose target is new
BY_CONTENT = "text kNN"
NONE = "-"  # a figure that does not exist


@dataclass(frozen=True, eq=False)
class Measured:
    """A system, asked by all test users.

    new:    of the users whose target is new: `item` of requests for SHORT items, `far` for FAR
    others: of all other users, `item` only; None if it was not measured, or there are none
    """

    system: str
    new: SystemRanks
    others: SystemRanks | None = None


def cold_figures(systems: Sequence[Measured]) -> dict[str, Any]:
    """Recall and its errors, of the users of new items and of all others.

    systems: first the one that was trained with all items, which the others are held against
    """
    trained = systems[0]
    by_content = next((one.new for one in systems if one.system == BY_CONTENT), None)
    of_new, of_others = [], []
    for one in systems:
        assert one.new.far is not None
        line: dict[str, Any] = {
            "system": one.system,
            "users": len(one.new.item),
            "recall@10": round(recall_at(one.new.item, SHORT), 5),
            "recall@10_error": round(standard_error(one.new.item, SHORT), 5),
            "recall@100": round(recall_at(one.new.far, FAR), 5),
            "ndcg@10": round(ndcg_at(one.new.item, SHORT), 5),
        }
        share = paired_share(one.new.item, trained.new.item, SHORT)
        line["share"], line["share_error"] = (share and round(share[i], 4) for i in (0, 1))
        if by_content is not None and by_content is not one.new:
            found = paired_difference(one.new.item, by_content.item, SHORT)
            line["to_text_knn"] = round(found.mean, 5)
            line["to_text_knn_error"] = round(found.standard_error, 5)
            line["verdict"] = found.verdict
        of_new.append(line)
        if one.others and trained.others and one is not trained:
            before, after = trained.others.item, one.others.item
            found = paired_difference(after, before, SHORT)
            of_others.append(
                {
                    "system": one.system,
                    "users": len(before),
                    "before": round(recall_at(before, SHORT), 5),
                    "after": round(recall_at(after, SHORT), 5),
                    "change": round(found.mean, 5),
                    "change_error": round(found.standard_error, 5),
                    "verdict": found.verdict,
                }
            )
    return {"systems": of_new, "others": of_others}


def cold_markdown(found: dict[str, Any]) -> str:
    """Two tables of `cold_figures`: users whose target is new, and all others."""
    header = ["users whose target is new", "users", "recall@10", "recall@100", "ndcg@10"]
    header += ["share of trained recall@10", "difference to text kNN, recall@10", "verdict"]
    lines = []
    for one in found["systems"]:
        line = [one["system"], f"{one['users']:,}"]
        line.append(f"{one['recall@10']:.4f} ± {one['recall@10_error']:.4f}")
        line += [f"{one['recall@100']:.4f}", f"{one['ndcg@10']:.4f}"]
        share = one["share"]
        line.append(NONE if share is None else f"{share:.2f} ± {one['share_error']:.2f}")
        if "verdict" in one:
            line.append(f"{one['to_text_knn']:+.4f} ± {one['to_text_knn_error']:.4f}")
            lines.append([*line, one["verdict"]])
        else:
            lines.append([*line, NONE, NONE])
    tables = [markdown_table(header, lines)]
    if found["others"]:
        header = ["all other users", "users", "recall@10 as trained", "recall@10", "change"]
        header += ["in percent", "verdict"]
        lines = []
        for one in found["others"]:
            before, change, error = one["before"], one["change"], one["change_error"]
            line = [one["system"], f"{one['users']:,}", f"{before:.4f}", f"{one['after']:.4f}"]
            line.append(f"{change:+.4f} ± {error:.4f}")
            percent = (
                f"{100 * change / before:+.1f} ± {100 * error / before:.1f} %" if before else NONE
            )
            lines.append([*line, percent, one["verdict"]])
        tables.append(markdown_table(header, lines))
    return "\n\n".join(tables)
