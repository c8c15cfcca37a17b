"""How good a bundle is: ranks of held-out items through the decoder that serves.

Reading order: `evaluation` (ranks and metrics), `decoding_grid` (chooses the default setting),
`report` (the document), `ranks_store` (ranks of many systems on disk). Does not know how a bundle
was trained.
"""

from training.evaluation.decoding_grid import Grid, measure_grid
from training.evaluation.evaluation import (
    CUTOFFS,
    LONG,
    NOT_FOUND,
    SHORT,
    AsServed,
    draw_windows,
    ndcg_at,
    ranks,
    ranks_as_served,
    ranks_at,
    recall_at,
    requests_of,
    setting_name,
    targets_seen,
)
from training.evaluation.ranks_store import (
    NO_VALIDATION,
    RanksStore,
    SystemRanks,
    TargetRanks,
)
from training.evaluation.report import check_data, evaluate_bundle

__all__ = [
    "CUTOFFS",
    "LONG",
    "NOT_FOUND",
    "NO_VALIDATION",
    "SHORT",
    "AsServed",
    "Grid",
    "RanksStore",
    "SystemRanks",
    "TargetRanks",
    "check_data",
    "draw_windows",
    "evaluate_bundle",
    "measure_grid",
    "ndcg_at",
    "ranks",
    "ranks_as_served",
    "ranks_at",
    "recall_at",
    "requests_of",
    "setting_name",
    "targets_seen",
]
