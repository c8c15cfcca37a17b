"""Systems side by side on the same users: Unmask, its ablations, the baselines, a user's models.

Reading order: `comparison` (which tables), `ranked_systems` (every system, ranked), `finished_run`
(Unmask), `rivals` (the other models, fitted), `given_systems` (a user's models), `paper_tables`
(the paper's settings and ablations), `families` (rows of other presets, and the papers' claims),
`refit_table` (what it is worth to know more), `new_items` (a run without some items), `table`,
`plot`, `document`.
"""

from training.comparison.comparison import Plan, compare
from training.comparison.document import Origin

__all__ = ["Origin", "Plan", "compare"]
