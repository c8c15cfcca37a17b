"""Systems side by side on the same users: Unmask, its ablations, and the baselines.

Reading order: `comparison` (which tables), `ranked_systems` (every system, fitted and ranked),
`mdgr_tables` (the paper's settings and ablations), `table`, `plot`, `document`.
"""

from training.comparison.comparison import MAIN_TABLES, Plan, compare
from training.comparison.document import Origin

__all__ = [
    "MAIN_TABLES",
    "Origin",
    "Plan",
    "compare",
]
