"""How good a bundle is: ranks of held-out items through the decoder that serves.

Reading order: `evaluation` (ranks and metrics), `figures` (differences and their errors),
`decoding_grid` (chooses the default setting), `cold_items` (what becomes of items that are added)
with `cold_tables`, `several_items` (the next items together), `independence` (what filling several
positions a call costs), `report` (the document), `ranks_store` (ranks of many systems on disk),
`all_users` with `answers_file` (what a bundle recommends to everybody). Does not know how a bundle
was trained.
"""

from training.evaluation.all_users import Asked, recommend_all
from training.evaluation.answers_file import recommend_to_file
from training.evaluation.cold_items import AS_TRAINED, KEPT_OUT, PUT_BACK, ColdItems
from training.evaluation.cold_tables import Measured, cold_figures, cold_markdown
from training.evaluation.decoding_grid import (
    Grid,
    fewest_calls,
    measure_grid,
    milliseconds_by_turns,
)
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
from training.evaluation.figures import (
    Difference,
    markdown_table,
    paired_difference,
    standard_error,
)
from training.evaluation.independence import (
    independence_markdown,
    measure_independence,
    report_independence,
)
from training.evaluation.ranks_store import RanksStore, SystemRanks, TargetRanks
from training.evaluation.report import check_data, evaluate_bundle
from training.evaluation.several_items import (
    check_horizon,
    held_out_sequences,
    one_after_another,
    sequence_ranks,
)

__all__ = [
    "AS_TRAINED",
    "CUTOFFS",
    "KEPT_OUT",
    "LONG",
    "NOT_FOUND",
    "PUT_BACK",
    "SHORT",
    "AsServed",
    "Asked",
    "ColdItems",
    "Difference",
    "Grid",
    "Measured",
    "RanksStore",
    "SystemRanks",
    "TargetRanks",
    "check_data",
    "check_horizon",
    "cold_figures",
    "cold_markdown",
    "draw_windows",
    "evaluate_bundle",
    "fewest_calls",
    "held_out_sequences",
    "independence_markdown",
    "markdown_table",
    "measure_grid",
    "measure_independence",
    "milliseconds_by_turns",
    "ndcg_at",
    "one_after_another",
    "paired_difference",
    "ranks",
    "ranks_as_served",
    "ranks_at",
    "recall_at",
    "recommend_all",
    "recommend_to_file",
    "report_independence",
    "requests_of",
    "sequence_ranks",
    "setting_name",
    "standard_error",
    "targets_seen",
]
